# SPDX-License-Identifier: BSD-3-Clause
"""The life of pools and thin devices on a real spdk_tgt."""

from harness import program, thin_check
from harness.pool import host_of, pool_on_files, random_file


def test_life_cycle(lab):
    """Create, snapshot, list, activate, deactivate, delete, close: each does what it says."""
    target = lab.target()
    rpc = target.rpc
    meta, _ = pool_on_files(lab, target)
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=4096)
    rpc.call('thin_snapshot', pool='pool', id=2, origin_id=1)
    rpc.call('dm_message', name='pool', message='create_thin 3')
    rpc.call('dm_create', name='t3', table='0 2048 thin pool 3')
    assert [d['id'] for d in rpc.call('thin_list', pool='pool')] == [1, 2, 3]
    assert rpc.call('bdev_get_bdevs', name='t1')[0]['num_blocks'] == 4096 * 2048
    assert rpc.call('dm_status', name='t3')['line'] == '0 -'
    assert rpc.call('dm_table', name='t3') == '0 2048 thin pool 3'
    line = rpc.call('dm_status', name='pool')['line']
    assert line.startswith('0 ') and line.endswith(' rw discard_passdown queue_if_no_space - 1024 ') \
        or 'no_discard_passdown' in line
    rpc.call('dm_remove', name='t3')
    rpc.call('thin_deactivate', bdev_name='t1')
    rpc.call('thin_delete', pool='pool', id=1)
    assert [d['id'] for d in rpc.call('thin_list', pool='pool')] == [2, 3]
    rpc.call('thin_pool_delete', name='pool')
    assert rpc.call('thin_pool_status') == []
    target.stop()
    thin_check(meta)


def test_linked_target(lab):
    """spdk_dm_tgt is an spdk_tgt that needs no preloading."""
    target = lab.target(command=[program('spdk_dm_tgt')])
    assert 'thin_pool_create' in target.rpc.call('rpc_get_methods')
    pool_on_files(lab, target)
    target.rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=64)
    host = host_of(lab, target, 't1')
    content = random_file(lab.folder / 'content', 1)
    host.run('write', str(content))
    target.stop()
