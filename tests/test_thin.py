# SPDX-License-Identifier: BSD-3-Clause
"""A thin pool on a real spdk_tgt: life cycle, refusals, data, configuration."""

import errno
import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness import HostIO, RpcError, free_port, program, thin_check, thin_dump
from harness.process import environment
from harness.target import export, host_config

ROOT = Path(__file__).resolve().parents[1]


def aio(target, name, path, block_bytes=512):
    target.rpc.call('bdev_aio_create', name=name, filename=str(path), block_size=block_bytes)


def pool_on_files(lab, target, meta_mb=16, data_mb=128, blocks=(512, 512), **params):
    meta, data = lab.file('meta', meta_mb), lab.file('data', data_mb)
    aio(target, 'meta', meta, blocks[0])
    aio(target, 'data', data, blocks[1])
    target.rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data', **params)
    return meta, data


def host_of(lab, target, bdev, name='host'):
    port = free_port()
    export(target.process, bdev, [bdev], port)
    return HostIO(lab.folder, host_config(lab.folder / f'{name}.json', 'remote', port, bdev),
                  'remoten1', core_mask='0x1')


def random_file(path, megabytes):
    path.write_bytes(os.urandom(megabytes << 20))
    return path


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


def refused(rpc, code, words, method, **params):
    with pytest.raises(RpcError) as caught:
        rpc.call(method, **params)
    assert caught.value.code == -code, caught.value
    for word in words:
        assert word in caught.value.message, caught.value


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
    # Unmapped blocks are gone. The NVMe host writes zeroes as data, so those are still mapped.
    gone = set(range(105 * 16, 106 * 16))
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


def test_save_config_recreates_everything(lab):
    """A saved configuration alone brings pool, thin bdev and export back."""
    target = lab.target()
    pool_on_files(lab, target, features=['no_discard_passdown'])
    target.rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=512)
    host = host_of(lab, target, 't1')
    content = random_file(lab.folder / 'content', 2)
    host.run('write', str(content))
    subsystems = []
    for name in [s['subsystem'] for s in target.rpc.call('framework_get_subsystems')]:
        subsystems.append({'subsystem': name, 'config': target.rpc.call('framework_get_config', name=name)})
    saved = lab.folder / 'saved.json'
    saved.write_text(json.dumps({'subsystems': subsystems}))
    before = target.rpc.call('thin_pool_status', name='pool')
    target.stop()
    again = lab.target(name='again', config=saved)
    after = again.rpc.call('thin_pool_status', name='pool')
    for field in ('state', 'used_data_blocks', 'data_block_size_sectors', 'discard'):
        assert after[field] == before[field]
    back = lab.folder / 'back'
    host.run('read', str(back), '--length', str(2 << 20))
    assert back.read_bytes() == content.read_bytes()
    again.stop()


def test_shipped_config(lab):
    """spdk-config/thin-nvmf.json alone brings up pool, thin device and export, on empty files and
    again on the same files."""
    port = free_port()
    text = (ROOT / 'spdk-config' / 'thin-nvmf.json').read_text()
    meta = lab.file('meta', 16)
    for old, new in (('/var/tmp/spdk-dm-meta.img', meta),
                     ('/var/tmp/spdk-dm-data.img', lab.file('data', 128)), ('"4420"', f'"{port}"')):
        assert old in text
        text = text.replace(old, str(new) if old[0] == '/' else new)
    config = lab.folder / 'shipped.json'
    config.write_text(text)
    host = HostIO(lab.folder, host_config(lab.folder / 'host.json', 'remote', port, 'thin1'), 'remoten1',
                  core_mask='0x1')
    content, back = random_file(lab.folder / 'content', 2), lab.folder / 'back'
    for name in ('first', 'second'):
        target = lab.target(name=name, config=config)
        if name == 'first':
            host.run('write', str(content))
        host.run('read', str(back), '--length', str(2 << 20))
        assert back.read_bytes() == content.read_bytes()
        target.stop()
    thin_check(meta)


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


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.05)


