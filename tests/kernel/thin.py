# SPDX-License-Identifier: BSD-3-Clause
"""Thin pools in the kernel: shell functions for its scripts, and what they print, read."""

from pathlib import Path
from typing import Dict, Iterable, List, Optional

from .machine import Kernel, Outcome

# The pool is on the first two disks, or on $meta and $data. Thin device N is /dev/mapper/tN, and its size is given.
FUNCTIONS = r'''
meta=/dev/ubda data=/dev/ubdb
pool_open() {  # features
    dmsetup create pool --noudevsync --table \
        "0 $(blockdev --getsz $data) thin-pool $meta $data 128 ${low_water:-0} $# $*"
}
thin_open() {  # id, sectors
    dmsetup create "t$1" --noudevsync --table "0 $2 thin /dev/mapper/pool $1"
}
thin_close() { dmsetup remove --noudevsync "t$1"; }
pool_close() { dmsetup remove --noudevsync pool; }
message() { dmsetup message pool 0 "$*"; }
snapshot() {  # new id, id of an open origin
    dmsetup suspend "t$2"
    message create_snap "$1" "$2"
    dmsetup resume --noudevsync "t$2"
}
sum() { echo "sum$1=$(sha256sum <"/dev/mapper/t$1" | cut -d ' ' -f 1)"; }
write() {  # id, offset in bytes, file: pieces of 4096 bytes
    dd if="$3" of="/dev/mapper/t$1" bs=4096 seek="$2" oflag=seek_bytes conv=notrunc,fsync status=none
}
discard() { blkdiscard -o "$2" -l "$3" "/dev/mapper/t$1"; }  # id, offset and length in bytes
show() {  # name of a device
    echo "status_$1=$(dmsetup status "$1")"
    echo "table_$1=$(dmsetup table "$1")"
}
'''


class KernelPool:
    """The pool on two files, opened by the kernel for the time of one script."""

    def __init__(self, meta: Path, data: Path, *more: Path):
        self.kernel = Kernel([meta, data, *more])

    def script(self, script: str, devices: Dict[int, int], features: Iterable[str] = (), low_water: int = 0,
               before: str = '') -> str:
        """Opens the pool, runs `before`, opens the devices (id: size in sectors), runs the script, closes
        what is left open."""
        lines: List[str] = [FUNCTIONS, f'low_water={low_water}', f'pool_open {" ".join(features)}', before]
        lines += [f'thin_open {number} {sectors}' for number, sectors in devices.items()]
        lines += [script, 'for open in /dev/mapper/t*; do', '[ ! -b "$open" ] || thin_close "${open##*/t}"',
                  'done', 'pool_close']
        return '\n'.join(lines)

    def run(self, script: str, devices: Dict[int, int], files: Optional[Dict[str, bytes]] = None,
            **options) -> Outcome:
        """Runs such a script, which must succeed."""
        return self.kernel.run(self.script(script, devices, **options), files=files)
