# SPDX-License-Identifier: BSD-3-Clause
"""A thin pool that LVM made and a kernel wrote to, served by what `spdk-dm import lvm` prints; and linear bdevs."""

import errno
import hashlib
import json
import subprocess

import pytest

from harness import program
from harness.pool import aio, host_of, random_file, refused, wait_for
from kernel.machine import Kernel

MIB = 1 << 20
# There is no udev, and nobody to talk to.
LVM = r'''
mkdir -p /tmp/lvm /run/lock/lvm /run/lvm
cat > /tmp/lvm/lvm.conf <<'C'
devices { scan=["/dev"] use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source="none" types=["ubd",16] }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
global { thin_check_executable="" use_lvmpolld=0 }
backup { backup=0 archive=0 }
C
export LVM_SYSTEM_DIR=/tmp/lvm
'''
# The data has two segments on two disks, and the thin volumes share blocks.
MAKE = LVM + r'''
lvm pvcreate -y --metadatasize 512k /dev/ubda /dev/ubdb /dev/ubdc
lvm vgcreate -s 1m my-vg /dev/ubda /dev/ubdb /dev/ubdc
lvm lvcreate -y -l 3 -n filler my-vg /dev/ubda
lvm lvcreate -y -l 10 -n base my-vg /dev/ubdb
dd if=/dev/urandom of=/dev/my-vg/base bs=1M count=10
lvm lvcreate -y --type thin-pool -l 12 --poolmetadatasize 4m -c 64k --discards nopassdown -n pool my-vg /dev/ubda
lvm lvcreate -y -V 20m -T my-vg/pool -n t0
lvm lvextend -y -l +20 my-vg/pool /dev/ubdc
dd if=/dev/urandom of=/dev/my-vg/t0 bs=1M count=9 seek=1
lvm lvcreate -y -s -n t1 my-vg/t0
dd if=/dev/urandom of=/dev/my-vg/t0 bs=64k count=40 seek=30
lvm lvchange -an my-vg/base
lvm lvchange -pr my-vg/base
lvm lvcreate -y -s --thinpool my-vg/pool -n ext my-vg/base
dd if=/dev/urandom of=/dev/my-vg/ext bs=64k count=20 seek=50
lvm lvchange -ay -K my-vg/t1
sync
for lv in t0 t1 ext; do echo "$lv=$(sha256sum < /dev/my-vg/$lv | cut -d' ' -f1)"; done
lvm vgchange -an my-vg
lvm vgcfgbackup -f /tmp/vg.txt my-vg
echo BEGIN; cat /tmp/vg.txt; echo END
'''


@pytest.fixture(scope='module', name='pool_of_lvm')
def made_by_lvm(tmp_path_factory):
    """Disks, LVM's text, and what the kernel read from each thin volume."""
    folder = tmp_path_factory.mktemp('lvm')
    disks = []
    for name in 'abc':
        disk = folder / name
        with open(disk, 'wb') as file:
            file.truncate(40 * MIB)
        disks.append(disk)
    outcome = Kernel(disks).run(MAKE)
    text = folder / 'vg.txt'
    text.write_text(outcome.output.split('BEGIN\n')[1].split('END\n')[0])
    return disks, text, {name: outcome.values()[name] for name in ('t0', 't1', 'ext')}


def imported(*words):
    done = subprocess.run([program('spdk-dm'), 'import', 'lvm', *map(str, words)], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stderr) == (0, ''), done
    return json.loads(done.stdout)


def serve(lab, target, config):
    """Makes the calls of a configuration."""
    for call in config['subsystems'][0]['config']:
        target.rpc.call(call['method'], **call['params'])


def content_of(lab, host, length):
    back = lab.folder / 'back'
    host.run('read', str(back), '--length', str(length))
    return hashlib.sha256(back.read_bytes()).hexdigest()


