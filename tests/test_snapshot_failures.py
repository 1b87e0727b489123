# SPDX-License-Identifier: BSD-3-Clause
"""Origins, snapshots and merges when things go wrong or change: killed, COW devices full, failing, removed, base
bdevs grown."""

import errno
import os
import random
import time

import pytest

from harness.load import Load
from harness.pool import aio, host_of, refused, wait_for
from harness.snapshot import MIB, Device, Files, beside, content_of, line, notified, read_store
from harness.target import nqn

# For a stress without unmaps and zeroings: an AIO bdev knows no unmap.
ONLY_WRITES = ('--clear-every', '4000000000')


def names(rpc):
    return [bdev['name'] for bdev in rpc.call('bdev_get_bdevs')]


@pytest.mark.parametrize('which', ['target', 'drive'])
def test_kill_loop(lab, which):
    """kill -9 under writes to the origin: the origin has what was flushed, the snapshots show, after each kill
    and in the end by their stores alone, the moment they were made. `drive` kills the drive as well."""
    size, state = 128 * MIB, lab.folder / 'state'
    files = Files(lab, 128, (160, 160))
    # As the stress wants it.
    old = bytes(size)
    drive = lab.drive([files.origin, *files.cows]) if which == 'drive' else None
    dice = random.Random(which)
    for turn in range(4):
        target = lab.target(name=f'target{turn}')
        bdevs = ['driven1', 'driven2', 'driven3']
        if drive:
            assert target.attach_drive(drive) == bdevs
        else:
            for name, path in zip(bdevs, [files.origin, *files.cows]):
                aio(target, name, path)
        rpc = target.rpc
        rpc.call('snapshot_origin_create', name='base', origin_bdev='driven1')
        for number, chunk in ((0, 16), (1, 128)):
            rpc.call('snapshot_create', name=f'snap{number}', origin='base', cow_bdev=bdevs[number + 1], chunk_size_sectors=chunk)
        host = host_of(lab, target, 'base')
        if turn > 0:
            host.run('verify', str(state))
            snap = Device(lab, target, f'snap{turn % 2}', size)
            assert snap.read() == old
        load = Load(host, state, '--seed', str(turn), '--slots', '128', '--flush-every', '8', '--workers', '16', *ONLY_WRITES)
        load.wait_durable(300)
        time.sleep(dice.random() * 0.3)
        target.process.kill()
        load.kill()
        if drive:
            drive.process.kill()
        for cow in files.cows:
            assert read_store(cow).exceptions
            assert content_of(files.origin, cow, size) == old
        if drive:
            drive = lab.drive([files.origin, *files.cows])


def test_merge_killed(lab):
    """kill -9 in the middle of a merge, again and again, while the origin is written to: each time it is
    resumed from the store, the origin shows the snapshot with what was written since, and the store gets
    shorter, to nothing."""
    size = 64 * MIB
    files = Files(lab, 64, (80,))
    dice = random.Random('merge killed')
    shown = bytearray(dice.randbytes(size))
    files.origin.write_bytes(shown)
    left, kills = None, 0
    while left != []:
        target = lab.target(name=f'target{kills}')
        rpc = target.rpc
        files.bdevs(target)
        rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
        base = Device(lab, target, 'base', size)
        if left is None:
            rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='cow0', chunk_size_sectors=16)
            base.write(0, dice.randbytes(48 * MIB))
            rpc.call('snapshot_merge', name='snap', mib_per_second=3)
        else:
            rpc.call('snapshot_merge', name='snap', origin='base', cow_bdev='cow0', mib_per_second=3 if kills < 3 else 0)
        for _ in range(2):
            length = dice.randrange(1, 64) * 4096
            offset = dice.randrange(0, size - length, 4096)
            shown[offset:offset + length] = content = dice.randbytes(length)
            base.write(offset, content)
        if kills == 1:
            assert base.read() == shown
        if kills == 3:
            wait_for(lambda: rpc.call('snapshot_status', name='snap')['merge'] == 'finished')
        target.process.kill()
        kills += 1
        before, left = left, read_store(files.cows[0]).exceptions
        assert before is None or len(left) < len(before)
    assert kills > 2 and files.origin.read_bytes() == shown


