# SPDX-License-Identifier: BSD-3-Clause
"""The life of pools and thin devices on a real spdk_tgt."""

import os
import re
from xml.etree import ElementTree

from harness import program, thin_check, thin_dump
from harness.pool import aio, host_of, pool_on_files, random_file


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
    # 11 metadata blocks and the reserve of a tenth; an AIO bdev takes no unmap.
    assert rpc.call('dm_status', name='pool')['line'] == \
        '0 420/4096 0/2048 - rw no_discard_passdown queue_if_no_space - 1024 '
    rpc.call('dm_remove', name='t3')
    rpc.call('thin_deactivate', bdev_name='t1')
    rpc.call('thin_delete', pool='pool', id=1)
    assert [d['id'] for d in rpc.call('thin_list', pool='pool')] == [2, 3]
    rpc.call('thin_pool_delete', name='pool')
    assert rpc.call('thin_pool_status') == []
    target.stop()
    thin_check(meta)


def test_status_is_the_kernels(lab):
    """The status lines and mappings that a Linux kernel gave for the same steps (thin.md 13)."""
    target = lab.target()
    rpc = target.rpc
    meta = lab.file('meta', 4)
    aio(target, 'meta', meta)
    rpc.call('bdev_malloc_create', name='data', num_blocks=64 * 2048, block_size=512)
    rpc.call('dm_create', name='pool', table='0 131072 thin-pool meta data 128 100')
    rpc.call('dm_message', name='pool', message='create_thin 0')
    rpc.call('dm_create', name='t0', table='0 65536 thin pool 0')
    host = host_of(lab, target, 't0')
    content = lab.folder / 'content'
    content.write_bytes(os.urandom(10 * 65536))
    host.run('write', str(content), '--offset', str(3 * 65536))
    rpc.call('dm_message', name='pool', message='create_snap 1 0')
    content.write_bytes(os.urandom(4096))
    host.run('write', str(content), '--offset', str(3 * 65536))
    assert rpc.call('dm_status', name='pool')['line'] == \
        '0 113/1024 11/1024 - rw discard_passdown queue_if_no_space - 256 '
    assert rpc.call('dm_status', name='t0')['line'] == '1280 1663'
    rpc.call('dm_message', name='pool', message='reserve_metadata_snap')
    before, held, after = re.fullmatch(
        r'(.*) (\d+) (rw .*)', rpc.call('dm_status', name='pool')['line']).groups()
    assert (before, after) == ('0 114/1024 11/1024',
                               'rw discard_passdown queue_if_no_space - 256 ')
    assert 0 < int(held) < 1024
    rpc.call('dm_message', name='pool', message='release_metadata_snap')
    target.stop()
    thin_check(meta)
    mappings = {device.get('dev_id'): [dict(run.items()) for run in device]
                for device in ElementTree.fromstring(thin_dump(meta)).findall('device')}
    assert mappings == {
        '0': [{'origin_block': '3', 'data_block': '10', 'time': '1'},
              {'origin_begin': '4', 'data_begin': '1', 'length': '9', 'time': '0'}],
        '1': [{'origin_begin': '3', 'data_begin': '0', 'length': '10', 'time': '0'}],
    }


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
