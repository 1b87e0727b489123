# SPDX-License-Identifier: BSD-3-Clause
"""Era targets when things go wrong or change: killed, base bdevs removed or grown, metadata full."""

import errno
import random
import threading
import time

import pytest

from harness import RpcError
from harness.era import (BLOCK, ONLY_WRITES, blocks_in, era_check, era_invalidate, era_on_files, snapshot_since, written_since)
from harness.load import Ledger, Load
from harness.pool import aio, host_of, random_file, refused, wait_for
from harness.target import nqn

MIB = 1 << 20


@pytest.mark.parametrize('which, rounds', [('target', 6), ('drive', 2)])
def test_kill_loop(lab, which, rounds):
    """kill -9 under writes and checkpoints: after each, both checks accept the metadata, the data flushed is
    there, and no block is missing that was written since any checkpoint, this life's or an earlier one's.
    `drive` kills the drive as well."""
    disk = 256 * MIB
    meta, origin = lab.file('meta', 4), lab.file('origin', 256)
    state = lab.folder / 'state'
    dice = random.Random(which)
    drive = lab.drive([meta, origin]) if which == 'drive' else None

    def open_era(name):
        target = lab.target(name=name)
        if drive:
            assert target.attach_drive(drive) == ['driven1', 'driven2']
        else:
            aio(target, 'driven1', meta)
            aio(target, 'driven2', origin)
        target.rpc.call('era_create', name='era', metadata_bdev='driven1', origin_bdev='driven2')
        return target

    # For each era that began by a checkpoint, what had been issued by then.
    eras = {}
    for number in range(rounds):
        target = open_era(f'target{number}')
        rpc = target.rpc
        opened = rpc.call('era_status', name='era')['current_era']
        assert opened > max(eras, default=0)
        host = host_of(lab, target, 'era')
        if number > 0:
            host.run('verify', str(state))
            ledger = Ledger(state, disk)
            eras[opened] = ledger.issued
            rpc.call('era_take_metadata_snap', name='era')
            for era, before in eras.items():
                missing = ledger.written_after(before) - blocks_in(written_since(rpc, era))
                assert not missing, f'written since era {era}: {sorted(missing)}'
            rpc.call('era_drop_metadata_snap', name='era')
        load = Load(host, state, '--seed', str(number), '--slots', '256', '--flush-every', '8', '--workers', '32',
                    *ONLY_WRITES)
        for _ in range(3):
            load.wait_durable(60)
            era = rpc.call('era_checkpoint', name='era')['era']
            # Issued before or soon after the checkpoint was answered: nothing is said of that.
            eras[era] = Ledger(state, disk).issued
        load.wait_durable(400)
        if number % 3 == 2:
            assert snapshot_since(rpc, opened)
        time.sleep(dice.random() * 0.5)
        target.process.kill()
        load.kill()
        if drive:
            drive.process.kill()
        era_check(meta)
        if drive:
            drive = lab.drive([meta, origin])
    ledger = Ledger(state, disk)
    # What the last life had in its current writeset is archived by opening and closing.
    open_era('last').stop()
    era_check(meta)
    for era, before in eras.items():
        assert not ledger.written_after(before) - era_invalidate(meta, era)
    # There was something to miss.
    assert len(ledger.written_after(eras[min(eras)])) > 100


@pytest.mark.parametrize('removed', ['origin', 'meta'])
def test_removed_under_load(lab, removed):
    """A base bdev goes away under load: the host's I/O fails (it ends by itself), the target lives on and
    says what it waits for; when the bdev is back so is the era bdev, with all eras."""
    target = lab.target()
    rpc = target.rpc
    files = dict(zip(('meta', 'origin'), era_on_files(lab, target, origin_mb=128)))
    host = host_of(lab, target, 'era')
    state = lab.folder / 'state'
    for number in range(3):
        before = rpc.call('era_checkpoint', name='era')['era']
        issued = Ledger(state, 128 * MIB).issued if number else None
        load = Load(host, state, '--seed', str(number), '--slots', '256', '--workers', '32', '--flush-every', '8',
                    *ONLY_WRITES)
        load.wait_durable(100)
        # First writes all the time, so that some wait for the metadata when it goes.
        rpc.call('era_checkpoint', name='era')
        rpc.call('bdev_aio_delete', name=removed)
        assert load.end_by_itself() > 0, load.tail()
        wait_for(lambda: rpc.call('era_status', name='era')['state'] == 'waiting')
        refused(rpc, errno.ENODEV, ["'era'", 'waiting', f"'{removed}'"], 'dm_status', name='era')
        assert f"'{removed}'" in rpc.call('era_status', name='era')['failure']
        assert not any(b['name'] == 'era' for b in rpc.call('bdev_get_bdevs'))
        era_check(files['meta'])

        aio(target, removed, files[removed])
        wait_for(lambda: rpc.call('era_status', name='era')['state'] == 'open')
        rpc.call('nvmf_subsystem_add_ns', nqn=nqn('era'), namespace={'bdev_name': 'era'})
        host.run('verify', str(state))
        if issued:
            written = Ledger(state, 128 * MIB).written_after(issued)
            assert written and not written - snapshot_since(rpc, before)
    target.stop()
    era_check(files['meta'])