@pytest.mark.parametrize('store', ['P', 'PO', 'N'])
def test_cow_full_by_origin(lab, store):
    """Writes of the origin fill a COW device: the origin goes on, the snapshot is invalid for ever, on disk
    too, it says so, and answers with errors; another snapshot goes on."""
    files = Files(lab, 16, (1, 32))
    old = os.urandom(16 * MIB)
    files.origin.write_bytes(old)
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    create = {'origin': 'base', 'chunk_size_sectors': 16}
    rpc.call('snapshot_create', name='small', cow_bdev='cow0', store=store, **create)
    rpc.call('snapshot_create', name='large', cow_bdev='cow1', **create)
    base, small, large = (Device(lab, target, name, 16 * MIB) for name in ('base', 'small', 'large'))
    content = os.urandom(4 * MIB)
    base.write(8 * MIB, content)
    assert line(rpc, 'small') == 'Invalid' and small.fails('read') and small.fails('write')
    assert rpc.call('snapshot_status', name='small')['condition'] == 'invalid'
    found = notified(rpc, 'snapshot_invalidated')
    assert len(found) == 1 and found[0].startswith('base small ')
    assert base.read(8 * MIB, 4 * MIB) == content and large.read() == old
    rpc.call('nvmf_subsystem_remove_ns', nqn=nqn('small'), nsid=1)
    refused(rpc, errno.EINVAL, ["'small'", 'invalid'] if store != 'N' else ["'small'"], 'snapshot_merge', name='small')
    rpc.call('snapshot_delete', name='small')
    if store != 'N':
        assert read_store(files.cows[0]).valid == 0
        rpc.call('snapshot_create', name='small', cow_bdev='cow0', store=store, **create)
        assert line(rpc, 'small') == 'Invalid'
    target.stop()
    assert content_of(files.origin, files.cows[1], 16 * MIB) == old


@pytest.mark.parametrize('store, state', [('P', 'Invalid'), ('PO', 'Overflow'), ('N', 'Invalid')])
def test_cow_full_by_snapshot(lab, store, state):
    """Writes to a snapshot fill its COW device: it becomes invalid, or overflows: then what it has is still
    read, its header stays valid, its exceptions are merged; it is notified."""
    files = Files(lab, 16, (1,))
    old = os.urandom(16 * MIB)
    files.origin.write_bytes(old)
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='cow0', store=store, chunk_size_sectors=16)
    snap = Device(lab, target, 'snap', 16 * MIB)
    content = os.urandom(512 * 1024)
    snap.write(MIB, content)
    assert snap.fails('write', 4 * MIB, 2 * MIB)
    assert line(rpc, 'snap') == state
    assert snap.fails('write', MIB, 4096)
    if state == 'Overflow':
        assert snap.read(0, 2 * MIB) == old[:MIB] + content + old[MIB + len(content):2 * MIB]
        assert notified(rpc, 'snapshot_overflow') == ['base snap'] and read_store(files.cows[0]).valid == 1
        # An exception for the origin finds no room either: then it is of no use any more.
        Device(lab, target, 'base', 16 * MIB).write(12 * MIB, bytes(65536))
        assert line(rpc, 'snap') == 'Invalid'
    assert snap.fails('read')
    assert len(notified(rpc, 'snapshot_invalidated')) == 1
    target.stop()
    assert store == 'N' or read_store(files.cows[0]).valid == 0


def test_cow_fails(lab):
    """A COW device that takes no writes: the origin's writes succeed, its snapshot is invalid, and its header
    says so as soon as it can be written, not before."""
    files = Files(lab, 16, (16,))
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('bdev_error_create', base_name='cow0')
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='EE_cow0', chunk_size_sectors=16)
    base = Device(lab, target, 'base', 16 * MIB)
    base.write(0, os.urandom(65536))
    rpc.call('bdev_error_inject_error', name='EE_cow0', io_type='write', error_type='failure', num=1000000)
    content = os.urandom(65536)
    base.write(MIB, content)
    assert base.read(MIB, 65536) == content
    status = rpc.call('snapshot_status', name='snap')
    assert status['line'] == 'Invalid' and status['header_may_say_valid']
    assert read_store(files.cows[0]).valid == 1
    rpc.call('bdev_error_inject_error', name='EE_cow0', io_type='clear', error_type='failure')
    wait_for(lambda: not rpc.call('snapshot_status', name='snap')['header_may_say_valid'])
    assert read_store(files.cows[0]).valid == 0
    target.stop()


def test_merge_fails(lab):
    """A merge whose origin takes no writes has failed and says so; the origin shows what it showed; resumed
    when it works again, it finishes."""
    files = Files(lab, 16, (16,))
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('bdev_error_create', base_name='origin')
    rpc.call('snapshot_origin_create', name='base', origin_bdev='EE_origin')
    rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='cow0', chunk_size_sectors=16)
    base = Device(lab, target, 'base', 16 * MIB)
    base.write(0, os.urandom(4 * MIB))
    rpc.call('bdev_error_inject_error', name='EE_origin', io_type='write', error_type='failure', num=1000000)
    rpc.call('snapshot_merge', name='snap')
    wait_for(lambda: line(rpc, 'base') == 'Merge failed')
    found = notified(rpc, 'snapshot_merge_failed')
    assert len(found) == 1 and found[0].startswith('base snap ')
    assert base.read(0, 8 * MIB) == bytes(8 * MIB)
    refused(rpc, errno.EBUSY, ["'snap'", 'being merged'], 'snapshot_delete', name='snap')
    rpc.call('bdev_error_inject_error', name='EE_origin', io_type='clear', error_type='failure')
    rpc.call('snapshot_merge_resume', name='snap')
    wait_for(lambda: line(rpc, 'base') == '32/32768 32')
    assert base.read(0, 8 * MIB) == bytes(8 * MIB)
    target.stop()
    assert files.origin.read_bytes() == bytes(16 * MIB)


