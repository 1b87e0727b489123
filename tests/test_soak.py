# SPDX-License-Identifier: BSD-3-Clause
"""Everything at once, at random, on real programs, for a while."""

import collections
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from conftest import Lab
from harness.process import STARTED, end_all
from soak.events import WEIGHTS, Events, device_names


class Journal:
    """What was done, to standard output and beside the logs."""

    def __init__(self, path: Path):
        self._file = open(path, 'w', encoding='utf-8')
        self._start = time.monotonic()
        self.counts = collections.Counter()

    def __call__(self, text: str) -> None:
        line = f'{time.monotonic() - self._start:7.1f} {text}'
        print(line, flush=True)
        print(line, file=self._file, flush=True)


def backtraces(folder: Path) -> None:
    """Of all that still runs, where there is a debugger: for hangs."""
    for process in STARTED:
        if process.poll() is None and shutil.which('gdb'):
            with open(folder / f'backtrace.{process.pid}', 'wb') as file:
                subprocess.run(['gdb', '-p', str(process.pid), '-batch', '-ex', 'thread apply all bt'],
                               stdout=file, stderr=subprocess.DEVNULL, check=False, timeout=120)


def test_soak():
    """A pool on a drive over NVMe/TCP, thin devices and snapshots under verifying load by several
    hosts; meanwhile target, drive and hosts are killed, connections cut, bdevs removed, space runs
    out, and RPCs come at random. Nothing flushed is lost, snapshots keep their content, both checks
    accept the metadata. SOAK_SECONDS bounds the events, SOAK_SEED repeats their choice."""
    seed = int(os.environ.get('SOAK_SEED') or random.SystemRandom().randrange(1 << 32))
    seconds = float(os.environ.get('SOAK_SECONDS') or 60)
    folder = Path(tempfile.mkdtemp(prefix=f'spdk-dm-soak-{seed}-'))
    journal = Journal(folder / 'journal')
    journal(f'SOAK_SEED={seed}, {seconds:.0f} s, logs in {folder}')
    dice = random.Random(seed)
    done = journal.counts
    try:
        soak = Events(Lab(folder), dice, journal)
        journal(f'data of {soak.data_mb} MB, features {soak.features}')
        soak.first_start()
        for _ in range(2):
            soak.create()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            name = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            journal(f'{name}: {device_names(soak.model.devices.values())}')
            if soak.run(name):
                done[name] += 1
            time.sleep(dice.random() * 0.5)
        journal('the end')
        soak.finish()
        journal(f'SOAK_SEED={seed}: {sum(done.values())} events: '
                + ', '.join(f'{n} {name}' for name, n in sorted(done.items())))
    except BaseException:
        backtraces(folder)
        journal(f'FAILED: make soak SEED={seed} repeats the choices; logs are kept in {folder}')
        raise
    finally:
        end_all()
    shutil.rmtree(folder)
