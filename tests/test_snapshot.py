# SPDX-License-Identifier: BSD-3-Clause
"""Origins, snapshots and merges on a real spdk_tgt: what they show, what is on the COW devices, what is said."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from harness import HostIO, free_port
from harness.pool import aio, refused, wait_for
from harness.rpc import tree_rpc
from harness.snapshot import MIB, Device, Files, content_of, line, notified, read_store
from harness.target import host_config, nqn

ROOT = Path(__file__).resolve().parents[1]
EPERM, ENXIO, EBUSY, EEXIST, ENODEV, EINVAL = 1, 6, 16, 17, 19, 22


def names(rpc):
    return [bdev['name'] for bdev in rpc.call('bdev_get_bdevs')]


def test_life_cycle(lab):
    """The example of snapshot.md 12: the same writes give the figures and the bytes the kernel gave; the
    snapshot shows what was, its own writes, and the origin the new."""
    files = Files(lab)
    old = random.Random('old').randbytes(16 * MIB)
    files.origin.write_bytes(old)
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('dm_create', name='base', table='0 32768 snapshot-origin origin')
    rpc.call('dm_create', name='snap', table='0 32768 snapshot origin cow0 P 16')
    assert rpc.call('dm_table', name='base') == '0 32768 snapshot-origin origin'
    assert rpc.call('dm_table', name='snap') == '0 32768 snapshot origin cow0 P 16'
    assert rpc.call('dm_status', name='base')['line'] == ''
    assert line(rpc, 'snap') == '32/8192 32'
    base, snap = (Device(lab, target, name, 16 * MIB) for name in ('base', 'snap'))
    new = bytearray(old)
    for offset, length, expected in ((100 * 8192, 8192, '48/8192 32'), (50 * 8192, 16384, '80/8192 32')):
        content = os.urandom(length)
        base.write(offset, content)
        new[offset:offset + length] = content
        assert line(rpc, 'snap') == expected
    content = os.urandom(4096)
    snap.write(10 * 8192 + 4096, content)
    assert line(rpc, 'snap') == '96/8192 32'
    shown = bytearray(old)
    shown[10 * 8192 + 4096:11 * 8192] = content
    assert snap.read() == shown
    assert base.read() == new
    # Again to chunks that have their exceptions: nothing more is needed.
    base.write(100 * 8192, bytes(4096))
    new[100 * 8192:100 * 8192 + 4096] = bytes(4096)
    snap.write(50 * 8192, bytes(8192))
    shown[50 * 8192:51 * 8192] = bytes(8192)
    status = rpc.call('snapshot_status', name='snap')
    assert status['line'] == '96/8192 32' and status['condition'] == 'good' and status['origin'] == 'base'
    assert rpc.call('snapshot_status')[0]['exceptions'] == 4
    refused(rpc, EBUSY, ["'base'", 'snap'], 'dm_remove', name='base')
    rpc.call('dm_remove', name='snap')
    rpc.call('snapshot_delete', name='base')
    assert names(rpc) == ['origin', 'cow0'] and rpc.call('snapshot_status') == []
    target.stop()
    assert files.origin.read_bytes() == new
    store = read_store(files.cows[0])
    assert (store.valid, store.chunk_sectors) == (1, 16)
    assert store.exceptions[0] == (100, 2) and store.exceptions[3] == (10, 5)
    assert {old for old, _ in store.exceptions} == {100, 50, 51, 10}
    assert content_of(files.origin, files.cows[0], 16 * MIB) == shown


@pytest.mark.parametrize('block_bytes', [512, 4096])
def test_several_snapshots(lab, block_bytes):
    """Snapshots of all kinds and chunk sizes, taken at different times, written to or not: after random writes
    everywhere each shows its own moment with its own writes, and so does what is read from its store."""
    files = Files(lab, 32, (16, 16, 16))
    dice = random.Random(block_bytes)
    held = {'base': bytearray(dice.randbytes(32 * MIB))}
    files.origin.write_bytes(held['base'])
    target = lab.target(core_mask='0x3', memory_mb=1024)
    rpc = target.rpc
    files.bdevs(target, block_bytes)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    devices = {'base': Device(lab, target, 'base', 32 * MIB)}
    options = [{'chunk_size_sectors': 8}, {'store': 'PO', 'chunk_size_sectors': 128}, {'store': 'N', 'chunk_size_sectors': 32}]

    def write(name):
        length = dice.choice([4096, 16384, 65536, 3 * 65536 + 4096, 300 * 1024])
        offset = dice.randrange(0, 32 * MIB - length, 4096)
        content = dice.randbytes(length)
        held[name][offset:offset + length] = content
        devices[name].write(offset, content)
    for number, params in enumerate(options):
        write('base')
        rpc.call('snapshot_create', name=f'snap{number}', origin='base', cow_bdev=f'cow{number}', **params)
        held[f'snap{number}'] = bytearray(held['base'])
        devices[f'snap{number}'] = Device(lab, target, f'snap{number}', 32 * MIB)
    for name in ('base', 'snap0', 'base', 'snap1', 'snap2', 'base', 'snap2', 'snap0', 'base', 'snap1'):
        write(name)
    for name, device in devices.items():
        assert device.read() == held[name], name
    assert [line(rpc, f'snap{number}').split()[1] for number in (0, 1, 2)] == ['16', '256', '0']
    for number in (0, 1, 2):
        rpc.call('snapshot_delete', name=f'snap{number}')
    rpc.call('snapshot_delete', name='base')
    target.stop()
    assert files.origin.read_bytes() == held['base']
    for number in (0, 1):
        assert content_of(files.origin, files.cows[number], 32 * MIB) == held[f'snap{number}']


def test_merge(lab):
    """A merge puts the snapshot's content into the origin, which shows it from the first moment, while it is
    written to, stopped, slowed down and resumed; another snapshot keeps its own; in the end the figures are
    equal, the store is empty and valid, and that is notified."""
    files = Files(lab, 32, (32, 32))
    dice = random.Random('merge')
    old = dice.randbytes(32 * MIB)
    files.origin.write_bytes(old)
    target = lab.target(core_mask='0x3', memory_mb=1024)
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    rpc.call('snapshot_create', name='snap', origin='base', cow_bdev='cow0', chunk_size_sectors=16)
    base, snap = (Device(lab, target, name, 32 * MIB) for name in ('base', 'snap'))
    base.write(0, dice.randbytes(16 * MIB))
    shown = bytearray(old)
    shown[20 * MIB:24 * MIB] = content = dice.randbytes(4 * MIB)
    snap.write(20 * MIB, content)
    rpc.call('snapshot_create', name='other', origin='base', cow_bdev='cow1', chunk_size_sectors=32)
    other_shows = base.read()
    refused(rpc, EINVAL, ["'snap'", 'not being merged'], 'snapshot_merge_stop', name='snap')
    rpc.call('snapshot_merge', name='snap', mib_per_second=1)
    assert base.read() == shown
    # Across many chunks, merged or not: divided by the target.
    shown[12 * MIB:13 * MIB] = content = dice.randbytes(MIB)
    base.write(12 * MIB, content)
    assert rpc.call('dm_table', name='base') == '0 65536 snapshot-merge origin cow0 P 16'
    assert rpc.call('dm_table', name='snap') == '0 65536 snapshot origin cow0 P 0'
    assert line(rpc, 'snap') == 'Invalid' and snap.fails('read') and snap.fails('write')
    refused(rpc, EBUSY, ["'snap'", 'being merged'], 'snapshot_delete', name='snap')
    refused(rpc, EINVAL, ['already merging'], 'snapshot_merge', name='other')
    before = rpc.call('snapshot_status', name='base')
    assert before['merge']['merge'] == 'running' and before['merge']['line'].split()[0].endswith('/65536')
    rpc.call('snapshot_merge_stop', name='snap')
    stopped = rpc.call('snapshot_status', name='base')
    assert stopped['merge']['merge'] == 'stopped' and 0 < stopped['merged_chunks'] < 2560
    # What is not merged yet goes to the COW device and comes along.
    shown[0:8192] = shown[22 * MIB:22 * MIB + 4096] * 2
    base.write(0, bytes(shown[0:8192]))
    assert rpc.call('snapshot_status', name='base')['merged_chunks'] == stopped['merged_chunks']
    refused(rpc, EBUSY, ["'snap'"], 'snapshot_delete', name='snap')
    assert base.read() == shown
    rpc.call('snapshot_merge_resume', name='snap', mib_per_second=0)
    wait_for(lambda: rpc.call('snapshot_status', name='snap')['merge'] == 'finished')
    assert line(rpc, 'base') == '32/65536 32'
    assert notified(rpc, 'snapshot_merge_finished') == ['base snap']
    assert base.read() == shown
    other = Device(lab, target, 'other', 32 * MIB)
    assert other.read() == other_shows
    rpc.call('nvmf_subsystem_remove_ns', nqn=nqn('snap'), nsid=1)
    rpc.call('snapshot_delete', name='snap')
    assert rpc.call('dm_table', name='base') == '0 65536 snapshot-origin origin'
    base.write(0, bytes(MIB))
    shown[0:MIB] = bytes(MIB)
    assert other.read() == other_shows
    rpc.call('snapshot_delete', name='other')
    rpc.call('snapshot_delete', name='base')
    target.stop()
    assert files.origin.read_bytes() == shown
    assert read_store(files.cows[0]) == (1, 16, [])
    assert content_of(files.origin, files.cows[1], 32 * MIB) == other_shows


def test_handover(lab):
    """A snapshot gives its store to another, which has its exceptions, its kind from its own table and the
    chunk size of the store; who had it answers with errors; a third is refused."""
    files = Files(lab)
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('dm_create', name='base', table='0 32768 snapshot-origin origin')
    rpc.call('dm_create', name='first', table='0 32768 snapshot origin cow0 P 16')
    first = Device(lab, target, 'first', 16 * MIB)
    content = os.urandom(65536)
    first.write(MIB, content)
    before = line(rpc, 'first')
    rpc.call('dm_create', name='second', table='0 32768 snapshot origin cow0 PO 64 1 discard_zeroes_cow')
    assert rpc.call('dm_table', name='second') == '0 32768 snapshot origin cow0 PO 16 1 discard_zeroes_cow'
    assert rpc.call('dm_table', name='first') == '0 32768 snapshot origin cow0 P 0'
    assert line(rpc, 'second') == before and line(rpc, 'first') == 'Invalid'
    assert first.fails('read') and first.fails('write')
    refused(rpc, EINVAL, ['pairing for exception table handover failed', 'first', 'second'],
            'dm_create', name='third', table='0 32768 snapshot origin cow0 P 16')
    refused(rpc, EINVAL, ['handed its store over'], 'snapshot_merge', name='first')
    second = Device(lab, target, 'second', 16 * MIB)
    second.write(2 * MIB, content)
    assert second.read(MIB, 65536) == content == second.read(2 * MIB, 65536)
    # A whole chunk with an exception is zeroed, one without stays.
    second.host.run('clear', 'unmap', '--offset', str(MIB), '--length', str(16384))
    assert second.read(MIB, 65536) == bytes(16384) + content[16384:]
    rpc.call('dm_remove', name='first')
    rpc.call('dm_create', name='third', table='0 32768 snapshot origin cow0 P 16')
    assert line(rpc, 'third') == line(rpc, 'third') != 'Invalid'
    rpc.call('snapshot_merge', name='third')
    wait_for(lambda: rpc.call('snapshot_status', name='third')['merge'] == 'finished')
    for name in ('second', 'third', 'base'):
        rpc.call('dm_remove', name=name)
    target.stop()
    held = files.origin.read_bytes()
    assert held[MIB:MIB + 65536] == bytes(16384) + content[16384:] and held[2 * MIB:2 * MIB + 65536] == content
    assert read_store(files.cows[0]).exceptions == []


def test_refusals(lab):
    """What is missing, in the way or wrong is said with its remedy, in the kernel's words where it has some,
    and changes nothing."""
    files = Files(lab, 16, (4, 4))
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    table = {'name': 'snap', 'table': '0 32768 snapshot origin cow0 P 16'}
    refused(rpc, ENODEV, ["'snap'", 'snapshot-origin'], 'dm_create', **table)
    refused(rpc, ENODEV, ["'base'", 'snapshot_status'], 'snapshot_create', name='snap', origin='base', cow_bdev='cow0')
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin')
    create = {'name': 'snap', 'origin': 'base', 'cow_bdev': 'cow0'}
    for more, words in (
            ('snapshot origin cow0 P', 'requires 4 or more arguments'),
            ('snapshot origin cow0 X 16', "Couldn't create exception store"),
            ('snapshot origin cow0 P 17', "Couldn't create exception store"),
            ('snapshot origin origin P 16', 'COW device cannot be the same as origin device'),
            ('snapshot origin cow0 P 16 3 a b c', 'Invalid number of feature arguments'),
            ('snapshot origin cow0 P 16 1 nonsense', 'Unrecognised feature requested'),
            ('snapshot origin cow0 P 16 1 discard_passdown_origin', 'depends on discard_zeroes_cow'),
            ('snapshot-merge origin cow0 N 16', 'does not support snapshot-merge'),
            ('snapshot-origin origin 1', 'origin: incorrect number of arguments')):
        refused(rpc, EINVAL, [words, "'snap'"], 'dm_create', name='snap', table=f'0 32768 {more}')
    for params, code, words in (
            ({'store': 'Q'}, EINVAL, ["'snap'"]), ({'chunk_size_sectors': 3}, EINVAL, ['power of two']),
            ({'store': 'N'}, EINVAL, ['chunk_size_sectors']), ({'size_sectors': 0}, EINVAL, ['size_sectors']),
            ({'size_sectors': 1 << 30}, EINVAL, ['does not fit the origin']),
            ({'discard_passdown_origin': True}, EINVAL, ['discard_zeroes_cow']),
            ({'cow_bdev': 'origin'}, EINVAL, ['same as origin']), ({'cow_bdev': 'none'}, ENODEV, ["'none'"]),
            ({'name': 'cow1'}, EEXIST, ["'cow1'"]), ({'name': 'base'}, EINVAL, ["'base'", 'on itself'])):
        refused(rpc, code, words, 'snapshot_create', **{**create, **params})
    refused(rpc, EPERM, ["'origin'", 'claimed'], 'snapshot_origin_create', name='b2', origin_bdev='origin')
    refused(rpc, EEXIST, ["'base'"], 'snapshot_origin_create', name='base', origin_bdev='cow1')
    refused(rpc, EEXIST, ["'base'"], 'era_create', name='base', origin_bdev='cow0', metadata_bdev='cow1')
    refused(rpc, EEXIST, ["'base'"], 'thin_pool_create', name='base', data_bdev='cow0', metadata_bdev='cow1')
    refused(rpc, EINVAL, ["'base'", 'no messages'], 'dm_message', name='base', message='x')
    for method in ('snapshot_merge', 'snapshot_merge_stop', 'snapshot_merge_resume', 'snapshot_delete', 'snapshot_status'):
        refused(rpc, ENODEV, ["'nothing'", 'snapshot_status'], method, name='nothing')
    # Something else is on the COW bdev; a header of a store with a chunk size that cannot be.
    for head, code, words in ((b'other' * 100, ENXIO, 'Failed to read snapshot metadata'),
                              (bytes.fromhex('536e4170 01000000 01000000 03000000'), EINVAL, 'chunk size 3'),
                              (bytes.fromhex('536e4170 01000000 02000000 10000000'), EINVAL, 'version 2')):
        files.cows[0].write_bytes(head + bytes(4 * MIB - len(head)))
        refused(rpc, code, [words, "'cow0'"], 'snapshot_create', **create)
        assert files.cows[0].read_bytes()[:len(head)] == head
    files.cows[0].write_bytes(bytes(4 * MIB))
    assert rpc.call('snapshot_status', name='base')['snapshots'] == [] and 'snap' not in names(rpc)
    rpc.call('snapshot_create', **create)
    refused(rpc, EEXIST, ["'snap'"], 'snapshot_create', **{**create, 'cow_bdev': 'cow1'})
    refused(rpc, EBUSY, ["'cow0'", "'snap'"], 'snapshot_merge', name='m', origin='base', cow_bdev='cow0')
    target.stop()


def test_saved_configuration(lab):
    """What save_config prints brings origin, snapshots and a merge that was under way back, in an order in
    which the origin is never there without them; transient snapshots are not among them. It saves the same."""
    files = Files(lab, 16, (16, 16, 16))
    target = lab.target()
    rpc = target.rpc
    files.bdevs(target)
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin', exceptions_cache_mib=1)
    for number, params in enumerate(({'store': 'N', 'chunk_size_sectors': 8}, {'chunk_size_sectors': 16}, {'store': 'PO', 'discard_zeroes_cow': True})):
        rpc.call('snapshot_create', name=f'snap{number}', origin='base', cow_bdev=f'cow{number}', **params)
    rpc.call('snapshot_origin_create', name='later', origin_bdev='nothing', wait=True)
    rpc.call('snapshot_create', name='latersnap', origin='later', cow_bdev='void', wait=True)
    refused(rpc, ENODEV, ["'later'", 'nothing, void'], 'dm_status', name='latersnap')
    base, snap1 = (Device(lab, target, name, 16 * MIB) for name in ('base', 'snap1'))
    content = os.urandom(8 * MIB)
    snap1.write(0, content)
    rpc.call('nvmf_subsystem_remove_ns', nqn=nqn('snap1'), nsid=1)
    rpc.call('snapshot_merge', name='snap1', mib_per_second=1)
    base.write(12 * MIB, content[:MIB])
    saved = lab.folder / 'saved.json'
    saved.write_text(tree_rpc(target, 'save_config'))
    assert rpc.call('snapshot_status', name='snap1')['merge'] == 'running'
    target.stop()
    left = read_store(files.cows[1]).exceptions
    assert left

    again = lab.target(name='again', config=saved)
    rpc = again.rpc
    assert json.loads(tree_rpc(again, 'save_config')) == json.loads(saved.read_text())
    status = rpc.call('snapshot_status', name='base')
    assert status['state'] == 'open' and [s['name'] for s in status['snapshots']] == ['snap2']
    assert status['merge']['name'] == 'snap1' and status['exceptions_cache_limit_bytes'] == MIB
    assert rpc.call('dm_table', name='snap2') == '0 32768 snapshot origin cow2 PO 32 1 discard_zeroes_cow'
    assert base.read(0, 8 * MIB) == content
    rpc.call('snapshot_merge_resume', name='snap1', mib_per_second=0)
    wait_for(lambda: rpc.call('snapshot_status', name='snap1')['merge'] == 'finished')
    rpc.call('snapshot_delete', name='latersnap')
    rpc.call('snapshot_delete', name='later')
    again.stop()
    assert files.origin.read_bytes()[:8 * MIB] == content
    assert content_of(files.origin, files.cows[2], 16 * MIB) == bytes(16 * MIB)


def test_waits_for_its_bdevs(lab):
    """An origin declared with `wait` opens when its bdev and the COW bdevs of all that was declared of it are
    there, and not before; what is forgotten is not waited for."""
    files = Files(lab, 16, (4, 4))
    target = lab.target()
    rpc = target.rpc
    rpc.call('snapshot_origin_create', name='base', origin_bdev='origin', wait=True)
    for number in (0, 1, 2):
        rpc.call('snapshot_create', name=f'snap{number}', origin='base', cow_bdev=f'cow{number}', wait=True)
    aio(target, 'origin', files.origin)
    aio(target, 'cow1', files.cows[1])
    refused(rpc, ENODEV, ["'base'", 'cow0, cow2'], 'dm_status', name='base')
    assert rpc.call('snapshot_status', name='base')['state'] == 'waiting'
    aio(target, 'cow0', files.cows[0])
    rpc.call('snapshot_delete', name='snap2')
    wait_for(lambda: rpc.call('snapshot_status', name='base')['state'] == 'open')
    assert {'base', 'snap0', 'snap1'} <= set(names(rpc))
    # An open origin does not wait for a COW bdev: its writes would not be kept from what is on it.
    refused(rpc, ENODEV, ["'cow9'"], 'snapshot_create', name='snap9', origin='base', cow_bdev='cow9', wait=True)
    target.stop()


def test_shipped_config(lab):
    """spdk-config/snapshot.json alone brings up origin and snapshot, on empty files and again on the same."""
    port = free_port()
    text = (ROOT / 'spdk-config' / 'snapshot.json').read_text()
    origin, cow = lab.file('origin', 64), lab.file('cow', 32)
    for old, new in (('/var/tmp/spdk-dm-origin.img', origin), ('/var/tmp/spdk-dm-cow.img', cow),
                     ('"4420"', f'"{port}"')):
        assert old in text
        text = text.replace(old, str(new))
    config = lab.folder / 'shipped.json'
    config.write_text(text)
    hosts = [HostIO(lab.folder, host_config(lab.folder / f'host{nsid}.json', 'remote', port, 'base0'),
                    f'remoten{nsid}', core_mask='0x1') for nsid in (1, 2)]
    content, back = lab.folder / 'content', lab.folder / 'back'
    content.write_bytes(os.urandom(MIB))
    for turn in (1, 2):
        target = lab.target(name=f'target{turn}', config=config)
        assert target.rpc.call('snapshot_status', name='base0')['state'] == 'open'
        hosts[0].run('write', str(content), '--offset', str(turn * MIB))
        hosts[1].run('read', str(back), '--length', str(4 * MIB))
        assert back.read_bytes() == bytes(4 * MIB)
        target.stop()
    assert content_of(origin, cow, 64 * MIB) == bytes(64 * MIB)


def test_use_case():
    """The script of the use case runs to its end: it compares what it promises by itself."""
    done = subprocess.run([sys.executable, str(ROOT / 'spdk-config' / 'snapshot-rollback')], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout
    assert 'the same, to the byte' in done.stdout
