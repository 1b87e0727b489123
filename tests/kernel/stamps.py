# SPDX-License-Identifier: BSD-3-Clause
"""Checks what a stress (tests/hostio/src/stress.rs) left on a disk, without any code of ours that could
have had a part in writing it. The format of stamps and state file is described there."""

import struct
from pathlib import Path
from typing import List

SLOT_BYTES = 4096
SECTOR_BYTES = 512
MAGIC = 0x73646d7374726573


def slots_issued(state: Path) -> List[tuple]:
    """(flushed, issued) of each slot."""
    return list(struct.iter_unpack('<QQ', state.read_bytes()))


def check_stamps(disk: Path, disk_bytes: int, state: Path) -> int:
    """Every slot of the disk holds a write between the last one flushed and the last one issued. Returns how
    many slots hold one that was flushed."""
    slots = slots_issued(state)
    stride = max(disk_bytes // len(slots) // SLOT_BYTES, 1)
    with open(disk, 'rb') as file:
        for slot, (flushed, issued) in enumerate(slots):
            file.seek(slot * stride * SLOT_BYTES)
            data = file.read(SLOT_BYTES)
            for number in range(SLOT_BYTES // SECTOR_BYTES):
                sector = data[number * SECTOR_BYTES:(number + 1) * SECTOR_BYTES]
                words = struct.unpack_from('<4Q', sector)
                if not any(sector):
                    found = 0
                else:
                    assert words[:2] == (MAGIC, slot) and words[3] == number, \
                        f'slot {slot}, sector {number}: foreign data {words}'
                    found = words[2]
                assert flushed <= found <= issued, \
                    f'slot {slot}, sector {number}: holds write {found}; {flushed} was flushed, {issued} issued'
    return sum(1 for flushed, _ in slots if flushed)
