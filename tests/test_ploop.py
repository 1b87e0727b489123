# SPDX-License-Identifier: BSD-3-Clause
"""Ploop images and chains on a real spdk_tgt: QEMU agrees with what is on the files, what a host has written is
there, whatever is done to the chain."""

import os
import random
import struct

import pytest

from harness.load import Load
from harness.ploop import MIB, bdevs, content_of, fill, flat, make, qemu, read_image, sound
from harness.pool import host_of, refused, wait_for
from harness.snapshot import Device, notified

ENOENT, EBUSY, EINVAL = 2, 16, 22
# For a stress of a chain: an unmap leaves what older deltas have.
NO_UNMAPS = ('--clear-every', str(1 << 60))


@pytest.mark.parametrize('cluster, block_bytes', [(65536, 512), (1 << 20, 4096)])
def test_images_both_ways(lab, cluster, block_bytes):
    """A random image that QEMU has made reads the same through the bdev; written to through it, also by unmaps
    and zeroings, QEMU finds nothing wrong and reads the same; an image that we have made is QEMU's, too."""
    dice = random.Random(cluster)
    size = 24 * MIB
    theirs = make(lab.folder / 'theirs', 24, cluster, 40)
    fill(theirs, dice, 20, size)
    held = bytearray(flat(theirs))
    target = lab.target()
    rpc = target.rpc
    bdevs(target, block_bytes, theirs=theirs, ours=lab.file('ours', 40))
    rpc.call('ploop_create', name='p', top_bdev='theirs')
    device = Device(lab, target, 'p', size)
    assert device.read() == held
    for length in (4096, 3 * cluster + 4096):
        offset = dice.randrange(0, size - length, 4096)
        held[offset:offset + length] = content = dice.randbytes(length)
        device.write(offset, content)
    # A zeroing over several clusters, and an unmap of whole ones.
    device.host.run('clear', 'zeroes', '--offset', str(8 * MIB + 4096), '--length', str(3 * MIB))
    held[8 * MIB + 4096:11 * MIB + 4096] = bytes(3 * MIB)
    device.host.run('clear', 'unmap', '--offset', str(16 * MIB), '--length', str(4 * MIB))
    held[16 * MIB:20 * MIB] = bytes(4 * MIB)
    assert read_image(theirs).in_use
    rpc.call('ploop_create', name='q', top_bdev='ours', size_mib=24, cluster_size_sectors=cluster // 512)
    other = Device(lab, target, 'q', size)
    other.write(0, bytes(held))
    assert rpc.call('ploop_status', name='q')['top']['format'] == 'ploop1_v2'
    rpc.call('ploop_delete', name='p')
    rpc.call('ploop_delete', name='q')
    target.stop()
    for path in (theirs, lab.folder / 'ours'):
        image = read_image(path)
        assert (image.size, image.cluster, image.in_use) == (size, cluster, False)
        sound(path)
        assert flat(path) == held == content_of(path)
    qemu('qemu-img', 'compare', '-f', 'parallels', '-F', 'parallels', theirs, lab.folder / 'ours')


def test_kill(lab):
    """kill -9 during allocating writes: QEMU finds nothing but leaks, the image says it is in use and is refused
    until that is settled, and all that was flushed is there."""
    image = make(lab.folder / 'image', 256, 65536, 320)
    state = lab.folder / 'state'
    for number in range(3):
        target = lab.target(name=f'target{number}')
        rpc = target.rpc
        bdevs(target, image=image)
        if number > 0:
            words = ["'image'", 'was not closed', 'ploop_check', 'force']
            refused(rpc, EBUSY, words, 'ploop_create', name='p', top_bdev='image')
        if number == 1:
            rpc.call('ploop_create', name='p', top_bdev='image', force=True)
        else:
            found = rpc.call('ploop_check', bdev='image', repair=True)
            assert found['ok'] and found['repaired'] == (number > 0) and found['damages'] == 0
            rpc.call('ploop_create', name='p', top_bdev='image')
        host = host_of(lab, target, 'p')
        if number == 2:
            host.run('verify', str(state))
            target.stop()
            break
        if number > 0:
            host.run('verify', str(state))
        load = Load(host, state, '--seed', str(number), '--slots', '512', '--flush-every', '8', '--workers', '32')
        load.wait_durable(300)
        target.process.kill()
        load.kill()
        sound(image)
        assert read_image(image).in_use
    sound(image)
    assert not read_image(image).in_use


def test_chain_under_load(lab):
    """Snapshots, merges up, forward and backward, a resize and a flip while a host writes: what it wrote is
    there, each image is sound, and the chain is what was asked for."""
    images = {name: lab.file(name, 192) for name in ('i0', 'i1', 'i2', 'i3')}
    base = lab.file('base', 64)
    # Between the slots of the stress, which must be empty.
    with open(base, 'r+b') as file:
        for place in range(0, 64 * MIB, 512 << 10):
            file.seek(place + (256 << 10))
            file.write(os.urandom(192 << 10))
    target = lab.target(core_mask='0x3', memory_mb=1024)
    rpc = target.rpc
    bdevs(target, base=base, **images)
    rpc.call('ploop_create', name='p', top_bdev='i0', lower_bdevs=['raw@base'], size_mib=128, cluster_size_sectors=128)
    device, state = Device(lab, target, 'p', 160 * MIB), lab.folder / 'state'
    host = device.host
    host.use_only(128 * MIB)
    load = Load(host, state, '--slots', '256', '--workers', '8', '--flush-every', '8', *NO_UNMAPS)

    def chain():
        status = rpc.call('ploop_status', name='p')
        return [*status['lower_bdevs'], status['top_bdev']]

    load.wait_durable(40)
    rpc.call('ploop_snapshot', name='p', new_top_bdev='i1')
    load.wait_durable(40)
    rpc.call('dm_message', name='p', message='snapshot i2')
    assert chain() == ['raw@base', 'i0', 'i1', 'i2']
    assert rpc.call('dm_message', name='p', message='get_delta_name 1') == 'i0'
    load.wait_durable(40)
    rpc.call('ploop_merge', name='p', level=1, direction='forward', wait=True)
    assert chain() == ['raw@base', 'i1', 'i2']
    # The two upper ones change places, and back: the host's writes wait.
    refused(rpc, EBUSY, ['suspended'], 'ploop_flip_upper_deltas', name='p')
    rpc.call('ploop_suspend', name='p')
    rpc.call('ploop_set_noresume', name='p', value=1)
    refused(rpc, EBUSY, ['set_noresume'], 'ploop_resume', name='p')
    rpc.call('dm_message', name='p', message='flip_upper_deltas')
    assert chain() == ['raw@base', 'i2', 'i1']
    rpc.call('ploop_flip_upper_deltas', name='p')
    rpc.call('ploop_set_noresume', name='p', value=0)
    rpc.call('ploop_resume', name='p')
    load.wait_durable(40)
    rpc.call('ploop_resize', name='p', size_sectors=160 * 2048)
    # Its bdev has been let go, and can be used again.
    refused(rpc, EINVAL, ["'i0'", 'size'], 'ploop_snapshot', name='p', new_top_bdev='i0')
    rpc.call('ploop_snapshot', name='p', new_top_bdev='i3')
    load.wait_durable(40)
    rpc.call('ploop_merge', name='p', wait=True)
    assert chain() == ['raw@base', 'i1', 'i3']
    assert notified(rpc, 'ploop_merge_finished') == ['p 1', 'p 2']
    assert notified(rpc, 'ploop_resized') == [f'p {160 * 2048}']
    load.wait_durable(40)
    load.finish()
    host.run('verify', str(state))
    shown = device.read()
    words = ["'base'", 'too small', "'i1'"]
    refused(rpc, EINVAL, words, 'ploop_merge', name='p', level=1, direction='backward', wait=True)
    assert notified(rpc, 'ploop_merge_failed')
    assert rpc.call('dm_table', name='p') == f'0 {160 * 2048} ploop 7 i3 raw@base i1'
    rpc.call('ploop_delete', name='p')
    target.stop()
    for name in ('i1', 'i3'):
        sound(images[name])
    assert content_of(base, images['i1'], images['i3']) == shown


def test_work_on_the_files(lab):
    """What is done to lower deltas from outside, and told, is what the disk shows; what is told wrongly is refused
    and changes nothing; a delta that is merged backward by us is in the older one."""
    dice, size, cluster = random.Random(7), 16 * MIB, 65536
    paths = [make(lab.folder / f'd{number}', 16, cluster, 32) for number in range(3)]
    for path in paths:
        fill(path, dice, 8, size)
    held = content_of(*paths)
    target = lab.target()
    rpc = target.rpc
    bdevs(target, top=make(lab.folder / 'top', 16, cluster, 32), d0=paths[0], d1=paths[1], d2=paths[2])
    rpc.call('dm_create', name='p', table='0 32768 ploop 7 top d0 d1 d2')
    device = Device(lab, target, 'p', size)
    assert device.read() == held
    # The oldest delta is merged into the next one, at the end of its file.
    old, new = read_image(paths[0]), read_image(paths[1])
    free = max(new.clusters.values()) + cluster
    with open(paths[0], 'rb') as source, open(paths[1], 'r+b') as sink:
        for number in old.clusters.keys() - new.clusters.keys():
            source.seek(old.clusters[number])
            sink.seek(free)
            sink.write(source.read(cluster))
            sink.seek(64 + 4 * number)
            sink.write(struct.pack('<I', free // cluster))
            free += cluster
    refused(rpc, EINVAL, ['no lower delta'], 'ploop_notify_merged', name='p', level=2, direction='forward')
    rpc.call('ploop_notify_merged', name='p', level=0, direction='forward')
    assert rpc.call('ploop_status', name='p')['lower_bdevs'] == ['d1', 'd2']
    paths[0].write_bytes(bytes(MIB))
    # A cluster of the newest one is moved.
    newest = read_image(paths[2])
    number, place = next(iter(newest.clusters.items()))
    free = max(newest.clusters.values()) + cluster
    with open(paths[2], 'r+b') as file:
        file.seek(place)
        moved = file.read(cluster)
        file.seek(free)
        file.write(moved)
        file.seek(64 + 4 * number)
        file.write(struct.pack('<I', free // cluster))
    hole = min(set(range(size // cluster)) - newest.clusters.keys())
    refused(rpc, EINVAL, ['not mapped'], 'ploop_update_delta_index', name='p', level=1, map=f'{hole}:{free // cluster}')
    refused(rpc, EINVAL, ["'d2'"], 'ploop_update_delta_index', name='p', level=1, map=f'{number}:4000')
    refused(rpc, ENOENT, ['lower delta 2'], 'ploop_update_delta_index', name='p', level=2, map='1:2')
    rpc.call('ploop_update_delta_index', name='p', level=1, map=f'{number}:{free // cluster}')
    with open(paths[2], 'r+b') as file:
        file.seek(place)
        file.write(os.urandom(cluster))
    assert device.read() == held
    rpc.call('ploop_merge', name='p', level=1, direction='backward')
    wait_for(lambda: rpc.call('dm_table', name='p') == '0 32768 ploop 7 top d1')
    assert device.read() == held
    rpc.call('ploop_delete', name='p')
    target.stop()
    sound(paths[1])
    assert content_of(paths[1], lab.folder / 'top') == held
