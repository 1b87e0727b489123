# SPDX-License-Identifier: BSD-3-Clause
"""`spdk-dm` and a running target: devices in the words of dmsetup."""

import contextlib
import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from harness.pool import host_of, random_file
from harness.process import SpdkProcess, launch, program

ROOT = Path(__file__).resolve().parents[1]
# Longer than anything here takes on a busy machine: a hang guard.
HANG_SECONDS = 120
SECTORS = {'meta': 32768, 'data': 131072, 'origin': 131072, 'eras': 8192, 'cow': 65536}


class Commands:
    """Runs `spdk-dm` against a target."""

    def __init__(self, target):
        self.socket = target.process.socket

    def arguments(self, verb, *words):
        return [program('spdk-dm'), verb, '--socket', self.socket, *words]

    def run(self, *words, text=''):
        return subprocess.run(self.arguments(*words), input=text, capture_output=True, text=True,
                              timeout=HANG_SECONDS, check=False)

    def __call__(self, *words, **options):
        """What a command prints that must succeed, and complain of nothing."""
        done = self.run(*words, **options)
        assert (done.returncode, done.stderr) == (0, ''), (words, done)
        return done.stdout

    def json(self, *words):
        return json.loads(self(*words, '--json'))

    def refused(self, *words):
        """What a command says that must fail, and print nothing else."""
        done = self.run(*words)
        assert (done.returncode, done.stdout) == (1, ''), (words, done)
        assert done.stderr.startswith('spdk-dm: ')
        return done.stderr


@pytest.fixture(name='target')
def target_with_bdevs(lab):
    target = lab.target(memory_mb=640)
    for name, sectors in SECTORS.items():
        target.rpc.call('bdev_malloc_create', name=name, num_blocks=sectors, block_size=512)
    yield target
    target.stop()


def test_pool(target):
    """The whole life of a pool: every answer as JSON, tables that create the same again, refusals that name the
    device, and the end of a wait when its device goes."""
    dm = Commands(target)
    assert dm.json('ls') == []
    table = '0 131072 thin-pool meta data 128 10 1 error_if_no_space \n'
    created = dm('create', 'pool', text=f'# a pool\n\n{table}')
    assert (created, dm('table', 'pool')) == ('', table)
    assert dm.json('message', 'pool', '0', 'create_thin', '7')['result'] is True
    dm('create', 'thin7', '--table', '0 65536 thin pool 7')
    assert dm.json('ls') == [{'name': 'pool', 'target': 'thin-pool', 'state': 'open'},
                             {'name': 'thin7', 'target': 'thin', 'state': 'open'}]
    assert dm('ls', '--target', 'thin') == 'thin7\t(thin)\n'
    # One device: without its name.
    assert dm('status', '/dev/mapper/thin7') == '0 65536 thin 0 -\n'
    pool, thin = dm.json('status')
    assert (pool['length'], pool['target'], pool['status']['mode']) == (131072, 'thin-pool', 'rw')
    assert pool['line'] in dm('status', 'pool', '--noflush')
    assert thin['status'] == {'mapped_sectors': 0, 'highest_mapped_sector': None}
    assert dm.json('table', 'thin7') == [
        {'name': 'thin7', 'start': 0, 'length': 65536, 'target': 'thin', 'table': 'pool 7'}]

    for words in [('message', 'pool', '0', 'create_thin', '7'), ('message', 'pool', '1', 'delete', '7'),
                  ('message', 'thin7', '0', 'create_thin', '1'), ('status', 'none'), ('table', 'none'),
                  ('remove', 'none'), ('wait', 'none'), ('create', 'x', '--table', '0 8 linear pool 0'),
                  ('create', 'pool', '--table', table), ('remove', 'pool')]:
        said = dm.refused(*words)
        assert words[1] in said, (words, said)
    # What can be shown is.
    done = dm.run('status', 'none', 'thin7')
    assert (done.returncode, done.stdout) == (1, 'thin7: 0 65536 thin 0 -\n')
    assert "'none'" in done.stderr

    waits = launch(dm.arguments('wait', 'thin7'), dict(os.environ), subprocess.PIPE)
    assert dm.json('remove', '--force', 'pool') == {'removed': ['thin7', 'pool']}
    said, _ = waits.communicate(timeout=HANG_SECONDS)
    assert (waits.returncode, b'removed' in said or b'no device' in said) == (1, True), said
    assert dm('ls') == 'No devices found\n'
    assert dm('create', 'pool', '--table', table) == ''
    # One that waits for its bdevs is listed, has no status, and can be removed.
    target.rpc.call('thin_pool_create', name='later', metadata_bdev='no1', data_bdev='no2', wait=True)
    assert dm.json('ls')[0] == {'name': 'later', 'target': 'thin-pool', 'state': 'waiting'}
    for words in ([], ['--target', 'thin-pool']):
        done = dm.run('status', *words)
        assert (done.returncode, "'later'" in done.stderr) == (1, True), done
        assert done.stdout.startswith('pool: 0 131072 thin-pool ')
    assert dm('status', 'pool', '--target', 'thin') == ''
    assert "'none'" in dm.refused('status', 'none', '--target', 'thin')
    dm('remove', '--force', 'later', 'pool')


