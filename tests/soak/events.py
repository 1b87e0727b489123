# SPDX-License-Identifier: BSD-3-Clause
"""What happens to a soak: one method per kind of event."""

import errno
import threading
import time

from harness import RpcError
from harness.pool import refused, wait_for
from harness.target import nqn

from .model import Device, ledger_of_snapshot
from .stage import UNCONNECTED, Stage, Stuck

MAX_DEVICES = 7
# How often each event is chosen, beside the others.
WEIGHTS = {
    'create': 10, 'activate': 10, 'deactivate': 6, 'delete': 5,
    'snapshot_under_load': 10, 'snapshot_at_rest': 5, 'look': 6, 'load': 4,
    'metadata_snapshot': 4, 'transaction': 4, 'refusals': 4, 'save_config': 3, 'status': 4,
    'kill_target': 7, 'kill_target_in_rpc': 9, 'kill_drive': 4, 'kill_both': 3,
    'detach_drive': 5, 'remove_base': 6, 'cut_drive': 3,
    'cut_host': 6, 'kill_host': 5, 'stop_listening': 4, 'fill': 3, 'bdevperf_verify': 4,
}


class Events(Stage):
    """Each event leaves a pool that is open, and devices as in the model."""

    # Devices

    def create(self):
        if len(self.model.devices) >= MAX_DEVICES:
            return self.delete()
        number = self.model.new_number()
        self.rpc.call('thin_create', pool='pool', id=number)
        device = self.model.add(number)
        if self.free_place():
            self.activate(device)
            self.start_load(device)
        return True

    def activate_one(self):
        devices = self.model.inactive()
        if not devices:
            return False
        if not self.free_place():
            self.deactivate_one()
        device = self.dice.choice(devices)
        self.activate(device)
        self.look_at(device)
        if device.written or self.dice.random() < 0.3:
            self.start_load(device)
        return True

    def deactivate_one(self):
        """In order, or from under its host."""
        devices = self.model.active()
        if not devices:
            return False
        device = self.dice.choice(devices)
        if device.load and self.dice.random() < 0.5:
            self.finish_load(device)
        self.deactivate(device, hot=self.dice.random() < 0.5)
        if device.load:
            self.load_ends(device)
        return True

    def delete(self):
        devices = self.model.inactive()
        if not devices:
            return False
        device = self.dice.choice(devices)
        self.rpc.call('thin_delete', pool='pool', id=device.number)
        self.model.remove(device)
        return True

    def snapshot_under_load(self):
        if not self.model.devices or len(self.model.devices) >= MAX_DEVICES:
            return False
        origin = self.dice.choice(self.model.loaded() or list(self.model.devices.values()))
        before, number = origin.ledger.read_bytes(), self.model.new_number()
        self.rpc.call('thin_snapshot', pool='pool', id=number, origin_id=origin.number)
        self.model.add(number, ledger_of_snapshot(before, origin.ledger.read_bytes()), origin.image)
        return True

    def snapshot_at_rest(self):
        """Holds exactly what its origin held, to the byte."""
        origins = self.model.active()
        if not origins or len(self.model.devices) >= MAX_DEVICES:
            return False
        origin = self.dice.choice(origins)
        if origin.load:
            self.finish_load(origin)
        image, number = self.image_of(origin), self.model.new_number()
        self.rpc.call('thin_snapshot', pool='pool', id=number, origin_id=origin.number)
        self.model.add(number, origin.ledger.read_bytes(), image)
        return True

    def look(self):
        devices = [d for d in self.model.active() if not d.load]
        if not devices:
            return False
        self.look_at(self.dice.choice(devices))
        return True

    def load_one(self):
        devices = [d for d in self.model.active() if not d.load]
        if not devices:
            return False
        self.start_load(self.dice.choice(devices))
        return True

    # Small RPCs

    def metadata_snapshot(self):
        word = 'release' if self.model.held else 'reserve'
        self.rpc.call('dm_message', name='pool', message=f'{word}_metadata_snap')
        self.model.held = not self.model.held
        return True

    def transaction(self):
        old, new = self.model.transaction, self.model.transaction + self.dice.randrange(1, 9)
        self.rpc.call('dm_message', name='pool', message=f'set_transaction_id {old} {new}')
        self.model.transaction = new
        return True

    def refusals(self):
        rpc, model = self.rpc, self.model
        refused(rpc, errno.ENODATA, ['device 9999'], 'thin_delete', pool='pool', id=9999)
        if model.active():
            refused(rpc, errno.EBUSY, ["'pool'"], 'thin_pool_delete', name='pool')
        refused(rpc, errno.EPERM, ["'driven1'", 'claimed'], 'thin_pool_create', name='pool2',
                metadata_bdev='driven1', data_bdev='driven2')
        for device in model.active():
            refused(rpc, errno.EBUSY, ['active'], 'thin_delete', pool='pool', id=device.number)
        for device in model.devices.values():
            refused(rpc, errno.EEXIST, ['device'], 'thin_create', pool='pool', id=device.number)
        refused(rpc, errno.EINVAL, [], 'dm_message', name='pool',
                message=f'set_transaction_id {model.transaction + 1} {model.transaction + 2}')
        return True

    def save_config(self):
        before = self.saved.read_text()
        self.save()
        assert self.saved.read_text() == before
        return True

    def show_status(self):
        self.model.check(self.rpc)
        for device in self.model.active():
            self.rpc.call('dm_status', name=device.bdev)
            self.rpc.call('dm_table', name=device.bdev)
        self.rpc.call('dm_status', name='pool')
        return True

    # Deaths

    def kill_target(self):
        self.target.process.kill()
        self.kill_loads()
        self.restart()
        return True

    def kill_drive(self):
        """The drive dies under the target, whose controller is detached, and attached to its
        successor. (v20.07 left to connect again by itself closes a socket twice, now and then.)"""
        self.drive.process.kill()
        self.pause(1)
        self.check_answers()
        self.detach()
        self.drive = self.start_drive()
        self.attach()
        return True

    def kill_both(self):
        self.drive.process.kill()
        self.target.process.kill()
        self.kill_loads()
        self.drive = self.start_drive()
        self.restart()
        return True

    def kill_target_in_rpc(self):
        """With an RPC under way, which happens or does not."""
        model = self.model
        kinds = ['reserve' if not model.held else 'release', 'transaction']
        if len(model.devices) < MAX_DEVICES:
            kinds += ['create'] + ['snapshot'] * 3 * bool(model.devices)
        if model.inactive():
            kinds += ['delete', 'delete']
        kind, number = self.dice.choice(kinds), model.new_number()
        origin = self.dice.choice(model.loaded() or list(model.devices.values()) or [None])
        old = self.dice.choice(model.inactive() or [None])
        method, params = {
            'reserve': ('dm_message', {'name': 'pool', 'message': 'reserve_metadata_snap'}),
            'release': ('dm_message', {'name': 'pool', 'message': 'release_metadata_snap'}),
            'transaction': ('dm_message', {'name': 'pool', 'message':
                            f'set_transaction_id {model.transaction} {model.transaction + 1}'}),
            'create': ('thin_create', {'pool': 'pool', 'id': number}),
            'snapshot': ('thin_snapshot', {'pool': 'pool', 'id': number,
                                           'origin_id': origin and origin.number}),
            'delete': ('thin_delete', {'pool': 'pool', 'id': old and old.number}),
        }[kind]
        before = origin and origin.ledger.read_bytes()
        answers = []

        def call():
            try:
                answers.append(self.rpc.call(method, **params))
            except (OSError, ConnectionError, ValueError):
                pass
            except RpcError as error:
                answers.append(error)
        caller = threading.Thread(target=call)
        caller.start()
        time.sleep(self.dice.random() ** 2 * 0.6)
        self.target.process.kill()
        caller.join()
        self.kill_loads()
        self.restart()
        assert not any(isinstance(a, RpcError) for a in answers), answers
        status = self.status()
        there = {d['id'] for d in self.rpc.call('thin_list', pool='pool')}
        happened = {
            'reserve': status['held_root'] is not None,
            'release': status['held_root'] is None,
            'transaction': status['transaction_id'] == model.transaction + 1,
            'create': number in there, 'snapshot': number in there,
            'delete': old is None or old.number not in there,
        }[kind]
        self.journal(f'  {kind} {"happened" if happened else "did not happen"}, '
                     f'{"answered" if answers else "not answered"}')
        assert happened or not answers, f'{kind} was acknowledged and is lost'
        if happened:
            self.note(kind, number, old, origin, before)
        return True

    def note(self, kind, number, old, origin, before):
        model = self.model
        if kind in ('reserve', 'release'):
            model.held = not model.held
        elif kind == 'transaction':
            model.transaction += 1
        elif kind == 'delete':
            model.remove(old)
        elif kind == 'create':
            model.add(number)
        else:
            model.add(number, ledger_of_snapshot(before, origin.ledger.read_bytes()), origin.image)

    # Base bdevs

    def detach_drive(self):
        self.detach()
        self.pause(0.5)
        self.attach()
        return True

    def detach(self):
        self.rpc.call('bdev_nvme_detach_controller', name='drive')
        self.loads_end()
        wait_for(lambda: self.status()['state'] == 'waiting')

    def attach(self):
        self.attach_drive()
        self.come_back()

    def remove_base(self):
        """One namespace of the drive goes, and the bdev on it."""
        number = self.dice.randrange(2)
        rpc, bdev = self.drive.process.rpc, f'file{number}'
        rpc.call('nvmf_subsystem_remove_ns', nqn=nqn('drive'), nsid=number + 1)
        self.loads_end()
        wait_for(lambda: self.status()['state'] == 'waiting')
        self.pause(0.5)
        rpc.call('nvmf_subsystem_add_ns', nqn=nqn('drive'),
                 namespace={'bdev_name': bdev, 'nsid': number + 1})
        self.come_back()
        return True

    def come_back(self):
        """Pool and thin bdevs come back by themselves; exports are the administrator's."""
        self.wait_open()
        for device in self.model.active():
            wait_for(lambda d=device: any(b['name'] == d.bdev for b in self.rpc.call('bdev_get_bdevs')))
            self.wait_namespace(device.place, False)
            self.add_namespace(device.place)
        self.heal()

    def cut_drive(self):
        """The connections to the drive are cut in the middle of everything, and the target dies at
        once. (Living on, v20.07 hangs in its own NVMe host or closes a socket twice.)"""
        self.drive_wire.cut()
        self.target.process.kill()
        self.kill_loads()
        self.restart()
        return True

    def heal(self):
        """A pool that has failed a commit is checked and opened again, as the kernel demands it."""
        status = self.status()
        if status['mode'] in ('rw', 'out_of_data_space') and not status['needs_check']:
            return
        self.journal(f'  the pool is {status["mode"]}')
        self.kill_loads()
        self.target.process.kill()
        self.restart()

    # Hosts

    def cut_host(self):
        devices = self.model.loaded()
        if not devices:
            return False
        device = self.dice.choice(devices)
        device.place.wire.cut()
        self.pause(1)
        self.kill_load(device)
        return True

    def kill_host(self):
        devices = self.model.loaded()
        if not devices:
            return False
        self.kill_load(self.dice.choice(devices))
        return True

    def stop_listening(self):
        place = self.dice.choice(self.places)
        self.change_subsystem(place, 'nvmf_subsystem_remove_listener', **place.listener())
        self.pause(0.5)
        self.change_subsystem(place, 'nvmf_subsystem_add_listener', **place.listener())
        if place.device and place.device.load:
            self.kill_load(place.device)
        return True

    # Space

    @property
    def hot(self):
        """Where writes wait for space, a namespace cannot go in order: that waits for them."""
        return 'error_if_no_space' not in self.features

    def passing_device(self, size_mib):
        """A device for one event."""
        if not self.free_place():
            self.deactivate_one()
        number = self.model.new_number()
        self.rpc.call('thin_create', pool='pool', id=number)
        device = self.model.add(number)
        device.passing = True
        self.activate(device, size_mib)
        return device

    def pass_away(self, device):
        self.deactivate(device, hot=self.hot)
        self.rpc.call('thin_delete', pool='pool', id=device.number)
        self.model.remove(device)

    def verify_by_bdevperf(self):
        """bdevperf writes and compares on a device of its own, beside the other hosts."""
        status, size_mib = self.status(), 8
        if status['total_data_blocks'] - status['used_data_blocks'] < 3 * size_mib * 16:
            return False
        device = self.passing_device(size_mib)
        done = self.bdevperf(device.place)
        full = self.status()['no_space_events'] > status['no_space_events']
        assert full or done.returncode == 0 or UNCONNECTED in done.stdout, done.stdout
        assert 'mismatch' not in done.stdout, done.stdout
        self.pass_away(device)
        return done.returncode == 0

    def fill(self):
        """Writes until there is no space: that fails, or waits for space. Then there is space again."""
        status = self.status()
        size_mib = (status['total_data_blocks'] - status['used_data_blocks']) // 16 + 2
        filler = self.passing_device(size_mib)
        content = self.lab.folder / 'filling'
        with open(content, 'wb') as file:
            file.write(self.dice.randbytes(1 << 20) * size_mib)
        writing = filler.place.host.start('write', str(content))
        wait_for(lambda: writing.poll() is not None
                 or self.status()['mode'] == 'out_of_data_space', seconds=300)
        full = self.status()
        self.journal(f'  {full["used_data_blocks"]} of {full["total_data_blocks"]} blocks used, '
                     f'the pool is {full["mode"]}')
        if not self.hot:
            wait_for(lambda: writing.poll() is not None, seconds=300)
        if writing.poll() is None:
            writing.kill()
        writing.wait()
        content.unlink()
        self.excuse()
        self.pass_away(filler)
        self.make_space()
        return True

    def make_space(self):
        """Deletes devices until a good part of the pool is free, or there are none."""
        def tight():
            status = self.status()
            return (status['mode'] != 'rw'
                    or status['total_data_blocks'] - status['used_data_blocks'] < 256)
        while tight() and self.model.devices:
            if not self.delete():
                device = self.dice.choice(self.model.active())
                self.deactivate(device, hot=self.hot)
                if device.load:
                    self.load_ends(device)
        if not self.model.devices:
            wait_for(lambda: self.status()['mode'] == 'rw')

    def excuse(self):
        """Loads that have ended, which only lack of space may do."""
        for device in self.model.loaded():
            if device.load.process.poll() is not None:
                self.check_excuse(device)
                self.load_ends(device)

    def pause(self, seconds):
        time.sleep(self.dice.random() * seconds)

    def settle(self):
        """After every event: what has ended may have; the pool is as modelled; there is space; hosts
        are at work again."""
        self.excuse()
        self.model.check(self.rpc)
        if self.status()['mode'] == 'out_of_data_space':
            self.journal('  out of space')
            self.make_space()
        for device in self.model.active():
            if device.written and not device.load and self.dice.random() < 0.6:
                self.start_load(device)

    def run(self, name: str) -> bool:
        """Whether there was something to do it to. Then all is in order."""
        try:
            done = self.happen(name)
            self.settle()
            return done
        except Stuck as stuck:
            self.journal(f'  {stuck} of this SPDK is stuck')
            self.unstick()
            for device in list(self.model.devices.values()):
                if device.passing and device.place:
                    self.pass_away(device)
                elif device.passing:
                    self.rpc.call('thin_delete', pool='pool', id=device.number)
                    self.model.remove(device)
            self.model.check(self.rpc)
            return False

    def happen(self, name: str) -> bool:
        method = {'activate': 'activate_one', 'deactivate': 'deactivate_one', 'load': 'load_one',
                  'status': 'show_status', 'bdevperf_verify': 'verify_by_bdevperf'}.get(name, name)
        return getattr(self, method)()

    def finish(self):
        """The end: every device, active or not, holds what it must."""
        for device in self.model.loaded():
            if self.dice.random() < 0.5:
                self.kill_load(device)
            else:
                self.finish_load(device)
        unseen = set(self.model.devices)
        while unseen:
            active = [d for d in self.model.active() if d.number in unseen]
            device = (active or [self.model.devices[min(unseen)]])[0]
            try:
                if not device.place and not self.free_place():
                    self.deactivate(self.model.active()[0], hot=False)
                if not device.place:
                    self.activate(device)
                self.look_at(device)
                unseen.discard(device.number)
                self.deactivate(device, hot=False)
            except Stuck as stuck:
                self.journal(f'  {stuck} of this SPDK is stuck')
                self.unstick()
        self.model.check(self.rpc)
        if self.dice.random() < 0.5:
            self.target.process.kill()
        else:
            self.target.stop()
        self.check_metadata()


def device_names(devices) -> str:
    return ' '.join(repr(d) for d in sorted(devices, key=lambda d: d.number)) or 'none'


__all__ = ['Events', 'WEIGHTS', 'Device', 'device_names']
