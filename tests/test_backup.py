# SPDX-License-Identifier: BSD-3-Clause
"""`spdk-dm backup`: full and incremental, under load, restored into everything it can be restored into."""

import json
import os
import random
import subprocess
import time

import pytest

from harness.backup import Backup
from harness.guest import contents, random_writes, write
from harness.pool import aio, host_of, pool_on_files, random_file, wait_for
from harness.process import program

MIB = 1 << 20
SIZE_MIB = 64


@pytest.fixture(name='thin')
def thin_with_backup(lab):
    """A target with a pool and the thin bdev 'thin', and the command."""
    target = lab.target(memory_mb=512)
    pool_on_files(lab, target, data_mb=512)
    target.rpc.call('thin_create', pool='pool', id=1, bdev_name='thin', size_mib=SIZE_MIB)
    target.backup = Backup(target)
    return target


def test_chain(lab, thin):
    """A full backup and three made since give each state back, byte for byte: into a new thin device, a file
    and a bdev that held something else. Only what has changed is in them, and the pool keeps one snapshot."""
    rng = random.Random(1)
    backup, rpc = thin.backup, thin.rpc
    write(lab.folder, thin.rpc, 'thin', *random_writes(rng, SIZE_MIB, 30))
    states, files = [], []
    for i in range(4):
        files.append(lab.folder / f'{i}.backup')
        if i == 0:
            backup('full', 'pool', 1, '-o', files[0])
        else:
            backup('incr', 'pool', 1, '--since', files[-2], '-o', files[-1])
        states.append(contents(lab.folder, thin.rpc, 'thin'))
        write(lab.folder, thin.rpc, 'thin', *random_writes(rng, SIZE_MIB, 10))
    assert len(rpc.call('thin_list', pool='pool')) == 2
    backup('verify', *files)
    listed = json.loads(backup('list', lab.folder, '--json'))
    assert [entry['path'] for entry in listed] == [str(file) for file in files]
    for i, state in enumerate(states):
        whole = lab.folder / f'{i}.raw'
        backup('restore', *files[:i + 1], '--file', whole)
        assert whole.read_bytes() == state
    backup('restore', *files, '--pool', 'pool', '--id', 7)
    rpc.call('thin_activate', pool='pool', id=7, bdev_name='again', size_mib=SIZE_MIB)
    assert contents(lab.folder, thin.rpc, 'again') == states[-1]
    aio(thin, 'other', random_file(lab.folder / 'other', SIZE_MIB + 1))
    backup('restore', *files, '--bdev', 'other')
    assert contents(lab.folder, thin.rpc, 'other') == states[-1] + bytes(MIB)
    # What is mapped in the copy is what is mapped in the last snapshot: holes stay holes.
    mapped = {entry['id']: entry['mapped_blocks'] for entry in rpc.call('thin_list', pool='pool')}
    last = max(mapped)
    assert last not in (1, 7) and mapped[7] == mapped[last], mapped


def test_told_as_json(lab, thin):
    """What was made, seen to be whole and restored is told as JSON, the backup as 'list' shows it; a backup that goes to
    standard output is never mixed with that."""
    backup, files = thin.backup, [lab.folder / 'full', lab.folder / 'incr']
    write(lab.folder, thin.rpc, 'thin', 'write -P 1 0 1M')
    made = [json.loads(backup('full', 'pool', 1, '-o', files[0], '--json')),
            json.loads(backup('incr', 'pool', 1, '-o', files[1], '--json'))]
    assert made == json.loads(backup('list', *files, '--json')) == json.loads(backup('verify', *files, '--json'))
    restored = json.loads(backup('restore', *files, '--pool', 'pool', '--id', 7, '--json'))
    assert (restored['pool'], restored['id'], restored['backup']) == ('pool', 7, made[1]['header']['uuid'])
    assert restored['size_bytes'] == SIZE_MIB * MIB
    refused = backup.run('full', 'pool', 1, '-o', '-', '--json')
    assert refused.returncode == 1 and not refused.stdout and 'standard output' in refused.stderr


def test_only_changes_are_moved(lab, thin):
    """What an incremental backup reads is what has changed, within 5 %."""
    write(lab.folder, thin.rpc, 'thin', 'write -P 1 0 64M')
    thin.backup('full', 'pool', 1, '-o', lab.folder / 'full')
    changed = random.Random(2).sample(range(SIZE_MIB * 16), 200)
    write(lab.folder, thin.rpc, 'thin', *(f'write -P 2 {at * 64 + 4}k 4k' for at in changed))
    before = thin.rpc.call('bdev_get_iostat', name='data')['bdevs'][0]['bytes_read']
    thin.backup('incr', 'pool', 1, '--since', lab.folder / 'full', '-o', lab.folder / 'incr')
    read = thin.rpc.call('bdev_get_iostat', name='data')['bdevs'][0]['bytes_read'] - before
    assert 200 * 65536 <= read <= 200 * 65536 * 1.05, read


