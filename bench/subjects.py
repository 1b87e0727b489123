# SPDX-License-Identifier: BSD-3-Clause
"""What is measured: bdevs and how they come about, as JSON configurations."""

import os
import subprocess
from pathlib import Path

from harness import program
from mapped_metadata import private_copy

# 1,048,576 mappings of 64 KiB.
LARGE_MIB = 65536
# 131,072 blocks of 64 KiB: few enough that random writes get to all of them.
ERA_MIB = 8192
# Of memory, so no larger than hugepages allow.
MEMORY_MIB = 2048
CLUSTER_BYTES = 65536
# What is written and its copies have room in memory.
COPIED_MIB = 960
# All clusters of 1 MiB are written to within a moment.
PLOOP_MIB = 64


def method(rpc, **params):
    return {'method': rpc, 'params': params}


def null(mib=2 * LARGE_MIB):
    return method('bdev_null_create', name='data', num_blocks=mib * 2048, block_size=512)


def malloc(name='data', mib=MEMORY_MIB):
    return method('bdev_malloc_create', name=name, num_blocks=mib * 2048, block_size=512)


def malloc_mib(methods: list) -> int:
    """What the malloc bdevs of a configuration take of memory."""
    all_bytes = [it['params']['num_blocks'] * it['params']['block_size'] for it in methods
                 if it['method'] == 'bdev_malloc_create']
    return sum(all_bytes) >> 20


