# SPDX-License-Identifier: BSD-3-Clause
"""What a pool on real SPDK does when its bdevs fail, are slow, vanish, or fill up: mode, status line, what
the host is answered, and what is there after the pool has been loaded again.

Errors are made by SPDK's error bdev, which says only that I/O failed. The host's errno is that of a Linux
host for the NVMe status it gets (`perf` prints that); hostio, through SPDK's bdev layer, knows EIO only."""

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest

from harness import options_for_memory, thin_check, thin_dump
from harness.pool import aio, host_of, random_file, refused, wait_for
from harness.process import environment, launch
from harness.target import ADDRESS, nqn
from harness.tools import strict_tool

KIB = 1 << 10
MIB = 1 << 20
BLOCK = 64 * KIB
ALWAYS = 1 << 30

# NVMe status (type, code) as Linux hands it to a program.
ERRNO_OF_STATUS = {(0, 0x06): errno.EIO, (0, 0x81): errno.ENOSPC}

# A guard, not an expectation of speed.
HANG_SECONDS = 120


class Lab:
    """A target with a pool on error bdevs over two files, thin device 1, and a host for that."""

    def __init__(self, lab, meta_kib=16 * 1024, data_mb=16, **params):
        self.folder = lab.folder
        self.meta = lab.file('meta', 1)
        os.truncate(self.meta, meta_kib * KIB)
        lab.file('data', data_mb)
        self.target = lab.target()
        self.rpc = self.target.rpc
        for name in ('meta', 'data'):
            self.make_base(name)
        self.params = {'name': 'pool', 'metadata_bdev': 'EE_meta', 'data_bdev': 'EE_data', **params}
        self.rpc.call('thin_pool_create', **self.params)
        self.rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=64)
        self.host = host_of(lab, self.target, 't1')

    def make_base(self, name):
        aio(self.target, name, self.folder / name)
        self.rpc.call('bdev_error_create', base_name=name)

    def inject(self, bdev, kind, count=ALWAYS):
        self.rpc.call('bdev_error_inject_error', name=f'EE_{bdev}', io_type=kind, error_type='failure', num=count)

    def heal(self):
        for bdev in ('EE_meta', 'EE_data'):
            self.rpc.call('bdev_error_inject_error', name=bdev, io_type='clear', error_type='failure', num=0)

    def line(self):
        return self.rpc.call('dm_status', name='pool')['line']

    def mode(self):
        """Mode, discards, what happens without space, needs_check: those fields of the status line."""
        words = self.line().split(' ')
        return words if words == ['Fail'] else words[4:8]

    def used_data_blocks(self):
        return int(self.line().split(' ')[2].split('/')[0])

    def write(self, path, offset=0):
        self.host.run('write', str(path), '--offset', str(offset))

    def read(self, length, offset=0):
        back = self.folder / 'back'
        self.host.run('read', str(back), '--length', str(length), '--offset', str(offset))
        return back.read_bytes()

    def fails(self, *command):
        """A command of the host that gets EIO."""
        with pytest.raises(RuntimeError) as caught:
            self.host.run(*command)
        found = re.findall(r'^hostio: (\w+): errno (\d+)$', str(caught.value), re.M)
        assert found and int(found[-1][1]) == errno.EIO, caught.value
        return found[-1][0]

    def write_fails(self, path, offset):
        """Writes, and flushes; which of them failed."""
        return self.fails('write', str(path), '--offset', str(offset))

    def read_fails(self, offset=0):
        self.fails('read', str(self.folder / 'back'), '--length', '4096', '--offset', str(offset))

    def host_errnos(self, kind):
        """What a host is answered that reads or writes all over the device for a second."""
        program = Path(os.environ['SPDK_DIR']) / 'build' / 'examples' / 'perf'
        if not program.exists():
            pytest.skip('this SPDK comes without its examples')
        where = f'trtype:TCP adrfam:IPv4 traddr:{ADDRESS} trsvcid:{self.host.port} subnqn:{nqn("t1")}'
        process = launch([str(program), '-q', '4', '-o', '4096', '-w', f'rand{kind}', '-t', '1', '-c', '0x1',
                          '-r', where] + options_for_memory(256), environment(), subprocess.PIPE, text=True)
        output, _ = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, output[-2000:]
        statuses = set(re.findall(r'completed with error \(sct=(\d+), sc=(\d+)\)', output))
        return {ERRNO_OF_STATUS[int(sct), int(code)] for sct, code in statuses}

    def refuses(self, code):
        """What changes the pool is answered."""
        refused(self.rpc, code, ["'pool'"], 'thin_create', pool='pool', id=50)
        refused(self.rpc, code, ["'pool'"], 'dm_message', name='pool', message='create_snap 51 1')

    def unload(self):
        """Closes pool and device, as far as they can be."""
        for method, params in (('thin_deactivate', {'bdev_name': 't1'}), ('thin_pool_delete', {'name': 'pool'})):
            self.rpc.call(method, **params)

    def load(self):
        self.rpc.call('thin_pool_create', **self.params)
        self.rpc.call('thin_activate', pool='pool', id=1, bdev_name='t1', size_mib=64)
        self.export()

    def export(self):
        self.rpc.call('nvmf_subsystem_add_ns', nqn=nqn('t1'), namespace={'bdev_name': 't1'})

    def clear_needs_check(self):
        """What the operator does between unloading and loading."""
        thin_check(self.meta)
        done = subprocess.run(strict_tool('thin_check') + ['--clear-needs-check-flag', str(self.meta)], check=False)
        assert done.returncode == 0

    def end(self):
        self.target.stop()
        thin_check(self.meta)