def end(process):
    """A host whose target is gone ends by itself or is ended; its state file is right either way."""
    try:
        process.wait(timeout=3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def writes_issued(state):
    """How many writes a stress has issued, from its state file (tests/hostio/src/stress.rs)."""
    if not state.exists():
        return 0
    content = state.read_bytes()
    return sum(issued for _, issued in struct.iter_unpack('<QQ', content))


@pytest.mark.parametrize('which', ['target', 'drive'])
def test_kill_loop(lab, which):
    """kill -9 under a write load: after each, both checks accept the metadata, the target opens it,
    and every write acknowledged before the last completed flush is there."""
    rounds = 20 if which == 'target' else 3
    meta, data = lab.file('meta', 16), lab.file('data', 256)
    state = lab.folder / 'state'
    dice = random.Random(which)
    # A killed target loses nothing that reached its files. With the drive between, it is the one that
    # is killed as well.
    drive = lab.drive([meta, data]) if which == 'drive' else None

    def open_pool(name):
        target = lab.target(name=name)
        if drive:
            assert target.attach_drive(drive) == ['driven1', 'driven2']
        else:
            aio(target, 'driven1', meta)
            aio(target, 'driven2', data)
        target.rpc.call('thin_pool_create', name='pool', metadata_bdev='driven1', data_bdev='driven2')
        if 0 not in [d['id'] for d in target.rpc.call('thin_list', pool='pool')]:
            target.rpc.call('thin_create', pool='pool', id=0)
        target.rpc.call('thin_activate', pool='pool', id=0, bdev_name='t0', size_mib=512)
        return target, host_of(lab, target, 't0')

    snapshots = 0
    for number in range(rounds):
        target, host = open_pool(f'target{number}')
        rpc = target.rpc
        if number > 0:
            host.run('verify', str(state))
        if number % 5 == 4:
            if snapshots:
                rpc.call('thin_delete', pool='pool', id=snapshots)
            snapshots += 1
            rpc.call('thin_snapshot', pool='pool', id=snapshots, origin_id=0)
        before = writes_issued(state)
        stress = host.start('stress', str(state), '--seed', str(number), '--slots', '1024',
                            '--flush-every', '8', '--workers', '32')
        wait_for(lambda: stress.poll() is not None or writes_issued(state) > before + 200)
        assert stress.poll() is None, (lab.folder / 'hostio.log').read_text(errors='replace')[-2000:]
        time.sleep(dice.random() * 0.5)
        target.process.kill()
        end(stress)
        if which == 'drive':
            drive.process.kill()
        thin_check(meta)
        if which == 'drive':
            drive = lab.drive([meta, data])
    target, host = open_pool('last')
    host.run('verify', str(state))
    target.stop()
    thin_check(meta)


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


@pytest.mark.parametrize('kind', ['tree', 'pypi'])
def test_rpc_py_plugin(lab, kind):
    """The sub-commands work in SPDK's own rpc.py and in the official client from PyPI."""
    target = lab.target()
    command = {
        'tree': [sys.executable, os.environ['SPDK_DM_RPC_PY']],
        'pypi': [str(Path(sys.executable).parent / 'spdk-rpc')],
    }[kind]
    env = {**os.environ, 'PYTHONPATH': str(ROOT / 'rpc' / 'python')}

    def run(*words):
        done = subprocess.run(command + ['-s', target.process.socket, '--plugin', 'spdk_dm_rpc', *words],
                              env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout

    assert 'Id of the thin device' in run('thin_create', '--help')
    target.rpc.call('bdev_malloc_create', name='meta', num_blocks=32768, block_size=512)
    target.rpc.call('bdev_malloc_create', name='data', num_blocks=131072, block_size=512)
    run('thin_pool_create', 'pool', 'meta', 'data', '--features', 'error_if_no_space')
    run('thin_create', 'pool', '0', '--bdev-name', 't0', '--size-mib', '100')
    assert json.loads(run('thin_list', 'pool'))[0]['bdev_name'] == 't0'
    assert 'error_if_no_space' in run('dm_status', 'pool')
    target.stop()


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


def test_bdevperf_verifies(lab):
    """bdevperf's own verify workload passes, on a thin device and with the plugin in bdevperf."""
    config = lab.folder / 'perf.json'
    config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': [
        {'method': 'bdev_malloc_create', 'params': {'name': 'meta', 'num_blocks': 32768, 'block_size': 512}},
        {'method': 'bdev_malloc_create', 'params': {'name': 'data', 'num_blocks': 262144, 'block_size': 512}},
        {'method': 'thin_pool_create', 'params': {'name': 'pool', 'metadata_bdev': 'meta', 'data_bdev': 'data'}},
        {'method': 'thin_create', 'params': {'pool': 'pool', 'id': 1, 'bdev_name': 't1', 'size_mib': 100}},
    ]}]}))
    env = environment()
    env['LD_PRELOAD'] = program('libspdk_dm.so')
    from harness import options_for_memory
    done = subprocess.run([os.environ['SPDK_DM_BDEVPERF'], '--no-pci', '-m', '0x3', '-r',
                           str(lab.folder / 'perf.sock'), '--json', str(config), '-q', '16', '-o',
                           '8192', '-w', 'verify', '-t', '3', '-T', 't1'] + options_for_memory(512),
                          env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout
    assert 'IO error' not in done.stdout and 'miscompare' not in done.stdout, done.stdout


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
