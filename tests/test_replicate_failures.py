# SPDX-License-Identifier: BSD-3-Clause
"""`spdk-dm replicate` over a network that is cut, with everybody killed once."""

import pytest

from conftest import Lab
from harness.pool import wait_for
from harness.replication import MIB, SIZE_MIB, pair_of_targets


# So much has to come where all are killed.
KILLED_MIB = 32


@pytest.fixture(name='pair', scope='module')
def shared_pair(tmp_path_factory):
    with pair_of_targets(Lab(tmp_path_factory.mktemp('pair'))) as pair:
        yield pair


def test_cut_and_resumed(pair):
    """A network that is cut again and again: it goes on by itself where it was, and the snapshot that was begun is
    the one that comes, whatever is written meanwhile. Until all has come the replica is the one before."""
    source, proxy = pair.source, pair.proxy
    bdev = source.device(3)
    source.fill(bdev, 1)
    pair.once(3)
    chain = pair.check(3)
    first = pair.replica.newest(chain)
    source.fill(bdev)
    state = source.contents(bdev)
    before = proxy.to_receiver
    proxy.cut_after(SIZE_MIB * MIB // 2)
    running = pair.spawn(3, '--interval', '1h')
    wait_for(lambda: pair.source.status(chain)['failures'] >= 1)
    assert pair.replica.newest(chain) == first
    source.fill(bdev, 2)
    proxy.cut_after(SIZE_MIB * MIB // 4)
    wait_for(lambda: pair.source.status(chain)['transfers'] >= 1)
    running.kill()
    running.wait()
    assert pair.replica.newest(chain)[1] == state
    pair.check(3)
    # Nothing came twice but what was on its way.
    assert proxy.to_receiver - before < SIZE_MIB * MIB * 1.1, proxy.to_receiver - before


def test_kills(pair):
    """Either spdk-dm and either target are killed while changes come. What is on the replica's disk does not come
    again, and in the end both have the same."""
    source, replica, proxy = pair.source, pair.replica, pair.proxy
    bdev = source.device(4, KILLED_MIB)
    source.write(bdev, 'write -P 1 0 1M')
    pair.once(4)
    chain = pair.check(4)
    source.fill(bdev, KILLED_MIB)
    state = source.contents(bdev)
    # Slow enough to be killed, and for the receiver to have brought some of it to its disk before.
    words = ('--interval', '1h', '--limit-mib', '4')
    begun = proxy.to_receiver

    def moved(megabytes):
        return lambda: proxy.to_receiver - begun > megabytes * MIB

    running = pair.spawn(4, *words)
    wait_for(moved(6))
    running.kill()
    running.wait()
    running = pair.spawn(4, *words)
    wait_for(moved(12))
    pair.stop_receiver()
    pair.receive()
    wait_for(moved(18))
    source.restart_after_kill()
    wait_for(moved(24))
    replica.restart_after_kill()
    wait_for(lambda: source.status(chain)['transfers'] >= 1)
    running.kill()
    running.wait()
    # Again comes what the receiver, and then its target, had not on the disk: of the last second. From the beginning
    # it would be more than 56.
    assert proxy.to_receiver - begun < 46 * MIB, proxy.to_receiver - begun
    assert replica.newest(chain)[1] == state
    source.rpc('thin_activate', pool='pool', id=4, bdev_name=bdev, size_mib=KILLED_MIB)
    source.write(bdev, 'write -P 5 1M 1M')
    pair.once(4)
    pair.check(4)
