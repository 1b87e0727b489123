# SPDX-License-Identifier: BSD-3-Clause
"""`spdk-dm replicate`: two targets, byte for byte."""

import random
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from conftest import Lab
from harness.guest import random_writes
from harness.pool import host_of, wait_for
from harness.process import program
from harness.proxy import Proxy
from harness.replication import BLOCK, HANG_SECONDS, SIZE_MIB, pair_of_targets
from harness.target import ADDRESS, free_port

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(name='pair', scope='module')
def shared_pair(tmp_path_factory):
    with pair_of_targets(Lab(tmp_path_factory.mktemp('pair'))) as pair:
        yield pair


def test_chain(pair):
    """Each replica is a snapshot of the source, byte for byte; old ones go at both ends."""
    rng = random.Random(1)
    source, replica = pair.source, pair.replica
    bdev = source.device(1)
    before = source.ids(), replica.ids()
    chain = None
    for _ in range(3):
        source.write(bdev, *random_writes(rng, SIZE_MIB, 20))
        pair.once(1)
        state = source.contents(bdev)
        source.write(bdev, *random_writes(rng, SIZE_MIB, 5))
        chain = pair.check(1)
        assert replica.newest(chain)[1] == state
    assert replica.status(chain)['newest']['number'] == 3
    # The state and one snapshot; the state, the work device and two replicas.
    assert len(source.ids() - before[0]) == 2 and len(replica.ids() - before[1]) == 4
    # Nothing is left open.
    for side in (source, replica):
        assert side.rpc('nbd_export_list') == []


def test_only_changes_are_moved(pair):
    """What goes over the network is what has changed, within 5 %."""
    source = pair.source
    bdev = source.device(2)
    source.write(bdev, f'write -P 1 0 {SIZE_MIB}M')
    pair.once(2)
    source.write_blocks(bdev, *random.Random(2).sample(range(SIZE_MIB * 16), 100))
    before = pair.proxy.to_receiver
    pair.once(2)
    moved = pair.proxy.to_receiver - before
    assert 100 * BLOCK <= moved <= 100 * BLOCK * 1.05, moved
    print(f'{moved} bytes for {100 * BLOCK} changed: {moved / 100 / BLOCK:.4f}')
    pair.check(2)


def test_failover_and_reverse(pair):
    """The replica becomes the source with what it has, and takes no more changes; the old source follows it, and gets
    only what has changed since the last snapshot that both have. Then back."""
    source, replica = pair.source, pair.replica
    bdev = source.device(5)
    source.fill(bdev)
    pair.once(5)
    chain = pair.check(5)
    state = source.contents(bdev)
    source.write_blocks(bdev, 7, 8, 9)
    made = replica('promote', 'copies', '--chain', chain, '--id', 5, '--bdev-name', 'failed-over')
    assert made == f"thin device 5 of pool 'copies' with {SIZE_MIB * 2048} sectors is snapshot 1\n"
    assert replica.contents('failed-over') == state
    assert 'was promoted' in source.refused('run', 'pool', 5, '--to', pair.to)
    assert 'no such replica' in replica.refused('promote', 'copies', '--chain', chain)
    replica.write_blocks('failed-over', *range(100, 120))
    state = replica.contents('failed-over')
    # The old source has been written to.
    assert 'in use as bdev' in source.refused('demote', 'pool', '--chain', chain)
    source.rpc('thin_deactivate', bdev_name=bdev)
    assert '--discard-diverged' in source.refused('demote', 'pool', '--chain', chain)
    assert 5 in source.ids() and source.status(chain)['role'] == 'source'
    source('demote', 'pool', '--chain', chain, '--discard-diverged')
    assert 5 not in source.ids()

    port = free_port()
    back = Proxy(port)
    receiver = source.spawn('receive', 'pool', '--listen', f'{ADDRESS}:{port}')
    to = f'{ADDRESS}:{back.port}'
    wait_for(lambda: socket.socket().connect_ex((ADDRESS, port)) == 0)
    replica('run', 'copies', 5, '--to', to, '--once', '--quiet')
    assert source.newest(chain) == replica.newest(chain)
    assert source.newest(chain)[1] == state
    # Blocks of the pool that is the source now are larger.
    assert 20 * BLOCK <= back.to_receiver <= 22 * BLOCK * 1.05, back.to_receiver
    receiver.kill()
    receiver.wait()
    back.close()

    # And back: nothing is thrown away this time.
    replica.rpc('thin_deactivate', bdev_name='failed-over')
    source('promote', 'pool', '--chain', chain, '--id', 5, '--bdev-name', bdev)
    replica('demote', 'copies', '--chain', chain)
    source.write_blocks(bdev, 200)
    pair.once(5)
    pair.check(5)
    assert pair.replica.newest(chain)[1] == source.contents(bdev)


