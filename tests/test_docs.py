# SPDX-License-Identifier: BSD-3-Clause
"""The documentation: every command in it is executed by a test, and the site is built without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import DmTarget
from harness.ploop import qemu
from harness.process import end_all, program

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / 'docs').glob('*.md'))
# Longer than anything here takes on a busy machine: a hang guard.
HANG_SECONDS = 120
# Malloc bdevs that the pages speak of, in sectors.
SECTORS = {'meta': 32768, 'data': 131072, 'origin': 131072, 'eras': 8192, 'cow': 65536}
# The documentation names no socket; the functions are where it does not matter.
PRELUDE = '''
    spdk-dm() {
        local verb=$1
        shift
        case $verb in
            completions | man | thin | era | ploop | import) "$SPDK_DM" "$verb" "$@" ;;
            *) "$SPDK_DM" "$verb" --socket "$SOCKET" "$@" ;;
        esac
    }
    rpc.py() { "$PYTHON" "$SPDK_DM_RPC_PY" -s "$SOCKET" "$@"; }
'''
# Programs of the project whose commands elsewhere than in console blocks must be known to a test. What the machine's
# own programs do is not ours.
OURS = re.compile(r'^(?:\$ )?(?:sudo )?(spdk-dm|rpc\.py|make)\b(.*)')


def blocks(page):
    """(language, text) of all fenced blocks; indented ones have the language 'indented'."""
    text = page.read_text()
    found = re.findall(r'^```(\w*)\n(.*?)^```', text, re.S | re.M)
    rest = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
    return found + [('indented', ''.join(line[4:] + '\n' for line in rest.splitlines() if line.startswith('    ')))]


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


def has_a_test_of_its_own(page):
    """Whether another test takes the console blocks of a page, whose commands need more than is here."""
    others = (path.read_text() for path in (ROOT / 'tests').glob('test_*.py') if path.name != Path(__file__).name)
    return any(page.name in text and '```console' in text for text in others)


WITH_CONSOLE = [page for page in PAGES if any(language == 'console' for language, _ in blocks(page))
                and not has_a_test_of_its_own(page)]


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


def test_no_command_is_without_a_test():
    """A command of ours that stands elsewhere than in a console block is one that some test runs, with its verbs; and
    a block is of a language we know, so that none slips through."""
    tests = ''.join(path.read_text() for path in (ROOT / 'tests').rglob('*.py') if path.name != Path(__file__).name)
    tests += (ROOT / 'spdk-config' / 'run-tests').read_text()
    # Targets that the test of everything runs, or that are for people to look at.
    targets = re.findall(r'^([a-z-]+):.*##', (ROOT / 'Makefile').read_text(), re.M)
    missing = []
    for page in PAGES:
        for language, text in blocks(page):
            assert language in ('console', 'indented', 'text', 'json', 'python', 'sh', 'bash', 'yaml'), (page.name, language)
            if language == 'console':
                continue
            for line in text.splitlines():
                found = OURS.match(line)
                if not found:
                    continue
                words = found[2].split('#')[0].split()
                verbs = []
                for word in words:
                    if not re.fullmatch('[a-z_]+', word) or len(verbs) == 2:
                        break
                    verbs.append(word)
                if found[1] == 'make':
                    known = all(verb in targets for verb in verbs)
                elif found[1] == 'rpc.py':
                    known = any(f"'{word}'" in tests for word in words if re.fullmatch('[a-z]+(_[a-z]+)+', word))
                else:
                    known = bool(verbs) and all(f"'{verb}'" in tests for verb in verbs)
                if not known:
                    missing.append(f'{page.name}: {line}')
    assert not missing, missing


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
