# SPDX-License-Identifier: BSD-3-Clause
"""`spdk-dm migrate`: thin devices to another pool while they are in use, cut off in all ways and gone on with."""

import json
import os
import random
import re
import signal
import subprocess
from pathlib import Path

import pytest

from harness import guest, thin_check
from harness.load import Load
from harness.pool import aio, host_of, random_file, wait_for
from harness.process import program

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
SIZE_MIB = 32
# Longer than anything here takes on a busy machine: a hang guard.
HANG_SECONDS = 120


class Migrate:
    """Runs `spdk-dm migrate pool0 ... --to pool1` against a target."""

    def __init__(self, target):
        self.target = target

    def command(self, *words):
        return [program('spdk-dm'), 'migrate', 'pool0', *map(str, words), '--to', 'pool1', '--socket',
                self.target.process.socket]

    def run(self, *words):
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=HANG_SECONDS, check=False)

    def __call__(self, *words):
        """What it did, as JSON."""
        done = self.run(*words, '--json')
        assert (done.returncode, done.stderr) == (0, ''), (words, done)
        return json.loads(done.stdout)

    def refused(self, *words):
        done = self.run(*words)
        assert done.returncode == 1 and 'spdk-dm: ' in done.stderr, done
        return done.stderr

    def start(self, *words):
        return subprocess.Popen(self.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def pools(lab, target, data_mb=256, new=True):
    for i in '01':
        files = [lab.file(name, size) if new else lab.folder / name
                 for name, size in ((f'meta{i}', 16), (f'data{i}', data_mb))]
        aio(target, f'meta{i}', files[0])
        aio(target, f'data{i}', files[1])
        target.rpc.call('thin_pool_create', name=f'pool{i}', metadata_bdev=f'meta{i}', data_bdev=f'data{i}')


@pytest.fixture(name='target')
def target_with_pools(lab):
    """A target with the pools 'pool0' and 'pool1', and the thin bdev 'thin' of the first."""
    target = lab.target(memory_mb=512)
    pools(lab, target)
    target.rpc.call('thin_create', pool='pool0', id=1, bdev_name='thin', size_mib=SIZE_MIB)
    return target


def write(lab, target, *commands, bdev='thin'):
    """qemu-io commands."""
    guest.write(lab.folder, target.rpc, bdev, *commands)


def contents(lab, target, bdev):
    return guest.contents(lab.folder, target.rpc, bdev)


def contents_of(lab, target, pool, number):
    """Of a thin device that has no bdev."""
    target.rpc.call('thin_activate', pool=pool, id=number, bdev_name='look', size_mib=SIZE_MIB)
    found = contents(lab, target, 'look')
    target.rpc.call('thin_deactivate', bdev_name='look')
    return found


def ids(target, pool):
    return [entry['id'] for entry in target.rpc.call('thin_list', pool=pool)]


def used(target, pool):
    return target.rpc.call('thin_pool_status', name=pool)['used_data_blocks']


def nothing_left(lab, target):
    """Neither exports, bdevs of the migration, nor its file."""
    assert target.rpc.call('nbd_export_list') == []
    assert [bdev['name'] for bdev in target.rpc.call('bdev_get_bdevs') if 'migrate' in bdev['name']] == []
    assert list(lab.folder.glob('spdk-dm-migrate*')) == []
    for pool in ('pool0', 'pool1'):
        assert target.rpc.call('thin_pool_status', name=pool)['held_root'] is None


def journal(lab):
    """What stands in the migration's file, if there is one."""
    found, = list(lab.folder.glob('spdk-dm-migrate*.json')) or [None]
    return json.loads(found.read_text()) if found else None


def noted(lab):
    """How many blocks of 64 KiB of the first device are done, and noted."""
    state = journal(lab)
    first = (state or {'devices': []})['devices']
    return first[0]['pass']['next_block'] if first and first[0]['pass'] else 0


def check_pools(lab):
    for name in ('meta0', 'meta1'):
        thin_check(lab.folder / name)


def test_under_load(lab, target):
    """A host that writes, unmaps and zeroes through NVMe/TCP all the time sees no error, and finds what it had
    made durable; the length of the pause is told. The saved configuration names the new pool."""
    host = host_of(lab, target, 'thin')
    load = Load(host, lab.folder / 'state', '--slots', '128')
    load.wait_durable(300)
    migrate = Migrate(target)
    said = migrate.refused(1, '--max-pause-ms', 1, '--max-passes', 2)
    assert '--resume' in said and ids(target, 'pool0')[0] == 1, said
    load.wait_durable(50)
    moved = migrate('--resume')
    load.wait_durable(100)
    load.finish()
    device, = moved['devices']
    print(f"moved {moved['moved_bytes'] >> 20} MiB in {device['passes']} passes, waited for {device['pause_ms']} ms")
    assert (device['bdev_name'], device['pause_ms'] > 0, device['passes'] >= 2) == ('thin', True, True), device
    assert (ids(target, 'pool0'), ids(target, 'pool1'), used(target, 'pool0')) == ([], [1], 0)
    saved, = [call['params'] for call in target.rpc.call('framework_get_config', name='bdev')
              if call['method'] == 'thin_activate']
    assert (saved['pool'], saved['id'], saved['bdev_name']) == ('pool1', 1, 'thin')
    nothing_left(lab, target)
    host.run('verify', str(lab.folder / 'state'))
    target.stop()
    check_pools(lab)


def ext4_image(lab):
    """An ext4 file system with files in it."""
    folder, image = lab.folder / 'files', lab.file('ext4', SIZE_MIB)
    folder.mkdir()
    for i in range(40):
        (folder / f'file{i}').write_bytes(random.Random(i).randbytes(256 << 10))
    subprocess.run(['mkfs.ext4', '-q', '-F', '-d', folder, image], check=True, timeout=60)
    return image


def test_family(lab, target):
    """A device with an ext4 image, its snapshots and a clone in use go together, found by what they share; each is
    the same byte for byte, and blocks shared before are shared afterwards: both pools count as many. One that
    shares nothing stays."""
    rpc, migrate = target.rpc, Migrate(target)
    image = ext4_image(lab)
    with open(image, 'rb') as file:
        content = file.read()
    write(lab, target, f'write -s {image} 0 {len(content)}')
    rpc.call('thin_snapshot', pool='pool0', id=2, origin_id=1)
    write(lab, target, *(f'write -P {i} {i * 2}M 300k' for i in range(1, 9)), 'discard 24M 2M')
    rpc.call('thin_snapshot', pool='pool0', id=5, origin_id=2)
    rpc.call('thin_activate', pool='pool0', id=5, bdev_name='clone', size_mib=SIZE_MIB)
    write(lab, target, 'write -P 77 20M 1M', bdev='clone')
    rpc.call('thin_snapshot', pool='pool0', id=3, origin_id=1)
    before = {'thin': contents(lab, target, 'thin'), 'clone': contents(lab, target, 'clone'),
              **{i: contents_of(lab, target, 'pool0', i) for i in (2, 3)}}
    assert before[2] == content
    family_blocks = used(target, 'pool0')
    rpc.call('thin_create', pool='pool0', id=8, bdev_name='alone', size_mib=8)
    write(lab, target, 'write -P 8 0 8M', bdev='alone')
    said = migrate.run(1, '--family', '--dry-run', '--json')
    plan = json.loads(said.stdout)
    assert (sorted(entry['id'] for entry in plan['devices']), plan['fits']) == ([1, 2, 3, 5], True), plan
    assert plan['bytes'] == family_blocks * 65536
    assert (ids(target, 'pool1'), journal(lab)) == ([], None)
    moved = migrate(1, '--family')
    assert sorted((entry['id'], entry['bdev_name']) for entry in moved['devices']) == [
        (1, 'thin'), (2, None), (3, None), (5, 'clone')]
    assert moved['moved_bytes'] == family_blocks * 65536
    assert (ids(target, 'pool0'), ids(target, 'pool1')) == ([8], [1, 2, 3, 5])
    assert (used(target, 'pool0'), used(target, 'pool1')) == (128, family_blocks)
    after = {'thin': contents(lab, target, 'thin'), 'clone': contents(lab, target, 'clone'),
             **{i: contents_of(lab, target, 'pool1', i) for i in (2, 3)}}
    assert after == before
    nothing_left(lab, target)
    # Back, one of them with another id, and the old ones stay.
    command = [program('spdk-dm'), 'migrate', 'pool1', '1', '5', '--to', 'pool0', '--to-ids', '1,9', '--keep-source',
               '--socket', target.process.socket]
    subprocess.run(command, check=True, timeout=HANG_SECONDS, capture_output=True)
    assert (ids(target, 'pool0'), ids(target, 'pool1')) == ([1, 8, 9], [1, 2, 3, 5])
    assert {name: contents(lab, target, name) for name in ('thin', 'clone')} == {
        name: before[name] for name in ('thin', 'clone')}
    nothing_left(lab, target)
    target.stop()
    check_pools(lab)


def test_cut_off(lab, target):
    """A migration that is killed, interrupted or cancelled leaves the old device in use and whole, and goes on where
    it was; an abort leaves nothing of it."""
    rpc, migrate = target.rpc, Migrate(target)
    write(lab, target, *(f'write -P {i + 1} {i}M 1M' for i in range(SIZE_MIB)))
    before = contents(lab, target, 'thin')
    slowly = ('--limit-mib', 8)
    written = lambda: rpc.call('bdev_get_iostat', name='data1')['bdevs'][0]['bytes_written']  # noqa: E731
    # Killed.
    running = migrate.start(1, *slowly)
    wait_for(lambda: noted(lab) > 0)
    running.kill()
    running.wait()
    assert 'was begun' in migrate.refused(1)
    at_kill, done = written(), noted(lab) * 65536
    assert 0 < done <= at_kill
    # Interrupted.
    running = migrate.start('--resume', *slowly)
    wait_for(lambda: noted(lab) * 65536 > done)
    running.send_signal(signal.SIGINT)
    assert '--resume' in running.communicate(timeout=HANG_SECONDS)[1] and running.returncode == 1
    assert rpc.call('nbd_export_list') == []
    # Cancelled.
    running = migrate.start('--resume', *slowly)
    wait_for(lambda: rpc.call('nbd_export_list') != [])
    assert 'another spdk-dm' in migrate.refused('--resume')
    assert migrate.run('--cancel').returncode == 0
    assert 'stopped' in running.communicate(timeout=HANG_SECONDS)[1] and running.returncode == 1
    assert 'no spdk-dm' in migrate.refused('--cancel')
    # What was written more than once is little, also with what is written while the device is moved.
    write(lab, target, 'write -P 99 5M 3M', 'discard 30M 1M')
    before = before[:5 * MIB] + bytes([99]) * 3 * MIB + before[8 * MIB:30 * MIB] + bytes(MIB) + before[31 * MIB:]
    assert contents(lab, target, 'thin') == before
    migrate('--resume')
    assert contents(lab, target, 'thin') == before
    assert (ids(target, 'pool0'), ids(target, 'pool1')) == ([], [1])
    assert written() < at_kill - done + (SIZE_MIB + 3 + 16) * MIB, (written(), at_kill, done)
    nothing_left(lab, target)
    # Taken back, on the way to the first pool.
    command = migrate.command(1)
    command[2], command[5] = 'pool1', 'pool0'
    running = subprocess.Popen([*command, *map(str, slowly)], stderr=subprocess.DEVNULL)
    wait_for(lambda: noted(lab) > 0)
    running.kill()
    running.wait()
    subprocess.run([arg for arg in command if arg != '1'] + ['--abort'], check=True, timeout=HANG_SECONDS)
    assert (ids(target, 'pool0'), ids(target, 'pool1'), used(target, 'pool0')) == ([], [1], 0)
    assert contents(lab, target, 'thin') == before
    nothing_left(lab, target)


def test_killed_again_and_again(lab, target):
    """Under load, there and back: migrations that are killed at any moment, also while the bdev waits, are gone on
    with until they end. The host sees no error and finds what it had made durable."""
    rng = random.Random()
    host = host_of(lab, target, 'thin')
    load = Load(host, lab.folder / 'state', '--slots', '64')
    load.wait_durable(100)
    killed = 0
    for pool, other in (('pool0', 'pool1'), ('pool1', 'pool0')):
        begin = [program('spdk-dm'), 'migrate', pool, '--to', other, '--socket', target.process.socket,
                 '--max-pause-ms', '20000', '--max-passes', '3']
        words = ['1']
        for _ in range(5):
            running = subprocess.Popen([*begin, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                _, said = running.communicate(timeout=rng.uniform(0.05, 2))
                assert running.returncode == 0, said
                break
            except subprocess.TimeoutExpired:
                running.kill()
                running.communicate()
                killed += 1
            if (journal(lab) or {'devices': []})['devices']:
                words = ['--resume']
        else:
            said = subprocess.run([*begin, *words], capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
            assert said.returncode == 0, said
        assert 1 in ids(target, other) and 1 not in ids(target, pool)
        load.wait_durable(50)
    load.finish()
    print(f'{killed} killed')
    nothing_left(lab, target)
    host.run('verify', str(lab.folder / 'state'))


def test_target_killed(lab, target):
    """A target that is killed meanwhile has two sound pools and the old device whole; the migration goes on with the
    next target."""
    write(lab, target, *(f'write -P {i + 1} {i}M 1M' for i in range(SIZE_MIB)))
    before = contents(lab, target, 'thin')
    running = Migrate(target).start(1, '--limit-mib', 8)
    wait_for(lambda: noted(lab) > 0)
    target.process.kill()
    assert running.wait(timeout=HANG_SECONDS) == 1
    check_pools(lab)
    target = lab.target(memory_mb=512)
    pools(lab, target, new=False)
    target.rpc.call('thin_activate', pool='pool0', id=1, bdev_name='thin', size_mib=SIZE_MIB)
    assert contents(lab, target, 'thin') == before
    done = noted(lab)
    moved = Migrate(target)('--resume')
    assert moved['moved_bytes'] <= (SIZE_MIB * 16 - done) * 65536, (moved, done)
    assert contents(lab, target, 'thin') == before
    assert (ids(target, 'pool0'), ids(target, 'pool1')) == ([], [1])
    nothing_left(lab, target)
    target.stop()
    check_pools(lab)


def test_refusals(lab, target):
    """What cannot be done is said, with the remedy, and nothing is left behind."""
    rpc, migrate = target.rpc, Migrate(target)
    write(lab, target, f'write -P 1 0 {SIZE_MIB}M')
    assert 'no thin device 4' in migrate.refused(4)
    assert 'named twice' in migrate.refused(1, 1)
    assert 'no migration' in migrate.refused('--resume')
    rpc.call('thin_create', pool='pool1', id=1, bdev_name='full', size_mib=240)
    assert '--to-ids' in migrate.refused(1)
    write(lab, target, 'write -P 2 0 240M', bdev='full')
    plan = migrate.run(1, '--to-ids', 2, '--dry-run')
    assert (plan.returncode, 'does not fit' in plan.stdout) == (1, True), plan
    assert 'grow its data bdev' in migrate.refused(1, '--to-ids', 2)
    rpc.call('thin_reserve_metadata_snap', pool='pool0')
    assert 'thin_release_metadata_snap' in migrate.refused(1, '--to-ids', 2)
    rpc.call('thin_release_metadata_snap', pool='pool0')
    assert (ids(target, 'pool0'), ids(target, 'pool1')) == ([1], [1])
    nothing_left(lab, target)


def test_two_targets(lab, target):
    """From one process to another: the bdev is removed here when it is there."""
    other = lab.target(name='other', core_mask='0x1', memory_mb=256)
    aio(other, 'meta', lab.file('meta', 16))
    aio(other, 'data', lab.file('data', 128))
    other.rpc.call('thin_pool_create', name='pool1', metadata_bdev='meta', data_bdev='data')
    write(lab, target, *(f'write -P {i + 1} {i}M 1M' for i in range(0, SIZE_MIB, 3)))
    before = contents(lab, target, 'thin')
    aio(target, 'origin', random_file(lab.folder / 'origin', 8))
    target.rpc.call('thin_create', pool='pool0', id=2, bdev_name='clone', size_mib=8, origin_bdev='origin')
    assert "origin 'origin'" in Migrate(target).refused(2, '--to-socket', other.process.socket)
    target.rpc.call('thin_deactivate', bdev_name='clone')
    target.rpc.call('thin_delete', pool='pool0', id=2)
    moved = Migrate(target)(1, '--to-socket', other.process.socket)
    assert moved['moved_bytes'] == 11 * MIB
    assert [bdev['name'] for bdev in target.rpc.call('bdev_get_bdevs') if bdev['name'] == 'thin'] == []
    assert contents(lab, other, 'thin') == before
    assert (ids(target, 'pool0'), ids(other, 'pool1')) == ([], [1])
    nothing_left(lab, target)


def test_commands_of_the_documentation(lab, target):
    """Every command of docs/migration.md does what stands there; only the length of pauses differs."""
    rpc = target.rpc
    rpc.call('thin_deactivate', bdev_name='thin')
    rpc.call('thin_activate', pool='pool0', id=1, bdev_name='disk', size_mib=SIZE_MIB)
    write(lab, target, f'write -P 1 0 {SIZE_MIB}M', bdev='disk')
    rpc.call('thin_snapshot', pool='pool0', id=2, origin_id=1)
    write(lab, target, 'write -P 2 4M 2M', bdev='disk')
    blocks = re.findall(r'```console\n(.*?)```', (ROOT / 'docs' / 'migration.md').read_text(), re.S)
    assert len(blocks) == 3
    prelude = 'spdk-dm() { local verb=$1; shift; "$SPDK_DM" "$verb" --socket "$SOCKET" "$@"; }; '
    env = dict(os.environ, SPDK_DM=program('spdk-dm'), SOCKET=target.process.socket)
    told = re.compile(r'for [0-9]+ ms')
    shown = []
    for block in blocks:
        shown.append('')
        for line in block.splitlines():
            if line.startswith('$ '):
                done = subprocess.run(['bash', '-c', prelude + line[2:]], env=env, cwd=lab.folder,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      text=True, timeout=HANG_SECONDS, check=False)
                shown[-1] += f'{line}\n{done.stdout}'
    assert [told.sub('', block) for block in shown] == [told.sub('', block) for block in blocks]
    nothing_left(lab, target)


def test_external_origin(lab, target):
    """A device with an external origin, whose holes show it, moves without what only the origin has."""
    origin = lab.folder / 'origin'
    origin.write_bytes(random.Random(1).randbytes(SIZE_MIB * MIB - 4096))
    aio(target, 'origin', origin)
    target.rpc.call('thin_create', pool='pool0', id=2, bdev_name='clone', size_mib=SIZE_MIB, origin_bdev='origin')
    write(lab, target, 'write -P 5 100k 1k', 'write -P 6 8M 1M', f'write -P 7 {SIZE_MIB - 1}M 1M', bdev='clone')
    before = contents(lab, target, 'clone')
    moved = Migrate(target)(2)
    assert moved['moved_bytes'] == 33 * 65536
    assert contents(lab, target, 'clone') == before
    saved = {call['params']['bdev_name']: call['params'] for call in target.rpc.call('framework_get_config', name='bdev')
             if call['method'] == 'thin_activate'}
    assert (saved['clone']['pool'], saved['clone']['origin_bdev']) == ('pool1', 'origin')
