# SPDX-License-Identifier: BSD-3-Clause
"""What is written reads back, and the metadata says where it is."""

import json
import subprocess
from xml.etree import ElementTree

import pytest

from harness import HostIO, thin_check, thin_dump
from harness.pool import aio, host_of, pool_on_files, random_file, wait_for
from harness.process import spdk_major


@pytest.mark.parametrize('blocks', [(512, 512), (4096, 4096), (512, 4096), (4096, 512)])
def test_data(lab, blocks):
    """Written data, snapshots, discards and zeroes read back as they must, through NVMe/TCP, also
    after a restart; metadata passes both checks and dumps as the model."""
    target = lab.target()
    meta, _ = pool_on_files(lab, target, blocks=blocks)
    rpc = target.rpc
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=1024)
    assert rpc.call('bdev_get_bdevs', name='t1')[0]['block_size'] == blocks[1]
    host = host_of(lab, target, 't1')
    old, new = random_file(lab.folder / 'old', 8), random_file(lab.folder / 'new', 1)
    back = lab.folder / 'back'
    mib = 1 << 20
    # Not aligned to data blocks, so heads and tails are provisioned partly.
    offset = 100 * mib + 12288
    host.run('write', str(old), '--offset', str(offset))
    host.run('read', str(back), '--offset', str(offset - mib), '--length', str(10 * mib))
    expected = bytes(mib) + old.read_bytes() + bytes(mib)
    assert back.read_bytes() == expected
    rpc.call('thin_snapshot', pool='pool', id=2, origin_id=1)
    host.run('write', str(new), '--offset', str(offset + 3 * mib + 4096))
    host.run('clear', 'unmap', '--offset', str(offset + 5 * mib - 12288), '--length', str(mib))
    host.run('clear', 'zeroes', '--offset', str(offset + 7 * mib + 8192), '--length', str(65536 * 2 + 4096))
    changed = bytearray(expected)
    at = 4 * mib + 4096
    changed[at:at + mib] = new.read_bytes()
    at = 6 * mib - 12288
    changed[at:at + mib] = bytes(mib)
    at = 8 * mib + 8192
    changed[at:at + 65536 * 2 + 4096] = bytes(65536 * 2 + 4096)
    host.run('read', str(back), '--offset', str(offset - mib), '--length', str(10 * mib))
    assert back.read_bytes() == bytes(changed)
    rpc.call('thin_activate', pool='pool', id=2, bdev_name='t2', size_mib=1024)
    snapshot = host_of(lab, target, 't2', 'host2')
    snapshot.run('read', str(back), '--offset', str(offset - mib), '--length', str(10 * mib))
    assert back.read_bytes() == expected
    target.stop()
    thin_check(meta)

    dump = ElementTree.fromstring(thin_dump(meta))
    mapped = {}
    for device in dump.findall('device'):
        blocks_of = {}
        for run in device:
            length = int(run.get('length', 1))
            begin = int(run.get('origin_begin') or run.get('origin_block'))
            data = int(run.get('data_begin') or run.get('data_block'))
            blocks_of.update({begin + i: data + i for i in range(length)})
        assert len(blocks_of) == int(device.get('mapped_blocks'))
        mapped[int(device.get('dev_id'))] = blocks_of
    first, last = offset // 65536, (offset + 8 * mib - 1) // 65536
    assert sorted(mapped[2]) == list(range(first, last + 1))
    # Unmapped blocks are gone. Older NVMe hosts write zeroes as data, so that those are still mapped.
    gone = set(range(105 * 16, 106 * 16))
    if spdk_major() >= 23:
        gone.add(107 * 16 + 1)
    assert sorted(mapped[1]) == [b for b in range(first, last + 1) if b not in gone]

    again = lab.target(name='again')
    aio(again, 'meta', meta, blocks[0])
    aio(again, 'data', lab.folder / 'data', blocks[1])
    again.rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    again.rpc.call('thin_activate', pool='pool', id=1, bdev_name='t1', size_mib=1024)
    host = host_of(lab, again, 't1')
    host.run('read', str(back), '--offset', str(offset - mib), '--length', str(10 * mib))
    assert back.read_bytes() == bytes(changed)
    again.stop()


