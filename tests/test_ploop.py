# SPDX-License-Identifier: BSD-3-Clause
"""Ploop images on a real spdk_tgt: QEMU agrees with what is on the files, messages do what they say under load."""

import json
import os
import random
from pathlib import Path

import pytest

from harness import HostIO, free_port
from harness.load import Load, progress
from harness.ploop import (MIB, bdevs, content_of, fill, flat, make, qemu, read_image, sound)
from harness.pool import host_of, refused, wait_for
from harness.rpc import RpcError, tree_rpc
from harness.snapshot import Device, notified
from harness.target import host_config

ROOT = Path(__file__).resolve().parents[1]

EPERM, ENOENT, E2BIG, EBADF, EAGAIN, EBUSY = 1, 2, 7, 9, 11, 16
EEXIST, ENODEV, EINVAL, EPROTO, ESTALE = 17, 19, 22, 71, 116
# For a stress of a chain: an unmap leaves what older deltas have.
NO_UNMAPS = ('--clear-every', str(1 << 60))


@pytest.mark.parametrize('cluster, block_bytes', [(65536, 512), (1 << 20, 4096)])
def test_images_both_ways(lab, cluster, block_bytes):
    """A random image that QEMU has made reads the same through the bdev; written to through it, also by unmaps
    and zeroings, QEMU finds nothing wrong and reads the same; an image that we have made is QEMU's, too."""
    dice = random.Random(cluster)
    size = 40 * MIB
    theirs = make(lab.folder / 'theirs', 40, cluster, 64)
    fill(theirs, dice, 25, size)
    held = bytearray(flat(theirs))
    target = lab.target()
    rpc = target.rpc
    bdevs(target, block_bytes, theirs=theirs, ours=lab.file('ours', 64))
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
    rpc.call('ploop_create', name='q', top_bdev='ours', size_mib=40, cluster_size_sectors=cluster // 512)
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
    target = lab.target(memory_mb=512)
    rpc = target.rpc
    bdevs(target, base=base, **images)
    rpc.call('ploop_create', name='p', top_bdev='i0', lower_bdevs=['raw@base'], size_mib=128, cluster_size_sectors=128)
    device, state = Device(lab, target, 'p', 160 * MIB), lab.folder / 'state'
    host = device.host
    host.use_only(128 * MIB)
    load = Load(host, state, '--slots', '256', '--workers', '8', *NO_UNMAPS)

    def chain():
        status = rpc.call('ploop_status', name='p')
        return [*status['lower_bdevs'], status['top_bdev']]

    def some():
        load.wait_durable(progress_of(load) + 100)
    some()
    rpc.call('ploop_snapshot', name='p', new_top_bdev='i1')
    some()
    rpc.call('dm_message', name='p', message='snapshot i2')
    assert chain() == ['raw@base', 'i0', 'i1', 'i2']
    assert rpc.call('dm_message', name='p', message='get_delta_name 1') == 'i0'
    some()
    rpc.call('ploop_merge', name='p', level=1, direction='forward')
    wait_for(lambda: chain() == ['raw@base', 'i1', 'i2'])
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
    some()
    rpc.call('ploop_resize', name='p', size_sectors=160 * 2048)
    # Its bdev has been let go, and can be used again.
    refused(rpc, EINVAL, ["'i0'", 'size'], 'ploop_snapshot', name='p', new_top_bdev='i0')
    rpc.call('ploop_snapshot', name='p', new_top_bdev='i3')
    some()
    rpc.call('ploop_merge', name='p', wait=True)
    assert chain() == ['raw@base', 'i1', 'i3']
    assert notified(rpc, 'ploop_merge_finished') == ['p 1', 'p 2']
    assert notified(rpc, 'ploop_resized') == [f'p {160 * 2048}']
    some()
    load.ask_to_finish()
    assert load.end_by_itself() == 0
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


def progress_of(load):
    """Operations that are durable, of this run."""
    return progress(load._state).durable - load._before.durable  # pylint: disable=protected-access


def test_push_backup(lab):
    """A push backup under load is the disk of the moment it began, byte for byte; one of chosen clusters is
    theirs; one whose reader does nothing expires, and all writes go on."""
    cluster, count = 1 << 20, 32
    image = make(lab.folder / 'image', count, cluster, 64)
    target = lab.target(memory_mb=512)
    rpc = target.rpc
    bdevs(target, image=image)
    rpc.call('ploop_create', name='p', top_bdev='image')
    device = Device(lab, target, 'p', count * MIB)
    # Unmaps never get to whole clusters.
    options = ('--slots', '128', '--workers', '8', '--data-block-bytes', str(cluster))
    load = Load(device.host, lab.folder / 'state', *options)
    load.wait_durable(200)
    load.ask_to_finish()
    assert load.end_by_itself() == 0
    before = device.read()
    rpc.call('ploop_push_backup_start', name='p', uuid='whole', timeout_s=600)
    refused(rpc, EEXIST, ['push backup'], 'ploop_push_backup_start', name='p', uuid='other')
    refused(rpc, EBUSY, ['push backup'], 'ploop_resize', name='p', size_sectors=64 * 2048)
    refused(rpc, EINVAL, ['uuid'], 'ploop_push_backup_read', name='p', uuid='other')
    refused(rpc, E2BIG, ['clusters'], 'ploop_push_backup_write', name='p', uuid='whole', cluster=count)
    load = Load(device.host, lab.folder / 'state', *options)
    wait_for(lambda: rpc.call('ploop_status', name='p')['push_backup']['held_writes'] > 0)
    backup, left, asked = bytearray(count * MIB), set(range(count)), 0
    reader = Reader(image)
    while left:
        try:
            wanted = rpc.call('ploop_push_backup_read', name='p', uuid='whole', max=4)['clusters']
            asked += len(wanted)
        except RpcError as error:
            assert error.code == -ENOENT, error
            wanted = [min(left)]
        for number in wanted:
            backup[number * cluster:(number + 1) * cluster] = reader.read(number)
            rpc.call('ploop_push_backup_write', name='p', uuid='whole', cluster=number)
            left.remove(number)
    assert asked > 0 and backup == before
    status = rpc.call('ploop_status', name='p')['push_backup']
    assert (status['state'], status['remaining_clusters'], status['uuid']) == ('active', 0, 'whole')
    assert rpc.call('ploop_push_backup_get_uuid', name='p') == 'whole'
    load.wait_durable(100)
    rpc.call('ploop_push_backup_stop', name='p', uuid='whole')
    refused(rpc, EBADF, ['no push backup'], 'ploop_push_backup_get_uuid', name='p')
    refused(rpc, ENOENT, ['has not begun'], 'ploop_push_backup_stop', name='p', uuid='whole')
    # Some clusters only, with a reader that does nothing.
    rpc.call('dm_message', name='p', message='push_backup_start part 0-7,12 1')
    assert rpc.call('ploop_status', name='p')['push_backup']['remaining_clusters'] == 9
    wait_for(lambda: notified(rpc, 'ploop_backup_expired') == ['p part'])
    refused(rpc, ESTALE, ['expired'], 'ploop_push_backup_read', name='p', uuid='part')
    load.wait_durable(progress_of(load) + 200)
    assert rpc.call('ploop_status', name='p')['push_backup']['state'] == 'expired'
    rpc.call('ploop_push_backup_stop', name='p', uuid='part')
    # Held writes do not hold up the end of a target.
    rpc.call('ploop_push_backup_start', name='p', uuid='last', timeout_s=17999)
    wait_for(lambda: rpc.call('ploop_status', name='p')['push_backup']['held_writes'] > 0)
    rpc.call('ploop_delete', name='p')
    load.end_by_itself()
    target.stop()
    sound(image)


class Reader:
    """A reader of guest clusters of an image that is in use, by its file."""

    def __init__(self, path):
        self.path = path

    def read(self, number):
        image = read_image(self.path)
        if number not in image.clusters:
            return bytes(image.cluster)
        with open(self.path, 'rb') as file:
            file.seek(image.clusters[number])
            return file.read(image.cluster)


def test_tracking(lab):
    """Who copies the clusters that tracking lists has the image: after the last of them the copy is the same,
    while a host writes."""
    image = make(lab.folder / 'image', 64, 65536, 96)
    target = lab.target()
    rpc = target.rpc
    bdevs(target, image=image)
    rpc.call('ploop_create', name='p', top_bdev='image')
    refused(rpc, ENOENT, ['not begun'], 'ploop_tracking_get_next', name='p')
    host, state = host_of(lab, target, 'p'), lab.folder / 'state'
    options = ('--slots', '256', '--workers', '8', '--data-block-bytes', '65536')
    load = Load(host, state, *options)
    load.wait_durable(200)
    load.ask_to_finish()
    assert load.end_by_itself() == 0
    rpc.call('ploop_tracking_start', name='p')
    refused(rpc, EEXIST, ['tracking'], 'ploop_tracking_start', name='p')
    refused(rpc, EBUSY, ['tracked'], 'ploop_push_backup_start', name='p', uuid='u')
    load = Load(host, state, *options)
    copy, copied = lab.file('copy', 96), set()

    def copy_clusters(numbers, size=65536):
        with open(image, 'rb') as source, open(copy, 'r+b') as sink:
            for number in numbers:
                source.seek(number * size)
                sink.seek(number * size)
                sink.write(source.read(size))
        copied.update(numbers)

    def copy_some():
        try:
            answer = rpc.call('ploop_tracking_get_next', name='p', max=50)
        except RpcError as error:
            assert error.code == -EAGAIN, error
            return False
        assert answer['cluster_bytes'] == 65536
        copy_clusters(answer['clusters'])
        return True
    # Header and BAT count, too, and come first.
    number = rpc.call('dm_message', name='p', message='tracking_get_next')
    assert number == 0
    copy_clusters([number])
    for _ in range(30):
        copy_some()
    load.wait_durable(100)
    load.ask_to_finish()
    assert load.end_by_itself() == 0
    while copy_some():
        pass
    used = read_image(image)
    assert copied >= {place // 65536 for place in used.clusters.values()} and len(used.clusters) > 100
    with open(image, 'rb') as left, open(copy, 'rb') as right:
        for place in (0, *used.clusters.values()):
            left.seek(place)
            right.seek(place)
            assert left.read(65536) == right.read(65536), place // 65536
    rpc.call('ploop_tracking_stop', name='p')
    rpc.call('ploop_delete', name='p')
    target.stop()


def test_save_config(lab):
    """A configuration saved after a snapshot has the new chain, and brings it back; nothing is formatted again."""
    images = {name: lab.file(name, 48) for name in ('i0', 'i1')}
    target = lab.target()
    rpc = target.rpc
    bdevs(target, **images)
    rpc.call('dm_create', name='p', table=f'0 {32 * 2048} ploop 11 i0')
    content = os.urandom(MIB)
    device = Device(lab, target, 'p', 32 * MIB)
    device.write(0, content)
    rpc.call('ploop_snapshot', name='p', new_top_bdev='i1')
    device.write(MIB, content)
    saved = lab.folder / 'saved.json'
    saved.write_text(tree_rpc(target, 'save_config'))
    before = rpc.call('ploop_status', name='p')
    target.stop()
    assert content_of(images['i0'], images['i1'])[:2 * MIB] == 2 * content
    again = lab.target(name='again', config=saved)
    assert json.loads(tree_rpc(again, 'save_config')) == json.loads(saved.read_text())
    wait_for(lambda: again.rpc.call('ploop_status', name='p')['state'] == 'open')
    after = again.rpc.call('ploop_status', name='p')
    for field in ('top', 'lower', 'size_sectors', 'used_clusters'):
        assert after[field] == before[field]
    assert device.read(0, 3 * MIB) == 2 * content + bytes(MIB)
    again.stop()


def test_shipped_config(lab):
    """spdk-config/ploop.json alone brings up the disk on its golden image, on empty files and again, after a
    kill."""
    port = free_port()
    text = (ROOT / 'spdk-config' / 'ploop.json').read_text()
    golden, top = lab.file('golden', 64), lab.file('top', 80)
    content = os.urandom(MIB)
    with open(golden, 'r+b') as file:
        file.write(content)
    for old, new in (('/var/tmp/spdk-dm-golden.img', golden), ('/var/tmp/spdk-dm-top.img', top), ('"4420"', f'"{port}"')):
        assert old in text
        text = text.replace(old, str(new) if old[0] == '/' else new)
    config = lab.folder / 'shipped.json'
    config.write_text(text)
    host = HostIO(lab.folder, host_config(lab.folder / 'host.json', 'remote', port, 'disk0'), 'remoten1', core_mask='0x1')
    written, back = lab.folder / 'written', lab.folder / 'back'
    written.write_bytes(content[::-1])
    target = lab.target(name='first', config=config)
    host.run('write', str(written), '--offset', str(MIB))
    target.process.kill()
    target = lab.target(name='second', config=config)
    host.run('read', str(back), '--length', str(3 * MIB))
    assert back.read_bytes() == content + content[::-1] + bytes(MIB)
    target.stop()
    assert content_of(golden, top)[:3 * MIB] == back.read_bytes()


def test_removal(lab):
    """A delta's bdev is removed while the target is suspended and a write waits: the bdev goes, the target waits,
    and comes back with it, closed well in between."""
    images = {name: lab.file(name, 48) for name in ('i0', 'i1')}
    target = lab.target()
    rpc = target.rpc
    bdevs(target, **images)
    rpc.call('ploop_create', name='p', top_bdev='i0', size_mib=32)
    rpc.call('ploop_snapshot', name='p', new_top_bdev='i1')
    content = os.urandom(MIB)
    device = Device(lab, target, 'p', 32 * MIB)
    device.write(31 * MIB, content)
    rpc.call('ploop_suspend', name='p')
    load = Load(device.host, lab.folder / 'state', '--slots', '64', *NO_UNMAPS)
    wait_for(lambda: load._state.exists())  # pylint: disable=protected-access
    for removed in ('i0', 'i1'):
        rpc.call('bdev_aio_delete', name=removed)
        wait_for(lambda: rpc.call('ploop_status', name='p')['state'] == 'waiting')
        status = rpc.call('ploop_status', name='p')
        assert status['missing_bdevs'] == [removed] and f"'{removed}' was removed" in status['failure']
        refused(rpc, ENODEV, ["'p'", removed], 'ploop_resume', name='p')
        if removed == 'i0':
            load.end_by_itself()
        sound(images['i1'])
        bdevs(target, **{removed: images[removed]})
        wait_for(lambda: rpc.call('ploop_status', name='p')['state'] == 'open')
    rpc.call('ploop_delete', name='p')
    assert rpc.call('ploop_status') == []
    target.stop()
    assert content_of(images['i0'], images['i1'])[31 * MIB:] == content


def test_refusals(lab):
    """What cannot be is refused with a reason and changes nothing."""
    files = {'junk': lab.file('junk', 8), 'blank': lab.file('blank', 8), 'odd': lab.file('odd', 1)}
    files['junk'].write_bytes(os.urandom(8 * MIB))
    with open(files['odd'], 'r+b') as file:
        file.truncate(65536 + 512)
    image = make(lab.folder / 'image', 8, 65536, 16)
    target = lab.target()
    rpc = target.rpc
    bdevs(target, image=image, **files)
    create = {'method': 'ploop_create', 'name': 'p'}
    refused(rpc, EINVAL, ['no known signature', 'give a size'], top_bdev='blank', **create)
    refused(rpc, EINVAL, ["'junk'", 'overwrite'], top_bdev='junk', size_mib=4, **create)
    refused(rpc, EINVAL, ['16384 sectors', 'already'], top_bdev='image', size_mib=4, **create)
    refused(rpc, EINVAL, ['size'], top_bdev='image', overwrite=True, **create)
    refused(rpc, ENODEV, ["'none'", 'does not exist'], top_bdev='none', **create)
    refused(rpc, EPROTO, ["'odd'", 'whole number'], top_bdev='image', lower_bdevs=['raw@odd'], **create)
    rpc.call('ploop_create', name='p', top_bdev='image')
    refused(rpc, EEXIST, ["'p'"], top_bdev='blank', size_mib=4, **create)
    refused(rpc, EPERM, ["'image'", 'claimed'], 'ploop_check', bdev='image')
    refused(rpc, EBUSY, ['suspended'], 'ploop_add_delta', name='p', bdev='blank', raw=True)
    refused(rpc, ENOENT, ['no lower deltas'], 'ploop_merge', name='p')
    refused(rpc, ENOENT, ['no merge'], 'ploop_merge_cancel', name='p')
    refused(rpc, ENOENT, ['lower delta 0'], 'ploop_notify_merged', name='p', level=0, direction='forward')
    refused(rpc, ENOENT, ['lower delta 3'], 'dm_message', name='p', message='get_delta_name 3')
    refused(rpc, EINVAL, ['unknown message'], 'dm_message', name='p', message='nonsense')
    refused(rpc, EINVAL, ['multiple of 128'], 'ploop_resize', name='p', size_sectors=16385)
    refused(rpc, EBUSY, ['value already'], 'ploop_set_noresume', name='p', value=0)
    rpc.call('ploop_suspend', name='p')
    rpc.call('ploop_add_delta', name='p', bdev='blank', raw=True)
    refused(rpc, EINVAL, ['raw'], 'ploop_add_delta', name='p', bdev='junk', raw=True)
    rpc.call('ploop_resume', name='p')
    status = rpc.call('dm_status', name='p')
    assert status['target'] == 'ploop' and status['status']['lower'][0]['format'] == 'raw'
    assert status['line'] == '128 2 0/255 -', status['line']
    rpc.call('dm_remove', name='p')
    assert rpc.call('ploop_check', bdev='image')['ok']
    rpc.call('ploop_create', name='p', top_bdev='junk', size_mib=4, overwrite=True)
    # Suspended, it can be ended all the same.
    rpc.call('ploop_suspend', name='p')
    rpc.call('ploop_delete', name='p')
    target.stop()
    sound(files['junk'])
