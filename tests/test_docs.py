# SPDX-License-Identifier: BSD-3-Clause
"""The documentation: what its consoles show is what the commands print, and the site is built without a warning. Other
commands: test_docs_commands.py."""

import os
import subprocess
import sys

import pytest

from harness import DmTarget
from harness.pages import PAGES, PRELUDE, ROOT, blocks, without_own_test
from harness.ploop import qemu
from harness.process import end_all, program

# Longer than anything here takes on a busy machine: a hang guard.
HANG_SECONDS = 120
# Malloc bdevs that the pages speak of, in sectors.
SECTORS = {'meta': 32768, 'data': 131072, 'origin': 131072, 'eras': 8192, 'cow': 65536}


@pytest.fixture(scope='module', name='target')
def one_target(tmp_path_factory):
    """Shared by all pages: each leaves nothing behind."""
    target = DmTarget(tmp_path_factory.mktemp('docs'), memory_mb=640)
    for name, sectors in SECTORS.items():
        target.rpc.call('bdev_malloc_create', name=name, num_blocks=sectors, block_size=512)
    try:
        yield target
        target.stop()
    finally:
        end_all()


WITH_CONSOLE = [page for page in PAGES if any(language == 'console' for language, _ in blocks(page))
                and without_own_test(page, 'console', ROOT / 'tests')]


@pytest.mark.parametrize('page', WITH_CONSOLE, ids=lambda page: page.name)
def test_commands(target, tmp_path, page):
    """Every command of a console block prints what stands below it."""
    python_path = os.pathsep.join(filter(None, [str(ROOT / 'rpc' / 'python'), os.environ.get('PYTHONPATH')]))
    env = dict(os.environ, SPDK_DM=program('spdk-dm'), SOCKET=target.process.socket, PYTHON=sys.executable,
               PYTHONPATH=python_path)
    written = [text for language, text in blocks(page) if language == 'console']
    shown = []
    for block in written:
        shown.append('')
        for line in block.splitlines():
            if line.startswith('$ '):
                # Output and errors in one, as on a terminal.
                done = subprocess.run(['bash', '-c', PRELUDE + line[2:]], env=env, cwd=tmp_path,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      text=True, timeout=HANG_SECONDS, check=False)
                shown[-1] += f'{line}\n{done.stdout}'
    assert '\n'.join(shown) == '\n'.join(written)
    done = subprocess.run([program('spdk-dm'), 'ls', '--socket', target.process.socket], capture_output=True,
                          text=True, check=True)
    assert done.stdout == 'No devices found\n'
    # The next page begins with zeroes. Malloc bdevs are not made anew: SPDK may find no room for them a second time.
    for name in ('meta', 'eras', 'cow'):
        socket = str(tmp_path / f'{name}.nbd')
        target.rpc.call('nbd_export_create', bdev_name=name, path=socket, writable=True)
        qemu('qemu-io', '-f', 'raw', '-c', 'write -P 0 0 1M', f'nbd+unix:///{name}?socket={socket}')
        target.rpc.call('nbd_export_delete', path=socket)


def test_site(tmp_path):
    """All pages make a site whose links lead somewhere; each has a place in its navigation."""
    subprocess.run([str(ROOT / 'spdk-config' / 'setup-tools'), '--docs'], check=True)
    site = tmp_path / 'site'
    done = subprocess.run([sys.executable, str(ROOT / 'spdk-config' / 'build-docs'), '--no-api', '--output', str(site)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0 and 'WARNING' not in done.stdout, done.stdout
    index = (site / 'index.html').read_text()
    for page in PAGES:
        assert (site / f'{page.stem}.html').exists() and f'{page.stem}.html' in index, page.name
