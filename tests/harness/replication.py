# SPDX-License-Identifier: BSD-3-Clause
"""Two targets, one of which replicates the thin devices of the other, with `spdk-dm` beside each."""

import contextlib
import json
import os
import socket
import subprocess

from . import guest
from .pool import aio, wait_for
from .process import end_all, launch, program
from .proxy import Proxy
from .target import ADDRESS, free_port

MIB = 1 << 20
BLOCK = 65536
SIZE_MIB = 16
# A hang guard.
HANG_SECONDS = 120


class Side:
    """A target with a pool, and `spdk-dm` beside it."""

    def __init__(self, lab, name, pool, bring_up, **options):
        self.lab, self.name, self.pool, self._bring_up, self._options = lab, name, pool, bring_up, options
        self.target = None
        # Each side's own: both may be read at once.
        self.folder = lab.folder / f'{name}-guest'
        self.folder.mkdir(exist_ok=True)
        self.start()

    def start(self):
        self.target = self.lab.target(name=self.name, **self._options)
        self._bring_up(self.target)

    def restart_after_kill(self):
        self.target.process.kill()
        self.start()

    @property
    def socket(self):
        return self.target.process.socket

    def rpc(self, method, **params):
        return self.target.rpc.call(method, **params)

    def command(self, verb, *words):
        return [program('spdk-dm'), 'replicate', verb, *map(str, words), '--socket', self.socket]

    def run(self, verb, *words):
        return subprocess.run(self.command(verb, *words), capture_output=True, text=True, timeout=HANG_SECONDS,
                              check=False)

    def __call__(self, verb, *words):
        done = self.run(verb, *words)
        assert (done.returncode, done.stderr) == (0, ''), (verb, words, done)
        return done.stdout

    def refused(self, verb, *words):
        done = self.run(verb, *words)
        assert (done.returncode, done.stdout) == (1, ''), (verb, words, done)
        return done.stderr

    def spawn(self, verb, *words):
        with open(self.lab.folder / f'{self.name}-{verb}.log', 'ab') as log:
            return launch(self.command(verb, *words), dict(os.environ), log)

    def ids(self):
        return {entry['id'] for entry in self.rpc('thin_list', pool=self.pool)}

    def status(self, chain=None):
        """Of one replication."""
        found = json.loads(self('status', self.pool, '--json'))
        return next((report for report in found if chain in (None, report['chain'])), None)

    def of_device(self, device):
        found = json.loads(self('status', self.pool, '--json'))
        return next((report for report in found if report['device'] == device), None)

    def contents(self, bdev):
        """All of a bdev."""
        return guest.contents(self.folder, self.target.rpc, bdev)

    def newest(self, chain):
        """Contents of the newest snapshot that both sides have, by a snapshot of that."""
        snapshot = self.status(chain)['newest']
        taken = self.ids()
        look = next(i for i in range(9000, 10_000) if i not in taken)
        self.rpc('thin_snapshot', pool=self.pool, id=look, origin_id=snapshot['id'])
        self.rpc('thin_activate', pool=self.pool, id=look, bdev_name='look',
                 size_sectors=snapshot['size_bytes'] // 512)
        contents = self.contents('look')
        self.rpc('thin_deactivate', bdev_name='look')
        self.rpc('thin_delete', pool=self.pool, id=look)
        return snapshot['uuid'], contents

    def write(self, bdev, *commands):
        """qemu-io commands."""
        guest.write(self.folder, self.target.rpc, bdev, *commands)

    def write_blocks(self, bdev, *blocks):
        """Writes blocks that do not compress."""
        paths = [self.lab.folder / f'pattern{i}' for i in range(8)]
        for path in paths:
            path.write_bytes(os.urandom(BLOCK))
        self.write(bdev, *(f'write -s {paths[at % 8]} {at * BLOCK} {BLOCK}' for at in blocks))

    def fill(self, bdev, megabytes=SIZE_MIB):
        """Writes what does not compress from the beginning on."""
        path = self.lab.folder / 'pattern'
        path.write_bytes(os.urandom(megabytes * MIB))
        self.write(bdev, f'write -s {path} 0 {megabytes}M')

    def device(self, number, size_mib=SIZE_MIB):
        """A new thin device as a bdev."""
        bdev = f'thin{number}'
        self.rpc('thin_create', pool=self.pool, id=number, bdev_name=bdev, size_mib=size_mib)
        return bdev


class Pair:
    """The source, the replica and the way between them. With a drive the replica's data is on a bdev of a third
    SPDK program over NVMe/TCP."""

    def __init__(self, lab, with_drive):
        self.lab = lab
        self._data = lab.file('replica-data', 1024)
        self._drive = lab.drive([self._data]) if with_drive else None

        def source(target):
            for name, megabytes in (('meta', 16), ('data', 1024)):
                path = lab.folder / name
                aio(target, name, path if path.exists() else lab.file(name, megabytes))
            # Its memory must be in one piece.
            target.rpc.call('nvmf_create_transport', trtype='TCP')
            target.rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data')

        def replica(target):
            path = lab.folder / 'replica-meta'
            aio(target, 'meta', path if path.exists() else lab.file('replica-meta', 16))
            data = 'data'
            if self._drive:
                data, = target.attach_drive(self._drive)
            else:
                aio(target, data, self._data)
            # Blocks of another size than the source's.
            target.rpc.call('thin_pool_create', name='copies', metadata_bdev='meta', data_bdev=data,
                            data_block_size_sectors=256)

        self.source = Side(lab, 'source', 'pool', source, memory_mb=512, core_mask='0x2')
        self.replica = Side(lab, 'replica', 'copies', replica, core_mask='0x1')
        self.port = free_port()
        self.receiver = None
        self.receive()
        self.proxy = Proxy(self.port)
        self.to = f'{ADDRESS}:{self.proxy.port}'

    def receive(self, *words):
        self.receiver = self.replica.spawn('receive', 'copies', '--listen', f'{ADDRESS}:{self.port}', *words)
        wait_for(self._listens)

    def _listens(self):
        with socket.socket() as probe:
            return probe.connect_ex((ADDRESS, self.port)) == 0

    def stop_receiver(self):
        self.receiver.kill()
        self.receiver.wait()

    def once(self, device, *words):
        self.source('run', 'pool', device, '--to', self.to, '--once', '--quiet', *words)

    def spawn(self, device, *words):
        return self.source.spawn('run', 'pool', device, '--to', self.to, '--quiet', *words)

    def check(self, device):
        """The replica is the source's snapshot, byte for byte. Returns the replication."""
        chain = self.source.of_device(device)['chain']
        ours, theirs = self.source.newest(chain), self.replica.newest(chain)
        assert ours[0] == theirs[0] and ours[1] == theirs[1], (ours[0], theirs[0])
        return chain


@contextlib.contextmanager
def pair_of_targets(lab):
    """Two targets without a drive; all that runs is ended with them."""
    pair = None
    try:
        pair = Pair(lab, with_drive=False)
        yield pair
    finally:
        if pair is not None:
            pair.proxy.close()
        end_all()
