# SPDX-License-Identifier: BSD-3-Clause
"""The metadata snapshot is readable by others while the pool is live: exported to a host whose tools
read it, and by RPC; and it does not go while somebody reads."""

import json
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness import RpcError, thin_check
from harness.load import Load
from harness.pool import aio, host_of, pool_on_files, refused, wait_for
from harness.tools import _run, strict_tool

META_MB = 16
EINVAL, EBUSY, EEXIST, ENODEV, ENODATA, ESTALE, ENOENT, EILSEQ = 22, 16, 17, 19, 61, 116, 2, 84


def pages(rpc, method, entries, begin, **params):
    """All entries of a dump or delta, page by page, and the first page."""
    first = answer = rpc.call(method, **params)
    found = list(first[entries])
    while answer['next_' + begin] is not None:
        assert len(answer[entries]) == params['limit']
        answer = rpc.call(method, snapshot=first['snapshot'], **params,
                          **{'begin_' + begin: answer['next_' + begin]})
        found += answer[entries]
    return first, found


def dump_of_pages(rpc, limit):
    """The XML of thin_dump 0.9, made of pages."""
    first, devices = pages(rpc, 'thin_dump', 'devices', 'id', pool='pool', limit=limit)
    xml = (f'<superblock uuid="" time="{first["time"]}" transaction="{first["transaction_id"]}" flags="0" '
           f'version="2" data_block_size="{first["data_block_size_sectors"]}" nr_data_blocks="0">\n')
    for device in devices:
        xml += (f'  <device dev_id="{device["id"]}" mapped_blocks="{device["mapped_blocks"]}" '
                f'transaction="{device["transaction_id"]}" creation_time="{device["creation_time"]}" '
                f'snap_time="{device["snapshotted_time"]}">\n')
        _, runs = pages(rpc, 'thin_dump', 'runs', 'block', pool='pool', id=device['id'], limit=limit)
        for run in runs:
            if run['length'] == 1:
                xml += (f'    <single_mapping origin_block="{run["begin"]}" '
                        f'data_block="{run["data_begin"]}" time="{run["time"]}"/>\n')
            else:
                xml += (f'    <range_mapping origin_begin="{run["begin"]}" data_begin="{run["data_begin"]}" '
                        f'length="{run["length"]}" time="{run["time"]}"/>\n')
        xml += '  </device>\n'
    return xml + '</superblock>\n'


def delta_of_pages(rpc, left, right, limit):
    """What thin_delta --verbose 0.9 prints between `<diff>` and `</diff>`, made of pages."""
    _, differences = pages(rpc, 'thin_delta', 'differences', 'block', pool='pool', left_id=left,
                           right_id=right, limit=limit)
    xml, relation = '', None
    for d in differences:
        if d['relation'] != relation:
            xml += f'    </{relation}>\n' if relation else ''
            relation = d['relation']
            xml += f'    <{relation}>\n'
        if relation == 'different':
            data = f'left_data_begin="{d["left_data_begin"]}" right_data_begin="{d["right_data_begin"]}"'
        else:
            data = f'data_begin="{d["right_data_begin" if relation == "right_only" else "left_data_begin"]}"'
        xml += f'      <range begin="{d["begin"]}" {data} length="{d["length"]}"/>\n'
    return xml + (f'    </{relation}>\n' if relation else '')


def file_of(lab, rpc, method, **params):
    """The XML that a method writes to a file."""
    path = lab.folder / f'{method}-{len(list(lab.folder.iterdir()))}.xml'
    answer = rpc.call(method, pool='pool', file=str(path), **params)
    assert answer == {'file': str(path), 'bytes': path.stat().st_size}
    return path.read_text()


def without_snap(xml):
    """thin_delta 0.9 names the metadata snapshot's block in its first line; 1.1 and we do not."""
    return re.sub(r' metadata_snap="\d+"', '', xml, count=1)


def reader_of(lab, target, bdev):
    """A host beside that of the load."""
    beside = type(lab)(lab.folder / 'reader')
    beside.folder.mkdir()
    return host_of(beside, target, bdev)


def read_export(host, path):
    host.run('read', str(path), '--length', str(META_MB << 20))
    return path


