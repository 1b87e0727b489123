# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 under load: nothing that was flushed is lost."""

import random
import struct
import subprocess
import time

import pytest

from harness import thin_check
from harness.pool import aio, host_of, wait_for


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