def test_restored_metadata_serves(lab):
    """Metadata that thin_restore wrote opens, maps as its XML says, and data goes where it says."""
    xml = lab.folder / 'in.xml'
    xml.write_text('''<superblock uuid="" time="1" transaction="3" flags="0" version="2" data_block_size="128" nr_data_blocks="2048">
  <device dev_id="5" mapped_blocks="3" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="10" data_begin="100" length="2" time="0"/>
    <single_mapping origin_block="20" data_block="7" time="1"/>
  </device>
</superblock>
''')
    meta, data = lab.file('meta', 16), lab.file('data', 128)
    subprocess.run(['thin_restore', '-i', str(xml), '-o', str(meta)], check=True, stdout=subprocess.DEVNULL)
    content = random_file(lab.folder / 'content', 1).read_bytes()[:65536]
    with open(data, 'r+b') as file:
        file.seek(101 * 65536)
        file.write(content)
    target = lab.target()
    aio(target, 'meta', meta)
    aio(target, 'data', data)
    target.rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    assert target.rpc.call('thin_pool_status', name='pool')['transaction_id'] == 3
    target.rpc.call('thin_activate', pool='pool', id=5, bdev_name='t5', size_mib=64)
    host = host_of(lab, target, 't5')
    back = lab.folder / 'back'
    host.run('read', str(back), '--offset', str(11 * 65536), '--length', '65536')
    assert back.read_bytes() == content
    piece = lab.folder / 'piece'
    piece.write_bytes(content[:4096])
    host.run('write', str(piece), '--offset', str(20 * 65536 + 8192))
    target.stop()
    thin_check(meta)
    with open(data, 'rb') as file:
        file.seek(7 * 65536 + 8192)
        assert file.read(4096) == content[:4096]


def test_zeroes_and_unmap_locally(lab):
    """Write-zeroes and unmap that reach the thin bdev itself: whole blocks become holes, edges are
    zeroed in place, a snapshot keeps its data."""
    meta, data = lab.file('meta', 16), lab.file('data', 64)
    methods = [
        ('bdev_aio_create', {'name': 'meta', 'filename': str(meta), 'block_size': 512}),
        ('bdev_aio_create', {'name': 'data', 'filename': str(data), 'block_size': 512}),
        ('thin_pool_create', {'name': 'pool', 'metadata_bdev': 'meta', 'data_bdev': 'data'}),
    ]

    def host(name, extra, bdev):
        config = lab.folder / f'{name}.json'
        config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': [
            {'method': m, 'params': p} for m, p in methods + extra]}]}))
        return HostIO(lab.folder, config, bdev, plugin=True)

    activate = ('thin_activate', {'pool': 'pool', 'id': 1, 'bdev_name': 't1', 'size_mib': 64})
    content = random_file(lab.folder / 'content', 2)
    host('a', [('thin_create', {'pool': 'pool', 'id': 1}), activate], 't1').run('write', str(content))
    again = host('b', [('thin_snapshot', {'pool': 'pool', 'id': 2, 'origin_id': 1}), activate], 't1')
    again.run('clear', 'zeroes', '--offset', '20480', '--length', str(65536 * 3))
    again = host('c', [activate], 't1')
    again.run('clear', 'unmap', '--offset', str(65536 * 10 + 512), '--length', str(65536 * 3))
    expected = bytearray(content.read_bytes())
    expected[20480:20480 + 65536 * 3] = bytes(65536 * 3)
    expected[65536 * 11:65536 * 13] = bytes(65536 * 2)
    back = lab.folder / 'back'
    again.run('read', str(back), '--length', str(2 << 20))
    assert back.read_bytes() == bytes(expected)
    snapshot = host('d', [('thin_activate', {'pool': 'pool', 'id': 2, 'bdev_name': 't2', 'size_mib': 64})], 't2')
    snapshot.run('read', str(back), '--length', str(2 << 20))
    assert back.read_bytes() == content.read_bytes()
    thin_check(meta)
    dump = ElementTree.fromstring(thin_dump(meta))
    mapped = {d.get('dev_id'): int(d.get('mapped_blocks')) for d in dump.findall('device')}
    assert mapped == {'1': 32 - 2 - 2, '2': 32}


def test_out_of_space_fails_cleanly(lab):
    """A full pool with error_if_no_space fails writes with no harm to what is there, and has space
    again after a discard."""
    target = lab.target()
    meta, _ = pool_on_files(lab, target, data_mb=4, features=['error_if_no_space'])
    target.rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=64)
    host = host_of(lab, target, 't1')
    content = random_file(lab.folder / 'content', 4)
    host.run('write', str(content))
    more = random_file(lab.folder / 'more', 1)
    with pytest.raises(RuntimeError):
        host.run('write', str(more), '--offset', str(8 << 20))
    assert 'out_of_data_space' in target.rpc.call('dm_status', name='pool')['line']
    back = lab.folder / 'back'
    host.run('read', str(back), '--length', str(4 << 20))
    assert back.read_bytes() == content.read_bytes()
    host.run('clear', 'unmap', '--offset', '0', '--length', str(2 << 20))
    wait_for(lambda: ' rw ' in target.rpc.call('dm_status', name='pool')['line'])
    host.run('write', str(more), '--offset', str(8 << 20))
    target.stop()
    thin_check(meta)