def test_tools_on_a_host_and_rpcs_agree_under_load(lab):
    """Under a load of writes and discards, what the tools of both generations read on a host from the
    exported bdev is what the RPCs write, to the byte, and what their pages join to; the load goes on, and
    its data is right in the end."""
    target = lab.target()
    rpc = target.rpc
    meta, _ = pool_on_files(lab, target, meta_mb=META_MB, data_mb=256)
    rpc.call('thin_create', pool='pool', id=1, bdev_name='t1', size_mib=128)
    rpc.call('thin_create', pool='pool', id=7)
    host = host_of(lab, target, 't1')
    state = lab.folder / 'state'
    load = Load(host, state, '--slots', '256', '--flush-every', '8')
    load.wait_durable(300)
    rpc.call('thin_snapshot', pool='pool', id=2, origin_id=1)
    load.wait_durable(300)
    rpc.call('thin_snapshot', pool='pool', id=3, origin_id=1)
    load.wait_durable(100)
    rpc.call('thin_set_transaction_id', pool='pool', current=0, new=5)

    rpc.call('thin_reserve_metadata_snap', pool='pool')
    assert rpc.call('thin_metadata_snap_export', pool='pool', bdev_name='meta_ro') == 'meta_ro'
    reader = reader_of(lab, target, 'meta_ro')
    load.wait_durable(100)
    rpc.call('thin_snapshot', pool='pool', id=4, origin_id=1)
    load.wait_durable(100)
    copy = read_export(reader, lab.folder / 'copy')

    theirs = _run(['thin_dump', '-m', str(copy)])
    assert 'dev_id="7"' in theirs and 'transaction="5"' in theirs and 'dev_id="4"' not in theirs
    assert file_of(lab, rpc, 'thin_dump') == theirs
    assert file_of(lab, rpc, 'thin_dump', format='xml') == theirs
    strict = _run(strict_tool('thin_dump') + ['-m', str(copy)])
    assert file_of(lab, rpc, 'thin_dump', format='xml_shared') == strict
    only = file_of(lab, rpc, 'thin_dump', ids=[2, 7])
    assert only == _run(['thin_dump', '-m', '--dev-id', '2', '--dev-id', '7', str(copy)])
    load.wait_durable(100)
    for limit in (3, 65536):
        assert dump_of_pages(rpc, limit) == theirs

    for left, right in ((2, 3), (1, 2), (1, 7), (7, 1)):
        devices = ['--thin1', str(left), '--thin2', str(right)]
        ours = file_of(lab, rpc, 'thin_delta', left_id=left, right_id=right)
        assert ours == without_snap(_run(['thin_delta', '-m', *devices, str(copy)]))
        assert ours.rstrip() == _run(strict_tool('thin_delta') + ['-m', *devices, str(copy)]).rstrip()
        verbose = file_of(lab, rpc, 'thin_delta', left_id=left, right_id=right, verbose=True)
        assert verbose == without_snap(_run(['thin_delta', '-m', '--verbose', *devices, str(copy)]))
        between = verbose[verbose.index('">\n', verbose.index('<diff')) + 3:verbose.index('  </diff>')]
        assert len(between) > 1000
        for limit in (7, 65536):
            assert delta_of_pages(rpc, left, right, limit) == between

    # Still the same after all that the load has written, and read twice.
    again = read_export(reader, lab.folder / 'again')
    assert _run(['thin_dump', '-m', str(again)]) == theirs
    for method, params in (('thin_release_metadata_snap', {'pool': 'pool'}),
                           ('dm_message', {'name': 'pool', 'message': 'release_metadata_snap'})):
        refused(rpc, EBUSY, ['meta_ro', 'thin_metadata_snap_unexport'], method, **params)
    rpc.call('thin_metadata_snap_unexport', pool='pool')
    assert 'meta_ro' not in [bdev['name'] for bdev in rpc.call('bdev_get_bdevs')]
    rpc.call('thin_release_metadata_snap', pool='pool')
    load.wait_durable(100)
    load.kill()
    host.run('verify', str(state))
    rpc.call('thin_deactivate', bdev_name='t1')
    rpc.call('thin_pool_delete', name='pool')
    thin_check(meta)
    target.stop()


