# SPDX-License-Identifier: BSD-3-Clause
"""The tests' own tools: a check that could not fail, or a process left behind, would go unseen."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import HostIO
from harness.load import progress
from harness.process import environment
from harness.pool import wait_for

HERE = Path(__file__).resolve().parent


def host_on_file(lab, path):
    config = lab.folder / 'file.json'
    config.write_text('{"subsystems": [{"subsystem": "bdev", "config": [{"method": "bdev_aio_create", '
                      f'"params": {{"name": "file", "filename": "{path}", "block_size": 512}}'
                      '}]}]}')
    return HostIO(lab.folder, config, 'file')


def test_verification_sees_damage(lab):
    """The host's verification accepts what it wrote; and finds one wrong byte in whatever place of a
    sector, a flushed write that is lost, and a sector in another's place."""
    path, state = lab.file('file', 64), lab.folder / 'state'
    host = host_on_file(lab, path)
    # A plain file takes no unmap; zeroes it does.
    options = ('--slots', '16', '--workers', '16', '--flush-every', '1', '--clear-every', '1000000')
    host.run('stress', str(state), '--writes', '20', *options)
    assert progress(state).issued == progress(state).durable == 16 * 20
    old = path.read_bytes()
    host.run('stress', str(state), '--writes', '20', '--seed', '2', *options)
    host.run('verify', str(state))
    good = path.read_bytes()

    written = [at for at in range(0, len(good), 512) if any(good[at:at + 512])]
    lost = next(at for at in written if old[at:at + 512] != good[at:at + 512])
    damages = {
        'torn': (written[7] + 511, bytes([good[written[7] + 511] ^ 1])),
        'foreign': (written[9], good[written[3]:written[3] + 512]),
        'holds': (lost, old[lost:lost + 512]),
        'holds zeroes': (written[5], bytes(512)),
    }
    for words, (at, content) in damages.items():
        with open(path, 'r+b') as file:
            file.seek(at)
            file.write(content)
        with pytest.raises(RuntimeError, match=words):
            host.run('verify', str(state))
        with open(path, 'r+b') as file:
            file.seek(at)
            file.write(good[at:at + len(content)])
    host.run('verify', str(state))


def test_verification_of_nothing_fails(lab):
    """A state in which nothing was flushed proves nothing."""
    state = lab.folder / 'state'
    host = host_on_file(lab, lab.file('file', 64))
    host.run('stress', str(state), '--slots', '16', '--writes', '0')
    with pytest.raises(RuntimeError, match='nothing was verified'):
        host.run('verify', str(state))


@pytest.mark.parametrize('how', ['SIGTERM', 'a failing constructor'])
def test_no_process_is_left_behind(tmp_path, how):
    """Whatever ends a run, its SPDK programs are gone."""
    program = tmp_path / 'test_inner.py'
    pids = tmp_path / 'pids'
    program.write_text(f'''
import os
import time
from harness import SpdkProcess
from harness.process import STARTED

def test_inner(lab, monkeypatch):
    how = {how!r}
    if how != 'SIGTERM':
        def fail(process):
            raise RuntimeError('half-way')
        monkeypatch.setattr(SpdkProcess, 'wait_ready', fail)
    try:
        lab.target()
    finally:
        with open({str(pids)!r} + '.part', 'w') as file:
            file.write(' '.join(str(process.pid) for process in STARTED))
        os.rename({str(pids)!r} + '.part', {str(pids)!r})
    time.sleep(600)
''')
    env = {**environment(), 'PYTHONPATH': str(HERE)}
    inner = subprocess.Popen([sys.executable, '-m', 'pytest', '-q', '-p', 'conftest', '--rootdir',
                              str(tmp_path), str(program)], env=env, cwd=tmp_path,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: pids.exists() or inner.poll() is not None)
        if how == 'SIGTERM':
            inner.send_signal(signal.SIGTERM)
        output, _ = inner.communicate(timeout=120)
    finally:
        inner.kill()
    assert inner.returncode != 0, output
    started = pids.read_text().split()
    assert started, output
    for pid in started:
        assert not Path('/proc', pid).exists(), f'{pid} still runs:\n{output}'