def test_waits_for_its_bdevs(lab):
    """An era target declared with `wait` opens by itself when both bdevs are there, and can be forgotten
    before."""
    target = lab.target()
    rpc = target.rpc
    for name in ('era', 'never'):
        rpc.call('era_create', name=name, metadata_bdev='meta', origin_bdev='origin', wait=True)
    rpc.call('era_delete', name='never')
    for name, size in (('meta', 4), ('origin', 64)):
        refused(rpc, errno.ENODEV, ["'era'", "'meta'", "'origin'"], 'era_checkpoint', name='era')
        aio(target, name, lab.file(name, size))
    wait_for(lambda: rpc.call('era_status', name='era')['state'] == 'open')
    assert [e['name'] for e in rpc.call('era_status')] == ['era']
    rpc.call('era_delete', name='era')
    # Closed when that is answered: the bdevs are free.
    rpc.call('era_create', name='era2', metadata_bdev='meta', origin_bdev='origin')
    target.stop()
    era_check(lab.folder / 'meta')


def test_growth_under_load(lab):
    """Origin and metadata bdev grow while writes go on: the era bdev follows, in a new era, and what is
    written behind the old end is recorded; with a size of its own it does not."""
    target = lab.target(memory_mb=512)
    rpc = target.rpc
    rpc.call('bdev_malloc_create', name='base', num_blocks=256 * 2048, block_size=512)
    rpc.call('bdev_lvol_create_lvstore', bdev_name='base', lvs_name='lvs', cluster_sz=MIB)
    for name, size in (('meta', 1), ('origin', 32), ('meta2', 1), ('origin2', 32)):
        rpc.call('bdev_lvol_create', lvol_name=name, size=size * MIB, lvs_name='lvs')
    rpc.call('era_create', name='era', metadata_bdev='lvs/meta', origin_bdev='lvs/origin')
    rpc.call('dm_create', name='fixed', table='0 65536 era lvs/meta2 lvs/origin2 128')
    host = host_of(lab, target, 'era')
    content, back = random_file(lab.folder / 'content', 32), lab.folder / 'back'
    before = rpc.call('era_status', name='era')
    assert (before['nr_blocks'], before['total_metadata_blocks']) == (512, 256)
    # Slow enough to be under way.
    rpc.call('bdev_set_qos_limit', name='era', rw_mbytes_per_sec=4)
    writer = host.start('write', str(content))
    wait_for(lambda: rpc.call('era_status', name='era')['first_writes'] > 0)
    for name, size in (('meta', 4), ('origin', 64), ('meta2', 4), ('origin2', 64)):
        rpc.call('bdev_lvol_resize', name=f'lvs/{name}', size=size * MIB)
    wait_for(lambda: rpc.call('era_status', name='era')['nr_blocks'] == 1024)
    wait_for(lambda: rpc.call('bdev_get_bdevs', name='era')[0]['num_blocks'] == 64 * 2048)
    wait_for(lambda: rpc.call('era_status', name='era')['total_metadata_blocks'] == 1024)
    assert writer.poll() is None
    after = rpc.call('era_status', name='era')
    assert after['current_era'] > before['current_era']
    wait_for(lambda: rpc.call('era_status', name='fixed')['total_metadata_blocks'] == 1024)
    assert rpc.call('era_status', name='fixed')['nr_blocks'] == 512
    assert rpc.call('bdev_get_bdevs', name='fixed')[0]['num_blocks'] == 32 * 2048
    assert writer.wait(timeout=300) == 0
    rpc.call('bdev_set_qos_limit', name='era', rw_mbytes_per_sec=0)
    host.run('read', str(back), '--length', str(32 * MIB))
    assert back.read_bytes() == content.read_bytes()
    content.write_bytes(content.read_bytes()[:MIB])
    host.run('write', str(content), '--offset', str(48 * MIB))
    assert snapshot_since(rpc, 1) == {*range(512), *range(768, 784)}
    found = snapshot_since(rpc, after['current_era'])
    assert set(range(768, 784)) < found < {*range(512), *range(768, 784)}
    for era in ('era', 'fixed'):
        rpc.call('era_delete', name=era)
    for name in ('meta', 'meta2'):
        copy = lab.folder / name
        beside = type(lab)(lab.folder / f'reader-{name}')
        beside.folder.mkdir()
        host_of(beside, target, f'lvs/{name}', 'meta').run('read', str(copy), '--length', str(4 * MIB))
        era_check(copy)
    target.stop()


