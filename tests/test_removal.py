# SPDX-License-Identifier: BSD-3-Clause
"""Base bdevs come and go while a pool is in use."""

import errno
import threading

import pytest

from harness import RpcError, thin_check
from harness.load import Load
from harness.pool import aio, host_of, refused, wait_for
from harness.target import nqn


def test_pool_waits_for_its_bdevs(lab):
    """A pool declared with `wait` says so until both of its bdevs are there, then opens by itself."""
    target = lab.target()
    rpc = target.rpc
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data', wait=True)

    def waits():
        assert rpc.call('thin_pool_status', name='pool')['state'] == 'waiting'
        refused(rpc, errno.ENODEV, ["'pool'", 'waiting', "'meta'", "'data'"], 'thin_create',
                pool='pool', id=1)

    waits()
    aio(target, 'meta', lab.file('meta', 16))
    waits()
    aio(target, 'data', lab.file('data', 128))
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'open')
    rpc.call('thin_create', pool='pool', id=1)
    target.stop()
    thin_check(lab.folder / 'meta')


@pytest.mark.parametrize('removed', ['data', 'meta'])
def test_removed_under_load(lab, removed):
    """A base bdev goes away under load: the host's I/O fails (it ends by itself), the target lives on
    and says what it waits for, and when the bdev is back, so are pool, thin bdev and all that was
    flushed."""
    target = lab.target()
    rpc = target.rpc
    files = {'meta': lab.file('meta', 16), 'data': lab.file('data', 512)}
    for name, path in files.items():
        aio(target, name, path)
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=1024)
    host = host_of(lab, target, 't1')
    state = lab.folder / 'state'
    for number in range(3):
        load = Load(host, state, '--seed', str(number), '--workers', '32', '--flush-every', '8')
        load.wait_durable(200)
        rpc.call('bdev_aio_delete', name=removed)
        assert load.end_by_itself() > 0, load.tail()
        assert 'errno' in load.text(), load.tail()
        wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'waiting')
        refused(rpc, errno.ENODEV, ["'pool'", 'waiting', f"'{removed}'"], 'dm_status', name='pool')
        assert f"'{removed}' was removed" in rpc.call('thin_pool_status', name='pool')['failure']
        assert not any(b['name'] == 't1' for b in rpc.call('bdev_get_bdevs'))
        thin_check(files['meta'])

        aio(target, removed, files[removed])
        wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'open')
        wait_for(lambda: any(b['name'] == 't1' for b in rpc.call('bdev_get_bdevs')))
        assert ' rw ' in rpc.call('dm_status', name='pool')['line']
        rpc.call('nvmf_subsystem_add_ns', nqn=nqn('t1'), namespace={'bdev_name': 't1'})
        host.run('verify', str(state))
    target.stop()
    thin_check(files['meta'])


class Calls:
    """Callers that ask for the pool's state, one call after the other, all at once."""

    def __init__(self, rpc, number):
        self._rpc = rpc
        self._end = threading.Event()
        self.unexpected = []
        self._threads = [threading.Thread(target=self._call) for _ in range(number)]

    def _call(self):
        while not self._end.is_set():
            try:
                self._rpc.call('thin_pool_status', name='pool')
            except RpcError as error:
                # What a pool that is going answers.
                if -error.code not in (errno.ENODEV, errno.EBUSY, errno.EIO):
                    self.unexpected.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize('removed', ['data', 'meta'])
def test_removed_while_calls_wait(lab, removed):
    """A base bdev goes while calls are being answered. The pool lets both of its bdevs go all the same, and
    opens again when the one that went is back."""
    target = lab.target()
    rpc = target.rpc
    files = {'meta': lab.file('meta', 16), 'data': lab.file('data', 128)}
    for name, path in files.items():
        aio(target, name, path)
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    with Calls(rpc, 8) as calls:
        for number in range(30):
            rpc.call('thin_create', pool='pool', id=number)
            rpc.call('bdev_aio_delete', name=removed)
            aio(target, removed, files[removed])
            wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'open')
    assert not calls.unexpected
    target.stop()
    thin_check(files['meta'])


@pytest.mark.parametrize('removed', ['data', 'meta'])
def test_removed_while_calls_wait_for_commits(lab, removed):
    """The same under load, while calls wait for the pool to commit to slow bdevs; the bdev is back at once."""
    target = lab.target()
    rpc = target.rpc
    latencies = {'avg_read_latency': 0, 'p99_read_latency': 0, 'avg_write_latency': 20000,
                 'p99_write_latency': 20000}
    for name, size in (('meta', 16), ('data', 512)):
        aio(target, f'fast_{name}', lab.file(name, size))
        rpc.call('bdev_delay_create', base_bdev_name=f'fast_{name}', name=name, **latencies)
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=1024)
    host = host_of(lab, target, 't1')
    state = lab.folder / 'state'
    with Calls(rpc, 16) as calls:
        for number in range(3):
            load = Load(host, state, '--seed', str(number), '--workers', '32', '--flush-every', '8')
            load.wait_durable(100)
            rpc.call('bdev_delay_delete', name=removed)
            rpc.call('bdev_delay_create', base_bdev_name=f'fast_{removed}', name=removed, **latencies)
            load.end_by_itself()
            wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'open')
            wait_for(lambda: any(b['name'] == 't1' for b in rpc.call('bdev_get_bdevs')))
            rpc.call('nvmf_subsystem_add_ns', nqn=nqn('t1'), namespace={'bdev_name': 't1'})
            host.run('verify', str(state))
    assert not calls.unexpected
    target.stop()
    thin_check(lab.folder / 'meta')