def test_origin_removed_under_load(lab):
    """The origin bdev goes away under load: the host's I/O fails, origin and snapshots close, and come back with
    it, with all that was flushed; the snapshot has missed nothing. A snapshot in memory only is gone."""
    size, state = 64 * MIB, lab.folder / 'state'
    files = Files(lab, 64, (80, 80))
    # As the stress wants it.
    old = bytes(size)
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='cow0', chunk_size_sectors=16)
    rpc.call('snapshot_create', name='memory', origin='base', cow_bdev='cow1', store='N', chunk_size_sectors=16)
    host = host_of(lab, target, 'base')
    for number in range(2):
        load = Load(host, state, '--seed', str(number), '--slots', '64', '--workers', '16', '--flush-every', '8', *ONLY_WRITES)
        load.wait_durable(100)
        rpc.call('bdev_aio_delete', name='origin')
        assert load.end_by_itself() > 0, load.tail()
        wait_for(lambda: rpc.call('snapshot_status', name='base')['state'] == 'waiting')
        assert "'origin'" in rpc.call('snapshot_status', name='base')['failure']
        assert not {'base', 'snap', 'memory'} & set(names(rpc))
        aio(target, 'origin', files.origin)
        wait_for(lambda: rpc.call('snapshot_status', name='base')['state'] == 'open')
        rpc.call('nvmf_subsystem_add_ns', nqn=nqn('base'), namespace={'bdev_name': 'base'})
        host.run('verify', str(state))
        assert [s['name'] for s in rpc.call('snapshot_status', name='base')['snapshots']] == ['snap']
    snap = Device(lab, target, 'snap', size)
    assert snap.read() == old
    target.stop()
    assert content_of(files.origin, files.cows[0], size) == old


@pytest.mark.parametrize('missed', [False, True])
def test_cow_removed(lab, missed):
    """A COW bdev goes away: the snapshot's bdev goes, the origin goes on. If the origin needed the snapshot
    meanwhile, it is invalid for ever, which its header says when it is back; if not, it goes on where it was."""
    files = Files(lab, 16, (32,))
    old = os.urandom(16 * MIB)
    files.origin.write_bytes(old)
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='cow0', chunk_size_sectors=16)
    base = Device(lab, target, 'base', 16 * MIB)
    base.write(0, bytes(MIB))
    rpc.call('bdev_aio_delete', name='cow0')
    wait_for(lambda: 'snap' not in names(rpc))
    assert rpc.call('snapshot_status', name='snap')['cow_bdev_missing']
    content = os.urandom(65536)
    base.write(0 if not missed else MIB, content)
    assert base.read(0 if not missed else MIB, 65536) == content
    assert (line(rpc, 'snap') == 'Invalid') == missed
    aio(target, 'cow0', files.cows[0])
    wait_for(lambda: 'snap' in names(rpc))
    if missed:
        wait_for(lambda: not rpc.call('snapshot_status', name='snap')['header_may_say_valid'])
        assert read_store(files.cows[0]).valid == 0 and line(rpc, 'snap') == 'Invalid'
    else:
        base.write(4 * MIB, content)
        assert Device(lab, target, 'snap', 16 * MIB).read() == old
    # Removed once more, with the origin: everything waits for both.
    rpc.call('bdev_aio_delete', name='cow0')
    rpc.call('bdev_aio_delete', name='origin')
    wait_for(lambda: rpc.call('snapshot_status', name='base')['state'] == 'waiting')
    aio(target, 'origin', files.origin)
    assert rpc.call('snapshot_status', name='base')['missing_bdevs'] == ['cow0']
    aio(target, 'cow0', files.cows[0])
    wait_for(lambda: rpc.call('snapshot_status', name='base')['state'] == 'open')
    assert (line(rpc, 'snap') == 'Invalid') == missed
    target.stop()
    assert missed or content_of(files.origin, files.cows[0], 16 * MIB) == old


