# SPDX-License-Identifier: BSD-3-Clause
"""Control of thin pools beside a running Linux kernel: status and table lines field by field, and what
each message and table is answered, on the same pools."""

import errno
import os
import shutil
from types import MappingProxyType
from typing import Mapping

import pytest

from harness import HostIO, RpcError, free_port, thin_check
from harness.target import export, host_config
from kernel import Kernel, number_of
from kernel.thin import FUNCTIONS, KernelPool

MIB = 1 << 20
BLOCK = 65536
SECTORS = 64 * MIB // 512


def serve(target, files, devices, **params) -> None:
    """Opens the pool of two files in a target of ours, with thin devices of SECTORS."""
    disks(target, files)
    target.rpc.call('thin_pool_create', name='pool', metadata_bdev='meta', data_bdev='data', **params)
    for number in devices:
        target.rpc.call('thin_activate', pool='pool', id=number, bdev_name=f't{number}', size_sectors=SECTORS)


def disks(target, files) -> None:
    for bdev, path in zip(('meta', 'data'), files):
        target.rpc.call('bdev_aio_create', name=bdev, filename=str(path), block_size=512)


def lines_of(values: dict, names: list, disk: int = 0) -> dict:
    """The kernel's lines of these devices as lists of fields, with our names for its device numbers."""
    ours = {f'98:{disk * 16}': 'meta', f'98:{disk * 16 + 16}': 'data', '254:0': 'pool'}
    return {f'{kind} {name}': [ours.get(word, word) for word in values[f'{kind}_{name}'].split(' ')]
            for name in names for kind in ('status', 'table')}


def our_lines(rpc, names: list) -> dict:
    """The same of ours. A status line of ours begins with the target's own fields."""
    answers = {}
    for name in names:
        table = rpc.call('dm_table', name=name)
        answers[f'table {name}'] = table.split(' ')
        answers[f'status {name}'] = table.split(' ')[:3] + rpc.call('dm_status', name=name)['line'].split(' ')
    return answers


# What the kernel does to device 1 (there is an empty device 2), the pool's features, its low water mark.
CASES = {
    'new': ('', [], 0),
    'data': (f'write 1 {20 * BLOCK - 4096} /host/content; thin_close 1; message delete 2; thin_open 1 {SECTORS}; '
             f'snapshot 2 1; write 1 {21 * BLOCK} /host/less; discard 1 {30 * BLOCK} {BLOCK}', [], 0),
    'transaction and metadata snapshot':
        ('write 1 0 /host/content; message set_transaction_id 0 77; message reserve_metadata_snap',
         ['no_discard_passdown'], 100),
    'other features': ('write 1 0 /host/content', ['skip_block_zeroing', 'ignore_discard', 'error_if_no_space'], 7),
    'features in another order': ('', ['error_if_no_space', 'no_discard_passdown', 'skip_block_zeroing'], 0),
    'discards ignored and not passed down': ('', ['no_discard_passdown', 'ignore_discard'], 0),
    'read only': ('write 1 0 /host/content', ['read_only'], 0),
    'full': ('dd if=/dev/zero of=/dev/mapper/t1 bs=1M conv=fsync 2>/dev/null || true', ['error_if_no_space'], 8),
}


def test_lines(lab):
    """On each of these pools, our status and table lines are the kernel's, field by field. The pools are
    opened anew, so that nothing is left in core of how they were made."""
    names = ['pool', 't1', 't2']
    files = [lab.file(f'{kind}{number}', size) for number in range(len(CASES))
             for kind, size in (('meta', 4), ('data', 16))]
    script = [FUNCTIONS]
    for number, (change, features, low_water) in enumerate(CASES.values()):
        script += [f'meta={Kernel.disk(2 * number)} data={Kernel.disk(2 * number + 1)}',
                   'pool_open error_if_no_space; message create_thin 1; message create_thin 2',
                   f'thin_open 1 {SECTORS}', change, 'thin_close 1; pool_close',
                   f'low_water={low_water} pool_open {" ".join(features)}',
                   f'thin_open 1 {SECTORS}; thin_open 2 {SECTORS}', 'show pool; show t1; show t2; echo end',
                   'thin_close 1; thin_close 2; pool_close']
    content = os.urandom(2 * MIB)
    outcome = Kernel(files).run('\n'.join(script), files={'content': content, 'less': content[:4096]})
    parts = outcome.output.split('end\n')
    assert len(parts) == len(CASES) + 1, outcome.output

    target = lab.target()
    rpc = target.rpc
    for number, (case, (_, features, low_water)) in enumerate(CASES.items()):
        values = dict(line.split('=', 1) for line in parts[number].splitlines())
        kernels = lines_of(values, names, 2 * number)
        serve(target, files[2 * number:2 * number + 2], (1, 2), features=features, low_water_mark_blocks=low_water)
        assert our_lines(rpc, names) == kernels, case
        for name in ('t1', 't2', 'pool'):
            rpc.call('dm_remove', name=name)
        for name in ('meta', 'data'):
            rpc.call('bdev_aio_delete', name=name)
    target.stop()


