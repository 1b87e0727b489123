# SPDX-License-Identifier: BSD-3-Clause
"""The real programs of a soak: a drive, the target on it, places to export at, and hosts."""

import json
import os
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

from harness import HostIO, RpcClient, options_for_memory, thin_check
from harness.load import Load, progress
from harness.pool import wait_for
from harness.process import environment
from harness.target import ADDRESS, attach_params, export, host_config, nqn
from harness.wire import Wire

from .model import DEVICE_MIB, SLOTS, Device, Model, digest

META_MB = 16
PLACES = 3
# Each connection takes half a megabyte, in one piece.
TARGET_MB = 1024
# After this, what waits is looked into.
PATIENCE_SECONDS = 10
# What a host of v20.07 says that was not answered within two seconds, as happens when the target
# itself is waiting for a connection to the drive.
UNCONNECTED = 'via correct icresp'
CHANCES = 5
BASES = {'driven1': 'file0', 'driven2': 'file1'}


def quiet_port() -> int:
    """A port nothing gets by chance while its program is away: below those that connections get."""
    while True:
        port = random.randrange(12000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind((ADDRESS, port))
                return port
            except OSError:
                pass


class Stuck(Exception):
    """A part of SPDK v20.07 that hangs by itself. Mostly a subsystem that will not change any more,
    although all I/O of its hosts is over: an Asynchronous Event Request on a connection that is
    ending is counted and never uncounted (spdk_nvmf_request_exec), and pausing waits for it for ever.
    Also, a subsystem whose hosts' writes waited for space. Only a new target helps in the first case."""


class Place:
    """A subsystem with room for one namespace, the wire to it, and a host. Subsystems stay: v20.07
    frees controllers twice when one goes while they disconnect."""

    def __init__(self, folder: Path, number: int):
        self.name = f'place{number}'
        self.port = quiet_port()
        self.wire = Wire(quiet_port(), self.port)
        folder = folder / f'host{number}'
        folder.mkdir()
        config = host_config(folder / 'host.json', 'remote', self.wire.port, self.name)
        self.host = HostIO(folder, config, 'remoten1', core_mask=('0x1', '0x2')[number % 2])
        self.log = folder / 'hostio.log'
        self.device = None

    def listener(self) -> dict:
        return {'nqn': nqn(self.name), 'listen_address': {
            'trtype': 'tcp', 'adrfam': 'ipv4', 'traddr': ADDRESS, 'trsvcid': str(self.port)}}


class Stage:
    """Everything that runs, and the journal of what was done."""

    def __init__(self, lab, dice, journal):
        self.lab = lab
        self.dice = dice
        self.journal = journal
        self.model = Model(lab.folder)
        self.data_mb = dice.choice([40, 64, 96])
        self.files = [lab.file('meta', META_MB), lab.file('data', self.data_mb)]
        self.features = dice.choice([['error_if_no_space'], ['error_if_no_space'], [],
                                     ['error_if_no_space', 'no_discard_passdown']])
        self.saved = lab.folder / 'saved.json'
        self._loads = 0
        drive_port = quiet_port()
        self.drive_wire = Wire(quiet_port(), drive_port)
        self._drive_port = drive_port
        self.drive = self.start_drive()
        self.places = [Place(lab.folder, i) for i in range(PLACES)]
        self.target = None

    def start_drive(self):
        return self.lab.drive(self.files, port=self._drive_port)

    @property
    def rpc(self):
        """Calls may wait as long as writes wait for space, which is 60 s."""
        return RpcClient(self.target.process.socket, timeout=180)

    # The target and its configuration

    def first_start(self) -> None:
        self.target = self.lab.target(core_mask='0x3', memory_mb=TARGET_MB)
        self.attach_drive()
        self.rpc.call('thin_pool_create', name='pool', metadata_bdev='driven1', data_bdev='driven2',
                      features=self.features)
        for place in self.places:
            export(self.target.process, place.name, [], place.port)
        self.save()

    def attach_drive(self) -> None:
        names = self.rpc.call('bdev_nvme_attach_controller',
                              **attach_params('drive', self.drive_wire.port, 'drive'))
        assert names == list(BASES), names

    def save(self) -> None:
        """As save_config does."""
        subsystems = [{'subsystem': s['subsystem'],
                       'config': self.rpc.call('framework_get_config', name=s['subsystem'])}
                      for s in self.rpc.call('framework_get_subsystems')]
        self.saved.write_text(json.dumps({'subsystems': subsystems}, indent=1))

    def restart(self) -> None:
        """From the saved configuration, which has all active devices and their places."""
        if self.check_metadata():
            self.journal('needs_check cleared')
        self.target = self.lab.target(core_mask='0x3', memory_mb=TARGET_MB, config=self.saved)
        self.wait_open()
        for place in self.places:
            self.wait_namespace(place, place.device is not None)

    def check_metadata(self) -> bool:
        """Both checks, on metadata that nothing writes to. The flag that a failed commit leaves is
        cleared as an administrator does; whether it was there."""
        with open(self.files[0], 'rb') as file:
            superblock = file.read(8)
        flagged = bool(superblock[4] & 1)  # metadata on disk: flags follow the checksum
        if flagged:
            done = subprocess.run(['thin_check', '--clear-needs-check-flag', str(self.files[0])],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            assert done.returncode == 0, done.stdout
        thin_check(self.files[0])
        return flagged

    def status(self) -> dict:
        return self.rpc.call('thin_pool_status', name='pool')

    def wait_open(self) -> None:
        wait_for(lambda: self.status()['state'] == 'open', seconds=120)

    def subsystem(self, place: Place) -> dict:
        return next(s for s in self.rpc.call('nvmf_get_subsystems') if s['nqn'] == nqn(place.name))

    def wait_namespace(self, place: Place, there: bool) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while bool(self.subsystem(place)['namespaces']) != there:
            if time.monotonic() > deadline:
                self.give_up(place)
            time.sleep(0.05)

    def change_subsystem(self, place: Place, method: str, **params) -> None:
        try:
            RpcClient(self.target.process.socket, timeout=PATIENCE_SECONDS).call(method, **params)
        except TimeoutError:
            self.give_up(place)

    def give_up(self, place: Place) -> None:
        """A target that has not done with the hosts' I/O is what hangs here."""
        if place.device:
            self.kill_load(place.device)
        place.wire.cut()
        place.wire.wait_closed()
        raise Stuck(place.name)

    def check_answers(self) -> None:
        """v20.07 makes new connections to a drive within a reactor, under a lock, and waits for the
        answer for ever (nvme_fabric_qpair_connect). A target that hangs for another reason is ours."""
        try:
            RpcClient(self.target.process.socket, timeout=PATIENCE_SECONDS).call('thin_pool_status')
        except TimeoutError:
            if shutil.which('gdb'):
                done = subprocess.run(['gdb', '-p', str(self.target.process.process.pid), '-batch',
                                       '-ex', 'thread apply all bt'], stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL, check=False, timeout=120)
                if b'nvme_fabric_qpair_connect' not in done.stdout:
                    raise
            raise Stuck('the NVMe host') from None

    def unstick(self) -> None:
        """A new target, as the configuration was when it was last saved."""
        self.kill_loads()
        self.target.process.kill()
        saved = self.saved.read_text()
        for place in self.places:
            if place.device and f'"{place.device.bdev}"' not in saved:
                place.device.place = place.device = None
        self.restart()

    def add_namespace(self, place: Place) -> None:
        self.change_subsystem(place, 'nvmf_subsystem_add_ns', nqn=nqn(place.name),
                              namespace={'bdev_name': place.device.bdev, 'nsid': 1})

    # Devices at places

    def free_place(self):
        return next((p for p in self.places if p.device is None), None)

    def activate(self, device: Device, size_mib: int = DEVICE_MIB) -> None:
        place = self.free_place()
        place.wire.wait_closed()
        self.rpc.call('thin_activate', pool='pool', id=device.number, bdev_name=device.bdev,
                      size_mib=size_mib)
        device.place, place.device = place, device
        self.add_namespace(place)
        self.save()

    def deactivate(self, device: Device, hot: bool) -> None:
        """`hot`: the bdev goes and takes the namespace with it."""
        place = device.place
        if not hot:
            self.change_subsystem(place, 'nvmf_subsystem_remove_ns', nqn=nqn(place.name), nsid=1)
        self.rpc.call('thin_deactivate', bdev_name=device.bdev)
        self.wait_namespace(place, False)
        device.place = place.device = None
        self.save()

    # Hosts

    def start_load(self, device: Device) -> None:
        device.place.wire.wait_closed()
        self._loads += 1
        device.load = Load(device.place.host, device.ledger, '--seed', str(self.dice.randrange(1 << 30)),
                           '--first-sequence', str(self._loads << 32), '--slots', str(SLOTS),
                           '--workers', self.dice.choice(['4', '16', '32']),
                           '--flush-every', self.dice.choice(['4', '8', '20']),
                           '--clear-every', self.dice.choice(['4', '8', '30']))
        device.image, device.written = None, True
        # What comes next meets a host at work, or one that only begins.
        if self.dice.random() < 0.5:
            begun = progress(device.ledger).issued
            wait_for(lambda: progress(device.ledger).issued > begun
                     or device.load.process.poll() is not None, seconds=120)

    def finish_load(self, device: Device) -> None:
        """All is flushed and over, unless lack of space has ended it before."""
        device.load.ask_to_finish()
        if device.load.end_by_itself() != 0:
            self.check_excuse(device)
            self.load_ends(device)
        device.load = None
        device.place.wire.wait_closed()

    def check_excuse(self, device: Device) -> None:
        """Of a load that has ended with an error: there was no space, or it never got a connection."""
        text = device.load.text()
        if UNCONNECTED in text and 'stress: started' not in text:
            self.journal(f'  {device} got no connection')
            return
        assert self.status()['no_space_events'] > 0, f'{device} ended: {device.load.tail()}'
        self.journal(f'  {device} ended for lack of space')

    def kill_load(self, device: Device) -> None:
        if device.load:
            device.load.kill()
            device.load = None

    def kill_loads(self) -> None:
        for device in self.model.loaded():
            self.kill_load(device)

    def loads_end(self) -> None:
        """After their bdev or connection has gone: they end by themselves, with an I/O error."""
        for device in self.model.loaded():
            self.load_ends(device)

    def load_ends(self, device: Device) -> None:
        code = device.load.end_by_itself()
        text, tail = device.load.text(), device.load.tail()
        device.load = None
        assert code != 0 and ('errno' in text or UNCONNECTED in text), f'{device} ended with {code}: {tail}'
        for word in ('holds', 'foreign', 'torn'):
            assert word not in text, f'{device}: {tail}'

    def ask_host(self, place: Place, *command: str) -> None:
        """A command of a host, which gets several chances to connect."""
        for _ in range(CHANCES):
            place.wire.wait_closed()
            begin = place.log.stat().st_size if place.log.exists() else 0
            try:
                return place.host.run(*command)
            except RuntimeError:
                if UNCONNECTED not in place.log.read_bytes()[begin:].decode(errors='replace'):
                    raise
            self.journal(f'  a host at {place.name} got no connection')
        raise AssertionError(f'{place.name} cannot be connected to')

    def look_at(self, device: Device) -> None:
        """Reads an active device that nothing writes to, and compares."""
        assert not device.load
        if device.image is None:
            self.ask_host(device.place, 'verify', str(device.ledger), '--may-be-empty')
        if not device.written or device.image:
            image = self.image_of(device)
            device.image = device.image or image
            assert image == device.image, f'{device} has changed: was {device.image}, is {image}'

    def bdevperf(self, place: Place) -> subprocess.CompletedProcess:
        """SPDK's own verifying load, as a host."""
        place.wire.wait_closed()
        folder = place.log.parent
        return subprocess.run(
            [os.environ['SPDK_DM_BDEVPERF'], '--no-pci', '--huge-unlink', '-m', '0x1', '-r',
             str(folder / 'perf.sock'), '--json', str(folder / 'host.json'), '-q', '16', '-o', '8192',
             '-w', 'verify', '-t', '2', '-T', 'remoten1'] + options_for_memory(384),
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False, timeout=300)

    def image_of(self, device: Device) -> str:
        path = self.lab.folder / f'image{device.number}'
        self.ask_host(device.place, 'read', str(path), '--length', str(DEVICE_MIB << 20))
        found = digest(path)
        path.unlink()
        return found
