# SPDX-License-Identifier: BSD-3-Clause
"""bdevperf with the plugin in it."""

import json
import os
import subprocess

from harness import options_for_memory, program
from harness.process import environment


def test_bdevperf_verifies(lab):
    """bdevperf's own verify workload passes, on a thin device and with the plugin in bdevperf."""
    config = lab.folder / 'perf.json'
    config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': [
        {'method': 'bdev_malloc_create', 'params': {'name': 'meta', 'num_blocks': 32768, 'block_size': 512}},
        {'method': 'bdev_malloc_create', 'params': {'name': 'data', 'num_blocks': 262144, 'block_size': 512}},
        {'method': 'thin_pool_create', 'params': {'name': 'pool', 'metadata_bdev': 'meta', 'data_bdev': 'data'}},
        {'method': 'thin_create', 'params': {'pool': 'pool', 'id': 1, 'bdev_name': 't1', 'size_mib': 100}},
    ]}]}))
    env = environment()
    env['LD_PRELOAD'] = program('libspdk_dm.so')
    done = subprocess.run([os.environ['SPDK_DM_BDEVPERF'], '--no-pci', '-m', '0x3', '-r',
                           str(lab.folder / 'perf.sock'), '--json', str(config), '-q', '16', '-o',
                           '8192', '-w', 'verify', '-t', '3', '-T', 't1'] + options_for_memory(512),
                          env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout
    assert 'IO error' not in done.stdout and 'miscompare' not in done.stdout, done.stdout
