# SPDX-License-Identifier: BSD-3-Clause
"""`spdk-dm backup` of era and ploop targets: of one moment, under load, exactly what has changed, and what is left
when it is stopped, killed, or too slow."""

import json
import random
import signal
import threading

import pytest

from conftest import Lab
from harness.backup import Backup, read_stream
from harness.era import ONLY_WRITES
from harness.guest import contents, write
from harness.load import Load
from harness.pool import aio, host_of, random_file, refused, wait_for
from harness.process import end_all
from harness.snapshot import beside
from harness.target import nqn

MIB = 1 << 20
SIZE_MIB = 16
ESTALE = 116
# Of the ploop target, in bytes; of the era targets.
CLUSTER, BLOCK = 256 << 10, 16 << 10


@pytest.fixture(name='target', scope='module')
def one_target(tmp_path_factory):
    """One for all tests; each has bdevs of its own."""
    lab = Lab(tmp_path_factory.mktemp('sources'))
    try:
        target = lab.target(memory_mb=512)
        # While there is memory in one piece.
        target.rpc.call('nvmf_create_transport', trtype='TCP')
        target.lab, target.backup = lab, Backup(target)
        yield target
        assert target.rpc.call('nbd_export_list') == []
        target.stop()
    finally:
        end_all()


def bdev(target, name, megabytes):
    aio(target, name, target.lab.file(name, megabytes))
    return name


def guest(target, name, *commands):
    write(target.lab.folder, target.rpc, name, *commands)


def seen(target, name):
    return contents(target.lab.folder, target.rpc, name)


def load_on(target, name):
    """Starts a stress of a bdev by a host; after it has ended, once more."""
    folder = beside(target.lab, f'host-{name}')
    host = host_of(folder, target, name)
    return lambda: Load(host, folder.folder / 'state', *ONLY_WRITES, '--slots', '64', '--workers', '8')


def end_load(target, name, load):
    """Its host lets go of the bdev."""
    load.finish()
    target.rpc.call('nvmf_delete_subsystem', nqn=nqn(name))


def restored(target, *files):
    raw = target.lab.folder / 'restored'
    target.backup('restore', *files, '--file', raw)
    found = raw.read_bytes()
    raw.unlink()
    return found


