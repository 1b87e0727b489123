# SPDX-License-Identifier: BSD-3-Clause
"""Configurations: saved, shipped, and by rpc.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import HostIO, free_port, thin_check
from harness.pool import host_of, pool_on_files, random_file
from harness.rpc import tree_rpc
from harness.target import host_config

ROOT = Path(__file__).resolve().parents[1]


def test_save_config_recreates_everything(lab):
    """What rpc.py save_config of SPDK prints brings pool, thin bdevs and export back by itself, with
    their data, and saves as the same configuration again."""
    target = lab.target()
    rpc = target.rpc
    pool_on_files(lab, target, features=['no_discard_passdown', 'error_if_no_space'])
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=512)
    rpc.call('thin_snapshot', pool='pool', id=2, origin_id=1)
    rpc.call('thin_activate', pool='pool', id=2, bdev_name='s2', size_mib=512)
    rpc.call('thin_create', pool='pool', id=3)
    host = host_of(lab, target, 't1')
    content = random_file(lab.folder / 'content', 2)
    host.run('write', str(content))
    saved = lab.folder / 'saved.json'
    saved.write_text(tree_rpc(target, 'save_config'))
    before = rpc.call('thin_pool_status', name='pool')
    table, devices = rpc.call('dm_table', name='pool'), rpc.call('thin_list', pool='pool')
    target.stop()

    again = lab.target(name='again', config=saved)
    assert json.loads(tree_rpc(again, 'save_config')) == json.loads(saved.read_text())
    after = again.rpc.call('thin_pool_status', name='pool')
    for field in ('state', 'used_data_blocks', 'data_block_size_sectors', 'discard', 'no_space',
                  'metadata_bdev', 'data_bdev', 'active_devices'):
        assert after[field] == before[field]
    assert again.rpc.call('dm_table', name='pool') == table
    assert again.rpc.call('thin_list', pool='pool') == devices
    back = lab.folder / 'back'
    host.run('read', str(back), '--length', str(2 << 20))
    assert back.read_bytes() == content.read_bytes()
    again.stop()


def test_shipped_config(lab):
    """spdk-config/thin-nvmf.json alone brings up pool, thin device and export, on empty files and
    again on the same files."""
    port = free_port()
    text = (ROOT / 'spdk-config' / 'thin-nvmf.json').read_text()
    meta = lab.file('meta', 16)
    for old, new in (('/var/tmp/spdk-dm-meta.img', meta),
                     ('/var/tmp/spdk-dm-data.img', lab.file('data', 128)), ('"4420"', f'"{port}"')):
        assert old in text
        text = text.replace(old, str(new) if old[0] == '/' else new)
    config = lab.folder / 'shipped.json'
    config.write_text(text)
    host = HostIO(lab.folder, host_config(lab.folder / 'host.json', 'remote', port, 'thin1'), 'remoten1',
                  core_mask='0x1')
    content, back = random_file(lab.folder / 'content', 2), lab.folder / 'back'
    for name in ('first', 'second'):
        target = lab.target(name=name, config=config)
        if name == 'first':
            host.run('write', str(content))
        host.run('read', str(back), '--length', str(2 << 20))
        assert back.read_bytes() == content.read_bytes()
        target.stop()
    thin_check(meta)


@pytest.mark.parametrize('kind', ['tree', 'pypi'])
def test_rpc_py_plugin(lab, kind):
    """The sub-commands work in SPDK's own rpc.py and in the official client from PyPI."""
    target = lab.target()
    command = {
        'tree': [sys.executable, os.environ['SPDK_DM_RPC_PY']],
        'pypi': [str(Path(sys.executable).parent / 'spdk-rpc')],
    }[kind]
    env = {**os.environ, 'PYTHONPATH': str(ROOT / 'rpc' / 'python')}

    def run(*words):
        done = subprocess.run(command + ['-s', target.process.socket, '--plugin', 'spdk_dm_rpc', *words],
                              env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False)
        assert done.returncode == 0, done.stdout
        return done.stdout

    assert 'Id of the thin device' in run('thin_create', '--help')
    target.rpc.call('bdev_malloc_create', name='meta', num_blocks=32768, block_size=512)
    target.rpc.call('bdev_malloc_create', name='data', num_blocks=131072, block_size=512)
    run('thin_pool_create', 'pool', 'meta', 'data', '--features', 'error_if_no_space')
    run('thin_create', 'pool', '0', '--bdev-name', 't0', '--size-mib', '100')
    assert json.loads(run('thin_list', 'pool'))[0]['bdev_name'] == 't0'
    assert 'error_if_no_space' in run('dm_status', 'pool')
    target.stop()
