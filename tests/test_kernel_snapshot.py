# SPDX-License-Identifier: BSD-3-Clause
"""COW stores handed to and fro between a running Linux kernel and us: exceptions that one made are the other's,
a merge that one began is finished by the other. SPDK_DM_INTEROP_SEEDS says how many random relays are run (1)."""

import hashlib
import os
import random

import pytest

from harness import RpcError
from harness.pool import wait_for
from harness.snapshot import MIB, Device, Files, content_of, line, read_store
from kernel import Kernel, number_of
from kernel.snapshot import script

SIZE = 32 * MIB
SEEDS = int(os.environ.get('SPDK_DM_INTEROP_SEEDS', '1'))
CHUNK = 8192


@pytest.fixture
def files(lab):
    return Files(lab, SIZE // MIB, (48,))


class Ours:
    """Origin and snapshot on the files, served by a target of ours over NVMe/TCP."""

    def __init__(self, lab, files, name='ours', **params):
        self.target = lab.target(name=name)
        self.rpc = self.target.rpc
        files.bdevs(self.target)
        self.rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
        self.base = Device(lab, self.target, 'base', SIZE)
        if params:
            self.rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='cow0', **params)
            self.snap = Device(lab, self.target, 'snap', SIZE)


class Model:
    """What origin and snapshot show."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.held = {'base': bytearray(self.dice.randbytes(SIZE))}
        self.held['snap'] = bytearray(self.held['base'])

    def write(self):
        device = self.dice.choice(['base', 'base', 'snap'])
        length = self.dice.choice([4096, CHUNK, 3 * CHUNK + 4096, 40 * CHUNK])
        offset = self.dice.randrange(0, SIZE - length, 4096)
        content = self.dice.randbytes(length)
        self.held[device][offset:offset + length] = content
        return device, offset, content

    def sums(self):
        return {device: hashlib.sha256(held).hexdigest() for device, held in self.held.items()}


@pytest.mark.parametrize('begins', ['us', 'kernel'])
@pytest.mark.parametrize('seed', range(SEEDS))
def test_relay(lab, files, seed, begins):
    """Random writes to origin and snapshot, by the kernel and us in turn on one store: each finds what the other
    left, byte for byte, and makes its own exceptions behind."""
    model = Model(f'snapshot relay {seed} {begins}')
    files.origin.write_bytes(model.held['base'])
    chunk = model.dice.choice([8, 16, 128])
    store = model.dice.choice(['P', 'PO'])
    kernel, found = Kernel([files.origin, *files.cows]), []
    for turn in range(4):
        if (turn % 2 == 0) == (begins == 'us'):
            ours = Ours(lab, files, f'ours{turn}', chunk_size_sectors=chunk, store=store)
            for _ in range(8):
                device, offset, content = model.write()
                getattr(ours, device).write(offset, content)
            sums = {device: hashlib.sha256(getattr(ours, device).read()).hexdigest() for device in model.held}
            ours.target.stop()
        else:
            lines, contents = [], {}
            for step in range(30):
                device, offset, contents[f'content{step}'] = model.write()
                lines.append(f'write {device} {offset} /host/content{step}')
            values = kernel.run(script(f'snap_open {store} {chunk}', 'base_open', *lines, 'sum base', 'sum snap',
                                       'close base', 'close snap'), files=contents).values()
            sums = {device: values[f'sum_{device}'] for device in model.held}
        assert sums == model.sums()
        before, found = found, read_store(files.cows[0]).exceptions
        assert found[:len(before)] == before and len(found) > len(before)
        assert files.origin.read_bytes() == model.held['base']
        assert content_of(files.origin, files.cows[0], SIZE) == model.held['snap']


@pytest.mark.parametrize('begins', ['us', 'kernel'])
def test_merge_begun_by_one_and_finished_by_the_other(lab, files, begins):
    """A merge is stopped half-way, and the other goes on: the origin ends with the snapshot's content and what
    was written to it meanwhile, and the store is empty, valid, and taken by both as a new one."""
    dice = random.Random(begins)
    shown = bytearray(dice.randbytes(SIZE))
    files.origin.write_bytes(shown)
    content = dice.randbytes(CHUNK)
    # Scattered, so that there are many batches; over more than one area.
    places = [(number * 2 + number // 700) * CHUNK for number in range(1400)]
    kernel = Kernel([files.origin, *files.cows])
    kernel.run(script('snap_open', 'base_open', 'i=0', 'while [ $i -lt 1400 ]; do',
                      f'dd if=/host/content of=/dev/mapper/base bs={CHUNK} count=1 seek=$((i * 2 + i / 700)) conv=notrunc status=none',
                      'i=$((i + 1))', 'done', 'sync', 'close base', 'close snap'), files={'content': content})
    assert {old * CHUNK for old, _ in read_store(files.cows[0]).exceptions} == set(places)
    assert content_of(files.origin, files.cows[0], SIZE) == shown
    extra = dice.randbytes(CHUNK)
    # To a chunk that is merged last, and to one that has no exception.
    shown[places[3]:places[3] + 4096] = extra[:4096]
    shown[places[3] + CHUNK:places[3] + 2 * CHUNK] = extra

    def written(write):
        write(places[3], extra[:4096])
        write(places[3] + CHUNK, extra)

    if begins == 'us':
        ours = Ours(lab, files)
        ours.rpc.call('snapshot_merge', name='snap', origin='base', cow_bdev='cow0', mib_per_second=1)
        written(ours.base.write)
        assert ours.base.read() == shown
        ours.target.stop()
    else:
        kernel.run(script('merge_open', 'until [ $(dmsetup status base | cut -d " " -f 4 | cut -d / -f 1) -lt 20000 ]; do :; done',
                          f'write base {places[3]} /host/extra0', f'write base {places[3] + CHUNK} /host/extra1', 'close base'),
                   files={'extra0': extra[:4096], 'extra1': extra})
    left = read_store(files.cows[0]).exceptions
    assert 0 < len(left) < 1400 and files.origin.read_bytes() != shown
    if begins == 'kernel':
        ours = Ours(lab, files)
        ours.rpc.call('snapshot_merge', name='snap', origin='base', cow_bdev='cow0')
        wait_for(lambda: ours.rpc.call('snapshot_status', name='snap')['merge'] == 'finished')
        assert line(ours.rpc, 'base') == f'32/{48 * 2048} 32'
        assert ours.base.read() == shown
        ours.rpc.call('snapshot_delete', name='snap')
        ours.target.stop()
    else:
        values = kernel.run(script('merge_open', 'merged', 'sum base', 'show base', 'close base')).values()
        assert values['sum_base'] == hashlib.sha256(shown).hexdigest()
        assert values['status_base'].split()[3:] == [f'32/{48 * 2048}', '32']
    assert files.origin.read_bytes() == shown and read_store(files.cows[0]) == (1, 16, [])
    values = kernel.run(script('snap_open', 'show snap', 'close snap')).values()
    assert values['status_snap'].split()[3:] == [f'32/{48 * 2048}', '32']
    ours = Ours(lab, files, 'last', chunk_size_sectors=8)
    assert line(ours.rpc, 'snap') == f'32/{48 * 2048} 32' and ours.snap.read() == shown
    ours.target.stop()


@pytest.mark.parametrize('store', ['P', 'PO', 'N'])
def test_lines(lab, store):
    """The same is done to a snapshot of the kernel's and one of ours, until its COW device is full: after each
    step the status and table lines are the same."""
    theirs, ours_files = Files(lab, SIZE // MIB, (1,)), None
    content = os.urandom(MIB)
    steps = [('base', 5 * CHUNK, 4096), ('base', 7 * CHUNK, 3 * CHUNK), ('snap', 20 * CHUNK, CHUNK),
             ('snap', 5 * CHUNK, CHUNK), ('base', 20 * CHUNK, CHUNK), ('snap', MIB, 64 * CHUNK),
             ('snap', 3 * MIB, 100 * CHUNK), ('base', 8 * MIB, 100 * CHUNK)]
    contents = {f'content{number}': content[:length] for number, (_, _, length) in enumerate(steps)}
    lines = [f'write {device} {offset} /host/content{number} || true; show snap; show base; echo end'
             for number, (device, offset, _) in enumerate(steps)]
    kernel = Kernel([theirs.origin, *theirs.cows])
    output = kernel.run(script(f'snap_open {store}', 'base_open', 'show snap', 'show base', 'echo end', *lines),
                        files=contents).output
    kernels = [dict(found.split('=', 1) for found in part.splitlines() if found.startswith(('status', 'table')))
               for part in output.split('end\n')]
    beside = type(lab)(lab.folder / 'beside')
    beside.folder.mkdir()
    ours_files = Files(beside, SIZE // MIB, (1,))
    ours = Ours(beside, ours_files, store=store, chunk_size_sectors=16)

    def lines_of(device):
        table = ours.rpc.call('dm_table', name=device)
        begin, target = table.split()[:2], table.split()[2]
        status = f'{" ".join(begin)} {target} {line(ours.rpc, device)}'
        return status.rstrip(), table.replace(' origin', ' 98:0').replace(' cow0', ' 98:16')

    for number, values in enumerate(kernels[:len(steps) + 1]):
        if number > 0:
            device, offset, length = steps[number - 1]
            try:
                getattr(ours, device).write(offset, content[:length])
            except RuntimeError:
                assert device == 'snap'
        for device in ('snap', 'base'):
            assert lines_of(device) == (values[f'status_{device}'].rstrip(), values[f'table_{device}']), (number, device)
    assert line(ours.rpc, 'snap') == 'Invalid'
    ours.target.stop()
    if store != 'N':
        assert read_store(theirs.cows[0]) == read_store(ours_files.cows[0])._replace(
            exceptions=read_store(theirs.cows[0]).exceptions)


TABLES = ['snapshot-origin ORIGIN', 'snapshot-origin ORIGIN 1', 'snapshot-origin', 'snapshot ORIGIN COW P 16',
          'snapshot ORIGIN COW p 16', 'snapshot ORIGIN COW Po 16', 'snapshot ORIGIN COW N 16', 'snapshot ORIGIN COW Nonsense 16',
          'snapshot ORIGIN COW PX 16', 'snapshot ORIGIN COW Persistent 16', 'snapshot ORIGIN COW X 16', 'snapshot ORIGIN COW P',
          'snapshot ORIGIN COW P 0', 'snapshot ORIGIN COW N 0', 'snapshot ORIGIN COW P 1', 'snapshot ORIGIN COW P 17',
          'snapshot ORIGIN COW P -16', 'snapshot ORIGIN COW P 4194304', 'snapshot ORIGIN ORIGIN P 16', 'snapshot ORIGIN COW P 16 0',
          'snapshot ORIGIN COW P 16 1 discard_zeroes_cow', 'snapshot ORIGIN COW P 16 1 discard_passdown_origin',
          'snapshot ORIGIN COW P 16 2 discard_passdown_origin discard_zeroes_cow', 'snapshot ORIGIN COW P 16 3 a b c',
          'snapshot ORIGIN COW P 16 2 discard_zeroes_cow', 'snapshot ORIGIN COW P 16 1 nonsense', 'snapshot ORIGIN COW P 16 1 DISCARD_ZEROES_COW',
          'snapshot-merge ORIGIN COW P', 'snapshot-merge ORIGIN COW X 16', 'snapshot-merge ORIGIN ORIGIN P 16']


def test_tables(lab, files):
    """Every table is taken or refused as by the kernel."""
    lines = ['base_open']
    for number, table in enumerate(TABLES):
        if 'snapshot-origin' in table or 'merge' in table:
            lines.append('close base 2>/dev/null || true')
        words = table.replace('ORIGIN', '/dev/ubda').replace('COW', '/dev/ubdb')
        lines += ['dd if=/dev/zero of=$cow bs=64k count=1 conv=notrunc,fsync status=none',
                  f'echo "{number}=$(dmsetup create t --noudevsync --table "0 $size {words}" 2>&1 || true)"',
                  'close t 2>/dev/null || true', '[ -b /dev/mapper/base ] || base_open']
    kernels = Kernel([files.origin, *files.cows]).run(script(*lines)).values()
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    found = {}
    for number, table in enumerate(TABLES):
        takes_base = 'snapshot-origin' in table or 'merge' in table
        if takes_base:
            rpc.call('dm_remove', name='base')
        with open(files.cows[0], 'r+b') as cow:
            cow.write(bytes(65536))
        words = table.replace('ORIGIN', 'origin').replace('COW', 'cow0')
        try:
            rpc.call('dm_create', name='t', table=f'0 {SIZE // 512} {words}')
            found[number] = 0
            rpc.call('dm_remove', name='t')
        except RpcError as error:
            found[number] = -error.code
        if takes_base:
            rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    target.stop()
    assert found == {number: number_of(kernels[str(number)]) for number in found}


def test_the_kernel_is_killed(lab, files):
    """The kernel's machine is killed while it copies to a snapshot: its store is ours, and the snapshot shows
    what it did."""
    old = random.Random('killed kernel').randbytes(SIZE)
    files.origin.write_bytes(old)
    kernel = Kernel([files.origin, *files.cows])
    text = script('snap_open', 'base_open', 'i=0', 'while :; do',
                  'dd if=/dev/urandom of=/dev/mapper/base bs=64k count=1 seek=$((i * 37 % 512)) conv=notrunc,fsync status=none',
                  'echo $i >/host/done.new', 'mv /host/done.new /host/done', 'i=$((i + 1))', 'done')
    kernel.crash(text, lambda folder: (folder / 'done').exists() and int((folder / 'done').read_text() or 0) >= 100)
    assert content_of(files.origin, files.cows[0], SIZE) == old
    ours = Ours(lab, files, chunk_size_sectors=16)
    assert ours.snap.read() == old
    ours.base.write(0, bytes(SIZE))
    assert ours.snap.read() == old
    ours.target.stop()
    values = kernel.run(script('snap_open', 'sum snap', 'close snap')).values()
    assert values['sum_snap'] == hashlib.sha256(old).hexdigest()
