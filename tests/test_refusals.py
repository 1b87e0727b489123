# SPDX-License-Identifier: BSD-3-Clause
"""What is refused: the right errno, the object named, nothing changed."""

import errno
import os

import pytest

from harness import thin_check
from harness.pool import aio, refused

# Reading metadata to find that something is wrong may fill caches.
CACHES = ('metadata_cache_', 'mapping_cache_')
# JSON-RPC's "invalid params".
INVALID_PARAMS = 32602


def everything(rpc):
    """All that a refusal must leave as it was."""
    pools = rpc.call('thin_pool_status')
    return {
        'bdevs': rpc.call('bdev_get_bdevs'),
        'pools': [{k: v for k, v in pool.items() if not k.startswith(CACHES)} for pool in pools],
        'devices': {pool['name']: rpc.call('thin_list', pool=pool['name']) for pool in pools},
        'lines': {pool['name']: rpc.call('dm_status', name=pool['name'])['line'] for pool in pools},
        'config': rpc.call('framework_get_config', name='bdev'),
    }


class Refusals:
    """Calls what must be refused, and looks at everything before and after."""

    def __init__(self, rpc):
        self._rpc = rpc

    def __call__(self, code, words, method, **params):
        before = everything(self._rpc)
        refused(self._rpc, code, words, method, **params)
        assert everything(self._rpc) == before


@pytest.fixture(name='rpc')
def rpc_with_bdevs(lab):
    target = lab.target()
    rpc = target.rpc
    rpc.call('bdev_malloc_create', name='meta', num_blocks=32768, block_size=512)
    rpc.call('bdev_malloc_create', name='data', num_blocks=131072, block_size=512)
    yield rpc
    target.stop()


def test_pool_on_unfit_bdevs(lab, rpc):
    """A pool on bdevs that cannot carry one, or with settings that make no sense, is not made."""
    rpc.call('bdev_malloc_create', name='tiny', num_blocks=100, block_size=512)
    rpc.call('bdev_malloc_create', name='wide', num_blocks=32768, block_size=8192)
    rpc.call('bdev_null_create', name='withmd', num_blocks=100000, block_size=520, md_size=8)
    rpc.call('bdev_null_create', name='withdif', num_blocks=100000, block_size=520, md_size=8,
             dif_type=1)
    rpc.call('bdev_malloc_create', name='below', num_blocks=131072, block_size=512)
    rpc.call('bdev_passthru_create', base_bdev_name='below', name='above')
    # The second looks like metadata at first: its first block knows its place.
    noise = os.urandom(1 << 20)
    foreign = {'garbage': noise, 'mistaken': noise[:8] + bytes(8) + noise[16:]}
    for name, content in foreign.items():
        (lab.folder / name).write_bytes(content)
        rpc.call('bdev_aio_create', name=name, filename=str(lab.folder / name), block_size=512)
    refuse = Refusals(rpc)

    def create(code, words, **params):
        refuse(code, words, 'thin_pool_create', **{
            'name': 'pool', 'metadata_bdev': 'meta', 'data_bdev': 'data', **params})

    assert [b['name'] for b in rpc.call('bdev_get_bdevs') if b['claimed']] == ['below']
    for role in ('metadata_bdev', 'data_bdev'):
        create(errno.ENODEV, ["'nothing'"], **{role: 'nothing'})
        create(errno.EINVAL, ["'tiny'", 'too small'], **{role: 'tiny'})
        create(errno.EINVAL, ["'wide'", '8192'], **{role: 'wide'})
        create(errno.EINVAL, ["'withmd'", 'metadata'], **{role: 'withmd'})
        create(errno.EINVAL, ["'withdif'", 'protection information'], **{role: 'withdif'})
        create(errno.EPERM, ["'below'", 'claimed'], **{role: 'below'})
        create(INVALID_PARAMS, [role], **{role: 5})
        # A pool that may wait does so for bdevs that are missing, not for those that will not do.
        create(errno.EPERM, ["'below'", 'claimed'], wait=True, **{role: 'below'})
        create(errno.EINVAL, ["'withdif'"], wait=True, **{role: 'withdif'})
    create(errno.EINVAL, ["'data'"], metadata_bdev='data')
    create(errno.ENOTBLK, ["'garbage'", 'not a thin pool'], metadata_bdev='garbage')
    create(errno.EILSEQ, ["'mistaken'"], metadata_bdev='mistaken')
    for name, content in foreign.items():
        assert (lab.folder / name).read_bytes() == content
    create(errno.EINVAL, ['Invalid block size'], data_block_size_sectors=100)
    create(errno.EINVAL, ["'a b'"], name='a b')
    create(errno.EINVAL, ['nonsense'], features=['nonsense'])
    create(INVALID_PARAMS, ['unheard_of'], unheard_of=1)
    # None of it was in the way of a pool that is right.
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='above')