RW = ['rw', 'no_discard_passdown', 'queue_if_no_space', '-']
READ_ONLY = ['ro', 'no_discard_passdown', 'queue_if_no_space', 'needs_check']


@pytest.mark.parametrize('kind', ['write', 'flush'])
def test_failed_commit(lab, kind):
    """One write or flush of the metadata fails: back to the last commit, read-only, needs_check; the host's
    flush fails. What was committed is served, also after a reload, which stays read-only until the
    metadata are checked."""
    pool = Lab(lab)
    old, new = (random_file(lab.folder / name, 1) for name in ('old', 'new'))
    pool.write(old)
    used = pool.used_data_blocks()
    pool.inject('meta', kind, 1)
    pool.write_fails(new, 8 * MIB)
    assert pool.mode() == READ_ONLY
    assert pool.used_data_blocks() == used
    pool.refuses(errno.EOPNOTSUPP)
    assert pool.read(MIB) == old.read_bytes()
    assert pool.read(MIB, 8 * MIB) == bytes(MIB)
    assert pool.write_fails(new, 16 * MIB) == 'write'
    assert pool.host_errnos('write') == {errno.EIO}
    # In place it is written, but the flush says that something was lost before.
    assert pool.write_fails(new, 0) == 'flush'

    pool.unload()
    pool.load()
    assert pool.mode() == READ_ONLY
    assert pool.read(MIB) == new.read_bytes()
    pool.write(old)
    assert pool.write_fails(new, 8 * MIB) == 'write'
    pool.refuses(errno.EOPNOTSUPP)
    pool.unload()
    assert 'flags="1"' in thin_dump(pool.meta)
    pool.clear_needs_check()
    pool.load()
    assert pool.mode() == RW
    pool.write(new, 8 * MIB)
    assert pool.read(MIB) + pool.read(MIB, 8 * MIB) == old.read_bytes() + new.read_bytes()
    pool.end()


def test_metadata_that_cannot_be_written(lab):
    """Not even needs_check can be recorded: all I/O fails. Loaded again on a bdev that is well, the pool is
    at its last commit."""
    pool = Lab(lab)
    old, new = (random_file(lab.folder / name, 1) for name in ('old', 'new'))
    pool.write(old)
    pool.inject('meta', 'write')
    pool.write_fails(new, 8 * MIB)
    assert pool.line() == 'Fail'
    pool.read_fails()
    assert pool.write_fails(new, 0) == 'write'
    assert pool.host_errnos('read') == {errno.EIO}
    pool.refuses(errno.EOPNOTSUPP)
    pool.unload()
    thin_check(pool.meta)
    pool.heal()
    pool.load()
    assert pool.mode() == RW
    assert pool.read(MIB) == old.read_bytes()
    assert pool.read(MIB, 8 * MIB) == bytes(MIB)
    pool.write(new, 8 * MIB)
    pool.end()


