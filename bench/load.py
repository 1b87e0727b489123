# SPDX-License-Identifier: BSD-3-Clause
"""A load inside an SPDK program with the plugin (spdk_dm_hostio latency), RPCs beside it, and its figures."""

import json
import os
import statistics
import re
import subprocess
import time
from pathlib import Path
from typing import Optional

from harness import RpcClient, program
from harness.process import START_SECONDS, environment

LINE = re.compile(r'^phase (\S+) ios (\d+) rate (\d+) p50_us (\S+) p99_us (\S+) p999_us (\S+) max_us (\S+)')


def config_file(folder: Path, methods: list) -> Path:
    path = folder / 'config.json'
    path.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': methods}]}))
    return path


def memory_bytes(pid: int) -> int:
    """What a process has of memory beside hugepages (smaps_rollup)."""
    text = Path(f'/proc/{pid}/smaps_rollup').read_text(encoding='ascii')
    return int(re.search(r'^Rss:\s+(\d+) kB', text, re.M)[1]) * 1024


class Load:
    """Waits for its bdev, then works on it in phases; each lasts until `end` is called."""

    def __init__(self, folder: Path, methods: list, bdev: str, phases: list, options: list,
                 memory_mib: int, mask: str = '0x3', rpc_seconds: float = 600):
        self._folder = folder
        self._log = folder / 'load.log'
        self._phases = [folder / phase for phase in phases]
        for path in self._phases:
            path.unlink(missing_ok=True)
        env = environment()
        env['LD_PRELOAD'] = program('libspdk_dm.so')
        socket = str(folder / 'load.sock')
        command = [program('spdk_dm_hostio'), '--json', str(config_file(folder, methods)), '--bdev', bdev,
                   '--wait', '--mask', mask, '--mem', str(memory_mib), '--socket', socket]
        if os.environ.get('SPDK_DM_NO_HUGE'):
            command.append('--no-huge')
        command += ['latency'] + options + ['--phases'] + [str(path) for path in self._phases]
        with open(self._log, 'wb') as log:
            # pylint: disable-next=consider-using-with
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=log, text=True)
        self.rpc = RpcClient(socket, timeout=rpc_seconds)

    def __enter__(self) -> 'Load':
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def _failed(self, said: str) -> SystemExit:
        if self.process.poll() is None:
            self.process.kill()
        return SystemExit(f'the load failed: {said}\n{self._log.read_text(errors="replace")[-2000:]}')

    def wait_rpc(self) -> None:
        """Until RPCs are answered, and so everything of the configuration is there."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                self.rpc.call('bdev_get_bdevs')
                return
            except Exception:  # pylint: disable=broad-except
                # No socket yet, or this method not before the configuration is loaded.
                time.sleep(0.02)
        raise self._failed('it does not answer')

    def wait_first(self) -> float:
        """Until the first I/O is answered: the seconds it took."""
        # DPDK speaks on the standard output, too.
        for line in self.process.stdout:
            found = re.match(r'first (\S+)', line)
            if found:
                return float(found[1]) / 1e6
        raise self._failed('it has ended')

    def end(self, phase: str) -> None:
        (self._folder / phase).touch()

    def results(self) -> dict:
        """Figures by phase, when the last one was ended."""
        out, _ = self.process.communicate(timeout=START_SECONDS)
        if self.process.returncode != 0:
            raise self._failed(out)
        found = {}
        for line in out.splitlines():
            match = LINE.match(line)
            if match:
                names = ('ios', 'rate', 'p50_us', 'p99_us', 'p999_us', 'max_us')
                found[match[1]] = dict(zip(names, map(float, match.groups()[1:])))
        return found


def run_measured(command: list, env: dict, log: Path) -> tuple:
    """Runs a program: exit code, what it printed, and the most it had of memory beside hugepages."""
    with open(log, 'w+b') as output:
        # pylint: disable-next=consider-using-with
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return process.returncode, output.read().decode(errors='replace'), usage.ru_maxrss * 1024


# (title, options of hostio latency, subjects)
LATENCY_ROWS = [
    (f'latency of random {what}s of 4 KiB, depth {depth}',
     ['--workload', what, '--depth', str(depth), '--cores', '1'],
     ['null', 'passthru on null', 'thin on null, 1M mappings', 'lvol on malloc', 'thin on malloc'])
    for what, depth in [('read', 1), ('write', 32)]]


def latency_row(title: str, options: list, made: dict, folder: Path, memory_mib: int, arguments) -> dict:
    """Medians of percentiles, in microseconds. `made`: name -> (configuration, bdev)."""
    found: dict = {name: [] for name in made}
    for _ in range(arguments.repetitions):
        for name, (methods, bdev) in made.items():
            with Load(folder, methods, bdev, ['warm', 'run'], options, memory_mib, '0x1') as load:
                load.wait_first()
                time.sleep(arguments.seconds / 2)
                load.end('warm')
                time.sleep(arguments.seconds)
                load.end('run')
                found[name].append(load.results()['run'])
    print(f'\n{title} (µs)')
    medians = {}
    for name, runs in found.items():
        medians[name] = {field: statistics.median(run[field] for run in runs) for field in runs[0]}
        row = medians[name]
        print(f'  {name:32} p50 {row["p50_us"]:8.1f}   p99 {row["p99_us"]:8.1f}   p99.9 {row["p999_us"]:8.1f}'
              f'   longest {row["max_us"]:9.1f}   {row["rate"]:12,.0f} /s', flush=True)
    return {'title': title, 'latencies': found, 'medians': medians}


def write_json(path: Optional[Path], figures: dict) -> None:
    if path:
        path.write_text(json.dumps({'spdk': os.environ['SPDK_DM_VERSION'], **figures}, indent=2))
