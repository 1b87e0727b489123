# SPDX-License-Identifier: BSD-3-Clause
"""Base bdevs come and go while a pool is in use."""

import errno
import subprocess

from harness import thin_check
from harness.pool import aio, host_of, refused, wait_for


def end(process):
    """A host whose target is gone ends by itself or is ended; its state file is right either way."""
    try:
        process.wait(timeout=3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def test_pool_waits_for_its_bdevs_and_survives_their_removal(lab):
    """A pool declared with `wait` opens when its bdevs come. When one goes, I/O fails cleanly, and
    the pool comes back with it."""
    target = lab.target()
    meta, data = lab.file('meta', 16), lab.file('data', 128)
    rpc = target.rpc
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data', wait=True)
    assert rpc.call('thin_pool_status', name='pool')['state'] == 'waiting'
    refused(rpc, errno.ENODEV, ["'pool'", 'waiting'], 'thin_create', pool='pool', id=1)
    aio(target, 'meta', meta)
    aio(target, 'data', data)
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'open')
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=512)
    host = host_of(lab, target, 't1')
    state = lab.folder / 'state'
    stress = host.start('stress', str(state), '--slots', '512', '--workers', '8')
    wait_for(lambda: rpc.call('thin_pool_status', name='pool').get('provisioned_blocks', 0) > 20)
    rpc.call('bdev_aio_delete', name='data')
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'waiting')
    assert not any(b['name'] == 't1' for b in rpc.call('bdev_get_bdevs'))
    end(stress)
    aio(target, 'data', data)
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'open')
    wait_for(lambda: any(b['name'] == 't1' for b in rpc.call('bdev_get_bdevs')))
    target.stop()
    thin_check(meta)
