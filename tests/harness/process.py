# SPDX-License-Identifier: BSD-3-Clause
"""SPDK processes: started with the right libraries, known by pid, and gone in the end."""

import atexit
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import List, Optional

from .rpc import RpcClient

# A hang guard, not an expectation of speed.
START_SECONDS = 120


def environment() -> dict:
    if 'SPDK_DM_TGT' not in os.environ:
        raise SystemExit('the SPDK environment is not set: run this by `make` '
                         '(or: eval "$(spdk-config/setup-spdk --print-env)")')
    env = dict(os.environ)
    env['LD_LIBRARY_PATH'] = os.environ['SPDK_DM_LIBRARY_PATH']
    return env


def program(name: str) -> str:
    """A program or library built from this checkout."""
    root = Path(__file__).resolve().parents[2]
    target = Path(os.environ.get('CARGO_TARGET_DIR', root / 'target'))
    path = target / 'release' / name
    if not path.exists():
        raise SystemExit(f'{path} is missing: run `make build`')
    return str(path)


def sweep_traces() -> None:
    """Removes the trace files (130 MB of memory each) that killed SPDK programs have left."""
    for path in Path('/dev/shm').glob('spdk_*_trace.pid*'):
        if not Path('/proc', path.name.rpartition('pid')[2]).exists():
            path.unlink(missing_ok=True)


def options_for_memory(megabytes: int) -> List[str]:
    no_huge = os.environ.get('SPDK_DM_NO_HUGE', '')
    return ['-s', str(megabytes)] + ([no_huge] if no_huge else [])


# As few as there can be: 130 MB of them take half a second to make.
NO_TRACES = ['--num-trace-entries', '1']


# Everything started and not yet seen to be gone, whoever started it and whatever became of him.
STARTED: List[subprocess.Popen] = []


def launch(arguments: List[str], env: dict, output, **options) -> subprocess.Popen:
    """Starts a program that `end_all` ends; `output` gets what it prints."""
    process = subprocess.Popen(arguments, env=env, stdin=subprocess.DEVNULL, stdout=output,
                               stderr=subprocess.STDOUT, **options)
    STARTED.append(process)
    return process


def spdk_major() -> int:
    """The year of SPDK's version."""
    return int(os.environ['SPDK_DM_VERSION'].split('.')[0])


def end_all() -> None:
    """Ends all that this harness has started and that still runs."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
        process.wait()
    sweep_traces()


atexit.register(end_all)


class SpdkProcess:
    """An SPDK program with an RPC socket. `plugin` preloads libspdk_dm.so into it alone."""

    def __init__(self, command: List[str], folder: Path, name: str, plugin: bool = False,
                 core_mask: str = '0x1', memory_mb: int = 384):
        self.name = name
        self.socket = str(folder / f'{name}.sock')
        self.log = folder / f'{name}.log'
        env = environment()
        if plugin:
            env['LD_PRELOAD'] = program('libspdk_dm.so')
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        # Unlinked, hugepages of a killed process are free again.
        arguments = command + ['--no-pci', '--huge-unlink', *NO_TRACES, '-m', core_mask, '-r', self.socket]
        if spdk_major() >= 23:
            # Programs of a test share cores.
            arguments.append('--disable-cpumask-locks')
        with open(self.log, 'ab') as log:
            self.process = launch(arguments + options_for_memory(memory_mb), env, log)
        self.rpc = RpcClient(self.socket)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f'{self.name} ended with {self.process.returncode}:\n{self.tail()}')
            try:
                self.rpc.call('rpc_get_methods', current=True)
                return
            except (OSError, ConnectionError):
                time.sleep(0.05)
        self.kill()
        raise RuntimeError(f'{self.name} does not answer:\n{self.tail()}')

    def tail(self, lines: int = 40) -> str:
        return '\n'.join(self.log.read_text(errors='replace').splitlines()[-lines:])

    def stop(self) -> int:
        """Clean shutdown; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            tail = self.tail()
            self.kill()
            raise RuntimeError(f'{self.name} does not stop:\n{tail}') from None

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        sweep_traces()


class HostIO:
    """A host: connects to an exported bdev and does one command (tests/hostio)."""

    def __init__(self, folder: Path, config: Path, bdev: str, core_mask: str = '0x2',
                 plugin: bool = False):
        self.folder = folder
        self.port: Optional[int] = None  # Of the export, if it is one.
        self._plugin = plugin
        self._arguments = [program('spdk_dm_hostio'), '--json', str(config), '--bdev', bdev,
                           '--mask', core_mask, '--socket', str(folder / 'hostio.sock')]
        if os.environ.get('SPDK_DM_NO_HUGE'):
            self._arguments.append('--no-huge')

    def use_only(self, size: int) -> None:
        """Of a bdev that grows: bytes from its beginning that count."""
        self._arguments += ['--bytes', str(size)]

    def start(self, *command: str) -> subprocess.Popen:
        env = environment()
        if self._plugin:
            env['LD_PRELOAD'] = program('libspdk_dm.so')
        with open(self.folder / 'hostio.log', 'ab') as log:
            return launch(self._arguments + list(command), env, log)

    def run(self, *command: str, timeout: Optional[float] = 300) -> None:
        process = self.start(*command)
        try:
            code = process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = -1
        if code != 0:
            log = (self.folder / 'hostio.log').read_text(errors='replace')
            raise RuntimeError(f'hostio {" ".join(command)} ended with {code}:\n{log[-3000:]}')