def mapped_metadata(folder: Path, mib: int, in_order: bool = False) -> Path:
    """Metadata of a pool whose device 1 has `mib` MiB mapped: scattered over the data device, or in order."""
    path = folder / f'mapped-{mib}-{"in-order" if in_order else "scattered"}.img'
    if path.exists():
        return path
    blocks = mib * 16
    xml = folder / 'mapped.xml'
    # Neighbours are far apart, as where first writes came at random; an odd factor visits each block once.
    factor = 1 if in_order else 40503
    with open(xml, 'w', encoding='ascii') as out:
        out.write(f'<superblock uuid="" time="0" transaction="0" flags="0" version="2" '
                  f'data_block_size="128" nr_data_blocks="{blocks}">\n'
                  f'<device dev_id="1" mapped_blocks="{blocks}" transaction="0" creation_time="0" '
                  f'snap_time="0">\n')
        for block in range(blocks):
            out.write(f'<single_mapping origin_block="{block}" '
                      f'data_block="{block * factor % blocks}" time="0"/>\n')
        out.write('</device>\n</superblock>\n')
    subprocess.run([program('spdk-dm'), 'restore', '-q', '-i', str(xml), '-o', str(path),
                    '--size-mib', str(max(16, mib // 500))], check=True)
    xml.unlink()
    return path


def thin_mapped(folder: Path, base: dict, mib: int, in_order: bool = False):
    """(configuration, bdev): a thin bdev with everything mapped."""
    path = mapped_metadata(folder, mib, in_order)
    return [base, method('bdev_aio_create', name='meta', filename=str(path), block_size=512),
            method('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data'),
            method('thin_activate', pool='pool', id=1, bdev_name='x', size_mib=mib)], 'x'


def thin_empty(zeroing: bool):
    features = [] if zeroing else ['skip_block_zeroing']
    return [malloc(), malloc('meta', 64),
            method('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data',
                   features=features),
            method('thin_create', pool='pool', id=1, bdev_name='x', size_mib=MEMORY_MIB)], 'x'


def lvol_size(mib: int) -> dict:
    """Older versions know bytes only, newer ones MiB only."""
    is_old = os.environ['SPDK_DM_VERSION'].startswith(('20.', '21.', '22.'))
    return {'size': mib << 20} if is_old else {'size_in_mib': mib}


def lvol(thin: bool, mib=MEMORY_MIB * 7 // 8, base_mib=MEMORY_MIB):
    return [malloc(mib=base_mib), method('bdev_lvol_create_lvstore', bdev_name='data', lvs_name='lvs',
                             cluster_sz=CLUSTER_BYTES),
            method('bdev_lvol_create', lvol_name='x', **lvol_size(mib), lvs_name='lvs',
                   thin_provision=thin)], 'lvs/x'


def passthru(base: dict):
    return [base, method('bdev_passthru_create', base_bdev_name='data', name='x')], 'x'


def era(base: dict, origin='data'):
    """Blocks of 64 KiB; nothing is marked, because each opening begins an era."""
    return [base, malloc('meta', 64),
            method('era_create', name='x', metadata_bdev='meta', origin_bdev=origin)], 'x'


def era_delayed():
    """The metadata on a bdev that takes as long for a write as an NVMe drive may."""
    latencies = {f'{which}_{what}_latency': 100 if what == 'write' else 0
                 for which in ('avg', 'p99') for what in ('read', 'write')}
    return [malloc(), malloc('fast', 64),
            method('bdev_delay_create', base_bdev_name='fast', name='meta', **latencies),
            method('era_create', name='x', metadata_bdev='meta', origin_bdev='data')], 'x'


def thin_unmapped(base: dict, mib=LARGE_MIB):
    return [base, malloc('meta', 64),
            method('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data'),
            method('thin_create', pool='pool', id=1, bdev_name='x', size_mib=mib)], 'x'


def thin_with_snapshot(folder: Path):
    methods, bdev = thin_mapped(folder, malloc(), MEMORY_MIB)
    # Each run takes the snapshot of a pool that has none.
    methods[1]['params']['filename'] = str(private_copy(mapped_metadata(folder, MEMORY_MIB), folder))
    return methods + [method('thin_snapshot', pool='pool', id=2, origin_id=1)], bdev


def lvol_with_snapshot():
    methods, bdev = lvol(thin=False)
    return methods + [method('bdev_lvol_snapshot', lvol_name='lvs/x', snapshot_name='s')], bdev


def origin(base: dict, *snapshot: dict):
    """An origin, and what it takes for a snapshot of it."""
    return [base, *snapshot[:-1], method('snapshot_origin_create', name='x', origin_bdev='data'), *snapshot[-1:]], 'x'


def origin_copied():
    """An origin with a snapshot that has every chunk after a moment of random writes: they are large, and null
    bdevs cost nothing to copy."""
    return origin(null(ERA_MIB), method('bdev_null_create', name='cow', num_blocks=2 * ERA_MIB * 2048, block_size=512),
                  method('snapshot_create', name='s', origin='x', cow_bdev='cow', store='N', chunk_size_sectors=16384))


def snapshot_read(mib=MEMORY_MIB * 7 // 8):
    """A snapshot of which nothing was written since."""
    methods, _ = origin(malloc(mib=mib), malloc('cow', 64),
                        method('snapshot_create', name='s', origin='x', cow_bdev='cow', chunk_size_sectors=128))
    return methods, 's'


def origin_to_snapshot(mib=MEMORY_MIB // 2):
    """An origin, of which snapshots are made by RPC."""
    return origin(malloc(mib=mib), malloc('cow', mib + 64), method('bdev_get_bdevs', name='x'))


def origin_with_snapshot(mib=MEMORY_MIB // 2):
    """An origin on malloc, and a snapshot of it with chunks of 64 KiB that has room for all."""
    methods, bdev = origin_to_snapshot(mib)
    return methods + [method('snapshot_create', name='s', origin='x', cow_bdev='cow', chunk_size_sectors=128)], bdev


def ploop_chain(nr_lower, raw=None, mib=ERA_MIB):
    """A disk whose clusters of 1 MiB are all in the oldest of so many lower deltas, a raw bdev: only reading
    it leaves that so. Few enough clusters that all BATs have been read after a moment."""
    images = [malloc(f'image{number}', 2) for number in range(nr_lower)]
    create = method('ploop_create', name='x', top_bdev='image0', lower_bdevs=['raw@data'], size_mib=mib)
    snapshots = [method('ploop_snapshot', name='x', new_top_bdev=f'image{number}') for number in range(1, nr_lower)]
    return [raw or null(mib), *images, create, *snapshots], 'x'


def ploop_chain_in_memory(nr_lower):
    return ploop_chain(nr_lower, malloc(mib=COPIED_MIB), COPIED_MIB)


def ploop_written():
    """An image of so few clusters of 1 MiB that all have been written after a moment of random writes."""
    return [malloc(mib=PLOOP_MIB + 8), method('ploop_create', name='x', top_bdev='data', size_mib=PLOOP_MIB)], 'x'


# Name: folder -> (configuration, bdev). For bdevperf, everything mapped.
MAPPED = {
    'null': lambda folder: ([null()], 'data'),
    'passthru on null': lambda folder: passthru(null()),
    'thin on null, 1M mappings': lambda folder: thin_mapped(folder, null(), LARGE_MIB),
    'thin on null, 1M in order': lambda folder: thin_mapped(folder, null(), LARGE_MIB, in_order=True),
    'malloc': lambda folder: ([malloc()], 'data'),
    'passthru on malloc': lambda folder: passthru(malloc()),
    'lvol on malloc': lambda folder: lvol(thin=False),
    'thin on malloc': lambda folder: thin_mapped(folder, malloc(), MEMORY_MIB),
    'thin on null, nothing mapped': lambda folder: thin_unmapped(null()),
    'lvol with a snapshot on malloc': lambda folder: lvol_with_snapshot(),
    'snapshot of an lvol on malloc': lambda folder: (lvol_with_snapshot()[0], 'lvs/s'),
    'thin with a snapshot on malloc': thin_with_snapshot,
    'passthru on malloc, 960 MiB': lambda folder: passthru(malloc(mib=COPIED_MIB)),
    'origin, all copied, on malloc': lambda folder: origin_with_snapshot(COPIED_MIB),
    'passthru on null, 8 GiB': lambda folder: passthru(null(ERA_MIB)),
    'origin on null, no snapshot': lambda folder: origin(null(ERA_MIB)),
    'origin on null, all copied': lambda folder: origin_copied(),
    'snapshot on malloc': lambda folder: snapshot_read(),
    'ploop on null, 1 delta': lambda folder: ploop_chain(1),
    'ploop on null, 8 deltas': lambda folder: ploop_chain(8),
    'ploop on null, 64 deltas': lambda folder: ploop_chain(64),
    'ploop on malloc, 1 delta': lambda folder: ploop_chain_in_memory(1),
    'ploop on malloc, 8 deltas': lambda folder: ploop_chain_in_memory(8),
    'ploop on malloc, 64 deltas': lambda folder: ploop_chain_in_memory(64),
    'passthru on malloc, 64 MiB': lambda folder: passthru(malloc(mib=PLOOP_MIB)),
    'lvol on malloc, 64 MiB': lambda folder: lvol(thin=False, mib=PLOOP_MIB, base_mib=2 * PLOOP_MIB),
    'ploop on malloc, 64 MiB': lambda folder: ploop_written(),
}

# Name: () -> (configuration, bdev). Each block written to for the first time.
EMPTY = {
    'malloc': lambda: ([malloc()], 'data'),
    'thin lvol': lambda: lvol(thin=True),
    'thin, skip_block_zeroing': lambda: thin_empty(zeroing=False),
    'thin, zeroing': lambda: thin_empty(zeroing=True),
}

# As EMPTY: half of it is written, a snapshot is made, and it is written again.
SNAPSHOT = {
    'thin lvol': EMPTY['thin lvol'],
    'thin, skip_block_zeroing': EMPTY['thin, skip_block_zeroing'],
    'origin, chunks of 64 KiB': origin_to_snapshot,
}

# Name: () -> (configuration, bdev). Everything is written to before it is measured, so that all is marked.
ERA = {
    'null': lambda: ([null(ERA_MIB)], 'data'),
    'passthru on null': lambda: passthru(null(ERA_MIB)),
    'era on null': lambda: era(null(ERA_MIB)),
}

# Name: () -> (configuration, bdev), options of hostio rate. Each block written to for the first time in an era.
STORM = {
    'malloc': (lambda: ([malloc()], 'data'), []),
    'era, 32 under way share commits': (lambda: era(malloc()), []),
    'era, one commit per write': (lambda: era(malloc()), ['--depth', '1']),
    'the same 32, metadata of 100 us': (era_delayed, []),
    'one commit each, metadata of 100 us': (era_delayed, ['--depth', '1']),
}
