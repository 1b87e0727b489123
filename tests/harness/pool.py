# SPDX-License-Identifier: BSD-3-Clause
"""A thin pool on files, its devices exported to a host, and what tests ask of them."""

import os
import time

import pytest

from .process import HostIO
from .rpc import RpcError
from .target import export, free_port, host_config


def aio(target, name, path, block_bytes=512):
    target.rpc.call('bdev_aio_create', name=name, filename=str(path), block_size=block_bytes)


def pool_on_files(lab, target, meta_mb=16, data_mb=128, blocks=(512, 512), **params):
    meta, data = lab.file('meta', meta_mb), lab.file('data', data_mb)
    aio(target, 'meta', meta, blocks[0])
    aio(target, 'data', data, blocks[1])
    target.rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data', **params)
    return meta, data


def host_of(lab, target, bdev, name='host', port=None, **options):
    """Exports a bdev, and makes a host for it; with `port` it is exported there already. `options` are those of the
    host's NVMe bdevs."""
    if port is None:
        port = free_port()
        export(target.process, bdev, [bdev], port)
    config = host_config(lab.folder / f'{name}.json', 'remote', port, bdev, **options)
    host = HostIO(lab.folder, config, 'remoten1', core_mask='0x1')
    host.port = port
    return host


def random_file(path, megabytes):
    path.write_bytes(os.urandom(megabytes << 20))
    return path


def refused(rpc, code, words, method, **params):
    with pytest.raises(RpcError) as caught:
        rpc.call(method, **params)
    assert caught.value.code == -code, caught.value
    for word in words:
        assert word in caught.value.message, caught.value


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.05)