def test_metadata_that_cannot_be_read(lab):
    """A mapping that cannot be read fails the I/O that needs it, and no more. A change that cannot read what
    it needs is rolled back, and as that cannot read the superblock, the pool has failed."""
    pool = Lab(lab, data_mb=64)
    # Who looks for a partition table reads the beginning of the device, and with it the first leaf of the
    # mappings; these fill three.
    old, far = random_file(lab.folder / 'old', 1), 55 * MIB
    pool.write(random_file(lab.folder / 'much', 23), 32 * MIB)
    pool.write(old, far)
    pool.unload()
    pool.load()
    pool.inject('meta', 'read')
    pool.read_fails(far)
    assert pool.write_fails(old, far + 4 * MIB) == 'write'
    assert pool.host_errnos('read') == {errno.EIO}
    assert pool.mode() == RW
    pool.heal()
    # This loads the mappings, and nothing of what is free.
    assert pool.read(MIB, far) == old.read_bytes()
    pool.inject('meta', 'read')
    assert pool.write_fails(old, far + 4 * MIB) == 'write'
    assert pool.line() == 'Fail'
    pool.read_fails(far)
    pool.refuses(errno.EOPNOTSUPP)
    pool.unload()
    refused(pool.rpc, errno.EIO, ['block 0'], 'thin_pool_create', **pool.params)
    pool.heal()
    pool.load()
    assert pool.mode() == RW
    assert pool.read(MIB, far) == old.read_bytes()
    pool.end()


def test_data_that_cannot_be_read(lab):
    """Reads fail, and writes that have to copy a shared block first; nothing is leaked, no mode changes."""
    pool = Lab(lab)
    old, new = random_file(lab.folder / 'old', 1), lab.folder / 'new'
    new.write_bytes(os.urandom(4096))
    pool.write(old)
    pool.rpc.call('thin_snapshot', pool='pool', id=2, origin_id=1)
    pool.inject('data', 'read')
    pool.read_fails()
    assert pool.host_errnos('read') == {errno.EIO}
    assert pool.write_fails(new, 4096) == 'write'
    assert pool.mode() == RW and pool.used_data_blocks() == 16
    pool.heal()
    assert pool.read(MIB) == old.read_bytes()
    pool.write(new, 4096)
    assert pool.used_data_blocks() == 17
    pool.unload()
    pool.load()
    expected = old.read_bytes()
    assert pool.read(MIB) == expected[:4096] + new.read_bytes() + expected[8192:]
    pool.end()


def test_data_that_cannot_be_written(lab):
    """Writes fail, in place, to holes, and to shared blocks; none of them gets a mapping or leaks a block, no
    mode changes, and the pool goes on when the bdev is well."""
    pool = Lab(lab)
    old, small = random_file(lab.folder / 'old', 1), lab.folder / 'small'
    small.write_bytes(os.urandom(4096))
    pool.write(old)
    pool.inject('data', 'write')
    for path, offset in ((small, 0), (small, 8 * MIB), (old, 9 * MIB)):
        assert pool.write_fails(path, offset) == 'write'
    pool.rpc.call('thin_snapshot', pool='pool', id=2, origin_id=1)
    assert pool.write_fails(small, 4096) == 'write'
    assert pool.host_errnos('write') == {errno.EIO}
    assert pool.mode() == RW and pool.used_data_blocks() == 16
    pool.heal()
    assert pool.read(MIB) == old.read_bytes()
    assert pool.read(2 * MIB, 8 * MIB) == bytes(2 * MIB)
    pool.write(small, 8 * MIB)
    assert pool.used_data_blocks() == 17
    pool.unload()
    pool.load()
    assert pool.read(4096, 8 * MIB) == small.read_bytes()
    pool.end()


