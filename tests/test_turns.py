# SPDX-License-Identifier: BSD-3-Clause
"""What an operator asks of a pool gets its turn while I/Os need the metadata all the time."""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'bench'))

from load import Load  # noqa: E402  pylint: disable=wrong-import-position
from mapped_metadata import metadata_file  # noqa: E402  pylint: disable=wrong-import-position

MAPPINGS = 1 << 20
# Far too little for that many: nearly each read has its mapping read from the bdev.
CACHES = {'mapping_cache_mib': 1, 'metadata_cache_mib': 1}
# A hang guard: without turns a call is not answered as long as the reads go on.
HANG_SECONDS = 60


def test_calls_are_answered_while_mappings_are_read_all_the_time(tmp_path, monkeypatch):
    monkeypatch.setenv('SPDK_DM_CACHE', str(tmp_path))
    methods = [
        {'method': 'bdev_null_create',
         'params': {'name': 'data', 'num_blocks': MAPPINGS * 160, 'block_size': 512}},
        {'method': 'bdev_aio_create',
         'params': {'name': 'meta', 'filename': str(metadata_file([MAPPINGS], MAPPINGS * 5 // 4)),
                    'block_size': 4096}},
        {'method': 'thin_pool_create',
         'params': {'name': 'pool', 'metadata_bdev': 'meta', 'data_bdev': 'data', **CACHES}},
        {'method': 'thin_activate',
         'params': {'pool': 'pool', 'id': 1, 'bdev_name': 'x', 'size_mib': MAPPINGS // 16}},
    ]
    # Not in tmp_path: its name is too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix='spdk-dm-turns-'))
    try:
        with Load(folder, methods, 'x', ['read'],
                  ['--workload', 'read', '--cores', '1', '--depth', '128'], 512, '0x2',
                  rpc_seconds=HANG_SECONDS) as load:
            load.wait_first()
            before = load.rpc.call('thin_pool_status', name='pool')['mapping_cache_page_loads']
            for number in range(5):
                load.rpc.call('thin_snapshot', pool='pool', id=100 + number, origin_id=1)
            after = load.rpc.call('thin_pool_status', name='pool')['mapping_cache_page_loads']
            load.end('read')
            load.results()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert after > before
