# SPDX-License-Identifier: BSD-3-Clause
"""Era targets in the kernel: shell functions for its scripts."""

from pathlib import Path
from typing import Dict, Optional

from .machine import Kernel, Outcome

# The metadata are on the first disk, the origin is the second; the era device is /dev/mapper/era.
FUNCTIONS = r'''
meta=/dev/ubda origin=/dev/ubdb
era_open() {  # sectors, block size
    dmsetup create era --noudevsync --table "0 ${1:-$(blockdev --getsz $origin)} era $meta $origin ${2:-128}"
}
era_close() { dmsetup remove --noudevsync era; }
message() { dmsetup message era 0 "$*"; }
write() {  # offset in bytes, file: pieces of 4096 bytes
    dd if="$2" of=/dev/mapper/era bs=4096 seek="$1" oflag=seek_bytes conv=notrunc,fsync status=none
}
show() {
    echo "status=$(dmsetup status era)"
    echo "table=$(dmsetup table era)"
}
'''


class KernelEra:
    """The era target on two files, opened by the kernel for the time of one script."""

    def __init__(self, meta: Path, origin: Path):
        self.kernel = Kernel([meta, origin])

    @staticmethod
    def script(script: str, sectors: Optional[int] = None) -> str:
        return '\n'.join([FUNCTIONS, f'era_open {sectors or ""}', script, 'era_close'])

    def run(self, script: str, sectors: Optional[int] = None, files: Optional[Dict[str, bytes]] = None) -> Outcome:
        """Runs such a script, which must succeed."""
        return self.kernel.run(self.script(script, sectors), files=files)
