# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 under load: nothing that was flushed is lost."""

import random
import time

import pytest

from harness import thin_check
from harness.load import Load, progress
from harness.pool import aio, host_of

# Of these, some were made durable in each round before the kill, or the round proves nothing.
DURABLE_PER_ROUND = 100


@pytest.mark.parametrize('which, rounds', [('target', 20), ('drive', 6)])
def test_kill_loop(lab, which, rounds):
    """kill -9 under writes, unmaps and zeroings of random size: after each, both checks accept the
    metadata, the target opens it, and everything acknowledged before the last completed flush is
    there, to the byte, with nothing foreign beside it. `drive` kills the drive as well."""
    meta, data = lab.file('meta', 16), lab.file('data', 512)
    state = lab.folder / 'state'
    dice = random.Random(which)
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
        target.rpc.call('thin_activate', pool='pool', id=0, bdev_name='t0', size_mib=1024)
        return target, host_of(lab, target, 't0')

    snapshots = 0
    for number in range(rounds):
        target, host = open_pool(f'target{number}')
        rpc = target.rpc
        if number % 5 == 4:
            if snapshots:
                rpc.call('thin_delete', pool='pool', id=snapshots)
            snapshots += 1
            rpc.call('thin_snapshot', pool='pool', id=snapshots, origin_id=0)
        load = Load(host, state, '--seed', str(number), '--slots', '512', '--flush-every', '8',
                    '--workers', '32', *(['--verify'] if number else []))
        load.wait_durable(DURABLE_PER_ROUND)
        time.sleep(dice.random() * 0.5)
        target.process.kill()
        load.kill()
        if drive:
            drive.process.kill()
        thin_check(meta)
        if drive:
            drive = lab.drive([meta, data])
    target, host = open_pool('last')
    host.run('verify', str(state))
    target.stop()
    thin_check(meta)
    assert snapshots == rounds // 5
    assert progress(state).durable >= rounds * DURABLE_PER_ROUND
