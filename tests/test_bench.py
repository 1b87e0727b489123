# SPDX-License-Identifier: BSD-3-Clause
"""The benchmarks do what they measure: small runs of each, judged by counts, never by times."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / 'bench'


def run(folder: Path, name: str, *options: str) -> dict:
    figures = folder / 'figures.json'
    env = dict(os.environ, SPDK_DM_CACHE=str(folder))
    command = [sys.executable, str(BENCH / name), *options, '--json', str(figures)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    try:
        out, _ = process.communicate(timeout=400)
    finally:
        # With the SPDK programs it has started, should it hang.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, out[-4000:]
    return json.loads(figures.read_text(encoding='utf-8'))


def test_many_devices_stay_usable(tmp_path):
    """Also reads back what hosts wrote, and counts the devices in the list."""
    found = run(tmp_path, 'many', '--devices', '300', '--active', '30')['many']
    assert found['thin_create']['count'] == 300
    assert found['thin_deactivate']['count'] == 30


def test_pools_are_opened_and_read(tmp_path):
    (found,) = run(tmp_path, 'pools', '--mappings', '65536', '--seconds', '2')['pools']
    # With all that can be cached in the cache, each mapping takes its 8 bytes and no more.
    assert found['reads']['ios'] > 10000
    assert found['cached_mappings'] == 65536
    assert found['cache_bytes_per_mapping'] == 8
    assert found['mapping_cache_used_bytes'] <= found['mapping_cache_limit_bytes']


@pytest.mark.parametrize('which', ['null data', 'copied', 'mapped blocks', 'commits', 'mappings under first writes'])
def test_load_goes_on_while_stalls_are_looked_for(tmp_path, which):
    found = run(tmp_path, 'stalls', '--only', which, '--seconds', '0.5', '--snapshots', '2',
                '--mappings', '65536', '--loaded-mappings', '65536', '--depth', '4')['stalls']
    assert len(found) == 1
    for phase in ('before', 'during', 'after'):
        figures = found[0]['phases'][phase]
        assert figures['ios'] > 0
        assert 0 < figures['p50_us'] <= figures['p99_us'] <= figures['p999_us'] <= figures['max_us']


@pytest.mark.parametrize('only', ['nothing mapped', 'with a snapshot', 'discards', 'latency of random reads',
                                  'random write 4 KiB, depth 32, of an origin, two cores', 'of a snapshot', 'random read 4 KiB, depth 32, of ploop',
                                  'writes after a snapshot'])
def test_rows_are_measured(tmp_path, only):
    found = run(tmp_path, 'run', '--only', only, '--seconds', '1', '--repetitions', '1')
    (row,) = found['rows']
    assert row['medians']
    for figure in row['medians'].values():
        assert (figure['rate'] if isinstance(figure, dict) else figure) > 0


def test_two_are_measured_at_the_same_time(tmp_path):
    """Each pair is of rates of one moment."""
    found = run(tmp_path, 'run', '--together', '--only', 'nothing mapped', '--seconds', '1', '--repetitions', '2')
    (row,) = found['rows']
    (pairs,) = row['together'].values()
    assert len(pairs) == 2 and all(rate > 0 for pair in pairs for rate in pair)
    assert [other / base for base, other in pairs] == row['ratios']['thin on null, nothing mapped']


@pytest.mark.parametrize('only', ['full backup at', 'replica at', 'migration at'])
def test_load_goes_on_beside_other_work(tmp_path, only):
    (found,) = run(tmp_path, 'foreground', '--only', only, '--size-mib', '32', '--repetitions', '1',
                   '--alone-seconds', '0.5')['foreground']
    assert found['ratio'] > 0 and found['without'][0] > 0
