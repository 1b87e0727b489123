# SPDX-License-Identifier: BSD-3-Clause
"""What a load gets of a bdev while something else is done with it, beside what it gets alone."""

import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, List

from .process import NO_TRACES, START_SECONDS, environment, launch, options_for_memory

# Longer than anything measured takes: the load is ended when all is measured.
LOAD_SECONDS = 3600
# bdevperf of v20.07 uses emulated zero-copy unless told not to; later ones do that only if asked to.
COPYING = ['-x'] if os.environ.get('SPDK_DM_VERSION', '').startswith('20.') else []


def bdevperf(config: Path, bdev: str, folder: Path, depth: int = 32, core_mask: str = '0x1', memory_mb: int = 384,
             env=None, socket: str = '') -> subprocess.Popen:
    """bdevperf, mixed 4 KiB with 70 % reads, until it is ended."""
    command = [os.environ['SPDK_DM_BDEVPERF'], '--no-pci', '--huge-unlink', *NO_TRACES, '-m', core_mask, '-r',
               socket or str(folder / 'bdevperf.sock'), '--json', str(config), '-T', bdev, '-q', str(depth), '-o', '4096',
               '-w', 'randrw', '-M', '70', '-t', str(LOAD_SECONDS), *COPYING, *options_for_memory(memory_mb)]
    with open(folder / 'bdevperf.log', 'ab') as log:
        return launch(command, env or environment(), log)


class Foreground:
    """A load under way on a bdev of a target."""

    def __init__(self, rpc, bdev: str, process: subprocess.Popen, log: Path):
        self._rpc, self._bdev, self.process, self._log = rpc, bdev, process, log
        self._wait(lambda: self._ios() > 0)

    def _wait(self, condition: Callable) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if condition():
                    return
            except Exception:  # pylint: disable=broad-except
                # No socket yet, or no bdev.
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f'bdevperf does not work:\n{self._log.read_text(errors="replace")[-2000:]}')
            time.sleep(0.05)

    def _ios(self) -> int:
        found, = self._rpc.call('bdev_get_iostat', name=self._bdev)['bdevs']
        return found['num_read_ops'] + found['num_write_ops']

    def _rate(self, work: Callable[[], None]) -> float:
        began, before = time.monotonic(), self._ios()
        work()
        rate = (self._ios() - before) / (time.monotonic() - began)
        if self.process.poll() is not None:
            raise SystemExit(f'bdevperf has ended:\n{self._log.read_text(errors="replace")[-2000:]}')
        return rate

    def compare(self, work: Callable[[int], None], repetitions: int = 3, alone_seconds: float = 2) -> Dict:
        """Alternating: without, and while `work(repetition)` is done. I/Os per second and the ratio of the medians."""
        without: List[float] = []
        beside: List[float] = []
        for number in range(repetitions):
            without.append(self._rate(lambda: time.sleep(alone_seconds)))
            beside.append(self._rate(lambda n=number: work(n)))
        return {'without': without, 'beside': beside,
                'ratio': statistics.median(beside) / statistics.median(without)}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def told(what: str, found: Dict) -> str:
    """A line for people."""
    without, beside = (statistics.median(found[which]) for which in ('without', 'beside'))
    spread = ', '.join(f'{rate:,.0f}' for rate in sorted(found['beside']))
    return f'{what}: {beside:,.0f} I/O per second beside it ({spread}), {without:,.0f} without: {found["ratio"]:.2f}'