def test_refusals(lab):
    """What is missing or in the way is said with its remedy; nothing is overwritten, and what cannot be
    read to its end leaves no file behind."""
    target = lab.target()
    rpc = target.rpc
    meta, _ = pool_on_files(lab, target, meta_mb=META_MB)
    rpc.call('thin_create', pool='pool', id=1)
    new = lab.folder / 'new.xml'
    remedy = ['thin_reserve_metadata_snap', 'dm_message reserve_metadata_snap']
    refused(rpc, EINVAL, remedy, 'thin_metadata_snap_export', pool='pool')
    refused(rpc, EINVAL, remedy, 'thin_dump', pool='pool')
    refused(rpc, EINVAL, remedy, 'thin_delta', pool='pool', left_id=1, right_id=1, file=str(new))
    refused(rpc, EINVAL, ['no metadata snapshot'], 'thin_release_metadata_snap', pool='pool')
    refused(rpc, ENODEV, ['not exported'], 'thin_metadata_snap_unexport', pool='pool')
    refused(rpc, ENODEV, ["pool 'x'"], 'thin_dump', pool='x')
    refused(rpc, EINVAL, ['transaction id is 0'], 'thin_set_transaction_id', pool='pool', current=1, new=2)

    rpc.call('thin_reserve_metadata_snap', pool='pool')
    refused(rpc, EBUSY, ['release it first'], 'thin_reserve_metadata_snap', pool='pool')
    refused(rpc, EEXIST, ["'data'", 'bdev_name'], 'thin_metadata_snap_export', pool='pool', bdev_name='data')
    assert rpc.call('thin_metadata_snap_export', pool='pool') == 'pool_metadata_snap'
    refused(rpc, EEXIST, ["'pool_metadata_snap'"], 'thin_metadata_snap_export', pool='pool', bdev_name='x')
    aio(target, 'other', lab.file('other', 64))
    refused(rpc, 1, ['takes no writes'], 'thin_pool_create', name='second', data_bdev='other',
            metadata_bdev='pool_metadata_snap')
    reader = reader_of(lab, target, 'pool_metadata_snap')
    content = lab.folder / 'content'
    content.write_bytes(os.urandom(4096))
    before = meta.read_bytes()
    with pytest.raises(RuntimeError):
        reader.run('write', str(content), '--offset', str(4 << 20))
    for how in 'unmap', 'zeroes':
        with pytest.raises(RuntimeError):
            reader.run('clear', how, '--offset', '0', '--length', '4096')
    assert meta.read_bytes() == before
    assert read_export(reader, lab.folder / 'copy').read_bytes() == before

    refused(rpc, ENODATA, ['no thin device 9'], 'thin_dump', pool='pool', id=9)
    refused(rpc, ENODATA, ['no thin device 9'], 'thin_dump', pool='pool', ids=[1, 9], file=str(new))
    refused(rpc, ENODATA, ['no thin device 9'], 'thin_delta', pool='pool', left_id=1, right_id=9)
    refused(rpc, EINVAL, ['begins with /'], 'thin_dump', pool='pool', file='new.xml')
    refused(rpc, EINVAL, ["'ids'", "without 'file'"], 'thin_dump', pool='pool', ids=[1])
    refused(rpc, EINVAL, ['limit 0'], 'thin_dump', pool='pool', limit=0)
    refused(rpc, ENOENT, ['folder', str(new.parent / 'no')], 'thin_dump', pool='pool',
            file=str(new.parent / 'no' / 'file'))
    rpc.call('thin_dump', pool='pool', file=str(new))
    text = new.read_text()
    refused(rpc, EEXIST, [str(new), 'another name'], 'thin_dump', pool='pool', file=str(new))
    refused(rpc, EEXIST, [str(new)], 'thin_delta', pool='pool', left_id=1, right_id=1, file=str(new))
    assert new.read_text() == text
    full = Path('/dev/full')
    refused(rpc, EEXIST, ['/dev/full'], 'thin_dump', pool='pool', file=str(full))

    snapshot = rpc.call('thin_dump', pool='pool', id=1)['snapshot']
    rpc.call('thin_dump', pool='pool', id=1, snapshot=snapshot)
    rpc.call('thin_metadata_snap_unexport', pool='pool')
    rpc.call('thin_release_metadata_snap', pool='pool')
    rpc.call('thin_reserve_metadata_snap', pool='pool')
    refused(rpc, ESTALE, ['first page'], 'thin_dump', pool='pool', id=1, snapshot=snapshot)

    # A damaged block of the snapshot is named.
    held = rpc.call('thin_pool_status', name='pool')['held_root']
    with open(meta, 'r+b') as file:
        file.seek(held * 4096 + 328)
        block = struct.unpack('<Q', file.read(8))[0]
        file.seek(block * 4096 + 100)
        good = file.read(1)
        file.seek(block * 4096 + 100)
        file.write(bytes([good[0] ^ 1]))
        file.flush()
        gone = lab.folder / 'gone.xml'
        for params in {}, {'id': 1}, {'file': str(gone)}:
            refused(rpc, EILSEQ, [f'metadata block {block}', "pool 'pool'"], 'thin_dump', pool='pool', **params)
        file.seek(block * 4096 + 100)
        file.write(good)
    wait_for(lambda: not gone.exists())
    assert rpc.call('thin_dump', pool='pool', id=1)['runs'] == []
    target.stop()


