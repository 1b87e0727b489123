# SPDX-License-Identifier: BSD-3-Clause
"""What the scripts of the use cases (spdk-config/) have in common: steps that are told, an ext4 file system whose bytes
are compared, a host that works on a bdev all the while, a peer that is stopped."""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

from .foreground import Foreground, bdevperf, told
from .load import Load, progress
from .pool import host_of
from .process import HostIO, SpdkProcess, end_all, launch, program

MIB = 1 << 20
BLOCK = 65536
# A hang guard.
HANG_SECONDS = 300
# Where Debian has mkfs.ext4 and the like, also for those who are not root.
TOOLS = {**os.environ, 'PATH': os.environ['PATH'] + ':/usr/sbin:/sbin'}
STEPS: List[str] = []


def step(text: str) -> None:
    STEPS.append(text)
    print(f'[{len(STEPS):2}] {text}', flush=True)


def done(text: str) -> None:
    print(f'     {text}', flush=True)


def expect(fine: bool, text: str) -> None:
    if not fine:
        raise SystemExit(f'FAILED: {text}')


def tool(*words) -> str:
    """A tool of e2fsprogs."""
    command = [str(word) for word in words]
    try:
        found = subprocess.run(command, env=TOOLS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, timeout=HANG_SECONDS, check=False)
    except FileNotFoundError:
        raise SystemExit(f'{command[0]} is missing: install e2fsprogs') from None
    expect(found.returncode == 0, f'{" ".join(command)}:\n{found.stdout}{found.stderr}')
    return found.stdout


def file_of(folder: Path, name: str, megabytes: int) -> Path:
    with open(folder / name, 'wb') as file:
        file.truncate(megabytes * MIB)
    return folder / name


def dm_command(target, *words) -> list:
    return [program('spdk-dm'), *map(str, words), '--socket', target.process.socket]


