# SPDX-License-Identifier: BSD-3-Clause
"""Thin devices merged back into their external origins: nobody who reads the device notices, and the origin
holds all of it in the end. That a kill in the middle loses nothing, under load: spdk-config/merge (test_demos.py)."""

import errno
import json
import os
import random
import subprocess

from harness import program, thin_check, thin_dump
from harness.pool import aio, host_of, pool_on_files, refused

KIB = 1 << 10
MIB = 1 << 20
DEVICE = {'pool': 'pool', 'id': 1}
FINISHED, FAILED = 'thin_merge_external_finished', 'thin_merge_external_failed'


def merge(target, *words):
    """`spdk-dm merge`: exit code and what it says."""
    done = subprocess.run(['timeout', '120', program('spdk-dm'), 'merge', '--socket', target.process.socket,
                           *words, 'pool', '1'],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def status(target):
    return target.rpc.call('thin_merge_external_status', **DEVICE)


def events(target, kind):
    found = target.rpc.call('notify_get_notifications', id=0, max=1000)
    return [event['ctx'] for event in found if event['type'] == kind]


def with_origin(lab, target, origin_bytes, size_mib):
    """A thin device with an external origin of random bytes, which ends where that says."""
    meta, data = pool_on_files(lab, target)
    path = lab.folder / 'origin'
    path.write_bytes(random.Random('origin').randbytes(origin_bytes))
    aio(target, 'origin', path)
    target.rpc.call('thin_create', bdev_name='t1', size_mib=size_mib, origin_bdev='origin', **DEVICE)
    return meta, data, path


def write(lab, host, expected, offset, length):
    content = random.Random(offset).randbytes(length)
    path = lab.folder / 'content'
    path.write_bytes(content)
    host.run('write', str(path), '--offset', str(offset))
    expected[offset:offset + length] = content


def test_merge(lab):
    """What the device holds is in the origin afterwards, byte for byte, its zeroes too; nothing is mapped any
    more, and the device reads as before. It can be written to and merged again."""
    target = lab.target()
    meta, _, path = with_origin(lab, target, 24 * MIB, 24)
    host, back = host_of(lab, target, 't1'), lab.folder / 'back'
    original = path.read_bytes()
    expected = bytearray(original)
    for offset, length in ((0, 4 * KIB), (3 * MIB + 60 * KIB, 3 * MIB), (24 * MIB - 4 * KIB, 4 * KIB)):
        write(lab, host, expected, offset, length)
    host.run('clear', 'zeroes', '--offset', str(10 * MIB), '--length', str(MIB + 4 * KIB))
    expected[10 * MIB:11 * MIB + 4 * KIB] = bytes(MIB + 4 * KIB)
    assert status(target) is None and path.read_bytes() == original
    mapped = target.rpc.call('thin_list', pool='pool')[0]['mapped_blocks']

    def all_is_merged():
        code, said = merge(target)
        assert code == 0, said
        found = status(target)
        assert found['state'] == 'finished' and found['mapped_blocks'] == 0, found
        assert target.rpc.call('dm_status', name='t1')['line'] == '0 -'
        assert path.read_bytes() == bytes(expected)
        host.run('read', str(back), '--length', str(24 * MIB))
        assert back.read_bytes() == bytes(expected)
        return found['merged_blocks']

    assert all_is_merged() == mapped
    assert events(target, FINISHED) == ['pool 1'] and not events(target, FAILED)
    write(lab, host, expected, 5 * MIB + 512, 200 * KIB)
    assert all_is_merged() == 4
    # Nobody holds the origin any more.
    target.rpc.call('thin_deactivate', bdev_name='t1')
    target.rpc.call('nbd_export_create', bdev_name='origin', path=str(lab.folder / 'n'), writable=True, exclusive=True)
    target.stop()
    thin_check(meta)
    assert 'mapped_blocks="0"' in thin_dump(meta)


def test_refusals(lab):
    """Whoever would see the origin change is named, and nothing is written: other devices on it, snapshots. What
    would be lost is named, too. A merge that is under way keeps such devices from coming."""
    target = lab.target()
    rpc = target.rpc
    meta, _, path = with_origin(lab, target, 12 * MIB + 20 * KIB, 16)
    original, host = path.read_bytes(), host_of(lab, target, 't1')

    def no_merge(code, *words):
        refused(rpc, code, words, 'thin_merge_external', **DEVICE)
        assert path.read_bytes() == original

    # Beyond the end of the origin, and in the block that it ends in.
    expected = bytearray(original + bytes(16 * MIB - len(original)))
    write(lab, host, expected, 14 * MIB, 4 * KIB)
    no_merge(errno.EINVAL, 'device 1', 'block 224 ', 'ends after 192 blocks')
    host.run('clear', 'unmap', '--offset', str(14 * MIB), '--length', str(64 * KIB))
    write(lab, host, expected, 12 * MIB, 4 * KIB)
    no_merge(errno.EINVAL, 'block 192 ')
    host.run('clear', 'unmap', '--offset', str(12 * MIB), '--length', str(64 * KIB))
    expected = bytearray(original + bytes(16 * MIB - len(original)))
    # Others that show it.
    write(lab, host, expected, MIB, 10 * MIB)
    rpc.call('thin_create', pool='pool', id=2, bdev_name='t2', size_mib=1, origin_bdev='origin')
    no_merge(errno.EBUSY, "thin bdev 't2'", 'thin_deactivate')
    rpc.call('thin_deactivate', bdev_name='t2')
    rpc.call('thin_snapshot', pool='pool', id=3, origin_id=1)
    rpc.call('thin_reserve_metadata_snap', pool='pool')
    no_merge(errno.EBUSY, 'device 3', 'delete')
    rpc.call('thin_delete', pool='pool', id=3)
    # Who has it.
    rpc.call('nbd_export_create', bdev_name='origin', path=str(lab.folder / 'n'), writable=True, exclusive=True)
    no_merge(errno.EPERM, "'origin'", 'claimed')
    rpc.call('nbd_export_delete', path=str(lab.folder / 'n'))
    # While one is under way.
    rpc.call('thin_merge_external', mib_per_second=1, **DEVICE)
    refused(rpc, errno.EBUSY, ['device 1', 'being merged'], 'thin_merge_external', **DEVICE)
    refused(rpc, errno.EBUSY, ['device 1', 'being merged'], 'thin_snapshot', pool='pool', id=3, origin_id=1)
    refused(rpc, errno.EBUSY, ["'t2'", "'t1'", 'being merged'], 'thin_activate', pool='pool', id=2, bdev_name='t2',
            size_mib=1, origin_bdev='origin')
    assert merge(target, '--stop') == (0, '')
    found = status(target)
    assert found['state'] == 'stopped' and found['failure'] is None
    refused(rpc, errno.ENODEV, ['device 1', 'not being merged'], 'thin_merge_external_stop', **DEVICE)
    # Deactivated in the middle: it lets go, and what is left is merged later.
    rpc.call('thin_merge_external', mib_per_second=1, **DEVICE)
    rpc.call('thin_deactivate', bdev_name='t1')
    rpc.call('thin_activate', bdev_name='t1', size_mib=16, **DEVICE)
    no_merge_now = {'code': errno.EINVAL, 'words': ['device 1', 'external origin'], 'method': 'thin_merge_external'}
    refused(rpc, **no_merge_now, **DEVICE)
    rpc.call('thin_deactivate', bdev_name='t1')
    refused(rpc, errno.ENODEV, ['device 1', 'not active'], 'thin_merge_external', **DEVICE)
    rpc.call('thin_activate', bdev_name='t1', size_mib=16, origin_bdev='origin', **DEVICE)
    code, said = merge(target, '--json')
    assert code == 0 and json.loads(said)['state'] == 'finished', said
    assert path.read_bytes() == bytes(expected[:len(original)])
    assert events(target, FINISHED) == ['pool 1'] and not events(target, FAILED)
    rpc.call('thin_release_metadata_snap', pool='pool')
    target.stop()
    thin_check(meta)
    assert os.path.getsize(path) == len(original)
