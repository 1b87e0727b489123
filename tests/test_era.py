# SPDX-License-Identifier: BSD-3-Clause
"""Era targets on a real spdk_tgt: their life, what counts as written, what the tools make of them."""

import json
import os
import random

import pytest

from harness.era import (BLOCK, blocks_in, blocks_of, era_check, era_dump, era_invalidate, era_on_files,
                         snapshot_since, written_since)
from harness.pool import aio, host_of, random_file, refused
from harness.tools import _run, strict_tool

MIB = 1 << 20
EPERM, ENOTBLK, EBUSY, EEXIST, ENODEV, EINVAL, EILSEQ, ESTALE = 1, 15, 16, 17, 19, 22, 84, 116


def used(line):
    """A status line without how much of the metadata is used."""
    size, space, *rest = line.split()
    assert size == '8' and 0 < int(space.split('/')[0]) < int(space.split('/')[1])
    return [space.split('/')[1], *rest]


def test_life_cycle(lab):
    """Create, write, checkpoint, snapshot, remove: each does what it says, by our methods and by
    device-mapper's words; the era advances as the kernel's does (era.md 11)."""
    target = lab.target()
    rpc = target.rpc
    meta, origin = era_on_files(lab, target)
    assert rpc.call('dm_table', name='era') == '0 131072 era meta origin 128'
    assert rpc.call('dm_status', name='era')['line'] == '8 10/1024 1 -'
    host = host_of(lab, target, 'era')
    content = random_file(lab.folder / 'content', 1)
    host.run('write', str(content), '--offset', str(5 * BLOCK))
    assert rpc.call('era_checkpoint', name='era') == {'name': 'era', 'era': 2}
    content.write_bytes(os.urandom(4096))
    host.run('write', str(content), '--offset', str(100 * BLOCK + 8192))
    taken = rpc.call('era_take_metadata_snap', name='era')
    assert taken['era'] == 3
    status = rpc.call('era_status', name='era')
    assert status['metadata_snap'] == taken['metadata_snap'] and status['current_era'] == 3
    assert used(rpc.call('dm_status', name='era')['line']) == ['1024', '3', str(taken['metadata_snap'])]
    assert written_since(rpc, 1) == [{'begin': 5, 'length': 16}, {'begin': 100, 'length': 1}]
    assert written_since(rpc, 2) == [{'begin': 100, 'length': 1}]
    assert written_since(rpc, 3) == []
    assert written_since(rpc, 0) == [{'begin': 0, 'length': 1024}]
    rpc.call('dm_message', name='era', message='Drop_Metadata_Snap')
    rpc.call('dm_message', name='era', message='CHECKPOINT')
    rpc.call('dm_message', name='era', message='take_metadata_snap')
    assert rpc.call('era_status', name='era')['current_era'] == 5
    rpc.call('dm_message', name='era', message='drop_metadata_snap')
    rpc.call('dm_remove', name='era')
    assert rpc.call('era_status') == []
    assert [bdev['name'] for bdev in rpc.call('bdev_get_bdevs')] == ['meta', 'origin']
    era_check(meta)
    assert era_invalidate(meta, 1) == {*range(5, 21), 100}

    # Each opening begins an era; what is behind the era bdev is the origin itself.
    rpc.call('dm_create', name='again', table='0 65536 era meta origin 128')
    assert rpc.call('bdev_get_bdevs', name='again')[0]['num_blocks'] == 65536
    assert rpc.call('era_status', name='again')['current_era'] == 6
    assert rpc.call('era_status', name='again')['nr_blocks'] == 512
    rpc.call('era_delete', name='again')
    target.stop()
    with open(origin, 'rb') as file:
        file.seek(100 * BLOCK + 8192)
        assert file.read(4096) == content.read_bytes()
    assert era_dump(meta).get('nr_blocks') == '512'


