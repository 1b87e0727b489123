# SPDX-License-Identifier: BSD-3-Clause
"""Era targets handed to and fro between a running Linux kernel and us: eras that one recorded go on under
the other. SPDK_DM_INTEROP_SEEDS says how many random relays are run (1)."""

import os
import random
import shutil

import pytest

from harness import RpcError
from harness.era import BLOCK, ONLY_WRITES, blocks_in, era_check, era_invalidate, snapshot_since, written_since
from harness.load import Ledger, Load
from harness.pool import aio, host_of
from kernel import number_of
from kernel.era import FUNCTIONS, KernelEra

MIB = 1 << 20
SIZE = 64 * MIB
SEEDS = int(os.environ.get('SPDK_DM_INTEROP_SEEDS', '1'))


@pytest.fixture
def files(lab):
    return lab.file('meta', 4), lab.file('origin', SIZE // MIB)


class OurEra:
    """The era target on two files, served by a target of ours over NVMe/TCP."""

    def __init__(self, lab, files, **params):
        self.lab = lab
        self.target = lab.target()
        self.rpc = self.target.rpc
        for name, path in zip(('meta', 'origin'), files):
            aio(self.target, name, path)
        self.rpc.call('era_create', name='era', metadata_bdev='meta', origin_bdev='origin', **params)
        self.host = host_of(lab, self.target, 'era')

    @property
    def era(self):
        return self.rpc.call('era_status', name='era')['current_era']

    def write(self, offset, content):
        file = self.lab.folder / 'content'
        file.write_bytes(content)
        self.host.run('write', str(file), '--offset', str(offset))

    def close(self):
        self.rpc.call('era_delete', name='era')
        self.target.stop()


class Model:
    """Which blocks were written in which era, and what the origin holds."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.held = bytearray(SIZE)
        self.eras = {}
        self.era = 0
        self.snap = False

    def next_era(self):
        self.era += 1
        self.eras[self.era] = set()

    def since(self, era):
        return set().union(*(blocks for number, blocks in self.eras.items() if number >= era))

    def write(self):
        length = self.dice.choice([4096, 4096, BLOCK, 3 * BLOCK + 8192, MIB])
        offset = self.dice.randrange(0, SIZE - length, 4096)
        content = self.dice.randbytes(length)
        self.held[offset:offset + length] = content
        self.eras[self.era] |= set(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
        return offset, content

    def message(self):
        message = self.dice.choice(['checkpoint', 'take_metadata_snap'])
        if message != 'checkpoint':
            if self.snap:
                message = 'drop_metadata_snap'
            self.snap = not self.snap
        if message != 'drop_metadata_snap':
            self.next_era()
        return message

    def by_kernel(self, kernel, changes):
        self.next_era()
        lines, files = [], {}
        for step in range(changes):
            if self.dice.random() < 0.7:
                offset, files[f'content{step}'] = self.write()
                lines.append(f'write {offset} /host/content{step}')
            else:
                lines.append(f'message {self.message()}')
        values = kernel.run('\n'.join([*lines, 'show']), files=files).values()
        assert values['status'].split()[5] == str(self.era)

    def by_us(self, ours, changes):
        self.next_era()
        assert ours.era == self.era
        for _ in range(changes):
            if self.dice.random() < 0.7:
                ours.write(*self.write())
            else:
                ours.rpc.call('dm_message', name='era', message=self.message())
        assert ours.era == self.era

    def check(self, files):
        """The tools of both generations find exactly the model's blocks, and the origin holds its bytes."""
        era_check(files[0])
        for era in range(1, self.era + 2):
            assert era_invalidate(files[0], era) == self.since(era), f'since {era}'
        assert files[1].read_bytes() == self.held


@pytest.mark.parametrize('begins', ['us', 'kernel'])
@pytest.mark.parametrize('seed', range(SEEDS))
def test_relay(lab, files, seed, begins):
    """Random writes, checkpoints and metadata snapshots, by the kernel and us in turn on one target: the
    eras of one go on under the other, and after each turn the tools list exactly the blocks written."""
    model = Model(f'era relay {seed} {begins}')
    kernel = KernelEra(*files)
    for turn in range(4 if SEEDS > 1 else 3):
        if (turn % 2 == 0) == (begins == 'us'):
            ours = OurEra(lab, files)
            model.by_us(ours, 10)
            ours.close()
        else:
            model.by_kernel(kernel, 40)
        model.check(files)


def test_metadata_snapshots(lab, files):
    """We read and drop the metadata snapshot that the kernel has taken, and the kernel drops ours."""
    kernel = KernelEra(*files)
    content = os.urandom(4096)
    kernel.run(f'write {5 * BLOCK} /host/content; message checkpoint; write {9 * BLOCK} /host/content\n'
               f'message take_metadata_snap; write {20 * BLOCK} /host/content', files={'content': content})
    assert era_invalidate(files[0], 1, snapshot=True) == {5, 9}
    ours = OurEra(lab, files)
    assert blocks_in(written_since(ours.rpc, 1)) == {5, 9}
    assert blocks_in(written_since(ours.rpc, 2)) == {9}
    ours.rpc.call('era_drop_metadata_snap', name='era')
    assert snapshot_since(ours.rpc, 2) == {9, 20}
    ours.write(30 * BLOCK, content)
    taken = ours.rpc.call('era_take_metadata_snap', name='era')
    ours.close()
    assert era_invalidate(files[0], 1, snapshot=True) == {5, 9, 20, 30}
    values = kernel.run('show; message drop_metadata_snap; echo "then=$(dmsetup status era)"').values()
    assert values['status'].split()[6] == str(taken['metadata_snap'])
    assert values['then'].split()[6] == '-'
    era_check(files[0])


def test_lines(lab, files):
    """The same is done to an era target of the kernel's and one of ours: after each step the status and table
    lines are the same, but for how much of the metadata is used, and where a snapshot is."""
    steps = ['true', f'write {5 * BLOCK} /host/content', 'message checkpoint', 'message take_metadata_snap',
             f'write {7 * BLOCK} /host/content', 'message drop_metadata_snap', 'message CheckPoint']
    kernel = KernelEra(*files).run('\n'.join(f'{step}\nshow\necho end' for step in steps),
                                   files={'content': os.urandom(4096)})
    kernels = [dict(line.split('=', 1) for line in part.splitlines()) for part in kernel.output.split('end\n')]
    ours = OurEra(lab, (lab.file('meta.ours', 4), lab.file('origin.ours', SIZE // MIB)))

    def fields(status, table):
        status, table = status.split(' '), table.split(' ')
        used, status[4] = status[4].split('/')
        assert int(used) < int(status[4])
        status[6] = 'held' if status[6].isdigit() else status[6]
        return status, [{'98:0': 'meta', '98:16': 'origin'}.get(word, word) for word in table]

    for number, (step, values) in enumerate(zip(steps, kernels)):
        what, *words = step.split()
        if what == 'write':
            ours.write(int(words[0]), os.urandom(4096))
        elif what == 'message':
            ours.rpc.call('dm_message', name='era', message=words[0])
        table = ours.rpc.call('dm_table', name='era')
        status = f'{table[:table.index("era")]}era {ours.rpc.call("dm_status", name="era")["line"]}'
        if number == 0:
            assert status == values['status']
        assert fields(status, table) == fields(values['status'], values['table']), step
    ours.close()
    era_check(lab.folder / 'meta.ours')


MESSAGES = ['checkpoint', 'CHECKPOINT', 'checkpoint 1', 'drop_metadata_snap', 'take_metadata_snap', 'take_metadata_snap',
            'take_metadata_snap 1', 'drop_metadata_snap 1', 'Drop_Metadata_Snap', 'nonsense', 'check point']
TABLES = ['META ORIGIN 128', 'META ORIGIN', 'META ORIGIN 128 1', 'META ORIGIN 128x', 'META ORIGIN 0', 'META ORIGIN 4',
          'META ORIGIN 12', 'META ORIGIN 64', 'META ORIGIN -8', 'ORIGIN META 128', 'META ORIGIN 136']


def test_messages_and_tables(lab, files):
    """Every message, and every table for a target of blocks of 128 sectors, is answered as by the kernel."""
    kernel = KernelEra(*files)
    kernel.run('')
    copies = [lab.folder / f'{file.name}.ours' for file in files]
    for file, copy in zip(files, copies):
        # For the table in which they are exchanged: neither is zeroes, nor metadata by chance.
        if file.name == 'origin':
            with open(file, 'r+b') as origin:
                origin.write(os.urandom(4096))
        shutil.copy(file, copy)
    lines = [FUNCTIONS, 'era_open'] + [f'echo "{text}=$(message {text} 2>&1 || true)"' for text in MESSAGES]
    lines.append('era_close')
    for table in TABLES:
        words = table.replace('META', '/dev/ubda').replace('ORIGIN', '/dev/ubdb')
        lines += [f'echo "{table}=$(dmsetup create e --noudevsync --table "0 8192 era {words}" 2>&1 || true)"',
                  'dmsetup remove --noudevsync e 2>/dev/null || true']
    output = kernel.kernel.run('\n'.join(lines)).output
    answers = [line.split('=', 1) for line in output.splitlines() if line.split('=', 1)[0] in MESSAGES + TABLES]
    assert [text for text, _ in answers] == MESSAGES + TABLES, output

    ours = OurEra(lab, copies)
    found = []

    def answer(text, method, **params):
        try:
            ours.rpc.call(method, **params)
            found.append((text, 0))
        except RpcError as error:
            found.append((text, -error.code))

    for text in MESSAGES:
        answer(text, 'dm_message', name='era', message=text)
    ours.rpc.call('era_delete', name='era')
    for table in TABLES:
        answer(table, 'dm_create', name='e', table='0 8192 era ' + table.replace('META', 'meta').replace('ORIGIN', 'origin'))
        if found[-1][1] == 0:
            ours.rpc.call('dm_remove', name='e')
    ours.target.stop()
    assert found == [(text, number_of(words)) for text, words in answers]


def test_other_sizes(lab, files):
    """A longer and a shorter table by either side: the other goes on with what is left."""
    kernel, content = KernelEra(*files), os.urandom(4096)
    kernel.run(f'write {100 * BLOCK} /host/content; write {1000 * BLOCK} /host/content', files={'content': content})
    os.truncate(files[1], 2 * SIZE)
    ours = OurEra(lab, files)
    assert ours.rpc.call('era_status', name='era')['nr_blocks'] == 2048
    ours.write(2000 * BLOCK, content)
    ours.close()
    assert era_invalidate(files[0], 1) == {100, 1000, 2000}
    kernel.run(f'write {2 * BLOCK} /host/content', sectors=SIZE // 1024, files={'content': content})
    era_check(files[0])
    ours = OurEra(lab, files)
    assert ours.era == 4
    ours.rpc.call('era_delete', name='era')
    ours.rpc.call('dm_create', name='era', table=f'0 {SIZE // 2048} era meta origin 128')
    ours.rpc.call('era_delete', name='era')
    ours.target.stop()
    era_check(files[0])
    values = kernel.run('show').values()
    assert values['status'].split()[5] == '6'
    assert {2, 100} <= era_invalidate(files[0], 1) <= {2, 100, 1000, 2000}
    era_check(files[0])


def test_we_are_killed(lab, files):
    """kill -9 of our target under a write load: the kernel opens the metadata, and misses no block that was
    written since any checkpoint; then we go on with what it left."""
    state = lab.folder / 'state'
    kernel, eras = KernelEra(*files), {}
    for number in range(SEEDS + 1):
        ours = OurEra(lab, files)
        if number > 0:
            ours.host.run('verify', str(state))
        load = Load(ours.host, state, '--seed', str(number), '--slots', '128', '--flush-every', '8', *ONLY_WRITES)
        for durable in (100, 300):
            load.wait_durable(durable)
            era = ours.rpc.call('era_checkpoint', name='era')['era']
            eras[era] = Ledger(state, SIZE).issued
        load.wait_durable(400)
        ours.target.process.kill()
        load.kill()
        era_check(files[0])
        kernel.run('message checkpoint')
        era_check(files[0])
        for era, issued in eras.items():
            written = Ledger(state, SIZE).written_after(issued)
            assert written and not written - era_invalidate(files[0], era), era


def test_the_kernel_is_killed(lab, files):
    """The kernel's machine is killed while it writes, flushes and begins eras: we open what it leaves, and
    miss no block that it had flushed."""
    content = random.Random('killed').randbytes(8 * MIB)
    kernel, dice = KernelEra(*files), random.Random('killed kernel')
    for _ in range(SEEDS):
        script = kernel.script('''
            i=0
            while [ $i -lt 128 ]; do
                dd if=/host/content of=/dev/mapper/era bs=64k count=1 skip=$i seek=$((i * 7)) conv=notrunc,fsync status=none
                [ $((i % 8)) != 7 ] || message checkpoint
                echo "$i $(dmsetup status era | cut -d ' ' -f 6)" >/tmp/flushed
                dd if=/tmp/flushed of=/host/flushed.new conv=fsync status=none
                mv /host/flushed.new /host/flushed
                i=$((i + 1))
            done''')
        enough = dice.randrange(20, 60)
        left = kernel.kernel.crash(script, lambda folder: (folder / 'flushed').exists() and
                                   int((folder / 'flushed').read_text().split()[0] or 0) >= enough,
                                   files={'content': content})
        last, era = map(int, left['flushed'].split())
        era_check(files[0])
        ours = OurEra(lab, files)
        assert ours.era > era
        begun = ours.era - 1 - (last + 1) // 8
        missing = {i * 7 for i in range(last + 1)} - snapshot_since(ours.rpc, max(begun, 1))
        assert not missing
        ours.close()
        era_check(files[0])