def test_cow_removed_while_merging(lab):
    """The COW bdev goes away in the middle of a merge: what is merged is there, what is not fails; when it is
    back the merge goes on by itself and finishes."""
    files = Files(lab, 32, (40,))
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='cow0', chunk_size_sectors=16)
    base = Device(lab, target, 'base', 32 * MIB)
    base.write(0, os.urandom(32 * MIB))
    rpc.call('snapshot_merge', name='snap', mib_per_second=4)
    wait_for(lambda: rpc.call('snapshot_status', name='base')['merged_chunks'] > 256)
    rpc.call('bdev_aio_delete', name='cow0')
    wait_for(lambda: line(rpc, 'base') == 'Merge failed')
    assert base.fails('read', 0, 4096) and base.fails('write', 0, 4096)
    aio(target, 'cow0', files.cows[0])
    wait_for(lambda: rpc.call('snapshot_status', name='snap')['merge'] == 'running')
    rpc.call('snapshot_merge_resume', name='snap', mib_per_second=0)
    wait_for(lambda: rpc.call('snapshot_status', name='snap')['merge'] == 'finished')
    assert base.read() == bytes(32 * MIB)
    rpc.call('snapshot_delete', name='snap')
    target.stop()
    assert files.origin.read_bytes() == bytes(32 * MIB) and read_store(files.cows[0]).exceptions == []


def test_growth(lab):
    """The origin grows under its snapshots, which keep their length and content; a COW bdev grows and has room
    again; an origin with a size of its own keeps it."""
    target = lab.target(memory_mb=512)
    rpc = target.rpc
    rpc.call('bdev_malloc_create', name='malloc', num_blocks=256 * 2048, block_size=512)
    rpc.call('bdev_lvol_create_lvstore', bdev_name='malloc', lvs_name='lvs', cluster_sz=MIB)
    for name, size in (('origin', 32), ('cow', 4), ('origin2', 32)):
        rpc.call('bdev_lvol_create', lvol_name=name, size=size * MIB, lvs_name='lvs')
    rpc.call('snapshot_origin_create', name='base', origin_bdev='lvs/origin')
    rpc.call('dm_create', name='fixed', table='0 65536 snapshot-origin lvs/origin2')
    rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='lvs/cow', chunk_size_sectors=16)
    base, snap = (Device(lab, target, name, 32 * MIB) for name in ('base', 'snap'))
    base.write(0, os.urandom(2 * MIB))
    for name in ('origin', 'origin2'):
        rpc.call('bdev_lvol_resize', name=f'lvs/{name}', size=64 * MIB)
    rpc.call('bdev_lvol_resize', name='lvs/cow', size=16 * MIB)
    wait_for(lambda: rpc.call('bdev_get_bdevs', name='base')[0]['num_blocks'] == 64 * 2048)
    assert rpc.call('bdev_get_bdevs', name='fixed')[0]['num_blocks'] == 32 * 2048
    assert rpc.call('dm_table', name='base').split()[1] == '131072'
    assert rpc.call('dm_table', name='snap').split()[1] == '65536'
    content = os.urandom(2 * MIB)
    base.write(31 * MIB, content)
    base.write(62 * MIB, content)
    base.write(4 * MIB, content + content)
    assert base.read(31 * MIB, 2 * MIB) == content == base.read(62 * MIB, 2 * MIB)
    assert snap.read() == bytes(32 * MIB)
    used, total = line(rpc, 'snap').split()[0].split('/')
    # 2 + 4 + 1 MiB of chunks: what is behind the snapshot's end is not in it.
    assert total == '32768' and int(used) == 16 * (2 + 1 + 7 * 128)
    target.stop()


def test_two_hosts_and_a_snapshot_under_way(lab):
    """Snapshots come and go while an origin is written to: its content stays right, and nothing hangs."""
    state = lab.folder / 'state'
    files = Files(lab, 128, (160, 160))
    target = lab.target(core_mask='0x3', memory_mb=1024)
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    host = host_of(lab, target, 'base')
    load = Load(host, state, '--seed', '1', '--slots', '128', '--workers', '16', '--flush-every', '8', *ONLY_WRITES)
    other = beside(lab, 'snap')
    dice = random.Random('under way')
    for turn in range(6):
        load.wait_durable(100)
        number = turn % 2
        rpc.call('snapshot_create', name=f'snap{number}', origin='base', cow_bdev=f'cow{number}', store='N',
                 chunk_size_sectors=dice.choice([8, 64, 256]))
        if turn == 1:
            reader = Device(other, target, 'snap1', 128 * MIB)
            assert reader.read() == reader.read()
            rpc.call('nvmf_subsystem_remove_ns', nqn=nqn('snap1'), nsid=1)
        if turn > 0:
            rpc.call('snapshot_delete', name=f'snap{1 - number}')
    load.ask_to_finish()
    assert load.process.wait(timeout=120) == 0
    host.run('verify', str(state))
    target.stop()
