# SPDX-License-Identifier: BSD-3-Clause
"""Ploop images on files: made and judged by QEMU, and by a reader that knows nothing of the code that writes
them (ploop.md, Header)."""

import struct
import subprocess
from pathlib import Path
from typing import Dict, NamedTuple

from .pool import aio

MIB = 1 << 20
SECTOR = 512
SIGNATURES = {b'WithoutFreeSpace': 1, b'WithouFreSpacExt': 2}
IN_USE = 0x746F6E59


class Image(NamedTuple):
    """What an image file says."""
    version: int
    cluster: int
    size: int
    in_use: bool
    clusters: Dict[int, int]


def read_image(path: Path) -> Image:
    """Header and BAT: where each guest cluster is in the file, in bytes."""
    with open(path, 'rb') as file:
        header = file.read(64)
        signature, _, _, _, sectors, entries, size, in_use = struct.unpack('<16s5IQI', header[:48])
        version, cluster = SIGNATURES[signature], sectors * SECTOR
        unit = cluster if version == 2 else SECTOR
        bat = struct.unpack(f'<{entries}I', file.read(4 * entries))
    clusters = {number: entry * unit for number, entry in enumerate(bat) if entry}
    assert len(set(clusters.values())) == len(clusters), 'two clusters at one place'
    assert all(place >= 64 + 4 * entries for place in clusters.values())
    return Image(version, cluster, size * SECTOR, in_use == IN_USE, clusters)


def content_of(*chain: Path) -> bytes:
    """What a chain of images shows, the oldest first; the first may be raw."""
    top = read_image(chain[-1])
    held = bytearray(top.size)
    for path in chain:
        with open(path, 'rb') as file:
            if file.read(16) not in SIGNATURES:
                file.seek(0)
                raw = file.read(top.size)
                held[:len(raw)] = raw
                continue
            for number, place in read_image(path).clusters.items():
                file.seek(place)
                at = number * top.cluster
                part = file.read(top.cluster)[:top.size - at]
                held[at:at + len(part)] = part
    return bytes(held)


def qemu(tool, *words, codes=(0,)):
    """Runs one of QEMU's tools."""
    done = subprocess.run(['timeout', '120', tool, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    assert done.returncode in codes, (tool, words, done.returncode, done.stdout)
    return done.stdout


def make(path: Path, megabytes: int, cluster: int, device_mb: int) -> Path:
    """An empty image made by QEMU, in a file as long as its bdev is to be."""
    qemu('qemu-img', 'create', '-f', 'parallels', '-o', f'cluster_size={cluster}', path, f'{megabytes}M')
    with open(path, 'r+b') as file:
        file.truncate(device_mb * MIB)
    return path


def fill(path: Path, dice, writes: int, size: int) -> None:
    """Random writes by QEMU, which cuts the file behind the last cluster."""
    device = path.stat().st_size
    commands = []
    for _ in range(writes):
        length = dice.randrange(1, 300) * 1024
        commands += ['-c', f'write -P {dice.randrange(1, 256)} {dice.randrange(0, size - length, 1024)} {length}']
    qemu('qemu-io', '-f', 'parallels', *commands, path)
    with open(path, 'r+b') as file:
        file.truncate(device)


def flat(path: Path) -> bytes:
    """What QEMU reads from an image."""
    raw = path.with_suffix('.flat')
    qemu('qemu-img', 'convert', '-f', 'parallels', '-O', 'raw', path, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def sound(path: Path) -> None:
    """Nothing is wrong with it but leaks, says QEMU, and perhaps that it was not closed."""
    said = qemu('qemu-img', 'check', '-f', 'parallels', path, codes=(0, 2, 3))
    errors = [line for line in said.splitlines() if line.startswith('ERROR') and 'leaked' not in line]
    assert errors == (['ERROR image was not closed correctly'] if read_image(path).in_use else []), said


def bdevs(target, block_bytes=512, **files) -> None:
    """AIO bdevs by name."""
    for name, path in files.items():
        aio(target, name, path, block_bytes)
