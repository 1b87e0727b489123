# SPDX-License-Identifier: BSD-3-Clause
"""The judge itself: a kernel boots, its disks are the files, and failures and hangs of it are told."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from kernel import Kernel, KernelError

SETUP = Path(__file__).resolve().parents[1] / 'spdk-config' / 'setup-kernel'
OFFLINE = ['unshare', '--map-root-user', '--net']


def setup(*options, before=(), **env):
    return subprocess.run([*before, str(SETUP), *options], env={**os.environ, **env}, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, check=False)


def processes_in(folder: Path) -> list:
    """The processes that run in a folder or below it."""
    found = []
    for process in Path('/proc').glob('[0-9]*'):
        try:
            if str(process.joinpath('cwd').readlink()).startswith(f'{folder}/'):
                found.append(process.name)
        except OSError:
            pass
    return found


def test_script_and_disks(lab):
    """Status, output and what is written to disks come out; what is on them is seen inside."""
    first, second = lab.file('first', 1), lab.file('second', 2)
    content = os.urandom(4096)
    first.write_bytes(content + bytes((1 << 20) - 4096))
    outcome = Kernel([first, second]).run('''
        echo "sizes=$(blockdev --getsize64 /dev/ubda) $(blockdev --getsize64 /dev/ubdb)"
        echo "targets=$(dmsetup targets | cut -d ' ' -f 1 | sort | tr '\\n' ' ')"
        dd if=/dev/ubda of=/dev/ubdb bs=4096 count=1 seek=5 status=none
        cat /host/words
        exit 7
        ''', check=False, files={'words': b'of the host\n'})
    assert outcome.status == 7
    values = outcome.values()
    assert values['sizes'] == f'{1 << 20} {2 << 20}'
    assert {'thin', 'thin-pool', 'era', 'snapshot', 'snapshot-origin'} <= set(values['targets'].split())
    assert 'of the host' in outcome.output
    assert second.read_bytes()[5 * 4096:6 * 4096] == content
    assert 'device-mapper' in outcome.dmesg


def test_failures_are_told():
    """A command that fails ends the script, and the error has its words."""
    with pytest.raises(KernelError, match='No such file'):
        Kernel([]).run('cat /nothing\necho not reached')


def test_no_hang(monkeypatch):
    """A hang and a panic end in an error, and leave no process and no file."""
    with tempfile.TemporaryDirectory(prefix='k') as folder:
        monkeypatch.setattr(tempfile, 'tempdir', folder)
        with pytest.raises(KernelError, match='still running after 4 s'):
            Kernel([]).run('sleep 1000', seconds=4)
        assert processes_in(Path(folder)) == []
        with pytest.raises(KernelError, match='(?s)before the script.*said before.*sysrq triggered crash'):
            Kernel([]).run('echo said before; sync; echo c >/proc/sysrq-trigger; sleep 1000')
        assert processes_in(Path(folder)) == []
        assert os.listdir(folder) == []


def test_set_up_needs_no_network():
    if not shutil.which('unshare') or subprocess.run([*OFFLINE, 'true'], check=False).returncode:
        pytest.skip('no network namespaces here')
    done = setup('--print-env', before=OFFLINE)
    assert done.returncode == 0, done.stderr
    assert 'export SPDK_DM_KERNEL=' in done.stdout


def test_offline_with_an_empty_cache_says_so(tmp_path):
    if not shutil.which('unshare') or subprocess.run([*OFFLINE, 'true'], check=False).returncode:
        pytest.skip('no network namespaces here')
    if not shutil.which('apt-get') or any(Path('/etc/apt').rglob('*file:*')):
        pytest.skip('this machine would not ask a Debian mirror')
    done = setup('--print-env', before=OFFLINE, SPDK_DM_CACHE=str(tmp_path))
    assert done.returncode == 1
    assert 'offline?' in done.stderr or 'packages are missing' in done.stderr
    assert done.stdout == ''
    assert not (tmp_path / 'kernel').exists(), 'a later run would take it for a kernel'
