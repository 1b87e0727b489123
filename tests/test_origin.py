# SPDX-License-Identifier: BSD-3-Clause
"""External origins: a bdev outside the pool that the holes of a thin device show."""

import errno
import json
import os

from harness import HostIO, thin_check
from harness.pool import aio, host_of, pool_on_files, refused, wait_for

KIB = 1 << 10
MIB = 1 << 20
# Ends in the middle of a data block.
ORIGIN_BYTES = 3 * MIB + 20 * KIB


def test_external_origin(lab):
    """Holes show the origin, its end inside a block included; writes and zeroes hide it, discards show
    it again; a snapshot with the same origin keeps what was. The origin itself never changes."""
    target = lab.target()
    rpc = target.rpc
    meta, _ = pool_on_files(lab, target)
    original = os.urandom(ORIGIN_BYTES)
    path = lab.folder / 'origin'
    path.write_bytes(original)
    aio(target, 'origin', path)
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=8, origin_bdev='origin')
    assert rpc.call('dm_table', name='t1') == '0 16384 thin pool 1 origin'
    host = host_of(lab, target, 't1')
    back = lab.folder / 'back'

    def check(expected, reader=host):
        reader.run('read', str(back), '--length', str(8 * MIB))
        assert back.read_bytes() == bytes(expected)

    expected = bytearray(original + bytes(8 * MIB - ORIGIN_BYTES))
    check(expected)
    assert rpc.call('dm_status', name='t1')['line'] == '0 -'
    # Inside a block of the origin, over its end, and beyond it.
    for number, (offset, length) in enumerate([(MIB + 12 * KIB, 8 * KIB),
                                               (ORIGIN_BYTES - 4 * KIB, 8 * KIB),
                                               (6 * MIB + 4 * KIB, 100 * KIB)]):
        content = os.urandom(length)
        data = lab.folder / f'content{number}'
        data.write_bytes(content)
        host.run('write', str(data), '--offset', str(offset))
        expected[offset:offset + length] = content
    check(expected)
    rpc.call('thin_snapshot', pool='pool', id=2, origin_id=1)
    frozen = bytes(expected)
    # Discards give the origin back; zeroes are zeroes, over origin and holes.
    host.run('clear', 'unmap', '--offset', str(MIB), '--length', str(MIB))
    expected[MIB:2 * MIB] = original[MIB:2 * MIB]
    host.run('clear', 'zeroes', '--offset', str(2 * MIB + 4 * KIB), '--length', str(2 * MIB))
    expected[2 * MIB + 4 * KIB:4 * MIB + 4 * KIB] = bytes(2 * MIB)
    check(expected)
    rpc.call('dm_create', name='t2', table='0 16384 thin pool 2 origin')
    check(frozen, host_of(lab, target, 't2', 'host2'))

    # With the origin go the bdevs on it, and come back.
    rpc.call('bdev_aio_delete', name='origin')
    wait_for(lambda: not any(b['name'] in ('t1', 't2') for b in rpc.call('bdev_get_bdevs')))
    aio(target, 'origin', path)
    wait_for(lambda: {'t1', 't2'} <= {b['name'] for b in rpc.call('bdev_get_bdevs')})
    rpc.call('thin_deactivate', bdev_name='t2')
    rpc.call('thin_activate', pool='pool', id=2, bdev_name='plain', size_mib=8)
    assert rpc.call('dm_table', name='plain') == '0 16384 thin pool 2'
    refused(rpc, errno.ENODEV, ["'nothing'", "'x'"], 'thin_activate', pool='pool', id=9,
            bdev_name='x', size_mib=1, origin_bdev='nothing')
    target.stop()
    thin_check(meta)
    assert path.read_bytes() == original


def test_zeroes_over_an_origin(lab):
    """WRITE ZEROES through the plugin itself (hosts of v20.07 send zeroes as data) hides the origin."""
    target = lab.target()
    rpc = target.rpc
    pool_on_files(lab, target)
    path = lab.folder / 'origin'
    path.write_bytes(os.urandom(ORIGIN_BYTES))
    aio(target, 'origin', path)
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=8, origin_bdev='origin')
    target.stop()
    config = lab.folder / 'local.json'
    config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': [
        {'method': 'bdev_aio_create', 'params': {'name': name, 'filename': str(lab.folder / name),
                                                 'block_size': 512}}
        for name in ('meta', 'data', 'origin')] + [
        {'method': 'thin_pool_create', 'params': {'name': 'pool', 'metadata_bdev': 'meta',
                                                  'data_bdev': 'data'}},
        {'method': 'thin_activate', 'params': {'pool': 'pool', 'id': 1, 'bdev_name': 't1',
                                               'size_mib': 8, 'origin_bdev': 'origin'}}]}]}))
    local = HostIO(lab.folder, config, 't1', plugin=True)
    begin, length = 60 * KIB, 3 * MIB
    local.run('clear', 'zeroes', '--offset', str(begin), '--length', str(length))
    back = lab.folder / 'back'
    local.run('read', str(back), '--length', str(8 * MIB))
    original = path.read_bytes()
    expected = bytearray(original + bytes(8 * MIB - ORIGIN_BYTES))
    expected[begin:begin + length] = bytes(length)
    assert back.read_bytes() == bytes(expected)
    thin_check(lab.folder / 'meta')
