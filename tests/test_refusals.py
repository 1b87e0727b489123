# SPDX-License-Identifier: BSD-3-Clause
"""What is refused: the right errno, the object named, nothing changed."""

import errno

from harness.pool import refused


def test_refusals(lab):
    """Each refusal has the right errno, names the object, and changes nothing."""
    target = lab.target()
    rpc = target.rpc
    rpc.call('bdev_malloc_create', name='meta', num_blocks=32768, block_size=512)
    rpc.call('bdev_malloc_create', name='data', num_blocks=131072, block_size=512)
    rpc.call('bdev_malloc_create', name='tiny', num_blocks=100, block_size=512)
    rpc.call('bdev_null_create', name='withmd', num_blocks=100000, block_size=520, md_size=8)

    def create(code, words, **params):
        refused(rpc, code, words, 'thin_pool_create', **{
            'name': 'pool', 'metadata_bdev': 'meta', 'data_bdev': 'data', **params})
        assert rpc.call('thin_pool_status') == []
        assert not any(b['claimed'] for b in rpc.call('bdev_get_bdevs'))

    create(errno.ENODEV, ["'nothing'"], metadata_bdev='nothing')
    create(errno.ENODEV, ["'nothing'"], data_bdev='nothing')
    create(errno.EINVAL, ["'tiny'", 'too small'], metadata_bdev='tiny')
    create(errno.EINVAL, ["'tiny'", 'too small'], data_bdev='tiny')
    create(errno.EINVAL, ["'withmd'", 'metadata'], data_bdev='withmd')
    create(errno.EINVAL, ['Invalid block size'], data_block_size_sectors=100)
    create(errno.EINVAL, ["'a b'"], name='a b')
    create(errno.EINVAL, ["'data'"], metadata_bdev='data')
    create(errno.EINVAL, ['nonsense'], features=['nonsense'])
    create(32602, ['data_bdev'], data_bdev=5)
    create(32602, ['unheard_of'], unheard_of=1)

    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    refused(rpc, errno.EPERM, ["'meta'", 'claimed'], 'thin_pool_create', name='pool2',
            metadata_bdev='meta', data_bdev='data')
    refused(rpc, errno.EEXIST, ["'pool'"], 'thin_pool_create', name='pool', metadata_bdev='meta',
            data_bdev='data')
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=10)
    refused(rpc, errno.EEXIST, ['device 1'], 'thin_create', pool='pool', id=1)
    refused(rpc, errno.EEXIST, ["'t1'"], 'thin_create', pool='pool', id=2, bdev_name='t1', size_mib=1)
    refused(rpc, errno.ENODATA, ['device 9'], 'thin_snapshot', pool='pool', id=3, origin_id=9)
    refused(rpc, errno.ENODATA, ['device 9'], 'thin_delete', pool='pool', id=9)
    refused(rpc, errno.EBUSY, ['device 1', 'active'], 'thin_delete', pool='pool', id=1)
    refused(rpc, errno.EBUSY, ["'pool'"], 'thin_pool_delete', name='pool')
    refused(rpc, errno.ENODEV, ["'nopool'"], 'thin_create', pool='nopool', id=1)
    refused(rpc, errno.EINVAL, ['16777216'], 'thin_create', pool='pool', id=16777216)
    refused(rpc, errno.ENODATA, ['device 7'], 'thin_activate', pool='pool', id=7, size_mib=1)
    refused(rpc, errno.EBUSY, ['device 1'], 'thin_activate', pool='pool', id=1, bdev_name='x',
            size_mib=1)
    refused(rpc, errno.EINVAL, ['size'], 'thin_activate', pool='pool', id=1)
    refused(rpc, errno.EINVAL, ['Unrecognised'], 'dm_message', name='pool', message='frobnicate')
    refused(rpc, errno.EINVAL, ['transaction id'], 'dm_message', name='pool',
            message='set_transaction_id 5 6')
    refused(rpc, errno.EINVAL, ["'cache'"], 'dm_create', name='c', table='0 8 cache a b')
    rpc.call('dm_message', name='pool', message='reserve_metadata_snap')
    refused(rpc, errno.EBUSY, ['metadata snapshot'], 'dm_message', name='pool',
            message='reserve_metadata_snap')
    rpc.call('dm_message', name='pool', message='release_metadata_snap')
    assert [d['id'] for d in rpc.call('thin_list', pool='pool')] == [1]
    target.stop()