def test_under_load(lab, thin):
    """Backups of a device that is being written to are each of one moment, which the next one goes on from;
    what the load has of the target beside a backup is printed."""
    host = host_of(lab, thin, 'thin')
    load = host.start('stress', str(lab.folder / 'state'), '--slots', '128')
    backup, files = thin.backup, []

    def writes():
        return thin.rpc.call('bdev_get_iostat', name='thin')['bdevs'][0]['num_write_ops']

    def rate(work):
        began, before = time.monotonic(), writes()
        work()
        return (writes() - before) / (time.monotonic() - began)

    wait_for(lambda: writes() > 1000)
    alone = rate(lambda: time.sleep(2))
    for i in range(3):
        files.append(lab.folder / f'{i}.backup')
        words = ['--since', files[-2]] if i else []
        verb = 'incr' if i else 'full'
        beside = rate(lambda: backup(verb, 'pool', 1, *words, '-o', files[-1]))  # pylint: disable=cell-var-from-loop
        print(f'{verb}: {beside:.0f} writes/s beside it, {alone:.0f} without: {beside / alone:.2f}')
        # The snapshot is what the backup is of, and nobody writes to it.
        snapshot, = [entry['id'] for entry in thin.rpc.call('thin_list', pool='pool') if entry['id'] != 1]
        thin.rpc.call('thin_activate', pool='pool', id=snapshot, bdev_name='moment', size_mib=SIZE_MIB)
        moment = contents(lab.folder, thin.rpc, 'moment')
        thin.rpc.call('thin_deactivate', bdev_name='moment')
        backup('restore', *files, '--file', lab.folder / f'{i}.raw')
        assert (lab.folder / f'{i}.raw').read_bytes() == moment
    assert load.poll() is None
    load.kill()
    load.wait()


def test_cut_off_and_resumed(lab, thin):
    """A backup that was killed goes on where it was, and ends as the same backup; what is not a beginning of
    it is refused and stays as it is."""
    write(lab.folder, thin.rpc, 'thin', *(f'write -P {i + 1} {i}M 1M' for i in range(SIZE_MIB)))
    out = lab.folder / 'full'
    command = [program('spdk-dm'), 'backup', 'full', 'pool', '1', '-o', out, '--limit-mib', '8', '--socket',
               thin.backup.socket]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    exports = lambda: thin.rpc.call('nbd_export_list')  # noqa: E731
    wait_for(lambda: exports() and exports()[0]['bytes_read'] > 8 * MIB)
    running.kill()
    running.wait()
    assert 'not complete' in thin.backup.refused('verify', out)
    assert 'not complete' in thin.backup.refused('restore', out, '--file', lab.folder / 'raw')
    state = contents(lab.folder, thin.rpc, 'thin')
    write(lab.folder, thin.rpc, 'thin', 'write -P 99 0 64M')
    assert 'already' in thin.backup.refused('full', 'pool', 1, '-o', out)
    thin.backup('full', 'pool', 1, '-o', out, '--resume')
    thin.backup('restore', out, '--file', lab.folder / 'raw')
    assert (lab.folder / 'raw').read_bytes() == state
    assert 'is complete' in thin.backup.refused('full', 'pool', 1, '-o', out, '--resume')


def test_refusals(lab, thin):
    """What cannot be done is said, with the remedy; nothing is left behind or overwritten."""
    backup, rpc = thin.backup, thin.rpc
    write(lab.folder, thin.rpc, 'thin', 'write -P 1 0 8M')
    full, incr = lab.folder / 'full', lab.folder / 'incr'
    backup('full', 'pool', 1, '-o', full)
    backup('incr', 'pool', 1, '--since', full, '-o', incr, '--keep')
    assert 'no thin device 9' in backup.refused('full', 'pool', 9, '-o', lab.folder / 'x', '--size-mib', 1)
    assert 'begin with the full one' in backup.refused('restore', incr, '--file', lab.folder / 'raw')
    assert 'was not made since' in backup.refused('restore', full, full, '--file', lab.folder / 'raw')
    assert 'nothing is overwritten' in backup.refused('restore', full, '--pool', 'pool', '--id', 1)
    damaged = bytearray(full.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (lab.folder / 'bad').write_bytes(damaged)
    assert 'checksum' in backup.refused('restore', lab.folder / 'bad', '--pool', 'pool', '--id', 5)
    assert all(entry['id'] != 5 for entry in rpc.call('thin_list', pool='pool'))
    rpc.call('thin_reserve_metadata_snap', pool='pool')
    assert 'thin_release_metadata_snap' in backup.refused('full', 'pool', 1, '-o', lab.folder / 'y')
    rpc.call('thin_release_metadata_snap', pool='pool')
    backup('full', 'pool', 1, '-o', lab.folder / 'y', '--resume')
    assert rpc.call('nbd_export_list') == []
    assert os.listdir(lab.folder).count('raw') == 0
    text = subprocess.run([program('spdk-dm'), 'backup', 'full', 'pool', '1', '-o', '-', '--socket', backup.socket],
                          capture_output=True, check=True).stdout
    (lab.folder / 'piped').write_bytes(text)
    backup('verify', lab.folder / 'piped')
