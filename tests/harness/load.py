# SPDX-License-Identifier: BSD-3-Clause
"""A stress of a bdev by a host (tests/hostio), and what has come of it."""

import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

from .process import HostIO, START_SECONDS
from .pool import wait_for

# The word of a state file's header that asks a stress to stop (tests/hostio/src/ledger.rs).
STOP_AT = 24
HEADER_BYTES = 32
SECTOR_BYTES = 512
SLOT_SECTORS = 256
# A data block.
BLOCK_BYTES = 65536


class Progress(NamedTuple):
    """Operations, over all runs on one state file."""
    issued: int
    durable: int


class Load:
    """Writes, unmaps and zeroings under way on a bdev, with a state file that survives everything."""

    def __init__(self, host: HostIO, state: Path, *options: str):
        self._state = state
        self._log = host.folder / 'hostio.log'
        self._log_begin = self._log.stat().st_size if self._log.exists() else 0
        if state.exists():
            self._write_stop(b'\0')
        self.process: subprocess.Popen = host.start('stress', str(state), *options)

    def wait_durable(self, operations: int) -> None:
        """Until so many more operations than now are flushed and acknowledged. Of what is issued from now on
        some are among them if there are more than the load's workers and flushes leave unacknowledged."""
        before = progress(self._state).durable

        def enough():
            code = self.process.poll()
            assert code is None, f'the load ended with {code}:\n{self.tail()}'
            return progress(self._state).durable >= before + operations
        wait_for(enough)

    def finish(self) -> None:
        """Has it flush and end, well."""
        self.ask_to_finish()
        assert self.end_by_itself() == 0, self.tail()

    def end_by_itself(self) -> int:
        """The exit code of a load whose bdev has failed. It is not killed: it must end."""
        try:
            return self.process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f'the load hangs:\n{self.tail()}') from None

    def ask_to_finish(self) -> None:
        """It will flush and end, even if it has yet to begin."""
        self._write_stop(b'\1')

    def _write_stop(self, value: bytes) -> None:
        with open(self._state, 'r+b') as file:
            file.seek(STOP_AT)
            file.write(value)

    def kill(self) -> None:
        """For a load whose target is gone: it may wait for it for ever."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def text(self) -> str:
        """What it has printed."""
        return self._log.read_bytes()[self._log_begin:].decode(errors='replace')

    def tail(self) -> str:
        return self.text()[-2000:]


def progress(state: Path) -> Progress:
    """How far the stress of this state file has come (tests/hostio/src/ledger.rs)."""
    if not state.exists():
        return Progress(0, 0)
    with open(state, 'rb') as file:
        header = file.read(24)
    if len(header) < 24:
        return Progress(0, 0)
    _, issued, durable = struct.unpack('<QQQ', header)
    return Progress(issued, durable)


class Ledger:
    """What a stress had issued, or made durable, in each sector of its slots at some moment
    (tests/hostio/src/ledger.rs, stress.rs)."""

    def __init__(self, state, disk_bytes):
        content = state.read_bytes()
        self.slots = struct.unpack_from('<Q', content)[0]
        rows = self.slots * SLOT_SECTORS
        self.durable = struct.unpack_from(f'<{rows}Q', content, HEADER_BYTES)
        self.issued = struct.unpack_from(f'<{rows}Q', content, HEADER_BYTES + 8 * rows)
        self._spare = disk_bytes // SECTOR_BYTES // self.slots // 8

    def block(self, row):
        """The data block of 64 KiB a sector of a slot is in."""
        slot = row // SLOT_SECTORS
        shift = slot * 5 % min(max(self._spare - SLOT_SECTORS // 8, 1), 16)
        return ((slot * self._spare + shift) * 8 + row % SLOT_SECTORS) * SECTOR_BYTES // BLOCK_BYTES

    def written_after(self, before):
        """Blocks in which a write is durable that was issued after another moment."""
        return {self.block(row) for row, durable in enumerate(self.durable) if durable > before[row]}
