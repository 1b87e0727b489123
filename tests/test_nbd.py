# SPDX-License-Identifier: BSD-3-Clause
"""Bdevs over NBD at a Unix socket, with QEMU's programs as clients."""

import subprocess

import pytest

from harness import RpcError
from harness.pool import aio, host_of, pool_on_files, random_file, wait_for


def run(*command, check=True):
    return subprocess.run(['timeout', '60', *map(str, command)], check=check, capture_output=True, text=True)


@pytest.fixture
def thin(lab):
    """A target with the thin bdev 'thin' of 64 MiB."""
    target = lab.target()
    pool_on_files(lab, target)
    target.rpc.call('thin_create', pool='pool', id=1, bdev_name='thin', size_mib=64)
    return target


def test_data(lab, thin):
    """What qemu-img writes is what NVMe hosts read, and what they write qemu-img reads; trims unmap; the
    counters count."""
    uri = thin.rpc.call('nbd_export_create', bdev_name='thin', path=str(lab.folder / 'nbd'), writable=True)
    image, back = random_file(lab.folder / 'image', 64), lab.folder / 'back'
    run('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', image, uri)
    assert thin.rpc.call('thin_pool_status', name='pool')['used_data_blocks'] == 1024
    host = host_of(lab, thin, 'thin')
    host.run('read', str(back), '--offset', '0', '--length', str(64 << 20))
    assert back.read_bytes() == image.read_bytes()
    host.run('write', str(random_file(lab.folder / 'new', 1)), '--offset', str(5 << 20))
    run('qemu-io', '-f', 'raw', '-c', 'discard 8M 2M', '-c', 'write -z 12M 64k', '-c', 'flush', uri)
    expected = bytearray(image.read_bytes())
    expected[5 << 20:6 << 20] = (lab.folder / 'new').read_bytes()
    expected[8 << 20:10 << 20] = bytes(2 << 20)
    expected[12 << 20:(12 << 20) + 65536] = bytes(65536)
    run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', uri, back)
    assert back.read_bytes() == bytes(expected)
    assert thin.rpc.call('thin_pool_status', name='pool')['used_data_blocks'] <= 1024 - 32
    listed, = thin.rpc.call('nbd_export_list')
    assert listed['bytes_written'] >= 64 << 20 and listed['bytes_read'] >= 64 << 20
    assert (listed['bdev_name'], listed['writable'], listed['size_bytes']) == ('thin', True, 64 << 20)
    assert (lab.folder / 'nbd').stat().st_mode & 0o777 == 0o600


def test_read_only_and_refusals(lab, thin):
    """Without `writable` nothing is written; what cannot be served is refused with the reason, and nothing
    that is there is overwritten."""
    rpc, path = thin.rpc, lab.folder / 'nbd'
    uri = rpc.call('nbd_export_create', bdev_name='thin', path=str(path))
    found = run('qemu-io', '-f', 'raw', '-c', 'write 0 64k', uri, check=False)
    assert found.returncode != 0 or 'failed' in found.stdout + found.stderr
    assert thin.rpc.call('thin_pool_status', name='pool')['used_data_blocks'] == 0
    (lab.folder / 'file').write_text('mine')
    for params, said in [
            ({'bdev_name': 'thin', 'path': str(path)}, 'nbd_export_delete'),
            ({'bdev_name': 'none', 'path': str(lab.folder / 'b')}, 'does not exist'),
            ({'bdev_name': 'thin', 'path': 'relative'}, 'full path'),
            ({'bdev_name': 'thin', 'path': str(lab.folder / 'file')}, 'nothing is overwritten'),
            ({'bdev_name': 'thin', 'path': str(lab.folder / 'no/b')}, 'make the folder')]:
        with pytest.raises(RpcError, match=said):
            rpc.call('nbd_export_create', **params)
    assert (lab.folder / 'file').read_text() == 'mine'
    rpc.call('nbd_export_delete', path=str(path))
    rpc.call('nbd_export_create', bdev_name='thin', path=str(path), exclusive=True)
    with pytest.raises(RpcError, match='used by another'):
        rpc.call('nbd_export_create', bdev_name='thin', path=str(lab.folder / 'b'), writable=True)
    rpc.call('nbd_export_delete', path=str(path))
    rpc.call('nbd_export_create', bdev_name='thin', path=str(path), writable=True)
    with pytest.raises(RpcError, match='nbd_export_list'):
        rpc.call('nbd_export_delete', path='/none')


def test_ends(lab, thin):
    """Deletion, removal of the bdev and the end of the target cut clients in the middle of reading; the path
    is free afterwards, also after kill -9."""
    rpc, path = thin.rpc, lab.folder / 'nbd'

    def client(rpc=rpc):
        uri = rpc.call('nbd_export_create', bdev_name='thin', path=str(path))
        loop = f'while qemu-img convert -f raw -O raw "{uri}" {lab.folder}/copy; do :; done'
        reader = subprocess.Popen(['timeout', '60', 'sh', '-c', loop], stderr=subprocess.PIPE)
        wait_for(lambda: rpc.call('nbd_export_list')[0]['bytes_read'] > 0)
        return reader

    reader = client()
    rpc.call('nbd_export_delete', path=str(path))
    assert reader.wait(30) == 0 and not path.exists()
    reader = client()
    rpc.call('thin_deactivate', bdev_name='thin')
    assert reader.wait(30) == 0
    wait_for(lambda: rpc.call('nbd_export_list') == [] and not path.exists())
    rpc.call('thin_activate', pool='pool', id=1, bdev_name='thin', size_mib=64)
    reader = client()
    thin.process.kill()
    assert reader.wait(30) == 0 and path.exists()
    again = lab.target(name='again')
    for name in ['meta', 'data']:
        aio(again, name, lab.folder / name)
    again.rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    again.rpc.call('thin_activate', pool='pool', id=1, bdev_name='thin', size_mib=64)
    reader = client(again.rpc)
    again.stop()
    assert reader.wait(30) == 0 and not path.exists()
