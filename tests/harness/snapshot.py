# SPDX-License-Identifier: BSD-3-Clause
"""Origins and snapshots on files, and a reader of COW stores that knows nothing of the code that writes them
(dm-snapshot's format: snapshot.md 1)."""

import struct
from pathlib import Path
from typing import List, NamedTuple, Tuple

from .pool import aio, host_of

MIB = 1 << 20
SECTOR = 512
MAGIC = 0x70416E53


class Store(NamedTuple):
    """What a COW device holds."""
    valid: int
    chunk_sectors: int
    exceptions: List[Tuple[int, int]]


def read_store(path: Path) -> Store:
    """Header and exceptions of a COW device, in order; checks what every store keeps to."""
    with open(path, 'rb') as file:
        magic, valid, version, chunk_sectors = struct.unpack('<4I', file.read(16))
        assert (magic, version) == (MAGIC, 1)
        assert chunk_sectors & (chunk_sectors - 1) == 0
        size = chunk_sectors * SECTOR
        file.seek(16)
        assert not any(file.read(size - 16)), 'the rest of the header is not zero'
        per_area, exceptions, area = size // 16, [], 0
        while True:
            file.seek((1 + area * (per_area + 1)) * size)
            entries = struct.unpack(f'<{2 * per_area}Q', file.read(size))
            for old, new in zip(entries[::2], entries[1::2]):
                if new == 0:
                    check_store(exceptions, per_area)
                    return Store(valid, chunk_sectors, exceptions)
                exceptions.append((old, new))
            area += 1


def check_store(exceptions, per_area):
    """No chunk twice, none in the place of header or areas."""
    for column in zip(*exceptions):
        assert len(set(column)) == len(column)
    assert all(new > 1 and new % (per_area + 1) != 1 for _, new in exceptions)


def content_of(origin: Path, cow: Path, size: int) -> bytes:
    """What the snapshot of a store shows."""
    store, held = read_store(cow), bytearray(origin.read_bytes()[:size])
    chunk = store.chunk_sectors * SECTOR
    with open(cow, 'rb') as file:
        for old, new in store.exceptions:
            file.seek(new * chunk)
            part = file.read(chunk)[:max(size - old * chunk, 0)]
            held[old * chunk:old * chunk + len(part)] = part
    return bytes(held)


class Files:
    """An origin and COW devices as AIO bdevs of a target; `origin` and `cow0`, `cow1` and so on."""

    def __init__(self, lab, origin_mb=16, cows_mb=(4,)):
        self.origin = lab.file('origin', origin_mb)
        self.cows = [lab.file(f'cow{number}', size) for number, size in enumerate(cows_mb)]

    def bdevs(self, target, block_bytes=512):
        aio(target, 'origin', self.origin, block_bytes)
        for number, path in enumerate(self.cows):
            aio(target, f'cow{number}', path, block_bytes)


def beside(lab, name):
    """A folder for a second host at the same time."""
    other = type(lab)(lab.folder / name)
    other.folder.mkdir(exist_ok=True)
    return other


class Device:
    """A bdev over NVMe/TCP, written and read as a whole or in parts."""

    def __init__(self, lab, target, bdev, size):
        self.folder, self.size = beside(lab, f'host-{bdev}').folder, size
        self.host = host_of(beside(lab, f'host-{bdev}'), target, bdev)

    def write(self, offset, content, **options):
        path = self.folder / 'content'
        path.write_bytes(content)
        self.host.run('write', str(path), '--offset', str(offset), **options)

    def read(self, offset=0, length=None):
        path = self.folder / 'back'
        self.host.run('read', str(path), '--length', str(length or self.size - offset), '--offset', str(offset))
        return path.read_bytes()

    def fails(self, how='read', offset=0, length=4096):
        """Whether an I/O is answered with an error."""
        try:
            if how == 'read':
                self.read(offset, length)
            else:
                self.write(offset, bytes(length))
        except RuntimeError:
            return True
        return False


def line(rpc, name):
    """The status line."""
    return rpc.call('dm_status', name=name)['line']


def notified(rpc, kind):
    """The contexts of SPDK's notifications of one kind."""
    found = rpc.call('notify_get_notifications', id=0, max=1000)
    return [event['ctx'] for event in found if event['type'] == kind]
