# SPDX-License-Identifier: BSD-3-Clause
"""What must be in the pool: which thin devices there are, and what each may hold."""

import hashlib
import struct
from pathlib import Path
from typing import Dict, Optional

from harness.load import HEADER_BYTES

# Of all devices. The slots of a stress cover half of one, at all offsets from the data blocks.
DEVICE_MIB = 32
SLOTS = 128
SLOT_SECTORS = 256
COLUMN_BYTES = SLOTS * SLOT_SECTORS * 8


def empty_ledger() -> bytes:
    return struct.pack('<QQQQ', SLOTS, 0, 0, 0) + bytes(3 * COLUMN_BYTES)


def ledger_of_snapshot(before: bytes, after: bytes) -> bytes:
    """What a snapshot may hold: at least what was durable in its origin before it was asked for, and
    at most what was issued when it was there (tests/hostio/src/ledger.rs)."""
    assert len(before) == len(after) == HEADER_BYTES + 3 * COLUMN_BYTES
    cut = HEADER_BYTES + COLUMN_BYTES
    return before[:cut] + after[cut:]


def digest(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


class Device:
    """A thin device. `image` is the digest of what it holds, once that is known and for as long as
    nothing writes to it."""

    def __init__(self, number: int, folder: Path, ledger: Optional[bytes], image: Optional[str] = None):
        self.number = number
        self.bdev = f't{number}'
        self.ledger = folder / f'ledger{number}'
        self.ledger.write_bytes(empty_ledger() if ledger is None else ledger)
        self.image = image
        self.written = ledger is None
        self.place = None  # Where it is exported, if it is active.
        self.load = None  # What writes to it.
        self.passing = False  # Made for one event, with content that the ledger does not tell.

    def __repr__(self):
        return f'{self.bdev}{"*" if self.load else "+" if self.place else ""}'


class Model:
    """The devices, and what an RPC under way when the target died may have done."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.devices: Dict[int, Device] = {}
        self.transaction = 0
        self.held = False
        self._next = 1

    def new_number(self) -> int:
        self._next += 1
        return self._next - 1

    def add(self, number: int, ledger: Optional[bytes] = None, image: Optional[str] = None) -> Device:
        self.devices[number] = Device(number, self.folder, ledger, image)
        return self.devices[number]

    def remove(self, device: Device) -> None:
        del self.devices[device.number]
        device.ledger.unlink()

    def active(self) -> list:
        return [d for d in self.devices.values() if d.place]

    def inactive(self) -> list:
        return [d for d in self.devices.values() if not d.place]

    def loaded(self) -> list:
        return [d for d in self.devices.values() if d.load]

    def check(self, rpc) -> None:
        """The pool says what we say."""
        listed = sorted(d['id'] for d in rpc.call('thin_list', pool='pool'))
        assert listed == sorted(self.devices), f'{listed} are there, {sorted(self.devices)} expected'
        status = rpc.call('thin_pool_status', name='pool')
        assert status['transaction_id'] == self.transaction, status
        assert (status['held_root'] is not None) == self.held, status
        assert status['active_devices'] == len(self.active()), (status, self.active())
