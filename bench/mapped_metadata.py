# SPDX-License-Identifier: BSD-3-Clause
"""Metadata of large pools, made once by `spdk-dm restore` and kept in the cache folder."""

import os
import shutil
import subprocess
from pathlib import Path

from harness import program

# Data blocks of a run; runs are scattered over the data device, as in a pool that has been in use.
RUN_BLOCKS = 64
# Mappings of a full leaf of 4 KiB.
LEAF_MAPPINGS = 252
# A number of the name of each file: files made otherwise are not taken for these.
EDITION = 1


def cache_folder() -> Path:
    """The cache of spdk-config/, where nothing is part of a checkout."""
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('SPDK_DM_CACHE') or Path(base) / 'spdk-dm') / 'bench'


def _write_xml(path: Path, devices: list, data_blocks: int) -> None:
    total = sum(devices)
    runs = -(-total // RUN_BLOCKS)
    # Odd, so for a power of two of places each is visited once; others are skipped.
    span = 1 << max(runs - 1, 1).bit_length()
    number = 0
    with open(path, 'w', encoding='ascii') as out:
        out.write(f'<superblock uuid="" time="0" transaction="0" flags="0" version="2" '
                  f'data_block_size="128" nr_data_blocks="{data_blocks}">\n')
        for device, blocks in enumerate(devices, 1):
            out.write(f'<device dev_id="{device}" mapped_blocks="{blocks}" transaction="0" '
                      f'creation_time="0" snap_time="0">\n')
            for begin in range(0, blocks, RUN_BLOCKS):
                while True:
                    place = number * 0x9E3779B1 % span
                    number += 1
                    if place < runs:
                        break
                length = min(RUN_BLOCKS, blocks - begin)
                out.write(f'<range_mapping origin_begin="{begin}" data_begin="{place * RUN_BLOCKS}" '
                          f'length="{length}" time="0"/>\n')
            out.write('</device>\n')
        out.write('</superblock>\n')


def metadata_file(devices: list, data_blocks: int, spare_mib: int = 16) -> Path:
    """A file with the metadata of a pool whose devices 1, 2, … have so many mappings. Not to be written
    to: see `private_copy`."""
    if any(blocks % RUN_BLOCKS for blocks in devices):
        raise SystemExit(f'mappings must be a multiple of {RUN_BLOCKS}')
    name = 'x'.join(map(str, devices))
    path = cache_folder() / f'pool-{EDITION}-{name}-of-{data_blocks}-spare-{spare_mib}.img'
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    total = sum(devices)
    # Leaves, what is above them, and counts of the data blocks (2 bits each).
    mib = (total // LEAF_MAPPINGS * 4096 * 11 // 10 + data_blocks // 4 * 11 // 10 >> 20) + spare_mib
    xml, new = path.with_suffix('.xml'), path.with_suffix('.new')
    try:
        print(f'making {path.name}: {total:,} mappings, {mib} MiB', flush=True)
        _write_xml(xml, devices, data_blocks)
        new.unlink(missing_ok=True)
        subprocess.run([program('spdk-dm'), 'restore', '-q', '-i', str(xml), '-o', str(new),
                        '--size-mib', str(mib)], check=True)
        new.rename(path)
    finally:
        xml.unlink(missing_ok=True)
        new.unlink(missing_ok=True)
    return path


def private_copy(path: Path, folder: Path) -> Path:
    """A copy that may be written to."""
    copy = folder / 'metadata.img'
    copy.unlink(missing_ok=True)
    subprocess.run(['cp', '--sparse=always', '--reflink=auto', str(path), str(copy)], check=True)
    return copy


def memory_folder(needed_bytes: int, otherwise: Path) -> Path:
    """A folder in memory if there is that much room: the disk's own stalls are not what is measured."""
    memory = Path('/dev/shm')
    if memory.is_dir() and shutil.disk_usage(memory).free > needed_bytes * 5 // 4:
        return memory
    return otherwise