def test_events(target):
    """A wait ends with the next event of its own device, not of another; a number tells old events from new."""
    dm = Commands(target)
    target.rpc.call('bdev_split_create', base_bdev='origin', split_count=2)
    target.rpc.call('bdev_split_create', base_bdev='cow', split_count=2)
    for i in '01':
        dm('create', f'base{i}', '--table', f'0 65536 snapshot-origin originp{i}')
        dm('create', f'snap{i}', '--table', f'0 65536 snapshot originp{i} cowp{i} P 32')
    assert [device['target'] for device in dm.json('ls')] == ['snapshot-origin'] * 2 + ['snapshot'] * 2
    waits = launch(dm.arguments('wait', '--json', 'base1', '0'), dict(os.environ), subprocess.PIPE)
    merge = '0 65536 snapshot-merge originp{0} cowp{0} P 32'
    for i in '01':
        dm('create', f'base{i}', '--table', merge.format(i))
        event = dm.json('wait', f'snap{i}', '0')
        assert (event['event'], event['context']) == ('snapshot_merge_finished', f'base{i} snap{i}')
        assert dm('status', f'base{i}').startswith('0 65536 snapshot-merge 64/')
    said, _ = waits.communicate(timeout=HANG_SECONDS)
    assert json.loads(said) == {**event, 'name': 'base1'}
    number = event['event_nr']
    assert dm('wait', '-v', 'base1', str(number - 1)) == f'{number} snapshot_merge_finished base1 snap1\n'
    # Old events are not the next.
    later = [launch(dm.arguments('wait', 'base1', *words), dict(os.environ), subprocess.PIPE)
             for words in ([], [str(number)])]
    # What is above is removed first.
    removed = dm.json('remove', '--force', 'base0', 'snap1', 'base1')['removed']
    assert removed == ['snap0', 'base0', 'snap1', 'base1']
    for process in later:
        assert process.wait(timeout=HANG_SECONDS) == 1