@pytest.mark.parametrize('killed', [False, True])
def test_data_that_cannot_be_flushed(lab, killed):
    """The host's flush fails, and what was written may be lost: no metadata is committed before its data, the pool
    is at its last commit and read-only, all later flushes fail. Loaded again on a bdev that is well it is
    written to, without a check. Killed before that, the target leaves the last commit."""
    pool = Lab(lab)
    old, new = (random_file(lab.folder / name, 1) for name in ('old', 'new'))
    pool.write(old)
    pool.inject('data', 'flush')
    assert pool.write_fails(new, 8 * MIB) == 'flush'
    # The metadata is in order: no needs_check.
    assert pool.mode() == READ_ONLY[:3] + ['-']
    assert pool.read(MIB, 8 * MIB) == bytes(MIB)
    if killed:
        pool.target.process.kill()
        assert 'mapped_blocks="16"' in thin_dump(pool.meta)
        thin_check(pool.meta)
        return
    pool.heal()
    assert pool.write_fails(new, 0) == 'flush'
    pool.unload()
    pool.load()
    assert pool.mode() == RW
    pool.write(new, 10 * MIB)
    assert pool.read(MIB, 8 * MIB) == bytes(MIB)
    pool.target.process.kill()
    assert 'mapped_blocks="32"' in thin_dump(pool.meta)
    thin_check(pool.meta)


def test_removed_with_slow_io(lab):
    """The data file's bdev goes away below a slow one while writes wait there: the host's I/O ends with an
    error, the pool says what it waits for; with the bdev back, it has what was flushed."""
    target = lab.target()
    rpc = target.rpc
    meta, data = lab.file('meta', 16), lab.file('data', 64)
    aio(target, 'meta', meta)

    aio(target, 'fast', data)
    rpc.call('bdev_delay_create', base_bdev_name='fast', name='data', avg_read_latency=0, p99_read_latency=0,
             avg_write_latency=0, p99_write_latency=0)
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=64)
    host = host_of(lab, target, 't1')
    old = random_file(lab.folder / 'old', 1)
    # Many times what a host has under way at once.
    new = random_file(lab.folder / 'new', 24)
    host.run('write', str(old))
    for kind in ('avg_write', 'p99_write'):
        rpc.call('bdev_delay_update_latency', delay_bdev_name='data', latency_type=kind, latency_us=1_000_000)
    writer = host.start('write', str(new), '--offset', str(8 * MIB))
    # Its first blocks are mapped when later ones are being provisioned.
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['provisioned_blocks'] > 16)
    assert writer.poll() is None
    rpc.call('bdev_aio_delete', name='fast')
    assert writer.wait(timeout=HANG_SECONDS) != 0
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'waiting')
    refused(rpc, errno.ENODEV, ["'pool'", 'waiting', "'data'"], 'dm_status', name='pool')
    thin_check(meta)
    # The delay bdev comes back by itself with its base.
    aio(target, 'fast', data)
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'open')
    wait_for(lambda: any(b['name'] == 't1' for b in rpc.call('bdev_get_bdevs')))
    assert rpc.call('dm_status', name='pool')['line'].split(' ')[4] == 'rw'
    rpc.call('nvmf_subsystem_add_ns', nqn=nqn('t1'), namespace={'bdev_name': 't1'})
    back = lab.folder / 'back'
    host.run('read', str(back), '--length', str(MIB))
    assert back.read_bytes() == old.read_bytes()
    target.stop()
    thin_check(meta)


def test_vanished_data(lab):
    """The data bdev below the error bdev is deleted while nothing is under way: as any removal."""
    pool = Lab(lab)
    old, new = (random_file(lab.folder / name, 1) for name in ('old', 'new'))
    pool.write(old)
    pool.rpc.call('bdev_aio_delete', name='data')
    wait_for(lambda: pool.rpc.call('thin_pool_status', name='pool')['state'] == 'waiting')
    refused(pool.rpc, errno.ENODEV, ["'pool'", 'waiting', "'EE_data'"], 'dm_status', name='pool')
    pool.refuses(errno.ENODEV)
    thin_check(pool.meta)
    pool.make_base('data')
    wait_for(lambda: pool.rpc.call('thin_pool_status', name='pool')['state'] == 'open')
    wait_for(lambda: any(b['name'] == 't1' for b in pool.rpc.call('bdev_get_bdevs')))
    pool.export()
    assert pool.mode() == RW
    assert pool.read(MIB) == old.read_bytes()
    pool.write(new, 8 * MIB)
    pool.end()


ERRORS = ['out_of_data_space', 'no_discard_passdown', 'error_if_no_space', '-']
QUEUES = ['out_of_data_space', 'no_discard_passdown', 'queue_if_no_space', '-']


