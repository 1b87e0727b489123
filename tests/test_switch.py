# SPDX-License-Identifier: BSD-3-Clause
"""Thin bdevs that are suspended, resumed, and switched to another pool's device under load."""

import subprocess
import time

import pytest

from harness.load import Load, progress
from harness.pool import aio, host_of, pool_on_files, refused
from harness.process import program

ENODEV, EINVAL, EBUSY, ETIMEDOUT, ESTALE = 19, 22, 16, 110, 116
SIZE_MIB = 64


@pytest.fixture(name='target')
def target_with_pools(lab):
    """Pools 'pool' and 'other', and the thin bdev 'thin' of the first."""
    target = lab.target(memory_mb=512)
    pool_on_files(lab, target, data_mb=256)
    aio(target, 'meta2', lab.file('meta2', 16))
    aio(target, 'data2', lab.file('data2', 256))
    target.rpc.call('thin_pool_create', name='other', metadata_bdev='meta2', data_bdev='data2')
    target.rpc.call('thin_create', pool='pool', id=1, bdev_name='thin', size_mib=SIZE_MIB)
    yield target
    target.stop()


def copy(lab, target):
    """Thin device 1 of 'pool' into the new one 7 of 'other'."""
    socket, file = target.process.socket, lab.folder / 'copy.backup'
    for words in (['full', 'pool', '1', '-o', file], ['restore', file, '--pool', 'other', '--id', '7', '--no-verify']):
        subprocess.run([program('spdk-dm'), 'backup', *words, '--socket', socket], check=True, timeout=120)


def test_switch_under_load(lab, target):
    """A host that writes, unmaps and zeroes through NVMe/TCP notices nothing of a suspension that is resumed, of
    one that ends by itself, and of a switch: what it had made durable before and what it writes afterwards is
    there. The saved configuration names the new pool, and the old one can be deleted."""
    rpc = target.rpc
    host = host_of(lab, target, 'thin')
    load = Load(host, lab.folder / 'state', '--slots', '64')
    load.wait_durable(200)
    # Resumed.
    number = rpc.call('thin_suspend', bdev_name='thin', timeout_ms=60000)['suspension']
    refused(rpc, EBUSY, ["'thin'", 'thin_resume'], 'thin_suspend', bdev_name='thin')
    before = progress(lab.folder / 'state')
    time.sleep(0.3)
    assert progress(lab.folder / 'state').durable == before.durable
    rpc.call('thin_resume', bdev_name='thin')
    refused(rpc, ESTALE, ["'thin'"], 'thin_switch', bdev_name='thin', pool='other', id=7, suspension=number)
    refused(rpc, EINVAL, ["'thin'"], 'thin_resume', bdev_name='thin')
    load.wait_durable(100)
    # By itself.
    number = rpc.call('thin_suspend', bdev_name='thin', timeout_ms=500)['suspension']
    load.wait_durable(100)
    refused(rpc, ESTALE, ["'thin'"], 'thin_switch', bdev_name='thin', pool='other', id=7, suspension=number)
    # A switch that is refused leaves all as it was.
    number = rpc.call('thin_suspend', bdev_name='thin', timeout_ms=60000)['suspension']
    refused(rpc, 61, ["'other'"], 'thin_switch', bdev_name='thin', pool='other', id=9, suspension=number)
    load.wait_durable(100)
    refused(rpc, ENODEV, ["'none'"], 'thin_suspend', bdev_name='none')
    # Switched.
    number = rpc.call('thin_suspend', bdev_name='thin', timeout_ms=20000)['suspension']
    copy(lab, target)
    answer = rpc.call('thin_switch', bdev_name='thin', pool='other', id=7, suspension=number)
    assert answer == {'bdev_name': 'thin', 'pool': 'other', 'id': 7}
    load.wait_durable(200)
    load.finish()
    saved = activations(rpc)
    assert [(call['pool'], call['id']) for call in saved] == [('other', 7)]
    shown = rpc.call('bdev_get_bdevs', name='thin')[0]['driver_specific']['thin']
    assert shown == {'pool': 'other', 'id': 7}
    rpc.call('thin_delete', pool='pool', id=1)
    rpc.call('thin_pool_delete', name='pool')
    host.run('verify', str(lab.folder / 'state'))


def activations(rpc):
    config = rpc.call('framework_get_config', name='bdev')
    return [call['params'] for call in config if call['method'] == 'thin_activate']


def test_deactivated_while_suspended(lab, target):
    """A suspended bdev can go, and so can SPDK: what waits fails, and is not sent to the old device."""
    rpc = target.rpc
    host = host_of(lab, target, 'thin')
    load = Load(host, lab.folder / 'state', '--slots', '64')
    load.wait_durable(100)
    number = rpc.call('thin_suspend', bdev_name='thin', timeout_ms=60000)['suspension']
    rpc.call('thin_deactivate', bdev_name='thin')
    refused(rpc, ENODEV, ["'thin'"], 'thin_switch', bdev_name='thin', pool='other', id=7,
            suspension=number)
    assert load.end_by_itself() != 0
    rpc.call('thin_activate', pool='pool', id=1, bdev_name='thin', size_mib=SIZE_MIB)
    rpc.call('thin_suspend', bdev_name='thin', timeout_ms=60000)