def test_beside_a_load(pair):
    """Replicas of a device that is being written to are each of one moment; what the load has of the target beside
    it is printed, and what is moved is what has changed."""
    source = pair.source
    bdev = source.device(6, 32)
    host = host_of(pair.lab, source.target, bdev)
    load = host.start('stress', str(pair.lab.folder / 'state'), '--slots', '128')

    def writes():
        return source.rpc('bdev_get_iostat', name=bdev)['bdevs'][0]['num_write_ops']

    def rate(work):
        began, before = time.monotonic(), writes()
        work()
        return (writes() - before) / (time.monotonic() - began)

    wait_for(lambda: writes() > 1000)
    alone = rate(lambda: time.sleep(1))
    for _ in range(2):
        beside = rate(lambda: pair.once(6))
        print(f'{beside:.0f} writes/s beside it, {alone:.0f} without: {beside / alone:.2f}')
        pair.check(6)
    assert load.poll() is None
    load.kill()
    load.wait()


def test_metrics_and_status(pair):
    """The lag and what else is said of replications, as OpenMetrics and as lines."""
    source = pair.source
    bdev = source.device(7)
    source.fill(bdev, 1)
    pair.once(7)
    chain = source.of_device(7)['chain'][:12]
    for side, device, role in ((source, '7', 'source'), (pair.replica, '', 'replica')):
        text = subprocess.run([program('spdk-dm'), 'metrics', '--socket', side.socket], capture_output=True, text=True,
                              timeout=HANG_SECONDS, check=True).stdout
        pool = side.pool
        labels = f'pool="{pool}",device="{device}",chain="{chain}"'
        names = set(re.findall(rf'^(spdk_dm_replication_\w+){{{labels}', text, re.M))
        documented = set(re.findall(r'^\| `(spdk_dm_replication_\w+)`', (ROOT / 'docs/metrics.md').read_text(), re.M))
        assert names == documented
        behind = re.search(rf'^spdk_dm_replication_behind_seconds{{{labels}}} (\S+)$', text, re.M)
        assert 0 <= float(behind.group(1)) < HANG_SECONDS
        assert f'spdk_dm_replication_role{{{labels},role="{role}"}} 1' in text
        line, = [line.split() for line in side('status').splitlines() if line.startswith(chain)]
        assert line[2:5] == [role, 'idle', '1']
    # Nobody is there: that is said, and the lag goes on.
    done = source.run('run', 'pool', 7, '--to', f'{ADDRESS}:{free_port()}', '--once')
    assert done.returncode == 1 and 'refused' in done.stderr, done
    assert source.of_device(7)['activity'] == 'stopped'


def test_strangers(pair):
    """Who does not know the secret gets nothing and learns nothing; any bytes are refused, and the receiver goes on;
    without a secret it only listens to its own host."""
    source, replica, folder = pair.source, pair.replica, pair.lab.folder
    rng = random.Random(3)
    right, wrong = folder / 'right', folder / 'wrong'
    right.write_text('of sixteen bytes and more\n')
    wrong.write_text('of sixteen bytes and less\n')
    bdev = source.device(8)
    source.fill(bdev, 1)
    before = replica.ids()
    assert '--token-file' in replica.refused('receive', 'copies', '--listen', '0.0.0.0:0')
    (folder / 'short').write_text('short')
    assert '16 to 4096 bytes' in replica.refused('receive', 'copies', '--token-file', folder / 'short')
    assert 'may be anybody' in source.refused('run', 'pool', 8, '--to', pair.to, '--token-file', right)
    pair.stop_receiver()
    pair.receive('--token-file', right)
    try:
        for _ in range(30):
            with socket.create_connection((ADDRESS, pair.port), timeout=10) as stranger:
                hello = stranger.recv(4096)
                said = hello if rng.random() < 0.5 else b'M' + rng.randbytes(4)
                try:
                    stranger.sendall(said + rng.randbytes(rng.randrange(2000)))
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
                except ConnectionError:
                    pass
        assert 'asks for a secret' in source.refused('run', 'pool', 8, '--to', pair.to)
        assert 'not the secret' in source.refused('run', 'pool', 8, '--to', pair.to, '--token-file', wrong)
        assert replica.ids() == before
        pair.once(8, '--token-file', right)
        pair.check(8)
    finally:
        pair.stop_receiver()
        pair.receive()