def test_reading_holds_the_snapshot_and_ends_with_the_pool(lab):
    """During a dump the snapshot is not released; closing the pool ends the dump, which leaves no file,
    and takes the export along, as the removal of the metadata bdev does."""
    target = lab.target()
    rpc = target.rpc
    aio(target, 'fast', lab.file('meta', META_MB))
    aio(target, 'data', lab.file('data', 64))
    rpc.call('bdev_delay_create', base_bdev_name='fast', name='meta', avg_read_latency=0,
             p99_read_latency=0, avg_write_latency=0, p99_write_latency=0)
    create = {'name': 'pool', 'metadata_bdev': 'meta', 'data_bdev': 'data'}
    rpc.call('thin_pool_create', **create)
    rpc.call('thin_create', pool='pool', id=1)
    rpc.call('thin_reserve_metadata_snap', pool='pool')
    rpc.call('thin_metadata_snap_export', pool='pool')

    for latency in 'avg_read', 'p99_read':
        rpc.call('bdev_delay_update_latency', delay_bdev_name='meta', latency_type=latency,
                 latency_us=1000000)
    rpc.call('thin_metadata_snap_unexport', pool='pool')
    errors = []
    path = lab.folder / 'dump.xml'

    def dump():
        try:
            rpc.call('thin_dump', pool='pool', file=str(path))
        except RpcError as error:
            errors.append(error)
    dumping = threading.Thread(target=dump)
    dumping.start()
    wait_for(path.exists)
    refused(rpc, EBUSY, ['during thin_dump'], 'thin_release_metadata_snap', pool='pool')
    rpc.call('thin_pool_delete', name='pool')
    dumping.join()
    assert [error.code for error in errors] == [-EBUSY]
    assert 'was closed during thin_dump' in errors[0].message
    wait_for(lambda: not path.exists())

    for latency in 'avg_read', 'p99_read':
        rpc.call('bdev_delay_update_latency', delay_bdev_name='meta', latency_type=latency, latency_us=0)
    rpc.call('thin_pool_create', **create)
    rpc.call('thin_metadata_snap_export', pool='pool')
    rpc.call('thin_pool_delete', name='pool')
    assert 'pool_metadata_snap' not in [bdev['name'] for bdev in rpc.call('bdev_get_bdevs')]
    rpc.call('thin_pool_create', **create)
    rpc.call('thin_metadata_snap_export', pool='pool')
    reader = reader_of(lab, target, 'pool_metadata_snap')
    read_export(reader, lab.folder / 'copy')
    rpc.call('bdev_delay_delete', name='meta')
    wait_for(lambda: rpc.call('thin_pool_status', name='pool')['state'] == 'waiting')
    assert [bdev['name'] for bdev in rpc.call('bdev_get_bdevs')] == ['fast', 'data']
    target.stop()


def test_saved_configuration(lab):
    """An export is part of a saved configuration; where its metadata snapshot is gone by then, the target
    starts all the same and says so."""
    target = lab.target()
    rpc = target.rpc
    pool_on_files(lab, target, meta_mb=META_MB)
    rpc.call('thin_create', pool='pool', id=1)
    rpc.call('thin_reserve_metadata_snap', pool='pool')
    rpc.call('thin_metadata_snap_export', pool='pool', bdev_name='ro')
    save = [sys.executable, os.environ['SPDK_DM_RPC_PY'], '-s']
    config = subprocess.check_output([*save, target.process.socket, 'save_config'], text=True)
    saved = lab.folder / 'saved.json'
    saved.write_text(config)
    target.stop()

    again = lab.target(name='again', config=saved)
    assert again.rpc.call('bdev_get_bdevs', name='ro')[0]['driver_specific'] == {
        'thin_metadata_snap': {'pool': 'pool'}}
    config = subprocess.check_output([*save, again.process.socket, 'save_config'], text=True)
    assert json.loads(config) == json.loads(saved.read_text())
    again.rpc.call('thin_metadata_snap_unexport', pool='pool')
    again.rpc.call('thin_release_metadata_snap', pool='pool')
    again.stop()

    without = lab.target(name='without', config=saved)
    assert 'ro' not in [bdev['name'] for bdev in without.rpc.call('bdev_get_bdevs')]
    assert "bdev 'ro' is not there: pool 'pool' has no metadata snapshot" in without.process.log.read_text()
    without.stop()
