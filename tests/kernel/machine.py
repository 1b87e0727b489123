# SPDX-License-Identifier: BSD-3-Clause
"""Boots Debian's user-mode-linux (a kernel that is a process; spdk-config/setup-kernel) with files as
its disks. Inside are busybox, dmsetup, lvm, mke2fs, e2fsck, blkdiscard, and the modules of device-mapper."""

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional

HERE = Path(__file__).resolve().parent
SETUP = HERE.parents[1] / 'spdk-config' / 'setup-kernel'
# A hang guard, not an expectation of speed.
RUN_SECONDS = 300
# Kernel messages that mean the judge itself is ill.
ILL = ('Kernel panic', 'BUG:', 'Oops', 'general protection fault')


class KernelError(Exception):
    """The kernel did not boot, hung, or fell ill; or a script that had to succeed did not."""


@dataclass
class Outcome:
    """What a script did: its exit status, its output (both streams), and the kernel's own messages."""
    status: int
    output: str
    dmesg: str
    console: str
    seconds: float

    def values(self) -> Dict[str, str]:
        """The lines `name=value` of the output."""
        return dict(line.split('=', 1) for line in self.output.splitlines() if '=' in line)


@lru_cache(maxsize=1)
def installed() -> Dict[str, str]:
    """The kernel and its root folder, set up if they are not there."""
    done = subprocess.run([str(SETUP), '--print-env'], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise KernelError(f'no kernel to test with:\n{done.stderr}')
    words = shlex.split(done.stdout)
    return dict(word.split('=', 1) for word in words if '=' in word)


class Kernel:
    """A machine with the given files as its disks /dev/ubda, /dev/ubdb and so on. Each `run` is one boot
    and one power-off; afterwards all that was written is in the files."""

    def __init__(self, disks: List[Path], memory_mb: int = 256):
        self._disks = [Path(disk).resolve() for disk in disks]
        self._memory_mb = memory_mb
        if len(disks) > 16:
            raise ValueError('a machine has at most 16 disks')

    @staticmethod
    def disk(number: int) -> str:
        """What the kernel calls a disk."""
        return f'/dev/ubd{chr(ord("a") + number)}'

    def run(self, script: str, check: bool = True, seconds: float = RUN_SECONDS,
            files: Optional[Dict[str, bytes]] = None) -> Outcome:
        """Boots and runs a shell script (under `sh -eu`); `files` are in /host. With `check`, a script that
        fails is an error."""
        with self._exchange(script, files) as folder:
            outcome = self._boot(folder, seconds)
        if check and outcome.status != 0:
            raise KernelError(f'the script ended with {outcome.status}:\n{outcome.output}\n'
                              f'{_last(outcome.dmesg)}')
        return outcome

    def crash(self, script: str, reached: Callable[[Path], bool], seconds: float = RUN_SECONDS,
              files: Optional[Dict[str, bytes]] = None) -> Dict[str, bytes]:
        """Boots, runs a script, and kills the machine as soon as `reached` says so of the folder that is
        /host inside. Returns the files that the script left there."""
        with self._exchange(script, files) as folder:
            before = set(os.listdir(folder))
            machine = self._start(folder)
            deadline = time.monotonic() + seconds
            try:
                while not reached(folder):
                    if machine.poll() is not None or time.monotonic() > deadline:
                        raise KernelError(f'the machine was to be killed, but it ended or hung:\n'
                                          f'{_last(_text(folder / "output"))}\n{_last(_text(folder / "console"))}')
                    time.sleep(0.01)
            finally:
                _end(machine)
            return {path.name: path.read_bytes() for path in folder.iterdir()
                    if path.is_file() and path.name not in before}

    @contextmanager
    def _exchange(self, script: str, files: Optional[Dict[str, bytes]]) -> Iterator[Path]:
        """The folder that is /host inside, for the time of one boot. Its path is short, because UML makes a
        socket in it."""
        folder = Path(tempfile.mkdtemp(prefix='uml'))
        try:
            (folder / 'script').write_text(script)
            shutil.copy(HERE / 'init', folder / 'init')
            for name, content in (files or {}).items():
                (folder / name).write_bytes(content)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _command(self, folder: Path) -> List[str]:
        where = installed()
        return [where['SPDK_DM_KERNEL'], f'mem={self._memory_mb}M', 'root=/dev/root', 'rootfstype=hostfs',
                f'rootflags={where["SPDK_DM_KERNEL_ROOT"]}', 'ro', 'init=/init', f'exchange={folder}',
                f'uml_dir={folder}', 'umid=m', 'con=null', 'con0=null,fd:1', 'quiet'] + [
                    f'ubd{number}={disk}' for number, disk in enumerate(self._disks)]

    def _environment(self, folder: Path) -> Dict[str, str]:
        """Where UML keeps its memory: containers have a /dev/shm of 64 MB, which is too small."""
        shm = Path('/dev/shm')
        roomy = shm.is_dir() and shutil.disk_usage(shm).free > self._memory_mb << 20
        return {**os.environ, 'TMPDIR': str(shm if roomy else folder)}

    def _start(self, folder: Path) -> subprocess.Popen:
        # A group of its own: UML is several processes, and all must go if one hangs.
        with open(folder / 'console', 'wb') as console:
            return subprocess.Popen(self._command(folder), env=self._environment(folder),
                                    stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                                    start_new_session=True, cwd=folder)

    def _boot(self, folder: Path, seconds: float) -> Outcome:
        began = time.monotonic()
        machine = self._start(folder)
        try:
            machine.wait(timeout=seconds)
            hung = False
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            _end(machine)
        took = time.monotonic() - began
        console, output, dmesg, status = (_text(folder / name) for name in ('console', 'output', 'dmesg', 'status'))
        if hung or not status:
            what = f'the kernel was still running after {seconds} s' if hung else \
                f'the kernel ended ({machine.returncode}) before the script did'
            raise KernelError(f'{what}\noutput:\n{_last(output)}\nconsole:\n{_last(console)}')
        for word in ILL:
            if word in dmesg or word in console:
                raise KernelError(f'the kernel says "{word}":\n{_last(dmesg, 80)}\n{_last(console)}')
        return Outcome(int(status), output, dmesg, console, took)


def _text(path: Path) -> str:
    return path.read_text(errors='replace') if path.exists() else ''


def _last(text: str, lines: int = 40) -> str:
    return '\n'.join(text.splitlines()[-lines:])


def _end(machine: subprocess.Popen) -> None:
    """Ends what is left of a machine's group of processes, and waits until none of them can write."""
    try:
        os.killpg(machine.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    machine.wait()
    while _living(machine.pid):
        time.sleep(0.01)


def _living(group: int) -> bool:
    """Whether a group has processes. Zombies, which only their new parent can take away, do not count."""
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, its_group = path.read_text().rpartition(')')[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state != 'Z':
            return True
    return False


def number_of(words: str) -> int:
    """The errno in an error message of dmsetup; 0 if there is none."""
    failure = re.search(r'failed: (.*)', words)
    if not failure:
        return 0
    return next(code for code in errno.errorcode if os.strerror(code) == failure.group(1).strip())