def test_metadata_fails_and_comes_back(lab):
    """While the metadata bdev fails, first writes fail and what is marked passes, as do reads; when it works
    again so does everything, without anything being done."""
    target = lab.target()
    rpc = target.rpc
    meta = lab.file('meta', 4)
    aio(target, 'file', meta)
    rpc.call('bdev_error_create', base_name='file')
    rpc.call('bdev_malloc_create', name='origin', num_blocks=64 * 2048, block_size=512)
    rpc.call('era_create', name='era', metadata_bdev='EE_file', origin_bdev='origin')
    host = host_of(lab, target, 'era')
    content = lab.folder / 'content'
    content.write_bytes(random.randbytes(4096))
    host.run('write', str(content), '--offset', str(7 * BLOCK))
    rpc.call('bdev_error_inject_error', name='EE_file', io_type='write', error_type='failure', num=1000000)
    host.run('write', str(content), '--offset', str(7 * BLOCK + 8192))
    host.run('read', str(lab.folder / 'back'), '--length', '4096', '--offset', str(9 * BLOCK))
    for _ in range(2):
        with pytest.raises(RuntimeError):
            host.run('write', str(content), '--offset', str(8 * BLOCK))
    refused(rpc, errno.EIO, ["'era'"], 'era_checkpoint', name='era')
    assert rpc.call('dm_status', name='era')['line'] in ('Error', '8 10/1024 1 -')
    rpc.call('bdev_error_inject_error', name='EE_file', io_type='clear', error_type='failure')
    host.run('write', str(content), '--offset', str(8 * BLOCK))
    rpc.call('era_checkpoint', name='era')
    assert {7, 8} <= snapshot_since(rpc, 1) <= {7, 8}
    assert rpc.call('era_status', name='era')['failures'] > 0
    rpc.call('era_delete', name='era')
    target.stop()
    era_check(meta)


def test_reading_holds_the_snapshot_and_ends_with_the_target(lab):
    """While era_written_since writes a file the metadata snapshot is not dropped, and first writes get their
    turn; and when the target is closed it ends, and leaves no file."""
    target = lab.target()
    rpc = target.rpc
    aio(target, 'fast', lab.file('meta', 64))
    rpc.call('bdev_delay_create', base_bdev_name='fast', name='meta', avg_read_latency=0,
             p99_read_latency=0, avg_write_latency=0, p99_write_latency=0)
    # 1,048,576 blocks, so a thousand blocks of metadata to be read.
    rpc.call('bdev_null_create', name='origin', num_blocks=65536 * 2048, block_size=512)
    create = {'name': 'era', 'metadata_bdev': 'meta', 'origin_bdev': 'origin'}
    rpc.call('era_create', **create)
    rpc.call('era_take_metadata_snap', name='era')
    # Nothing is in the cache.
    rpc.call('era_delete', name='era')
    rpc.call('era_create', **create)
    host = host_of(lab, target, 'era')
    for latency in 'avg_read', 'p99_read':
        rpc.call('bdev_delay_update_latency', delay_bdev_name='meta', latency_type=latency, latency_us=100000)
    errors, path = [], lab.folder / 'since.xml'

    def dump():
        try:
            rpc.call('era_written_since', name='era', era=1, file=str(path))
        except RpcError as error:
            errors.append(error)
    dumping = threading.Thread(target=dump)
    dumping.start()
    wait_for(path.exists)
    refused(rpc, errno.EBUSY, ["'era'", 'being read'], 'era_drop_metadata_snap', name='era')
    content = random_file(lab.folder / 'content', 1)
    host.run('write', str(content), '--offset', str(5 * MIB))
    assert dumping.is_alive()
    rpc.call('nvmf_subsystem_remove_ns', nqn=nqn('era'), nsid=1)
    rpc.call('era_delete', name='era')
    dumping.join()
    assert [error.code for error in errors] == [-errno.ENODEV]
    wait_for(lambda: not path.exists())
    for latency in 'avg_read', 'p99_read':
        rpc.call('bdev_delay_update_latency', delay_bdev_name='meta', latency_type=latency, latency_us=0)
    rpc.call('era_create', **create)
    assert written_since(rpc, 1) == []
    rpc.call('era_drop_metadata_snap', name='era')
    assert snapshot_since(rpc, 2) == set(range(80, 96))
    target.stop()
    era_check(lab.folder / 'meta')