def test_operations_on_a_pool(rpc):
    """What a pool refuses leaves it, its devices and the bdevs as they were."""
    refuse = Refusals(rpc)
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    refuse(errno.EPERM, ["'meta'", 'claimed'], 'thin_pool_create', name='pool2',
           metadata_bdev='meta', data_bdev='data')
    refuse(errno.EEXIST, ["'pool'"], 'thin_pool_create', name='pool', metadata_bdev='meta',
           data_bdev='data')
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=10)
    refuse(errno.EEXIST, ['device 1'], 'thin_create', pool='pool', id=1)
    refuse(errno.EEXIST, ["'t1'"], 'thin_create', pool='pool', id=2, bdev_name='t1', size_mib=1)
    refuse(errno.EINVAL, ["'a b'"], 'thin_create', pool='pool', id=2, bdev_name='a b', size_mib=1)
    refuse(errno.EEXIST, ["'data'"], 'thin_create', pool='pool', id=2, bdev_name='data', size_mib=1)
    refuse(errno.EEXIST, ['device 1'], 'thin_snapshot', pool='pool', id=1, origin_id=1)
    refuse(errno.ENODATA, ['device 9'], 'thin_snapshot', pool='pool', id=3, origin_id=9)
    refuse(errno.ENODATA, ['device 9'], 'thin_delete', pool='pool', id=9)
    refuse(errno.EBUSY, ['device 1', 'active'], 'thin_delete', pool='pool', id=1)
    refuse(errno.EBUSY, ["'pool'"], 'thin_pool_delete', name='pool')
    refuse(errno.ENODEV, ["'nopool'"], 'thin_create', pool='nopool', id=1)
    refuse(errno.ENODEV, ["'nopool'"], 'thin_pool_delete', name='nopool')
    refuse(errno.ENODEV, ["'data'"], 'thin_deactivate', bdev_name='data')
    refuse(errno.EINVAL, ['16777216'], 'thin_create', pool='pool', id=16777216)
    refuse(errno.ENODATA, ['device 7'], 'thin_activate', pool='pool', id=7, size_mib=1)
    refuse(errno.EBUSY, ['device 1'], 'thin_activate', pool='pool', id=1, bdev_name='x', size_mib=1)
    refuse(errno.EINVAL, ['size'], 'thin_activate', pool='pool', id=1)
    refuse(INVALID_PARAMS, ['id'], 'thin_create', pool='pool', id='one')
    refuse(errno.EINVAL, ['Unrecognised'], 'dm_message', name='pool', message='frobnicate')
    refuse(errno.EINVAL, ['transaction id'], 'dm_message', name='pool',
           message='set_transaction_id 5 6')
    refuse(errno.EINVAL, ["'cache'"], 'dm_create', name='c', table='0 8 cache a b')
    refuse(errno.EINVAL, ['metadata snapshot'], 'dm_message', name='pool',
           message='release_metadata_snap')
    rpc.call('dm_message', name='pool', message='reserve_metadata_snap')
    refuse(errno.EBUSY, ['metadata snapshot'], 'dm_message', name='pool',
           message='reserve_metadata_snap')
    rpc.call('dm_message', name='pool', message='release_metadata_snap')
    assert [d['id'] for d in rpc.call('thin_list', pool='pool')] == [1]


def test_refusals_leave_the_metadata_alone(lab):
    """Not a byte of the metadata changes by what is refused."""
    target = lab.target()
    meta = lab.file('meta', 16)
    aio(target, 'meta', meta)
    aio(target, 'data', lab.file('data', 64))
    rpc = target.rpc
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    rpc.call('thin_create', pool='pool', id=1)
    before = meta.read_bytes()
    refused(rpc, errno.EEXIST, ['device 1'], 'thin_create', pool='pool', id=1)
    refused(rpc, errno.ENODATA, ['device 9'], 'thin_snapshot', pool='pool', id=3, origin_id=9)
    refused(rpc, errno.ENODATA, ['device 9'], 'thin_delete', pool='pool', id=9)
    refused(rpc, errno.EINVAL, ['transaction id'], 'dm_message', name='pool',
            message='set_transaction_id 5 6')
    assert meta.read_bytes() == before
    target.stop()
    thin_check(meta)
