# SPDX-License-Identifier: BSD-3-Clause
"""Checks what a stress left on a disk, without any code that could have had a part in writing it. What it
writes, and its state file, are described in tests/hostio/src: stress.rs, stamp.rs, ledger.rs."""

import struct
from pathlib import Path

SECTOR_BYTES = 512
SLOT_SECTORS = 256
ALIGN_SECTORS = 8
MAGIC = 0x73646d7374726573
MASK = (1 << 64) - 1


def mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9 & MASK
    word = (word ^ word >> 27) * 0x94d049bb133111eb & MASK
    return word ^ word >> 31


def stamp(sector: int, sequence: int) -> bytes:
    """What a write puts into a sector: three words that tell which, and noise."""
    noise = mix(sector) ^ sequence
    words = [MAGIC, sector, sequence]
    while len(words) < SECTOR_BYTES // 8:
        noise = mix(noise + 0x9e3779b97f4a7c15 & MASK)
        words.append(noise)
    return struct.pack(f'<{len(words)}Q', *words)


def check_stamps(disk: Path, disk_bytes: int, state: Path) -> int:
    """Every sector of every slot holds what the state allows. Returns how many sectors were flushed."""
    content = state.read_bytes()
    slots, _, _ = struct.unpack_from('<3Q', content)
    columns = struct.unpack_from(f'<{3 * slots * SLOT_SECTORS}Q', content, 32)
    spare = disk_bytes // SECTOR_BYTES // slots // ALIGN_SECTORS
    shifts = min(max(spare - SLOT_SECTORS // ALIGN_SECTORS, 1), 16)
    with open(disk, 'rb') as file:
        for row in range(slots * SLOT_SECTORS):
            durable, issued, zeroed = (columns[row + column * slots * SLOT_SECTORS] for column in range(3))
            slot = row // SLOT_SECTORS
            sector = (slot * spare + slot * 5 % shifts) * ALIGN_SECTORS + row % SLOT_SECTORS
            file.seek(sector * SECTOR_BYTES)
            data = file.read(SECTOR_BYTES)
            where = f'sector {sector} ({durable} was flushed, {issued} issued, {zeroed} left zeroes)'
            if not any(data):
                assert zeroed >= durable, f'{where} holds zeroes'
                continue
            sequence = struct.unpack_from('<Q', data, 16)[0]
            assert data == stamp(sector, sequence), f'{where} holds foreign or torn data: {data[:24].hex()}'
            assert max(durable, 1) <= sequence <= issued, f'{where} holds write {sequence}'
    return sum(1 for durable in columns[:slots * SLOT_SECTORS] if durable)
