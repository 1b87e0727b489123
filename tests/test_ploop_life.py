# SPDX-License-Identifier: BSD-3-Clause
"""The lives of ploop targets on a real spdk_tgt: configurations, bdevs that go, refusals."""

import json
import os
from pathlib import Path

from harness import HostIO, free_port
from harness.load import Load
from harness.ploop import MIB, bdevs, content_of, make, sound
from harness.pool import refused, wait_for
from harness.rpc import tree_rpc
from harness.snapshot import Device
from harness.target import host_config

ROOT = Path(__file__).resolve().parents[1]
EPERM, ENOENT, EBUSY, EEXIST, ENODEV, EINVAL, EPROTO = 1, 2, 16, 17, 19, 22, 71
# An unmap leaves what older deltas have.
NO_UNMAPS = ('--clear-every', str(1 << 60))


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
