# SPDX-License-Identifier: BSD-3-Clause
"""Thin pools handed to and fro between a running Linux kernel and us: each reads what the other wrote,
to the byte, and goes on with it. SPDK_DM_INTEROP_SEEDS says how many random relays are run (1)."""

import errno
import hashlib
import os
import random
from pathlib import Path

import pytest

from harness import HostIO, RpcError, free_port, thin_check
from harness.load import Load
from harness.target import export, host_config
from kernel import KernelError
from kernel.stamps import check_stamps
from kernel.thin import KernelPool

MIB = 1 << 20
BLOCK = 65536
SEEDS = int(os.environ.get('SPDK_DM_INTEROP_SEEDS', '1'))


def sha256(content) -> str:
    return hashlib.sha256(content).hexdigest()


class OurPool:
    """The pool on two files, served by a target of ours over NVMe/TCP."""

    def __init__(self, lab, meta: Path, data: Path, **params):
        self.lab = lab
        self.target = lab.target()
        self.rpc = self.target.rpc
        for name, path in (('meta', meta), ('data', data)):
            self.rpc.call('bdev_aio_create', name=name, filename=str(path), block_size=512)
        self.rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data', **params)
        self._hosts = {}
        self._opened = 0

    def open(self, number: int, size: int, create: bool = False) -> None:
        self.rpc.call('thin_activate', pool='pool', id=number, bdev_name=f't{number}',
                      size_sectors=size // 512, create=create)
        # An id may be used again after its device was deleted; a subsystem's name may not.
        port, subsystem = free_port(), f't{number}.{self._opened}'
        self._opened += 1
        export(self.target.process, subsystem, [f't{number}'], port)
        self._hosts[number] = HostIO(self.lab.folder, host_config(
            self.lab.folder / f'{subsystem}.json', 'remote', port, subsystem), 'remoten1', core_mask='0x1')

    def host(self, number: int) -> HostIO:
        return self._hosts[number]

    def read(self, number: int, size: int) -> bytes:
        back = self.lab.folder / 'back'
        self.host(number).run('read', str(back), '--length', str(size))
        return back.read_bytes()

    def write(self, number: int, offset: int, content: bytes) -> None:
        file = self.lab.folder / 'content'
        file.write_bytes(content)
        self.host(number).run('write', str(file), '--offset', str(offset))

    def discard(self, number: int, offset: int, length: int) -> None:
        self.host(number).run('clear', 'unmap', '--offset', str(offset), '--length', str(length))

    def snapshot(self, number: int, origin: int) -> None:
        self.rpc.call('thin_snapshot', pool='pool', id=number, origin_id=origin)

    def close(self) -> None:
        self.target.stop()


class Model:
    """What each thin device holds, and how to do a change to it on either side."""

    def __init__(self, size: int, seed):
        self.size = size
        self.dice = random.Random(seed)
        self.devices = {}

    def create(self, number: int) -> None:
        self.devices[number] = bytearray(self.size)

    def change(self):
        """One random change, done to the model: (what, arguments)."""
        dice = self.dice
        number = dice.choice(sorted(self.devices))
        held = self.devices[number]
        kind = dice.choice(['write', 'write', 'write', 'discard', 'snapshot', 'delete'])
        if kind == 'delete' and len(self.devices) > 2:
            del self.devices[number]
            return 'delete', (number,)
        if kind == 'snapshot' and len(self.devices) < 4:
            new = next(i for i in range(1, 100) if i not in self.devices)
            self.devices[new] = bytearray(held)
            return 'snapshot', (new, number)
        # Near the beginning, so that changes meet each other.
        offset = dice.randrange(0, self.size // 4, 4096)
        if kind == 'discard':
            length = dice.randrange(4096, 2 * MIB, 4096)
            first, last = -(-offset // BLOCK), (offset + length) // BLOCK
            if first < last:
                held[first * BLOCK:last * BLOCK] = bytes((last - first) * BLOCK)
            return 'discard', (number, offset, length)
        content = dice.randbytes(dice.choice([4096, 12288, BLOCK, 3 * BLOCK + 8192, MIB]))
        held[offset:offset + len(content)] = content
        return 'write', (number, offset, content)

    def by_kernel(self, pool: KernelPool, changes: int):
        """The kernel does changes, after which it holds what the model does."""
        open_before = dict.fromkeys(self.devices, self.size // 512)
        # Devices are read before any change, too: what we left.
        lines = [f'sum {number}' for number in self.devices] + ['echo then']
        expected = {f'sum{n}': sha256(held) for n, held in self.devices.items()}
        files = {}
        for step in range(changes):
            what, arguments = self.change()
            if what == 'write':
                files[f'content{step}'] = arguments[2]
                lines.append(f'write {arguments[0]} {arguments[1]} /host/content{step}')
            elif what == 'discard':
                lines.append(f'discard {" ".join(map(str, arguments))}')
            elif what == 'snapshot':
                lines += [f'snapshot {arguments[0]} {arguments[1]}', f'thin_open {arguments[0]} {self.size // 512}']
            else:
                lines += [f'thin_close {arguments[0]}', f'message delete {arguments[0]}']
        lines += [f'sum {number}' for number in self.devices]
        outcome = pool.run('\n'.join(lines), open_before, files=files)
        before, after = outcome.output.split('then\n')
        assert dict(line.split('=') for line in before.splitlines()) == expected, 'what we left'
        expected = {f'sum{n}': sha256(held) for n, held in self.devices.items()}
        assert dict(line.split('=') for line in after.splitlines()) == expected, 'what the kernel did'

    def by_us(self, pool: OurPool, changes: int):
        for number in self.devices:
            pool.open(number, self.size)
            assert pool.read(number, self.size) == self.devices[number], 'what the kernel left'
        for _ in range(changes):
            what, arguments = self.change()
            if what == 'delete':
                pool.rpc.call('thin_deactivate', bdev_name=f't{arguments[0]}')
                pool.rpc.call('thin_delete', pool='pool', id=arguments[0])
            else:
                getattr(pool, what)(*arguments)
                if what == 'snapshot':
                    pool.open(arguments[0], self.size)
        for number, held in self.devices.items():
            assert pool.read(number, self.size) == held, 'what we did'


@pytest.fixture
def files(lab):
    return lab.file('meta', 16), lab.file('data', 96)


def test_the_kernel_begins(lab, files):
    """A pool, a file system, a snapshot and data made by the kernel: we read the same bytes and change
    some; the kernel reads those, and its file system is whole."""
    size, half = 64 * MIB, 32 * MIB
    pool = KernelPool(*files)
    content, more = random.Random('content').randbytes(3 * MIB), random.Random('more').randbytes(MIB)
    made = pool.run(f'''
        mkfs.ext4 -q -F /dev/mapper/t1 {half // 1024}k
        mkdir /mnt/a
        mount /dev/mapper/t1 /mnt/a
        cp /host/content /mnt/a/one
        cp /host/content /mnt/a/two
        umount /mnt/a
        write 1 {half + 12288} /host/content
        snapshot 2 1
        thin_open 2 {size // 512}
        mount /dev/mapper/t1 /mnt/a
        dd if=/host/more of=/mnt/a/one bs=4096 seek=100 conv=notrunc status=none
        rm /mnt/a/two
        mkdir /mnt/a/folder
        cp /host/more /mnt/a/folder/three
        umount /mnt/a
        write 1 {half + 2 * MIB} /host/more
        sum 1
        sum 2
        ''', {1: size // 512}, before='message create_thin 1', files={'content': content, 'more': more})
    sums = made.values()
    thin_check(files[0])

    ours = OurPool(lab, *files)
    held = {}
    for number in (1, 2):
        ours.open(number, size)
        held[number] = bytearray(ours.read(number, size))
        assert sha256(held[number]) == sums[f'sum{number}'], f'thin device {number}'
    assert held[2][half + 12288:half + 12288 + len(content)] == content
    # Device 1 keeps its file system in the first half; the rest is for us.
    new = random.Random('new').randbytes(5 * BLOCK + 4096)
    for number, offset in ((1, half + MIB + 4096), (1, half + 20 * MIB), (2, 8192)):
        ours.write(number, offset, new)
        held[number][offset:offset + len(new)] = new
    ours.snapshot(3, 1)
    held[3] = bytearray(held[1])
    ours.open(3, size)
    ours.write(3, half + MIB + BLOCK, new)
    held[3][half + MIB + BLOCK:half + MIB + BLOCK + len(new)] = new
    ours.discard(1, half + 2 * MIB, 4 * BLOCK)
    held[1][half + 2 * MIB:half + 2 * MIB + 4 * BLOCK] = bytes(4 * BLOCK)
    ours.close()
    thin_check(files[0])

    again = pool.run('''
        sum 1; sum 2; sum 3
        e2fsck -fn /dev/mapper/t1 >&2
        mkdir /mnt/a
        for device in 1 3; do
            mount -o ro,noload /dev/mapper/t$device /mnt/a
            echo "one$device=$(sha256sum </mnt/a/one | cut -d ' ' -f 1)"
            echo "three$device=$(sha256sum </mnt/a/folder/three | cut -d ' ' -f 1)"
            umount /mnt/a
        done
        ''', {1: size // 512, 2: size // 512, 3: size // 512}).values()
    one = content[:409600] + more + content[409600 + len(more):]
    for number, bytes_held in held.items():
        assert again[f'sum{number}'] == sha256(bytes_held), f'thin device {number}'
    for number in (1, 3):
        assert again[f'one{number}'] == sha256(one) and again[f'three{number}'] == sha256(more)
    thin_check(files[0])


# In the short form the kernel begins only in the test above.
@pytest.mark.parametrize('begins', ['us', 'kernel'] if SEEDS > 1 else ['us'])
@pytest.mark.parametrize('seed', range(SEEDS))
def test_relay(lab, files, seed, begins):
    """Random writes, discards, snapshots and deletions, by the kernel and us in turn on one pool: each
    finds what the other left, and both checks accept the metadata after each turn."""
    model = Model(32 * MIB, f'relay {seed} {begins}')
    pool = KernelPool(*files)
    if begins == 'kernel':
        pool.run('', {}, before='message create_thin 1; message create_thin 2')
        model.create(1)
        model.create(2)
    for turn in range(4 if SEEDS > 1 else 3):
        if (turn % 2 == 0) == (begins == 'us'):
            ours = OurPool(lab, *files)
            if turn == 0:
                for number in (1, 2):
                    ours.rpc.call('thin_create', pool='pool', id=number)
                    model.create(number)
            model.by_us(ours, 8 if SEEDS > 1 else 4)
            ours.close()
        else:
            model.by_kernel(pool, 40)
        thin_check(files[0])


def test_many_snapshots(lab, files):
    """Blocks of metadata and data shared more often than a bitmap can count (three times): made by the
    kernel, some deleted and others made by us; the kernel reads all, and deletes all to the last block."""
    size, dice = 4 * MIB, random.Random('snapshots')
    pool = KernelPool(*files)
    content = dice.randbytes(MIB)
    lines, now, held = [], bytearray(size), {}

    def some_write():
        offset, begin = dice.randrange(0, size - BLOCK, 4096), dice.randrange(0, MIB // 2, 4096)
        now[offset:offset + BLOCK // 2] = content[begin:begin + BLOCK // 2]
        return offset, begin

    for number in range(2, 32):
        offset, begin = some_write()
        lines += [f'dd if=/host/content of=/tmp/piece bs=4096 skip={begin // 4096} count=8 status=none',
                  f'write 1 {offset} /tmp/piece', f'snapshot {number} 1']
        held[number] = bytes(now)
    pool.run('\n'.join(lines), {1: size // 512}, before='message create_thin 1', files={'content': content})
    thin_check(files[0])

    ours = OurPool(lab, *files)
    ours.open(1, size)
    assert ours.read(1, size) == now
    for number in range(32, 38, 2):
        offset, begin = some_write()
        ours.write(1, offset, content[begin:begin + BLOCK // 2])
        ours.snapshot(number, 1)
        held[number] = bytes(now)
        origin = dice.choice(sorted(held))
        ours.snapshot(number + 1, origin)
        held[number + 1] = held[origin]
    for number in dice.sample(range(2, 38), 20):
        ours.rpc.call('thin_delete', pool='pool', id=number)
        del held[number]
    ours.close()
    thin_check(files[0])

    held[1] = bytes(now)
    lines = []
    for number in sorted(held):
        lines += [f'thin_open {number} {size // 512}', f'sum {number}', f'thin_close {number}']
    lines += ['echo "used=$(dmsetup status pool)"']
    lines += [f'message delete {number}' for number in held] + ['echo "then=$(dmsetup status pool)"']
    values = pool.run('\n'.join(lines), {}).values()
    assert {n: values[f'sum{n}'] for n in held} == {n: sha256(what) for n, what in held.items()}
    assert values['used'].split()[5] != '0/1536' and values['then'].split()[5] == '0/1536'
    thin_check(files[0])


def test_growth(lab, files):
    """Both devices of a pool grow: the kernel's by us at opening, ours by the kernel. Each sees the other's
    size, and both refuse a data device that has shrunk."""
    size, dice = 16 * MIB, random.Random('growth')
    content = dice.randbytes(2 * MIB)
    pool = KernelPool(*files)
    pool.run('write 1 4096 /host/content', {1: size // 512}, before='message create_thin 1',
             files={'content': content})
    for file, megabytes in zip(files, (24, 1536)):
        os.truncate(file, megabytes * MIB)
    ours = OurPool(lab, *files)
    ours.open(1, size)
    ours.write(1, 8 * MIB, content)
    status = ours.rpc.call('dm_status', name='pool')['line'].split()
    assert (status[1].split('/')[1], status[2].split('/')[1]) == ('6144', '24576')
    ours.close()
    thin_check(files[0])
    for file, megabytes in zip(files, (40, 3072)):
        os.truncate(file, megabytes * MIB)
    values = pool.run('sum 1; write 1 12582912 /host/content; sync; show pool', {1: size // 512},
                      files={'content': content}).values()
    held = bytearray(size)
    for offset in (4096, 8 * MIB):
        held[offset:offset + len(content)] = content
    assert values['sum1'] == sha256(held)
    status = values['status_pool'].split()
    assert (status[4].split('/')[1], status[5].split('/')[1]) == ('10240', '49152')
    thin_check(files[0])
    ours = OurPool(lab, *files)
    ours.open(1, size)
    held[12 * MIB:14 * MIB] = content
    assert ours.read(1, size) == held
    assert ours.rpc.call('dm_status', name='pool')['line'].split()[:3] == status[3:6]
    ours.close()
    os.truncate(files[1], 3071 * MIB)
    with pytest.raises(KernelError, match='Invalid argument'):
        pool.run('', {})
    with pytest.raises(RpcError) as refusal:
        OurPool(lab, *files)
    assert refusal.value.code == -errno.EINVAL
    thin_check(files[0])


def test_we_are_killed(lab):
    """kill -9 of our target under a write load: the kernel opens the pool, and every write acknowledged
    before the last completed flush is there; then the next round goes on with what the kernel left."""
    size = 64 * MIB
    meta, data, copy = lab.file('meta', 16), lab.file('data', 512), lab.file('copy', size // MIB)
    state = lab.folder / 'state'
    dice = random.Random('killed')
    pool = KernelPool(meta, data, copy)
    for number in range(SEEDS):
        ours = OurPool(lab, meta, data)
        ours.open(1, size, create=True)
        load = Load(ours.host(1), state, '--seed', str(number), '--slots', '256', '--flush-every', '8',
                    '--workers', '32')
        load.wait_durable(300)
        # Sharing to be broken under the load, in the second half of it.
        ours.snapshot(number + 2, 1)
        load.wait_durable(dice.randrange(100, 500))
        ours.target.process.kill()
        load.kill()
        thin_check(meta)
        pool.run('dd if=/dev/mapper/t1 of=/dev/ubdc bs=1M conv=fsync status=none\n'
                 'dd if=/host/noise of=/dev/mapper/t2 bs=64k conv=notrunc,fsync status=none',
                 {1: size // 512, 2: size // 512},
                 files={'noise': dice.randbytes(MIB)})
        assert check_stamps(copy, size, state) > 0
        thin_check(meta)


def test_the_kernel_is_killed(lab, files):
    """The kernel's machine is killed while it writes, flushes and takes snapshots: both checks accept what
    it leaves, we open it, and have what it had flushed."""
    size = 64 * MIB
    dice = random.Random('killed kernel')
    content = dice.randbytes(16 * MIB)
    pool = KernelPool(*files)
    for number in range(SEEDS):
        first = number == 0
        script = pool.script(f'''
            while :; do dd if=/host/content of=/dev/mapper/t2 bs=64k conv=notrunc status=none; done &
            i=0
            while [ $i -lt 256 ]; do
                dd if=/host/content of=/dev/mapper/t1 bs=64k count=1 skip=$i seek=$i conv=notrunc,fsync status=none
                echo $i >/tmp/flushed
                dd if=/tmp/flushed of=/host/flushed.new conv=fsync status=none
                mv /host/flushed.new /host/flushed
                i=$((i + 1))
                if [ $((i % 8)) = 0 ]; then
                    [ $i = 8 ] || message delete 3
                    snapshot 3 2
                fi
            done
            ''', {1: size // 512, 2: size // 512}, before='message create_thin 1; message create_thin 2' if first
            else 'message delete 3 2>/dev/null || true; message delete 1; message create_thin 1')
        enough = dice.randrange(10, 60)
        left = pool.kernel.crash(script, lambda folder: (folder / 'flushed').exists() and
                                 int((folder / 'flushed').read_text() or 0) >= enough, files={'content': content})
        flushed = (int(left['flushed']) + 1) * BLOCK
        thin_check(files[0])
        ours = OurPool(lab, *files)
        ours.open(1, size)
        assert ours.read(1, flushed) == content[:flushed]
        ours.write(1, flushed, content[:3 * BLOCK])
        assert ours.read(1, flushed + 3 * BLOCK) == content[:flushed] + content[:3 * BLOCK]
        ours.close()
        thin_check(files[0])