# What is done to a pool while it is open, as the kernel's script has it: what, on which device, arguments.
LIVE = [
    ('write', 1, 0, 4096), ('write', 1, 5 * BLOCK - 4096, 8192), ('write', 2, 3 * BLOCK, 2 * BLOCK),
    ('snapshot', 3, 1), ('write', 1, 4096, 4096), ('write', 1, 40 * BLOCK, 10 * BLOCK),
    ('discard', 1, 42 * BLOCK, 3 * BLOCK), ('discard', 2, 3 * BLOCK + 4096, 2 * BLOCK), ('write', 2, 0, 4096),
    ('message', 'set_transaction_id 0 5'), ('message', 'reserve_metadata_snap'), ('write', 1, 100 * BLOCK, BLOCK),
    ('message', 'release_metadata_snap'), ('message', 'delete 3'), ('fill', 2, 200 * BLOCK, 300 * BLOCK),
    ('discard', 2, 200 * BLOCK, 40 * BLOCK), ('write', 1, 300 * BLOCK, 4096),
]
LIVE_FEATURES = ['error_if_no_space', 'no_discard_passdown']


def test_lines_of_a_live_pool(lab):
    """Two pools, the kernel's and ours, to which the same is done: after each step the lines are the same,
    but for how many blocks the metadata take."""
    names = ['pool', 't1', 't2']
    files = lab.file('meta', 4), lab.file('data', 16)
    script = []
    for what, *rest in LIVE:
        if what in ('write', 'fill'):
            number, offset, length = rest
            script.append(f'dd if=/dev/urandom of=/dev/mapper/t{number} bs=4096 count={length // 4096} '
                          f'seek={offset} oflag=seek_bytes conv=notrunc,fsync 2>/dev/null'
                          + (' || true' if what == 'fill' else ''))
        else:
            script.append(f'{what} {" ".join(map(str, rest))}')
        script += [f'show {name}' for name in names] + ['echo end']
    kernel = KernelPool(*files).run('\n'.join(script), {1: SECTORS, 2: SECTORS}, features=LIVE_FEATURES, low_water=20,
                                    before='message create_thin 1; message create_thin 2')
    steps = [dict(line.split('=', 1) for line in part.splitlines()) for part in kernel.output.split('end\n')]

    target = lab.target()
    rpc = target.rpc
    ours = lab.file('meta.ours', 4), lab.file('data.ours', 16)
    serve(target, ours, (), features=LIVE_FEATURES, low_water_mark_blocks=20)
    hosts = {}
    for number in (1, 2):
        rpc.call('thin_create', pool='pool', id=number)
        rpc.call('thin_activate', pool='pool', id=number, bdev_name=f't{number}', size_sectors=SECTORS)
        port = free_port()
        export(target.process, f't{number}', [f't{number}'], port)
        hosts[number] = HostIO(lab.folder, host_config(lab.folder / f'{number}.json', 'remote', port, f't{number}'),
                               'remoten1', core_mask='0x1')

    def do(what, *rest):
        if what in ('write', 'fill'):
            number, offset, length = rest
            content = lab.folder / 'content'
            content.write_bytes(os.urandom(length))
            try:
                hosts[number].run('write', str(content), '--offset', str(offset))
            except RuntimeError:
                assert what == 'fill'
        elif what == 'discard':
            number, offset, length = rest
            hosts[number].run('clear', 'unmap', '--offset', str(offset), '--length', str(length))
        elif what == 'snapshot':
            rpc.call('thin_snapshot', pool='pool', id=rest[0], origin_id=rest[1])
        else:
            rpc.call('dm_message', name='pool', message=rest[0])

    for step, values in zip(LIVE, steps):
        do(*step)
        kernels, lines = lines_of(values, names), our_lines(rpc, names)
        for found in (kernels, lines):
            used, total = found['status pool'][4].split('/')
            assert int(used) < int(total)
            found['status pool'][4] = total
            # Which block the metadata snapshot is in depends on how many commits there were before.
            if found['status pool'][6].isdigit():
                found['status pool'][6] = 'held'
            # Where a write to a full pool stops is the host's affair.
            if step[0] == 'fill':
                found['status t2'][4] = 'some'
        assert lines == kernels, step
    target.stop()
    thin_check(files[0])
    thin_check(ours[0])