def test_a_target_without_the_plugin(lab):
    """The error says what is missing, and what to do."""
    plain = SpdkProcess([os.environ['SPDK_DM_TGT']], lab.folder, 'plain', memory_mb=256)
    plain.wait_ready()
    done = subprocess.run([program('spdk-dm'), 'ls', '-s', plain.socket], capture_output=True, text=True,
                          timeout=HANG_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (1, '')
    assert 'LD_PRELOAD=libspdk_dm.so' in done.stderr and plain.socket in done.stderr
    assert plain.stop() == 0


SAMPLE = re.compile(r'(?P<name>[a-z_]+)(\{(?P<labels>[a-z]+="[^"]*"(,[a-z]+="[^"]*")*)\})? (?P<value>\S+)')


def samples(text):
    """The samples of a scrape: a value by name and labels."""
    lines = text.splitlines()
    assert lines[-1] == '# EOF'
    described, found = set(), {}
    for line in lines[:-1]:
        if line.startswith('# '):
            described.add(line.split()[2])
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        assert sample['name'].removesuffix('_total') in described
        key = (sample['name'], sample['labels'] or '')
        assert key not in found
        found[key] = float(sample['value'])
    return found


@contextlib.contextmanager
def exporter(rpc_socket):
    """Serves the figures of a target, at a URL."""
    arguments = [program('spdk-dm'), 'metrics', '-s', rpc_socket, '--listen', '127.0.0.1:0']
    process = subprocess.Popen(arguments, text=True, stderr=subprocess.PIPE)
    try:
        yield process.stderr.readline().split()[1]
    finally:
        process.kill()
        process.communicate()


def scrape(url):
    return urllib.request.urlopen(url, timeout=HANG_SECONDS)


def test_metrics(lab, target):
    """A scrape has the figures of each kind of device, as the target's own methods tell them, and all that the
    dashboard asks for; `top` shows them."""
    dm = Commands(target)
    dm('create', 'pool', '--table', '0 131072 thin-pool meta data 128 0')
    dm('message', 'pool', '0', 'create_thin', '5')
    dm('create', 'thin', '--table', '0 65536 thin pool 5')
    dm('create', 'era', '--table', '0 131072 era eras origin 128')
    dm('create', 'base', '--table', '0 131072 snapshot-origin era')
    dm('create', 'snap', '--table', '0 131072 snapshot era cow P 32')
    host_of(lab, target, 'thin').run('write', str(random_file(lab.folder / 'two', 2)))
    with exporter(target.process.socket) as url:
        with scrape(url) as answer:
            assert answer.headers['Content-Type'].startswith('application/openmetrics-text')
            found = samples(answer.read().decode())
        with pytest.raises(urllib.error.HTTPError) as caught:
            scrape(url + '/other')
        assert caught.value.code == 404

    pool = target.rpc.call('thin_pool_status', name='pool')
    status = {field: found[f'spdk_dm_pool_{field}', 'pool="pool"'] for field in (
        'used_data_blocks', 'total_data_blocks', 'used_metadata_blocks', 'mapping_cache_used_bytes')}
    assert status == {field: pool[field] for field in status} and status['used_data_blocks'] == 32
    assert found['spdk_dm_pool_data_block_size_bytes', 'pool="pool"'] == 65536
    assert found['spdk_dm_pool_provisioned_blocks_total', 'pool="pool"'] == 32
    modes = {key[1]: value for key, value in found.items() if key[0] == 'spdk_dm_pool_mode'}
    assert modes['pool="pool",mode="rw"'] == 1 and sum(modes.values()) == 1 and len(modes) == 4
    assert found['spdk_dm_thin_mapped_blocks', 'pool="pool",id="5",bdev="thin"'] == 32
    assert found['spdk_dm_era_current_era', 'era="era"'] == 1
    assert found['spdk_dm_snapshot_total_bytes', 'origin="base",snapshot="snap"'] == 65536 * 512
    assert found['spdk_dm_bdev_written_bytes_total', 'bdev="thin"'] == 2 << 20
    assert found['spdk_dm_bdev_write_seconds_total', 'bdev="thin"'] > 0
    assert found['spdk_dm_up', ''] == 1

    names = {name for name, _ in found}
    # A figure whose field a status has no more would go unnoticed else. There is neither a metadata snapshot nor a
    # merge.
    documented = re.findall(r'^\| `(spdk_dm_\w+)`', (ROOT / 'docs' / 'metrics.md').read_text(), re.M)
    # Those of replications are only there with one: test_replicate.py looks at them.
    documented = [name for name in documented if not name.startswith('spdk_dm_replication_')]
    assert set(documented) - names == {'spdk_dm_era_metadata_snap', 'spdk_dm_snapshot_merge'}
    assert names <= set(documented)
    dashboard = json.loads((ROOT / 'docs' / 'grafana.json').read_text())
    asked = {name for panel in dashboard['panels'] for query in panel.get('targets', [])
             for name in re.findall(r'spdk_dm_\w+', query['expr'])}
    assert len(asked) > 20 and asked <= names, asked - names

    # Every device has its row, in each of two looks.
    rows = [line.split() for line in dm('top', '--interval', '1', '--count', '2').splitlines()]
    for row in (['pool', 'rw', '3.1%', '64.00', 'MiB'], ['era', 'open', '1'], ['base', 'open'],
                ['snap', 'good', '-'], ['thin', '0', '0']):
        assert len([found for found in rows if found[:len(row)] == row]) == 2, (row, rows)


def test_metrics_without_a_target(lab):
    """A target that does not answer is a figure, too; printed once, it is an error."""
    socket = str(lab.folder / 'none.sock')
    with exporter(socket) as url, scrape(url) as answer:
        assert samples(answer.read().decode()) == {('spdk_dm_up', ''): 0}
    done = subprocess.run([program('spdk-dm'), 'metrics', '-s', socket], capture_output=True, text=True,
                          timeout=HANG_SECONDS, check=False)
    assert (done.returncode, done.stdout) == (1, '') and socket in done.stderr