def dm(target, *words) -> str:
    """`spdk-dm` beside a target; what it prints."""
    found = subprocess.run(dm_command(target, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           timeout=HANG_SECONDS, check=False)
    expect(found.returncode == 0, f'spdk-dm {" ".join(map(str, words))}:\n{found.stdout}{found.stderr}')
    return found.stdout


def dm_start(target, *words) -> subprocess.Popen:
    """The same, without waiting for its end."""
    with open(Path(target.process.socket).with_suffix('.spdk-dm.log'), 'ab') as log:
        return launch(dm_command(target, *words), dict(os.environ), log)


@contextlib.contextmanager
def stopped(process: SpdkProcess) -> Iterator[None]:
    """A process that is there and does nothing: so a peer looks when the network is cut."""
    process.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.process.send_signal(signal.SIGCONT)


def stands_still(count: Callable[[], int], seconds: float = 0.3) -> bool:
    """Whether what is counted does not grow any more, but for what had been under way."""
    time.sleep(seconds)
    before = count()
    time.sleep(seconds)
    return count() == before


def bytes_of(target, bdev: str, which: str) -> int:
    """`bytes_read` or `bytes_written` of a bdev."""
    return target.rpc.call('bdev_get_iostat', name=bdev)['bdevs'][0][which]


class FileSystem:
    """An ext4 image that changes, and how it was when it was last written to a device."""

    def __init__(self, folder: Path, size_mib: int):
        self._folder, self._size_mib = folder / 'file-system', size_mib
        self._folder.mkdir()
        self.image, self.written = file_of(folder, 'image.ext4', size_mib), file_of(folder, 'written.ext4', size_mib)
        self._names: List[str] = []
        self._written_names: List[str] = []
        tool('mkfs.ext4', '-q', '-F', '-b', 4096, '-O', '^has_journal', self.image)

    def add(self, name: str, megabytes: int) -> None:
        path = self._folder / name
        path.write_bytes(os.urandom(megabytes * MIB))
        tool('debugfs', '-w', '-R', f'write {path} {name}', self.image)
        self._names.append(name)

    def remove(self, name: str) -> None:
        tool('debugfs', '-w', '-R', f'rm {name}', self.image)
        self._names.remove(name)

    def changed(self) -> List[Tuple[int, bytes]]:
        """Blocks that are not on the device yet, by their places."""
        now, before = self.image.read_bytes(), self.written.read_bytes()
        return [(at, now[at:at + BLOCK]) for at in range(0, len(now), BLOCK) if now[at:at + BLOCK] != before[at:at + BLOCK]]

    def now_written(self) -> None:
        shutil.copy(self.image, self.written)
        self._written_names = list(self._names)

    def check(self, contents: bytes) -> None:
        """They are the image as it was written, and a good file system with its files."""
        expect(contents == self.written.read_bytes(), 'these are not the bytes that were written')
        back, copy = self._folder / 'back', self._folder / 'copy'
        back.write_bytes(contents)
        tool('e2fsck', '-fn', back)
        for name in self._written_names:
            tool('debugfs', '-R', f'dump {name} {copy}', back)
            expect(copy.read_bytes() == (self._folder / name).read_bytes(), f'{name} is not as it was')
        done(f'all {self._size_mib} MiB equal, e2fsck content, {", ".join(self._written_names)} as written')


class Host:
    """A host that uses a bdev over NVMe/TCP: it writes and reads stamped sectors in the first part of it all the while, and
    has a file system in the rest."""

    # Of the device, for the load.
    LOAD_MIB = 16

    def __init__(self, lab, target, bdev: str, files: FileSystem, load_options=()):
        self.files, self._lab, self._options = files, lab, load_options
        self.bytes = self.LOAD_MIB * MIB + files.image.stat().st_size
        self._state = lab.folder / 'load.state'
        self._load: Load
        self.connect(target, bdev)

    def connect(self, target, bdev: str) -> None:
        """Exports the bdev, and connects to it."""
        self._target, self._bdev = target, bdev
        self._worker = self._host(target, bdev, 'worker')
        self._worker.use_only(self.LOAD_MIB * MIB)
        self._host_of_files = self._host(target, bdev, 'files', self._worker.port)

    def _host(self, target, bdev, name, port=None) -> HostIO:
        lab = type(self._lab)(self._lab.folder / name)
        lab.folder.mkdir(parents=True, exist_ok=True)
        return host_of(lab, target, bdev, port=port)

    def begin_load(self) -> None:
        self._load = Load(self._worker, self._state, '--slots', '64', '--workers', '4', *self._options)
        self._load.wait_durable(20)

    def work_goes_on(self) -> None:
        """More is written, and flushed."""
        self._load.wait_durable(20)

    def durable(self) -> int:
        """Operations of the load that were flushed."""
        return progress(self._state).durable

    def end_load(self) -> None:
        """Ends it well, and verifies."""
        self._load.finish()
        self.verify()

    def drop_load(self) -> None:
        """For a target that is gone."""
        self._load.kill()

    def verify(self) -> None:
        """What the load had made durable is there, and nothing foreign."""
        self._worker.run('verify', str(self._state))
        done(f'{self.durable()} operations of the host were flushed: it finds them all')

    def write_files(self) -> None:
        """What has changed of the file system."""
        self._host_of_files.run('write', str(self.files.image), '--offset', str(self.LOAD_MIB * MIB), '--since',
                                str(self.files.written))
        self.files.now_written()

    def read(self) -> bytes:
        """All of the device."""
        back = self._lab.folder / 'back'
        self._host_of_files.run('read', str(back), '--length', str(self.bytes))
        return back.read_bytes()

    def foreground(self, what: str, work: Callable[[int], None]) -> None:
        """Overwrites all of the device."""
        foreground(self._lab, self._target, self._bdev, what, work, self._worker.port)

    def files_in(self, contents: bytes) -> bytes:
        return contents[self.LOAD_MIB * MIB:]


def foreground(lab, target, bdev: str, what: str, work: Callable[[int], None], port=None) -> None:
    """Prints what bdevperf, as a host over NVMe/TCP, gets of a bdev beside some work, and without. It writes to it."""
    host_of(lab, target, bdev, name='bdevperf', port=port)
    # Beside the drive, if there is no core to spare.
    core_mask = '0x4' if (os.cpu_count() or 1) > 2 else '0x1'
    process = bdevperf(lab.folder / 'bdevperf.json', 'remoten1', lab.folder, core_mask=core_mask)
    load = Foreground(target.rpc, bdev, process, lab.folder / 'bdevperf.log')
    done(told(what, load.compare(work)))
    done(f'(by a host, a drive, a target and spdk-dm on {os.cpu_count()} cores: make bench-foreground measures without the first two)')
    load.end()


def main(doc: str, lab_class, run: Callable) -> None:
    """Runs a script's `run(lab, short)` in a folder of its own, and leaves no process behind."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--short', action='store_true', help='small, and without bdevperf: as `make test` runs it')
    parser.add_argument('--keep', action='store_true', help='keep the folder with logs and files')
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix='spdk-dm-'))
    try:
        run(lab_class(folder), options.short)
        print('right at every step')
    finally:
        end_all()
        if options.keep:
            print(f'kept: {folder}')
        else:
            shutil.rmtree(folder, ignore_errors=True)
