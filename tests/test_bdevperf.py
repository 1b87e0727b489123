# SPDX-License-Identifier: BSD-3-Clause
"""bdevperf with the plugin in it: SPDK's own workloads on a thin bdev and on an era bdev."""

import json
import os
import re
import subprocess

import pytest

from harness import options_for_memory, program
from harness.process import NO_TRACES, environment, launch

MIB = 1 << 20
# A guard, not an expectation of speed.
HANG_SECONDS = 120

POOL = [
    ('thin_pool_create', {'name': 'pool', 'metadata_bdev': 'meta', 'data_bdev': 'data'}),
    ('thin_create', {'pool': 'pool', 'id': 1, 'bdev_name': 't1', 'size_mib': 100}),
]

ERA = [('era_create', {'name': 't1', 'metadata_bdev': 'meta', 'origin_bdev': 'data'})]
BDEVS = pytest.mark.parametrize('bdev', [POOL, ERA], ids=['thin', 'era'])


def malloc(name, blocks):
    return ('bdev_malloc_create', {'name': name, 'num_blocks': blocks, 'block_size': 512})


def delay(name, base, latency_us):
    latency = {f'{what}_{kind}_latency': latency_us for what in ('avg', 'p99')
               for kind in ('read', 'write')}
    return ('bdev_delay_create', {'base_bdev_name': base, 'name': name, **latency})


def bdevperf(lab, workload, methods, seconds=2, size=8192, depth=16):
    """Runs a workload on t1; it succeeds, without an error in its log. The I/O per second."""
    config = lab.folder / 'perf.json'
    config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': [
        {'method': method, 'params': params} for method, params in methods]}]}))
    env = environment()
    env['LD_PRELOAD'] = program('libspdk_dm.so')
    memory_mb = 512 + 2 * size * depth // MIB
    process = launch([os.environ['SPDK_DM_BDEVPERF'], '--no-pci', '--huge-unlink', *NO_TRACES, '-m', '0x3', '-r',
                      str(lab.folder / 'perf.sock'), '--json', str(config), '-q', str(depth), '-o', str(size),
                      '-w', workload, '-t', str(seconds), '-T', 't1'] + options_for_memory(memory_mb),
                     env, subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, output
    for word in ('ERROR', 'IO error', 'mismatch', 'failed', 'Failed'):
        assert word not in output, output
    rates = re.findall(r'^\s*t1\s*:\s*([0-9.]+) IOPS', output, re.MULTILINE)
    assert rates, output
    return float(rates[-1])


@BDEVS
@pytest.mark.parametrize('workload', ['verify', 'unmap', 'write_zeroes', 'flush', 'randwrite'])
def test_workload(lab, workload, bdev):
    """Each of bdevperf's workloads runs through without an error, and really does I/O; `verify`
    compares what it reads."""
    assert bdevperf(lab, workload, [malloc('meta', 32768), malloc('data', 262144)] + bdev) > 0


def test_parts_of_parts(lab):
    """A thin bdev with large blocks on one with small ones: of large I/Os there are as many parts under way as may be,
    and each has parts of its own below, for which there is room nevertheless."""
    methods = [malloc('meta', 32768), malloc('data', 192 * 2048), malloc('meta2', 32768),
               ('thin_pool_create', {'name': 'lower', 'metadata_bdev': 'meta', 'data_bdev': 'data'}),
               ('thin_create', {'pool': 'lower', 'id': 1, 'bdev_name': 't0', 'size_mib': 180}),
               ('thin_pool_create', {'name': 'upper', 'metadata_bdev': 'meta2', 'data_bdev': 't0',
                                     'data_block_size_sectors': 2048}),
               ('thin_create', {'pool': 'upper', 'id': 1, 'bdev_name': 't1', 'size_mib': 160})]
    assert bdevperf(lab, 'randwrite', methods, size=2 * MIB, depth=80) > 0


@BDEVS
def test_reset_with_io_outstanding(lab, bdev):
    """A reset of the bdev while reads and writes wait for a slow data bdev succeeds, and what is
    read before and after it is right. bdevperf resets after ten seconds."""
    methods = [malloc('meta', 32768), malloc('slow', 262144), delay('data', 'slow', 100000)]
    assert bdevperf(lab, 'reset', methods + bdev, seconds=12) > 0