def test_lines_of_a_pool_to_be_checked(lab):
    """needs_check: the same lines, and the same refusal of messages."""
    files = lab.file('meta', 4), lab.file('data', 16)
    pool = KernelPool(*files)
    pool.run('write 1 0 /host/content', {1: SECTORS}, before='message create_thin 1',
             files={'content': os.urandom(MIB)})
    mark_needs_check(files[0])
    names = ['pool', 't1']
    kernels = lines_of(pool.run('show pool; show t1', {1: SECTORS}).values(), names)
    assert 'needs_check' in kernels['status pool'] and 'ro' in kernels['status pool']
    target = lab.target()
    serve(target, files, (1,))
    assert our_lines(target.rpc, names) == kernels
    with pytest.raises(RpcError) as refusal:
        target.rpc.call('dm_message', name='pool', message='create_thin 9')
    assert refusal.value.code == -errno.EOPNOTSUPP
    target.stop()


def mark_needs_check(meta):
    """Sets the flag in the superblock (thin.md 1)."""
    with open(meta, 'r+b') as file:
        block = bytearray(file.read(4096))
        block[4] |= 1
        crc = 0xFFFFFFFF
        for byte in block[4:]:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        block[:4] = (crc ^ 160774).to_bytes(4, 'little')
        file.seek(0)
        file.write(block)


# In this order, on a pool with devices 1 (open) and 2. A message is answered 0 or an errno.
MESSAGES = [
    'create_thin 1', 'create_thin 3', 'CREATE_THIN 4', 'create_thin 16777215', 'create_thin 16777216', 'create_thin',
    'create_thin 5 6', 'create_thin x', 'create_thin -1', 'create_thin 0x10', 'create_thin 010',
    'create_snap 7 2', 'create_snap 7 2', 'create_snap 8 99', 'create_snap 1 99', 'create_snap 8',
    'create_snap 8 2 2', 'create_snap 8 16777216', 'create_snap 16777216 2', 'create_snap 9 9',
    'delete 1', 'delete 3', 'delete 3', 'delete', 'delete 16777216', 'delete 4 7',
    'set_transaction_id 1 2', 'set_transaction_id 0 1', 'set_transaction_id 1', 'set_transaction_id 1 2 3',
    'set_transaction_id 1 18446744073709551615', 'set_transaction_id 18446744073709551615 0',
    'set_transaction_id 0 18446744073709551616', 'set_transaction_id 0 0',
    'release_metadata_snap', 'reserve_metadata_snap', 'reserve_metadata_snap', 'Release_Metadata_Snap',
    'release_metadata_snap 1', 'reserve_metadata_snap 1', 'nonsense', 'create_thin_1',
]


def test_messages(lab):
    """Every message is answered with the kernel's errno."""
    files = lab.file('meta', 4), lab.file('data', 16)
    pool = KernelPool(*files)
    pool.run('', {}, before='message create_thin 1; message create_thin 2')
    copies = [lab.folder / f'{file.name}.ours' for file in files]
    for file, copy in zip(files, copies):
        shutil.copy(file, copy)
    script = '\n'.join(f'echo "{text}=$(message {text} 2>&1 || true)"' for text in MESSAGES)
    outcome = pool.run(script, {1: SECTORS})
    kernels = [(line.split('=', 1)[0], number_of(line.split('=', 1)[1]))
               for line in outcome.output.splitlines() if line.split('=', 1)[0] in MESSAGES]
    assert len(kernels) == len(MESSAGES), outcome.output

    target = lab.target()
    serve(target, copies, (1,))
    ours = []
    for text in MESSAGES:
        try:
            target.rpc.call('dm_message', name='pool', message=text)
            ours.append((text, 0))
        except RpcError as error:
            ours.append((text, -error.code))
    target.stop()
    assert_same(ours, kernels)


def assert_same(ours: list, kernels: list, but: Mapping[str, int] = MappingProxyType({})) -> None:
    """The answers are the kernel's, `but` for these, which are known to be others."""
    assert [text for text, _ in ours] == [text for text, _ in kernels]
    kernels = [(text, but.get(text, code)) for text, code in kernels]
    differ = [f'{text}: we say {errno.errorcode.get(code, code)}, the kernel {errno.errorcode.get(theirs, theirs)}'
              for (text, code), (_, theirs) in zip(ours, kernels) if code != theirs]
    assert not differ, '\n'.join(differ)


