# SPDX-License-Identifier: BSD-3-Clause
"""Backups of ploop disks on a real spdk_tgt, while a host writes."""

from harness.load import Load
from harness.ploop import MIB, bdevs, make, read_image, sound
from harness.pool import host_of, refused, wait_for
from harness.rpc import RpcError
from harness.snapshot import Device, notified

ENOENT, E2BIG, EBADF, EAGAIN, EBUSY, EEXIST, EINVAL, ESTALE = 2, 7, 9, 11, 16, 17, 22, 116


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
    load.finish()
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
    load.wait_durable(200)
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
    load.finish()
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
    load.finish()
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