def test_pool_of_lvm(lab, pool_of_lvm):
    """Every thin volume reads as the kernel read it, an external origin's included; the pool's metadata is sound, and
    what is written goes where the kernel finds it. The text in a disk's metadata area says the same."""
    disks, text, sums = pool_of_lvm
    bdevs = [word for name, disk in zip('abc', disks) for word in ('--bdev', f'/dev/ubd{name}={name}')]
    config = imported(text, *bdevs)
    calls = config['subsystems'][0]['config']
    assert 'bdev_aio_create' not in [call['method'] for call in calls]
    assert imported(disks[0], *bdevs) == config
    by_path = imported(text)['subsystems'][0]['config']
    made = [call['params']['filename'] for call in by_path if call['method'] == 'bdev_aio_create']
    assert made == ['/dev/ubda', '/dev/ubdb', '/dev/ubdc']
    target = lab.target()
    # Declared before its disks are there.
    serve(lab, target, config)
    for name, disk in zip('abc', disks):
        aio(target, name, disk)
    names = {'t0': 'my--vg-t0', 't1': 'my--vg-t1', 'ext': 'my--vg-ext'}
    wait_for(lambda: set(names.values()) <= {bdev['name'] for bdev in target.rpc.call('bdev_get_bdevs')})
    status = target.rpc.call('thin_pool_status', name='my--vg-pool')
    assert status['discard'] == 'no_discard_passdown' and status['total_data_blocks'] == 32 * 16
    lengths = {'t0': 20 * MIB, 't1': 20 * MIB, 'ext': 10 * MIB}
    hosts = {volume: host_of(lab, target, bdev, volume) for volume, bdev in names.items()}
    for volume, host in hosts.items():
        assert content_of(lab, host, lengths[volume]) == sums[volume], volume
    # A change, which the kernel reads.
    content = random_file(lab.folder / 'content', 1)
    hosts['t1'].run('write', str(content), '--offset', str(3 * MIB))
    expected = content_of(lab, hosts['t1'], 20 * MIB)
    assert expected != sums['t1']
    saved = target.rpc.call('framework_get_config', name='bdev')
    assert 'linear_create' in [call['method'] for call in saved]
    target.stop()
    outcome = Kernel(disks).run(LVM + r'''
        lvm vgchange -ay -K my-vg
        for lv in t0 t1 ext; do echo "$lv=$(sha256sum < /dev/my-vg/$lv | cut -d' ' -f1)"; done
        lvm vgchange -an my-vg''')
    found = {name: outcome.values()[name] for name in sums}
    assert found == {**sums, 't1': expected}


def test_linear(lab):
    """What is written through a linear bdev is where its segments say, across their boundaries; discards and zeroes,
    too. Overlaps, and parts that are not there, are refused; bdevs that go take it along, and bring it back."""
    target = lab.target()
    rpc = target.rpc
    a, b = random_file(lab.folder / 'a', 8), random_file(lab.folder / 'b', 8)
    aio(target, 'a', a)
    aio(target, 'b', b)
    before = {'a': a.read_bytes(), 'b': b.read_bytes()}
    segments = ['b:2048:2048', 'a:0:4096', 'b:8192:6144']
    rpc.call('linear_create', name='lin', segments=segments)
    size = (2048 + 4096 + 6144) * 512

    def shown(files):
        return files['b'][MIB:2 * MIB] + files['a'][:2 * MIB] + files['b'][4 * MIB:7 * MIB]

    host, back = host_of(lab, target, 'lin'), lab.folder / 'back'
    host.run('read', str(back), '--length', str(size))
    assert back.read_bytes() == shown(before)
    content = random_file(lab.folder / 'content', 4).read_bytes()
    host.run('write', str(lab.folder / 'content'), '--offset', str(MIB // 2))
    expected = bytearray(shown(before))
    expected[MIB // 2:MIB // 2 + 4 * MIB] = content
    host.run('clear', 'zeroes', '--offset', str(5 * MIB), '--length', str(MIB // 2))
    expected[5 * MIB:5 * MIB + MIB // 2] = bytes(MIB // 2)
    host.run('read', str(back), '--length', str(size))
    assert back.read_bytes() == bytes(expected)
    # And nothing else is touched.
    after = {'a': a.read_bytes(), 'b': b.read_bytes()}
    assert shown(after) == bytes(expected)
    assert after['a'][2 * MIB:] == before['a'][2 * MIB:]
    for begin, end in ((0, MIB), (2 * MIB, 4 * MIB), (7 * MIB, 8 * MIB)):
        assert after['b'][begin:end] == before['b'][begin:end]

    for wrong, words in ((['a:4095:10'], ["'lin'", "bdev 'a'"]), (['b:0:16', 'b:8:16'], ["bdev 'b'"]),
                         (['none:0:8'], ["'none'", 'does not exist'])):
        code = errno.ENODEV if 'none' in wrong[0] else errno.EBUSY
        refused(rpc, code, words, 'linear_create', name='x', segments=wrong)
    for wrong in (['a:16000:1000'], ['a:0'], ['a:0:0'], [':0:8'], [], ['a:x:8']):
        refused(rpc, errno.EINVAL, ["'x'"], 'linear_create', name='x', segments=wrong)
    refused(rpc, errno.EEXIST, ["'lin'"], 'linear_create', name='lin', segments=['a:8192:8'])
    rpc.call('linear_create', name='beside', segments=['a:4096:8'])
    rpc.call('linear_delete', name='beside')
    rpc.call('bdev_aio_delete', name='a')
    wait_for(lambda: 'lin' not in [bdev['name'] for bdev in rpc.call('bdev_get_bdevs')])
    aio(target, 'a', a)
    wait_for(lambda: 'lin' in [bdev['name'] for bdev in rpc.call('bdev_get_bdevs')])
    rpc.call('linear_delete', name='lin')
    # Both are free again.
    rpc.call('thin_pool_create', name='pool', metadata_bdev='none', data_bdev='a', wait=True)
    refused(rpc, errno.ENODEV, ["'lin'"], 'linear_delete', name='lin')
    target.stop()