def scattered(rng, unit, count):
    """Units of a disk that do not touch, and commands that write a part of each."""
    units = sorted(rng.sample(range(0, SIZE_MIB * MIB // unit, 2), count))
    return set(units), [f'write -P {rng.randrange(1, 256)} {unit * at + 4096} 4096' for at in units]


def ended(process, code):
    """What it has said."""
    said = process.stderr.read()
    assert process.wait() == code, said
    return said


def wait_reading(target, running):
    """Until a backup has begun to read. Returns the bdev."""
    def has_begun():
        assert running.poll() is None, running.stderr.read()
        return any(export['bytes_read'] > 0 for export in target.rpc.call('nbd_export_list'))
    wait_for(has_begun)
    found, = [export['bdev_name'] for export in target.rpc.call('nbd_export_list')]
    return found


@pytest.fixture(name='ploop')
def ploop_of_test(target, request):
    name = f'p{request.node.name}'
    bdev(target, f'{name}-image', 2 * SIZE_MIB)
    target.rpc.call('ploop_create', name=name, top_bdev=f'{name}-image', size_mib=SIZE_MIB,
                    cluster_size_sectors=CLUSTER // 512, bat_cache_mib=1)
    yield name
    assert target.rpc.call('ploop_status', name=name)['push_backup'] is None
    target.rpc.call('ploop_delete', name=name)


def fill(target, name):
    """Something in every other MiB, and holes."""
    rng = random.Random(3)
    guest(target, name, *(f'write -P {rng.randrange(1, 256)} {at}M 768k' for at in range(0, SIZE_MIB, 2)))


def test_ploop_under_load(target, ploop):
    """While a guest overwrites all of the disk, a backup is what the disk was when it began, and so is the next one,
    which has what was written since: no less, and when nobody writes, no more. What is discarded is a hole."""
    backup, folder, rpc = target.backup, target.lab.folder, target.rpc
    full, incr, third, fourth = (folder / f'{ploop}.{i}' for i in range(4))
    start_load = load_on(target, ploop)
    load = start_load()
    load.wait_durable(60)
    load.finish()
    before = seen(target, ploop)
    running = backup.start('full', ploop, '-o', full, '--limit-mib', 1)
    wait_reading(target, running)
    load = start_load()
    # What it waits for is read at once, in spite of the limit.
    load.wait_durable(1)
    backup_of = rpc.call('ploop_status', name=ploop)['push_backup']
    assert backup_of['state'] == 'active' and running.poll() is None
    ended(running, 0)
    load.wait_durable(60)
    load.finish()
    after = seen(target, ploop)
    assert before != after
    assert restored(target, full) == before
    assert read_stream(full).header['source'] == 'ploop'
    # The load goes on again and again, while the next one is made: it is of one moment of a disk that never rests.
    load = start_load()
    load.wait_durable(50)
    backup('incr', ploop, '--since', full, '-o', incr, '--keep')
    load.wait_durable(20)
    end_load(target, ploop, load)
    # In quiet: from this one's moment to the next one's.
    backup('incr', ploop, '--since', incr, '-o', third, '--keep')
    assert restored(target, full, incr, third) == seen(target, ploop)
    clusters, commands = scattered(random.Random(4), CLUSTER, 20)
    guest(target, ploop, *commands)
    backup('incr', ploop, '--since', folder, '-o', fourth)
    stream = read_stream(fourth)
    assert (stream.data, stream.holes) == (clusters, set())
    assert restored(target, full, incr, third, fourth) == seen(target, ploop)
    # Another one since one before, which was kept: with all that is in those after it.
    again = folder / f'{ploop}.again'
    backup('incr', ploop, '--since', incr, '-o', again)
    assert read_stream(again).data >= clusters
    assert restored(target, full, incr, again) == seen(target, ploop)
    guest(target, ploop, 'discard 2M 1M')
    last = folder / f'{ploop}.last'
    backup('incr', ploop, '-o', last)
    stream = read_stream(last)
    assert (stream.data, stream.holes) == (set(), set(range(2 * MIB // CLUSTER, 3 * MIB // CLUSTER)))
    assert stream.header['parent'] == read_stream(again).header['uuid']
    chain = [full, incr, again, last]
    assert restored(target, *chain) == seen(target, ploop)
    other = bdev(target, f'{ploop}-other', SIZE_MIB)
    guest(target, other, 'write -P 7 0 16M')
    backup('restore', *chain, '--bdev', other)
    assert seen(target, other) == seen(target, ploop)
    backup('verify', *chain)
    listed = json.loads(backup('list', '--json', *chain))
    assert [entry['header']['target'] for entry in listed] == [ploop] * 4
    assert f'ploop {ploop}' in backup('list', folder)


def test_ploop_too_slow(target, ploop):
    """A backup that lets a guest wait for too long gives way: the guest goes on, the backup says so and leaves no file,
    and the next one has what was written before it, while it was made, and since."""
    backup, folder = target.backup, target.lab.folder
    full, failed, incr = (folder / f'{ploop}.{i}' for i in range(3))
    fill(target, ploop)
    backup('full', ploop, '-o', full)
    earlier, commands = scattered(random.Random(5), CLUSTER, 12)
    guest(target, ploop, *commands)
    running = backup.start('incr', ploop, '--since', full, '-o', failed, '--limit-mib', 1, '--hold-s', 1)
    wait_reading(target, running)
    running.send_signal(signal.SIGSTOP)
    # In one that is to be read last, and in one that is not in this backup.
    other = max(set(range(0, SIZE_MIB * MIB // CLUSTER, 2)) - earlier)
    waits = threading.Thread(target=guest, args=(target, ploop, f'write -P 99 {max(earlier) * CLUSTER} 4096'))
    waits.start()
    wait_for(lambda: target.rpc.call('ploop_status', name=ploop)['push_backup']['state'] == 'expired')
    waits.join()
    guest(target, ploop, f'write -P 98 {other * CLUSTER} 4096')
    running.send_signal(signal.SIGCONT)
    said = ended(running, 1)
    assert 'has waited for 1 s' in said and 'guest goes on' in said, said
    assert not failed.exists()
    backup('incr', ploop, '--since', full, '-o', incr)
    assert read_stream(incr).data == earlier | {other}
    assert restored(target, full, incr) == seen(target, ploop)


def test_ploop_ended(target, ploop):
    """Ctrl-C ends all that was begun. What a killed backup leaves the next one finds, says so, and ends it; its
    changes are in that one. Another one beside a backup that is under way is refused, and so is what cannot be."""
    backup, folder, rpc = target.backup, target.lab.folder, target.rpc
    full, stopped, killed, incr = (folder / f'{ploop}.{i}' for i in range(4))
    fill(target, ploop)
    backup('full', ploop, '-o', full)
    clusters, commands = scattered(random.Random(6), CLUSTER, 24)
    guest(target, ploop, *commands)
    slowly = ('incr', ploop, '--since', full, '--limit-mib', 1, '-o')
    running = backup.start(*slowly, stopped)
    wait_reading(target, running)
    assert 'under way' in backup.refused('incr', ploop, '--since', full, '-o', incr)
    assert 'under way' in backup.refused('full', ploop, '-o', incr)
    running.send_signal(signal.SIGINT)
    assert 'stopped by a signal' in ended(running, 1)
    assert not stopped.exists() and rpc.call('nbd_export_list') == []
    assert rpc.call('ploop_status', name=ploop)['push_backup'] is None
    running = backup.start(*slowly, killed)
    wait_reading(target, running)
    running.kill()
    running.wait()
    assert 'cannot be gone on with' in backup.refused('incr', ploop, '--since', full, '-o', killed, '--resume')
    assert 'not complete' in backup.refused('incr', ploop, '--since', killed, '-o', incr)
    backup('incr', ploop, '--since', full, '-o', incr, said='was left by a backup that was cut off')
    assert read_stream(incr).data == clusters
    assert restored(target, full, incr) == seen(target, ploop)
    # Somebody else's.
    rpc.call('ploop_push_backup_start', name=ploop, uuid='theirs')
    assert 'push backup theirs' in backup.refused('incr', ploop, '--since', incr, '-o', folder / 'x')
    rpc.call('ploop_push_backup_stop', name=ploop, uuid='theirs')
    refused(rpc, ESTALE, ['full backup'], 'ploop_push_backup_start', name=ploop, uuid='x', since='nobody')
    (folder / 'empty').mkdir()
    assert 'no complete backup' in backup.refused('incr', ploop, '--since', folder / 'empty', '-o', folder / 'x')
    # What was written is known for as long as the target is open.
    uuid = read_stream(incr).header['uuid']
    assert [record['uuid'] for record in rpc.call('ploop_status', name=ploop)['recorded_since']] == [uuid]
    rpc.call('ploop_push_backup_forget', name=ploop, uuid=uuid)
    assert 'make a full backup' in backup.refused('incr', ploop, '--since', incr, '-o', folder / 'x')
    assert not (folder / 'x').exists()


def era_over(target, name, data, **params):
    """An era target of this name over a bdev."""
    bdev(target, f'{name}-eras', 4)
    target.rpc.call('era_create', name=name, metadata_bdev=f'{name}-eras', origin_bdev=data,
                    block_size_sectors=BLOCK // 512, metadata_cache_mib=4, **params)


def seen_while_stopped(target, running):
    """What a backup of an era target reads; it has read a part of it, and is stopped."""
    found = wait_reading(target, running)
    running.send_signal(signal.SIGSTOP)
    assert found.startswith('backup-') and running.poll() is None
    return seen(target, found)[:SIZE_MIB * MIB]


def chain_of_era(target, name, *freeze):
    """Backups of an era target that is being written to, each compared with what was frozen; then one of what was
    written in quiet. Returns the files."""
    backup, folder = target.backup, target.lab.folder
    files = [folder / f'{name}.{i}' for i in range(4)]
    load = load_on(target, name)()
    load.wait_durable(40)
    for i in range(2):
        words = ('incr', name, '--since', files[0]) if i else ('full', name)
        running = backup.start(*words, *freeze, '-o', files[i], '--limit-mib', 16)
        moment = seen_while_stopped(target, running)
        load.wait_durable(20)
        running.send_signal(signal.SIGCONT)
        assert ended(running, 0) == ''
        assert seen(target, name) != moment
        assert restored(target, *files[:i + 1]) == moment
    end_load(target, name, load)
    backup('incr', name, *freeze, '--since', files[1], '-o', files[2])
    assert restored(target, *files[:3]) == seen(target, name)
    blocks, commands = scattered(random.Random(7), BLOCK, 60)
    guest(target, name, *commands)
    # Without a base: the last one in the folder.
    backup('incr', name, *freeze, '-o', files[3])
    stream = read_stream(files[3])
    assert (stream.data, stream.holes, stream.header['source']) == (blocks, set(), 'era')
    assert stream.header['parent'] == read_stream(files[2]).header['uuid']
    assert restored(target, *files) == seen(target, name)
    assert target.rpc.call('era_status', name=name)['metadata_snap'] is None
    backup('verify', *files)
    assert f'era {name}' in backup('list', folder)
    return files


def test_era_on_thin(target):
    """Backups of an era target over a thin device: of thin snapshots, which are gone in the end. One that was killed
    is gone on with."""
    backup, rpc, folder = target.backup, target.rpc, target.lab.folder
    bdev(target, 'et-meta', 16)
    bdev(target, 'et-data', 128)
    rpc.call('thin_pool_create', name='etpool', metadata_bdev='et-meta', data_bdev='et-data')
    rpc.call('thin_create', pool='etpool', id=1, bdev_name='et-thin', size_mib=SIZE_MIB)
    era_over(target, 'et', 'et-thin')
    files = chain_of_era(target, 'et')
    assert len(rpc.call('thin_list', pool='etpool')) == 1
    # Holes in the thin device are holes in the backup.
    guest(target, 'et', 'discard 4M 1M')
    gone = folder / 'et.gone'
    backup('incr', 'et', '--since', files[-1], '-o', gone)
    assert (read_stream(gone).data, read_stream(gone).holes) == (set(), set(range(4 * MIB // BLOCK, 5 * MIB // BLOCK)))
    guest(target, 'et', 'write -P 3 1M 6M')
    cut = folder / 'et.cut'
    running = backup.start('incr', 'et', '--since', gone, '-o', cut, '--limit-mib', 1)
    wait_reading(target, running)
    running.kill()
    running.wait()
    moment = seen(target, 'et')
    guest(target, 'et', 'write -P 4 0 8M')
    done = backup.run('full', 'et', '-o', folder / 'et.beside')
    assert done.returncode == 0 and 'was left by a backup that was cut off' in done.stderr, done
    backup('incr', 'et', '--since', gone, '-o', cut, '--resume')
    assert restored(target, *files, gone, cut) == moment
    assert len(rpc.call('thin_list', pool='etpool')) == 1
    assert '--cow away' in backup.refused('full', 'et', '-o', folder / 'x', '--cow', 'et-cow')
    rpc.call('era_take_metadata_snap', name='et')
    assert 'era_drop_metadata_snap' in backup.refused('full', 'et', '-o', folder / 'x')
    rpc.call('era_drop_metadata_snap', name='et')
    assert len(rpc.call('thin_list', pool='etpool')) == 1 and not (folder / 'x').exists()


def test_era_on_origin(target):
    """Backups of an era target over a snapshot-origin: of a snapshot that lasts as long as they do, whatever the COW
    bdev held before. A COW bdev that fills ends the backup, and nothing else."""
    backup, rpc, folder = target.backup, target.rpc, target.lab.folder
    bdev(target, 'eo-disk', SIZE_MIB)
    aio(target, 'eo-cow', random_file(folder / 'eo-cow', SIZE_MIB + 8))
    bdev(target, 'eo-small', 1)
    rpc.call('snapshot_origin_create', name='eo-origin', origin_bdev='eo-disk')
    era_over(target, 'eo', 'eo-origin')
    files = chain_of_era(target, 'eo', '--cow', 'eo-cow')
    snapshots = lambda: rpc.call('snapshot_status', name='eo-origin')['snapshots']  # noqa: E731
    assert snapshots() == []
    assert 'give --cow BDEV' in backup.refused('full', 'eo', '-o', folder / 'x')
    backup.refused('full', 'eo', '-o', folder / 'x', '--cow', 'nothing')
    assert not (folder / 'x').exists()
    running = backup.start('full', 'eo', '-o', folder / 'x', '--cow', 'eo-small', '--limit-mib', 8)
    wait_reading(target, running)
    guest(target, 'eo', 'write -P 9 0 16M')
    assert 'larger --cow' in ended(running, 1)
    assert snapshots() == [] and not (folder / 'x').exists()
    # Killed: the next one takes away what is left.
    cut = folder / 'eo.cut'
    running = backup.start('full', 'eo', '-o', cut, '--cow', 'eo-cow', '--limit-mib', 4)
    wait_reading(target, running)
    running.kill()
    running.wait()
    assert 'cannot be gone on with' in backup.refused('full', 'eo', '-o', cut, '--cow', 'eo-cow', '--resume')
    incr = folder / 'eo.incr'
    backup('incr', 'eo', '--since', files[-1], '--cow', 'eo-cow', '-o', incr, said='it is deleted now')
    assert snapshots() == []
    assert restored(target, *files, incr) == seen(target, 'eo')


def test_era_refusals(target):
    """Where nothing can be frozen, and where the eras are not those of the backup before, it is said what to do."""
    backup, rpc, folder = target.backup, target.rpc, target.lab.folder
    bdev(target, 'er-disk', SIZE_MIB)
    era_over(target, 'er', 'er-disk')
    out = folder / 'er.x'
    assert 'snapshot_origin_create' in backup.refused('full', 'er', '-o', out, '--cow', 'er-cow')
    rpc.call('era_delete', name='er')
    rpc.call('snapshot_origin_create', name='er-origin', origin_bdev='er-disk')
    rpc.call('era_create', name='er', metadata_bdev='er-eras', origin_bdev='er-origin', block_size_sectors=BLOCK // 512)
    bdev(target, 'er-cow', SIZE_MIB + 8)
    guest(target, 'er', 'write -P 1 0 1M')
    full = folder / 'er.full'
    backup('full', 'er', '-o', full, '--cow', 'er-cow')
    # Made anew, with fewer eras; and then with more, which only the blocks give away.
    rpc.call('era_delete', name='er')
    guest(target, 'er-eras', 'write -P 0 0 1M')
    rpc.call('era_create', name='er', metadata_bdev='er-eras', origin_bdev='er-origin', block_size_sectors=BLOCK // 512)
    for more in range(2):
        assert 'make a full backup' in backup.refused('incr', 'er', '--since', full, '-o', out, '--cow', 'er-cow'), more
        for _ in range(8):
            rpc.call('era_checkpoint', name='er')
    assert not out.exists() and rpc.call('snapshot_status', name='er-origin')['snapshots'] == []
    assert 'give the id' not in backup.refused('full', 'nothing', '-o', out)