@pytest.mark.parametrize('block_sectors, logical', [(128, 512), (8, 4096), (1032, 4096)])
def test_all_that_changes_counts(lab, block_sectors, logical):
    """Writes, unmaps and write-zeroes are recorded in every block they touch, and reads and flushes in none,
    for blocks of powers of two and others: the model's blocks exactly, in each era, and the tools say the
    same."""
    target = lab.target()
    rpc = target.rpc
    meta = lab.file('meta', 16)
    aio(target, 'meta', meta, 4096)
    rpc.call('bdev_malloc_create', name='origin', num_blocks=64 * MIB // logical, block_size=logical)
    rpc.call('era_create', name='era', metadata_bdev='meta', origin_bdev='origin', block_size_sectors=block_sectors)
    host = host_of(lab, target, 'era')
    size = block_sectors * 512
    dice = random.Random(block_sectors)
    eras = {}
    for _ in range(4):
        era = rpc.call('era_checkpoint', name='era')['era']
        eras[era] = set()
        for how in ('write', 'unmap', 'zeroes', 'write', 'read'):
            # Some are long: over many blocks, and, for writes, over what a host sends at once.
            length = dice.randrange(1, 3 * MIB // 4096) * 4096 if dice.random() < 0.7 else 4096
            offset = dice.randrange(0, 64 * MIB - length, 4096)
            if how == 'write':
                content = lab.folder / 'content'
                content.write_bytes(dice.randbytes(length))
                host.run('write', str(content), '--offset', str(offset))
            elif how == 'read':
                host.run('read', str(lab.folder / 'back'), '--length', str(length), '--offset', str(offset))
                continue
            else:
                host.run('clear', how, '--offset', str(offset), '--length', str(length))
            eras[era] |= set(range(offset // size, (offset + length - 1) // size + 1))
    last = rpc.call('era_take_metadata_snap', name='era')['era']
    ours = {era: blocks_in(written_since(rpc, era, limit=2)) for era in (*eras, last)}
    expected = {era: set().union(*(blocks for e, blocks in eras.items() if e >= era)) for era in (*eras, last)}
    assert ours == expected
    for era in eras:
        path = lab.folder / f'since{era}.xml'
        answer = rpc.call('era_written_since', name='era', era=era, file=str(path))
        assert answer == {'file': str(path), 'bytes': path.stat().st_size, 'snapshot': last}
        assert blocks_of(path.read_text()) == expected[era]
    rpc.call('era_delete', name='era')
    target.stop()
    era_check(meta)
    for era in eras:
        assert era_invalidate(meta, era) == expected[era]
        assert era_invalidate(meta, era, snapshot=True) == expected[era]


def test_export(lab):
    """era_invalidate on a host reads the exported metadata snapshot while writes go on, and says to the byte
    what era_written_since writes; the snapshot is not dropped meanwhile, and nothing writes to it."""
    target = lab.target()
    rpc = target.rpc
    meta, _ = era_on_files(lab, target)
    host = host_of(lab, target, 'era')
    content = lab.folder / 'content'
    content.write_bytes(os.urandom(4096))
    for block in (3, 4, 5, 9, 1023):
        host.run('write', str(content), '--offset', str(block * BLOCK))
    rpc.call('era_take_metadata_snap', name='era')
    assert rpc.call('era_metadata_snap_export', name='era') == 'era_metadata_snap'
    assert rpc.call('era_status', name='era')['exported_as'] == 'era_metadata_snap'
    beside = type(lab)(lab.folder / 'reader')
    beside.folder.mkdir()
    reader = host_of(beside, target, 'era_metadata_snap')
    host.run('write', str(content), '--offset', str(77 * BLOCK))
    copy, path = lab.folder / 'copy', lab.folder / 'since.xml'
    reader.run('read', str(copy), '--length', str(4 * MIB))
    rpc.call('era_written_since', name='era', era=1, file=str(path))
    theirs = _run(strict_tool('era_invalidate') + ['--written-since', '1', '--metadata-snapshot', 'yes', str(copy)])
    assert path.read_text().rstrip() == theirs.rstrip()
    assert blocks_of(theirs) == {3, 4, 5, 9, 1023}
    with pytest.raises(RuntimeError):
        reader.run('write', str(content))
    for method, params in (('era_drop_metadata_snap', {'name': 'era'}),
                           ('dm_message', {'name': 'era', 'message': 'drop_metadata_snap'})):
        refused(rpc, EBUSY, ['era_metadata_snap', 'era_metadata_snap_unexport'], method, **params)
    refused(rpc, EEXIST, ["'era_metadata_snap'"], 'era_metadata_snap_export', name='era', bdev_name='x')
    rpc.call('era_metadata_snap_unexport', name='era')
    refused(rpc, ENODEV, ['not exported'], 'era_metadata_snap_unexport', name='era')
    rpc.call('era_drop_metadata_snap', name='era')
    assert snapshot_since(rpc, 1) == {3, 4, 5, 9, 77, 1023}
    # Closing takes the export along.
    rpc.call('era_take_metadata_snap', name='era')
    rpc.call('era_metadata_snap_export', name='era', bdev_name='x')
    rpc.call('era_delete', name='era')
    assert [bdev['name'] for bdev in rpc.call('bdev_get_bdevs')] == ['meta', 'origin']
    target.stop()
    era_check(meta)


def test_refusals(lab):
    """What is missing, in the way or wrong is said with its remedy, with the errno of era.md, and changes
    nothing."""
    target = lab.target()
    rpc = target.rpc
    meta, _ = era_on_files(lab, target)
    aio(target, 'other', lab.file('other', 64))
    create = {'metadata_bdev': 'meta', 'origin_bdev': 'other'}
    refused(rpc, EPERM, ["'meta'", 'claimed'], 'era_create', name='e2', **create)
    refused(rpc, EEXIST, ["'era'"], 'era_create', name='era', **create)
    refused(rpc, EEXIST, ["'other'"], 'era_create', name='other', metadata_bdev='meta', origin_bdev='origin')
    refused(rpc, EEXIST, ["'era'"], 'thin_pool_create', name='era', metadata_bdev='other', data_bdev='x')
    refused(rpc, ENODEV, ["'nothing'"], 'era_create', name='e2', metadata_bdev='nothing', origin_bdev='other')
    for table in ('era meta other', 'era meta other 128 0', 'era meta other 128x', 'era meta other 0',
                  'era meta other 12', 'era meta other 4'):
        refused(rpc, EINVAL, ["'e2'" if 'x' not in table else '128x'], 'dm_create', name='e2', table='0 8192 ' + table)
    for method in ('era_checkpoint', 'era_take_metadata_snap', 'era_drop_metadata_snap', 'era_delete',
                   'era_metadata_snap_export', 'era_metadata_snap_unexport', 'era_status'):
        refused(rpc, ENODEV, ["'nothing'", 'era_status'], method, name='nothing')
    for message in ('checkpoint now', 'nonsense', 'take_metadata_snap 1', ''):
        refused(rpc, EINVAL, ['checkpoint'], 'dm_message', name='era', message=message)
    remedy = ['take_metadata_snap']
    refused(rpc, EINVAL, remedy, 'era_written_since', name='era', era=1)
    refused(rpc, EINVAL, remedy, 'era_metadata_snap_export', name='era')
    refused(rpc, EINVAL, ['no metadata snapshot'], 'era_drop_metadata_snap', name='era')
    era = rpc.call('era_take_metadata_snap', name='era')['era']
    refused(rpc, EINVAL, ['drop it first'], 'era_take_metadata_snap', name='era')
    assert rpc.call('era_status', name='era')['current_era'] == era
    refused(rpc, ESTALE, ['first page'], 'era_written_since', name='era', era=1, snapshot=era + 1)
    new = lab.folder / 'new.xml'
    rpc.call('era_written_since', name='era', era=1, file=str(new))
    refused(rpc, EEXIST, [str(new)], 'era_written_since', name='era', era=1, file=str(new))
    rpc.call('era_delete', name='era')

    create = {'name': 'era', 'metadata_bdev': 'meta', 'origin_bdev': 'origin'}
    refused(rpc, EINVAL, ['128 sectors', "'meta'"], 'era_create', block_size_sectors=64, **create)
    refused(rpc, EINVAL, ['does not fit the origin'], 'era_create', size_sectors=1 << 20, **create)
    with open(meta, 'r+b') as file:
        good = file.read(4096)
        for block, code in ((bytes([good[0] ^ 1]) + good[1:], EILSEQ), (os.urandom(4096), ENOTBLK)):
            file.seek(0)
            file.write(block)
            file.flush()
            refused(rpc, code, ["'era'", "'meta'"], 'era_create', **create)
            file.seek(0)
            assert file.read(4096) == block
        file.seek(0)
        file.write(good)
    assert rpc.call('era_status') == []
    rpc.call('era_create', **create)
    target.stop()
    era_check(meta)


def test_saved_configuration(lab):
    """What save_config prints brings the era target back, also above a thin bdev, with its export while the
    metadata snapshot is held; and it saves as the same configuration again."""
    from test_config import tree_rpc  # pylint: disable=import-outside-toplevel
    target = lab.target()
    rpc = target.rpc
    files = {name: lab.file(name, size) for name, size in (('pmeta', 16), ('pdata', 64), ('emeta', 4))}
    for name, path in files.items():
        aio(target, name, path)
    rpc.call('thin_pool_create', name='pool', metadata_bdev='pmeta', data_bdev='pdata')
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=128)
    rpc.call('era_create', name='era', metadata_bdev='emeta', origin_bdev='t1', metadata_cache_mib=8)
    rpc.call('era_create', name='later', metadata_bdev='nothing', origin_bdev='void', wait=True)
    assert rpc.call('era_status', name='later')['state'] == 'waiting'
    host = host_of(lab, target, 'era')
    content = random_file(lab.folder / 'content', 1)
    host.run('write', str(content), '--offset', str(MIB))
    before = rpc.call('era_take_metadata_snap', name='era')
    rpc.call('era_metadata_snap_export', name='era', bdev_name='held')
    saved = lab.folder / 'saved.json'
    saved.write_text(tree_rpc(target, 'save_config'))
    target.stop()
    era_check(files['emeta'])

    again = lab.target(name='again', config=saved)
    rpc = again.rpc
    assert json.loads(tree_rpc(again, 'save_config')) == json.loads(saved.read_text())
    status = rpc.call('era_status', name='era')
    assert status['state'] == 'open' and status['metadata_snap'] == before['metadata_snap']
    assert status['exported_as'] == 'held' and status['current_era'] == before['era'] + 1
    assert blocks_in(written_since(rpc, 1)) == set(range(16, 32))
    back = lab.folder / 'back'
    host.run('read', str(back), '--length', str(MIB), '--offset', str(MIB))
    assert back.read_bytes() == content.read_bytes()
    refused(rpc, ENODEV, ["'later'", 'waiting'], 'era_checkpoint', name='later')
    rpc.call('era_delete', name='later')
    again.stop()
    era_check(files['emeta'])