def test_no_data_space_errors(lab):
    """ENOSPC at once; what needs no space goes on. Loaded again the pool finds out anew; a discard ends it."""
    pool = Lab(lab, data_mb=4, features=['error_if_no_space'])
    content = random_file(lab.folder / 'content', 4)
    pool.write(content)
    assert pool.mode()[0] == 'rw'
    for _ in range(2):
        assert pool.write_fails(content, 8 * MIB) == 'write'
        assert pool.mode() == ERRORS and pool.used_data_blocks() == 64
        assert pool.host_errnos('write') == {errno.ENOSPC}
        pool.write(content)
        assert pool.read(4 * MIB) == content.read_bytes()
        assert pool.read(4 * MIB, 8 * MIB) == bytes(4 * MIB)
        pool.unload()
        thin_check(pool.meta)
        pool.load()
        assert pool.mode()[0] == 'rw' and pool.used_data_blocks() == 64
    assert pool.write_fails(content, 8 * MIB) == 'write'
    pool.host.run('clear', 'unmap', '--offset', '0', '--length', str(MIB))
    wait_for(lambda: pool.mode()[0] == 'rw')
    assert pool.used_data_blocks() == 48
    pool.end()


def test_no_data_space_queues(lab):
    """Writes wait; after a while they fail with ENOSPC, and others fail at once until there is space."""
    pool = Lab(lab, data_mb=4, no_space_timeout_s=8)
    content = random_file(lab.folder / 'content', 4)
    pool.write(content)
    writer = pool.host.start('write', str(content), '--offset', str(8 * MIB))
    wait_for(lambda: pool.mode() == QUEUES)
    assert writer.poll() is None
    wait_for(lambda: pool.mode() == ERRORS, seconds=HANG_SECONDS)
    assert writer.wait(timeout=HANG_SECONDS) != 0
    seen = [event['type'] for event in pool.rpc.call('notify_get_notifications', id=0, max=1000)]
    assert seen.count('thin_pool_no_space_timeout') == 1
    assert pool.host_errnos('write') == {errno.ENOSPC}
    pool.host.run('clear', 'unmap', '--offset', '0', '--length', str(MIB))
    wait_for(lambda: pool.mode() == RW)
    small = random_file(lab.folder / 'small', 1)
    pool.write(small, 8 * MIB)
    assert pool.read(MIB, 8 * MIB) == small.read_bytes()
    pool.unload()
    pool.load()
    assert pool.mode() == RW and pool.used_data_blocks() == 64
    pool.unload()
    # What nobody has asked for is the kernel's minute.
    del pool.params['no_space_timeout_s']
    pool.load()
    saved, = [call['params'] for call in pool.rpc.call('framework_get_config', name='bdev')
              if call['method'] == 'thin_pool_create']
    assert saved['no_space_timeout_s'] == 60
    pool.end()


def test_no_metadata_space(lab):
    """Read-only without needs_check: writes in place go on, changes are refused. Loaded again on a larger
    bdev, it is writable."""
    pool = Lab(lab, meta_kib=256)
    old, new = (random_file(lab.folder / name, 1) for name in ('old', 'new'))
    pool.write(old)
    number = 100
    while pool.mode()[0] == 'rw':
        pool.rpc.call('thin_create', pool='pool', id=number)
        number += 1
    assert number > 110 and pool.mode() == ['ro', 'no_discard_passdown', 'queue_if_no_space', '-']
    pool.refuses(errno.EOPNOTSUPP)
    assert pool.read(MIB) == old.read_bytes()
    assert pool.write_fails(new, 8 * MIB) == 'write'
    assert pool.host_errnos('write') == {errno.EIO}
    pool.write(new)
    assert pool.read(MIB) == new.read_bytes()
    pool.unload()
    thin_check(pool.meta)
    pool.rpc.call('bdev_error_delete', name='EE_meta')
    pool.rpc.call('bdev_aio_delete', name='meta')
    os.truncate(pool.meta, MIB)
    pool.make_base('meta')
    pool.load()
    assert pool.mode() == RW
    assert len(pool.rpc.call('thin_list', pool='pool')) == number - 100 + 1
    assert pool.read(MIB) == new.read_bytes()
    pool.write(old, 8 * MIB)
    pool.rpc.call('thin_create', pool='pool', id=number)
    pool.end()
