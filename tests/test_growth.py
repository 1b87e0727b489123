# SPDX-License-Identifier: BSD-3-Clause
"""Pools follow the size of their bdevs, and say what happens to them."""

from harness import HostIO, thin_check
from harness.pool import host_of, pool_on_files, random_file, wait_for

MIB = 1 << 20


def events(rpc):
    """(kind, context) of all of SPDK's notifications about pools so far."""
    return [(e['type'], e['ctx']) for e in rpc.call('notify_get_notifications', id=0, max=1000)
            if e['type'].startswith('thin_pool_')]


def test_growth_under_load(lab):
    """A pool out of data space goes on by itself when its data bdev grows; the writes that waited for
    space are there. Low water mark, modes and growth are notified, once each."""
    target = lab.target(memory_mb=512)
    rpc = target.rpc
    rpc.call('bdev_malloc_create', name='base', num_blocks=256 * 2048, block_size=512)
    rpc.call('bdev_lvol_create_lvstore', bdev_name='base', lvs_name='lvs', cluster_sz=MIB)
    for name, size in (('meta', 4), ('data', 8)):
        rpc.call('bdev_lvol_create', lvol_name=name, size=size * MIB, lvs_name='lvs')
    rpc.call('thin_pool_create', name='pool', metadata_bdev='lvs/meta', data_bdev='lvs/data',
             low_water_mark_blocks=16)
    assert {'thin_pool_mode', 'thin_pool_grown'} <= set(rpc.call('notify_get_types'))
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=64)
    host: HostIO = host_of(lab, target, 't1')
    content = lab.folder / 'content'
    content.write_bytes(bytes(range(256)) * (16 * MIB // 256))
    writer = host.start('write', str(content))
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['mode'] == 'out_of_data_space')
    status = rpc.call('thin_pool_status', name='pool')
    assert status['low_data'] and status['used_data_blocks'] == status['total_data_blocks'] == 128
    assert writer.poll() is None

    rpc.call('bdev_lvol_resize', name='lvs/data', size=32 * MIB)
    assert writer.wait(timeout=300) == 0
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['mode'] == 'rw')
    status = rpc.call('thin_pool_status', name='pool')
    assert status['total_data_blocks'] == 512 and status['used_data_blocks'] == 256
    back = lab.folder / 'back'
    host.run('read', str(back), '--length', str(16 * MIB))
    assert back.read_bytes() == content.read_bytes()

    rpc.call('bdev_lvol_resize', name='lvs/meta', size=8 * MIB)
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['total_metadata_blocks'] == 2048)
    seen = events(rpc)
    assert seen == [('thin_pool_low_data', 'pool 16'), ('thin_pool_mode', 'pool out_of_data_space'),
                    ('thin_pool_mode', 'pool rw'), ('thin_pool_grown', 'pool 512 1024'),
                    ('thin_pool_grown', 'pool 512 2048')], seen
    assert rpc.call('dm_status', name='pool')['line'].split()[2] == '256/512'
    rpc.call('thin_deactivate', bdev_name='t1')
    metadata = lab.folder / 'metadata'
    rpc.call('thin_pool_delete', name='pool')
    reader = host_of(lab, target, 'lvs/meta', 'meta')
    reader.run('read', str(metadata), '--length', str(8 * MIB))
    target.stop()
    thin_check(metadata)


def test_a_full_pool_lets_go_of_its_bdevs(lab):
    """A thin bdev is deactivated while writes wait for space: they fail, and nobody waits for the
    time-out."""
    target = lab.target()
    rpc = target.rpc
    pool_on_files(lab, target, data_mb=4)
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=64)
    host = host_of(lab, target, 't1')
    content = random_file(lab.folder / 'content', 8)
    writer = host.start('write', str(content))
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['mode'] == 'out_of_data_space')
    assert writer.poll() is None
    rpc.call('thin_deactivate', bdev_name='t1')
    assert ('thin_pool_no_space_timeout', 'pool') not in events(rpc)
    assert writer.wait(timeout=300) != 0
    rpc.call('thin_delete', pool='pool', id=1)
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['mode'] == 'rw')
    target.stop()
    thin_check(lab.folder / 'meta')
