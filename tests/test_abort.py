# SPDX-License-Identifier: BSD-3-Clause
"""A host that loses patience: aborts and resets with I/O outstanding."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from harness import options_for_memory, thin_check
from harness.era import era_check
from harness.load import Load
from harness.pool import aio, host_of
from harness.process import environment, launch
from harness.target import ADDRESS, nqn

# What the host waits, and what the data bdev then takes.
PATIENCE_US = 500_000
SLOW_US = 3_000_000

# A guard, not an expectation of speed.
HANG_SECONDS = 120


def set_latency(rpc, latency_us):
    for kind in ('avg_read', 'avg_write'):
        rpc.call('bdev_delay_update_latency', delay_bdev_name='data', latency_type=kind,
                 latency_us=latency_us)


def slow_pool(lab, action):
    """A target with a thin device on a data bdev that can be slow, and an impatient host."""
    target = lab.target()
    rpc = target.rpc
    aio(target, 'meta', lab.file('meta', 16))
    aio(target, 'fast', lab.file('data', 512))
    rpc.call('bdev_delay_create', base_bdev_name='fast', name='data', avg_read_latency=0,
             p99_read_latency=0, avg_write_latency=0, p99_write_latency=0)
    rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=1024)
    # Aborts go by the admin queue, which a host looks at once a second unless told otherwise.
    host = host_of(lab, target, 't1', action_on_timeout=action, timeout_us=PATIENCE_US,
                   nvme_adminq_poll_period_us=1000)
    return target, host


def close(lab, target):
    """Nothing is left under way: all closes, in order."""
    target.rpc.call('nvmf_subsystem_remove_ns', nqn=nqn('t1'), nsid=1)
    target.rpc.call('thin_deactivate', bdev_name='t1')
    target.rpc.call('thin_pool_delete', name='pool')
    target.stop()
    thin_check(lab.folder / 'meta')


def host_log(lab):
    return (lab.folder / 'hostio.log').read_text(errors='replace')


def abort(host, subsystem, workload, size=4096):
    """SPDK's `abort`: writes, and an Abort after each. Some are aborted, none is lost."""
    program = Path(os.environ['SPDK_DIR']) / 'build' / 'examples' / 'abort'
    if not program.exists():
        pytest.skip('this SPDK comes without its examples')
    where = f'trtype:TCP adrfam:IPv4 traddr:{ADDRESS} trsvcid:{host.port} subnqn:{nqn(subsystem)}'
    process = launch([str(program), '-q', '32', '-o', str(size), '-w', workload, '-t', '2', '-c', '0x1',
                      '-r', where] + options_for_memory(256), environment(), subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, output
    completed, failed = map(int, re.search(r'I/O completed: (\d+), failed: (\d+)', output).groups())
    aborted = int(re.search(r'\bsuccess (\d+),', output).group(1))
    assert completed > 0 and aborted > 0, output
    assert failed <= aborted, output


def test_aborts(lab):
    """Writes to blocks that must be provisioned first, on a slow data bdev. Commands that wait for their
    block are aborted, others end by themselves, and the device serves on."""
    target, host = slow_pool(lab, 'none')
    set_latency(target.rpc, 100_000)
    abort(host, 't1', 'randwrite')
    # Each in parts, because it is of two blocks or three.
    abort(host, 't1', 'randwrite', 128 << 10)
    set_latency(target.rpc, 0)
    state = lab.folder / 'state'
    host.run('stress', str(state), '--writes', '50')
    host.run('verify', str(state))
    close(lab, target)


def test_aborts_of_first_writes(lab):
    """Writes that must be recorded first, on a slow metadata bdev of an era target."""
    target = lab.target()
    rpc = target.rpc
    aio(target, 'fast', lab.file('meta', 16))
    rpc.call('bdev_delay_create', base_bdev_name='fast', name='data', avg_read_latency=0,
             p99_read_latency=0, avg_write_latency=0, p99_write_latency=0)
    rpc.call('bdev_malloc_create', name='origin', num_blocks=64 * 2048, block_size=512)
    rpc.call('era_create', name='era', metadata_bdev='data', origin_bdev='origin', block_size_sectors=8)
    host = host_of(lab, target, 'era')
    set_latency(rpc, 50_000)
    abort(host, 'era', 'randwrite')
    set_latency(rpc, 0)
    state = lab.folder / 'state'
    host.run('stress', str(state), '--writes', '50', '--slots', '128', '--data-block-bytes', '512')
    host.run('verify', str(state))
    rpc.call('nvmf_subsystem_remove_ns', nqn=nqn('era'), nsid=1)
    rpc.call('era_delete', name='era')
    target.stop()
    era_check(lab.folder / 'meta')


def test_controller_reset_under_load(lab):
    """When the data bdev gets slow, the host resets its controller with everything outstanding. The
    target lives on, nothing is stuck, and what was flushed is there: also in blocks whose
    provisioning was under way."""
    target, host = slow_pool(lab, 'reset')
    state = lab.folder / 'state'
    for number in range(2):
        load = Load(host, state, '--seed', str(number), '--workers', '32', '--flush-every', '8')
        load.wait_durable(100)
        set_latency(target.rpc, SLOW_US)
        assert load.end_by_itself() > 0, load.tail()
        assert 'Detected a timeout' in host_log(lab)
        set_latency(target.rpc, 0)
        # What the bdev took while it was slow is answered as late as that; a host that is as impatient
        # must not meet it.
        time.sleep(SLOW_US / 1e6)
        assert ' rw ' in target.rpc.call('dm_status', name='pool')['line']
        host.run('verify', str(state))
    target.stop()
    thin_check(lab.folder / 'meta')
