# SPDX-License-Identifier: BSD-3-Clause
"""Two bdevperfs on the same cores at the same time: whatever else the machine does disturbs both alike, and the
operating system gives each half of a core. So the ratio of what they do is steady where that of runs one after the
other is not."""

import re
import subprocess
import threading
import time
from pathlib import Path

from harness import RpcClient, RpcError

# Seconds after which a program that does not answer is given up.
START_LIMIT = 60


def has_bdev(process: subprocess.Popen, rpc: RpcClient, bdev: str) -> bool:
    """Waits until a program has a bdev; false when it has ended or takes too long."""
    deadline = time.monotonic() + START_LIMIT
    while True:
        try:
            rpc.call('bdev_get_bdevs', name=bdev)
            return True
        except (OSError, RpcError):
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.05)


class Perf:
    """A bdevperf that waits for its test to be asked for (its option -z)."""

    def __init__(self, folder: Path, command: list, env: dict, bdev: str):
        self._log = folder / 'perf.log'
        with open(self._log, 'wb') as log:
            # pylint: disable-next=consider-using-with
            self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=subprocess.STDOUT)
        self._rpc = RpcClient(str(folder / 'perf.sock'), timeout=600)
        self._bdev = bdev

    def __enter__(self) -> 'Perf':
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()

    def _failed(self, what: str) -> SystemExit:
        return SystemExit(f'bdevperf {what}:\n{self._log.read_text(errors="replace")[-2000:]}')

    def wait_ready(self) -> None:
        if not has_bdev(self._process, self._rpc, self._bdev):
            raise self._failed('does not start')

    def test(self) -> None:
        self._rpc.call('perform_tests')

    def rate(self) -> float:
        """I/Os per second, once the test is over."""
        self._process.terminate()
        try:
            self._process.wait(timeout=START_LIMIT)
        except subprocess.TimeoutExpired:
            raise self._failed('does not end') from None
        found = re.findall(r'Total\s*:\s*(\d+\.\d+)', self._log.read_text(errors='replace'))
        if not found:
            raise self._failed('failed')
        # When it is ended it prints figures once more, some versions of nothing.
        return float(found[0])


def rates_together(perfs: list) -> list:
    """What each does while all do; they have been started."""
    for perf in perfs:
        perf.wait_ready()
    failures = []

    def test(perf: Perf) -> None:
        try:
            perf.test()
        except (OSError, RpcError) as error:
            failures.append(error)

    threads = [threading.Thread(target=test, args=(perf,)) for perf in perfs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f'bdevperf failed: {failures[0]}')
    return [perf.rate() for perf in perfs]
