# SPDX-License-Identifier: BSD-3-Clause
"""`spdk-dm` and a running target: devices in the words of dmsetup."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

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


def test_commands_of_the_documentation(lab, target):
    """Every command of docs/commands.md does what stands there."""
    blocks = re.findall(r'```console\n(.*?)```', (ROOT / 'docs' / 'commands.md').read_text(), re.S)
    assert len(blocks) == 3
    # The documentation names no socket; the function is where it does not matter.
    prelude = f'''
        spdk-dm() {{
            local verb=$1
            shift
            case $verb in
                completions | man) "$SPDK_DM" "$verb" "$@" ;;
                *) "$SPDK_DM" "$verb" --socket "$SOCKET" "$@" ;;
            esac
        }}
    '''
    env = dict(os.environ, SPDK_DM=program('spdk-dm'), SOCKET=target.process.socket)
    shown = []
    for block in blocks:
        shown.append('')
        for line in block.splitlines():
            if line.startswith('$ '):
                # Output and errors in one, as on a terminal.
                done = subprocess.run(['bash', '-c', prelude + line[2:]], env=env, cwd=lab.folder,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True, timeout=HANG_SECONDS,
                                      check=False)
                shown[-1] += f'{line}\n{done.stdout}'
    assert shown == blocks


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
    dm('remove', 'pool')


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
