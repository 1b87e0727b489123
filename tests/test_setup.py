# SPDX-License-Identifier: BSD-3-Clause
"""The set-up scripts: they need no network once all is there, and a failure says what to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'spdk-config'
# A namespace without network. Mapping to root keeps apt's and our own checks for root as they are.
OFFLINE = ['unshare', '--map-root-user', '--net']


def run(*command, **env):
    settings = {k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MAKELEVEL')}
    return subprocess.run([str(part) for part in command], env={**settings, **env}, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, check=False)


@pytest.fixture
def offline():
    if not shutil.which('unshare') or run(*OFFLINE, 'true').returncode:
        pytest.skip('no network namespaces here')
    return OFFLINE


def test_everything_in_place_needs_no_network(offline):
    done = run(*offline, CONFIG / 'setup-spdk', '--print-env')
    assert done.returncode == 0, done.stderr
    assert f"export SPDK_DM_TGT={os.environ['SPDK_DM_TGT']}\n" in done.stdout
    done = run(*offline, CONFIG / 'setup-tools', '--print-env')
    assert done.returncode == 0, done.stderr
    assert f"export SPDK_DM_STRICT_TOOLS={os.environ['SPDK_DM_STRICT_TOOLS']}\n" in done.stdout


def test_offline_with_an_empty_cache_says_so(offline, tmp_path):
    if not shutil.which('apt-get') or run('pkg-config', '--exists', 'spdk_bdev').returncode == 0:
        pytest.skip('this machine would not ask a Debian mirror')
    done = run(*offline, CONFIG / 'setup-spdk', '--print-env', SPDK_DIR='',
               SPDK_DM_CACHE=str(tmp_path))
    assert done.returncode == 1
    assert 'offline?' in done.stderr or 'packages are missing' in done.stderr
    assert done.stdout == ''
    assert not (tmp_path / 'spdk-20.07').exists(), 'a later run would take it for a source tree'


def test_spdk_dir_that_is_none_is_named(tmp_path):
    gone = tmp_path / 'gone'
    done = run(CONFIG / 'setup-spdk', SPDK_DIR=str(gone))
    assert done.returncode == 1
    assert f'SPDK_DIR={gone} is not a folder' in done.stderr
    (tmp_path / 'static' / 'build').mkdir(parents=True)
    done = run(CONFIG / 'setup-spdk', SPDK_DIR=str(tmp_path / 'static'))
    assert done.returncode == 1
    assert '--with-shared' in done.stderr


def test_installed_spdk_looks_like_a_tree(tmp_path):
    tree = Path(os.environ['SPDK_DIR'])
    prefix = tmp_path / 'prefix'
    prefix.mkdir()
    for name, target in (('include', 'include'), ('lib', 'build/lib'), ('bin', 'build/bin')):
        shutil.copytree(tree / target, prefix / name, symlinks=True)
    done = run(CONFIG / 'setup-spdk', '--print-env', SPDK_DIR=str(prefix),
               SPDK_DM_CACHE=str(tmp_path / 'cache'),
               LD_LIBRARY_PATH=os.environ['SPDK_DM_LIBRARY_PATH'])
    assert done.returncode == 0, done.stderr
    assert f"export SPDK_DM_VERSION={os.environ['SPDK_DM_VERSION']}\n" in done.stdout
    view = done.stdout.split('export SPDK_DIR=')[1].split('\n')[0]
    assert (Path(view) / 'build/lib/libspdk_bdev.so').exists()
    assert (Path(view) / 'include/spdk/bdev_module.h').exists()


def test_with_env_runs_nothing_after_a_failed_setup(tmp_path):
    mark = tmp_path / 'ran'
    done = run(CONFIG / 'with-env', 'touch', mark, SPDK_DIR=str(tmp_path / 'gone'))
    assert done.returncode != 0
    assert not mark.exists()


def test_help_lists_every_target_the_readme_names():
    done = run('make', '-C', ROOT, 'help')
    assert done.returncode == 0
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith('  make ')}
    assert {'help', 'spdk', 'build', 'test', 'demo', 'run', 'bench', 'clean'} <= listed