# Tables of a pool that is to be refused, or not; META and DATA stand for the devices.
POOL_TABLES = [
    'META DATA 128 0', 'META DATA 128 0 0', 'META DATA 128', 'META DATA 100 0', 'META DATA 64 0', 'META DATA 256 0',
    'META DATA 2097280 0', 'META DATA 128 x', 'META DATA 128 -1', 'META META 128 0', 'META DATA 128 0 1',
    'META DATA 128 0 1 nonsense', 'META DATA 128 0 5 read_only read_only read_only read_only read_only',
    'META DATA 128 0 2 READ_ONLY Skip_Block_Zeroing', 'META DATA 128 0 1 read_only error_if_no_space',
    'META DATA 128 0 x', 'NOTHING DATA 128 0', 'META NOTHING 128 0',
]
# Where we are stricter: the kernel ignores words after the last feature, and takes a sign before a number. And
# it knows a device that is no pool from one that does not exist; in our tables only pools have names.
STRICTER = {'META DATA 128 0 1 read_only error_if_no_space': errno.EINVAL, 'pool +1': errno.EINVAL,
            'META 1': errno.ENODEV}
THIN_TABLES = ['pool 1', 'pool 99', 'pool', 'pool 16777216', 'pool x', 'META 1', 'NOTHING 1', 'pool 1 pool', 'pool -1',
               'pool 1 META extra', 'pool 010', 'pool +1']


def test_tables(lab):
    """Every table is accepted or refused as the kernel does it."""
    files = lab.file('meta', 4), lab.file('data', 16)
    pool = KernelPool(*files)
    pool.run('', {}, before='message create_thin 1')

    def kernel_words(table):
        for ours, theirs in (('META', '/dev/ubda'), ('DATA', '/dev/ubdb'), ('NOTHING', '/dev/nothing'),
                             ('pool', '/dev/mapper/pool')):
            table = table.replace(ours, theirs)
        return table

    lines = []
    for target, tables, name in (('thin-pool', POOL_TABLES, 'p'), ('thin', THIN_TABLES, 'p')):
        if target == 'thin':
            lines.append('dmsetup create pool --noudevsync --table "0 32768 thin-pool /dev/ubda /dev/ubdb 128 0"')
        for table in tables:
            lines.append(f'echo "{table}=$(dmsetup create {name} --noudevsync --table "0 32768 {target} '
                         f'{kernel_words(table)}" 2>&1 || true)"')
            lines.append(f'if [ -b /dev/mapper/{name} ]; then dmsetup remove --noudevsync {name}; fi')
    outcome = pool.kernel.run(f'{chr(10).join(lines)}\ndmsetup remove --noudevsync pool')
    kernels = [(line.split('=', 1)[0], number_of(line.split('=', 1)[1]))
               for line in outcome.output.splitlines() if line.split('=', 1)[0] in POOL_TABLES + THIN_TABLES]
    assert len(kernels) == len(POOL_TABLES + THIN_TABLES), outcome.output

    target = lab.target()
    disks(target, files)
    ours = []
    for kind, tables in (('thin-pool', POOL_TABLES), ('thin', THIN_TABLES)):
        if kind == 'thin':
            target.rpc.call('dm_create', name='pool', table='0 32768 thin-pool meta data 128 0')
        for table in tables:
            words = table.replace('META', 'meta').replace('DATA', 'data')
            try:
                target.rpc.call('dm_create', name='p', table=f'0 32768 {kind} {words}')
                ours.append((table, 0))
                target.rpc.call('dm_remove', name='p')
            except RpcError as error:
                ours.append((table, -error.code))
    target.stop()
    assert_same(ours, kernels, but=STRICTER)


def test_lines_without_metadata_space(lab):
    """A pool whose metadata space the kernel used up: opened anew, its lines are the same in both, and opening
    it writes nothing. (No thin_check: the kernel leaves the data block leaked that it had no entry for.)"""
    files = lab.file('meta', 1), lab.file('data', 1024)
    os.truncate(files[0], 64 * 4096)
    pool = KernelPool(*files)
    outcome = pool.run('dd if=/dev/zero of=/dev/mapper/t1 bs=1M conv=fsync 2>/dev/null || echo "filled=yes"; show pool',
                       {1: 16 * SECTORS}, before='message create_thin 1')
    assert outcome.values()['filled'] == 'yes' and ' ro ' in outcome.values()['status_pool']
    names = ['pool', 't1']
    kernels = lines_of(pool.run('show pool; show t1', {1: SECTORS}).values(), names)
    left = files[0].read_bytes()
    target = lab.target()
    serve(target, files, (1,))
    assert our_lines(target.rpc, names) == kernels
    target.stop()
    assert files[0].read_bytes() == left
