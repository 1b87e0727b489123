# SPDX-License-Identifier: BSD-3-Clause
# Generated from the schema in rpc/src/schema.rs by `cargo run -p rpc --bin rpc-python`; do not edit.
"""spdk-dm's methods for SPDK's rpc.py: put this file's folder on PYTHONPATH and call
rpc.py --plugin spdk_dm_rpc METHOD --help"""

import json


def _call(args, method, names):
    params = {name: getattr(args, name) for name in names}
    # What was not given takes its default in the target.
    params = {name: value for name, value in params.items() if value is not None and value is not False}
    print(json.dumps(args.client.call(method, params), indent=2))


def _words(text):
    return [word for word in text.split(',') if word]


def _numbers(text):
    return [int(word) for word in _words(text)]


def spdk_rpc_plugin_initialize(subparsers):
    p = subparsers.add_parser('thin_pool_create', help='Open a thin pool, formatting its metadata bdev if that begins with 4096 zero bytes', description='Open a thin pool, formatting its metadata bdev if that begins with 4096 zero bytes')
    p.add_argument('name', help='Name of the pool')
    p.add_argument('metadata_bdev', help='Bdev for the metadata (at most 15.875 GiB of it are used)')
    p.add_argument('data_bdev', help='Bdev for the data')
    p.add_argument('--data-block-size-sectors', dest='data_block_size_sectors', help='Sectors of 512 bytes per data block: a multiple of 128 up to 2097152 (default 128, that is 64 KiB); fixed for ever when the pool is formatted', type=int)
    p.add_argument('--low-water-mark-blocks', dest='low_water_mark_blocks', help='Warn when this few data blocks are free (default 0)', type=int)
    p.add_argument('--features', dest='features', help='Of skip_block_zeroing, ignore_discard, no_discard_passdown, read_only, error_if_no_space', type=_words, metavar='WORD,WORD...')
    p.add_argument('--no-space-timeout-s', dest='no_space_timeout_s', help='How long writes wait for data space in seconds, as the kernel\'s module parameter says (default 60; 0: for ever)', type=int)
    p.add_argument('--metadata-cache-mib', dest='metadata_cache_mib', help='Limit of the metadata cache in MiB (default 64)', type=int)
    p.add_argument('--mapping-cache-mib', dest='mapping_cache_mib', help='Limit of the mapping cache in MiB, 8 bytes per mapping; what was written in order takes hardly any (default 256)', type=int)
    p.add_argument('--wait', dest='wait', help='If a base bdev is not there yet, open the pool when it appears', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'thin_pool_create', ['name', 'metadata_bdev', 'data_bdev', 'data_block_size_sectors', 'low_water_mark_blocks', 'features', 'no_space_timeout_s', 'metadata_cache_mib', 'mapping_cache_mib', 'wait']))

    p = subparsers.add_parser('thin_pool_delete', help='Close a thin pool without active devices; what is on its bdevs stays', description='Close a thin pool without active devices; what is on its bdevs stays')
    p.add_argument('name', help='Name of the pool')
    p.set_defaults(func=lambda args: _call(args, 'thin_pool_delete', ['name']))

    p = subparsers.add_parser('thin_pool_status', help='Show one pool or all: mode, space, caches, counters', description='Show one pool or all: mode, space, caches, counters')
    p.add_argument('--name', dest='name', help='Name of the pool (default: all)')
    p.set_defaults(func=lambda args: _call(args, 'thin_pool_status', ['name']))

    p = subparsers.add_parser('thin_create', help='Create a thin device in a pool, and activate it if a size is given', description='Create a thin device in a pool, and activate it if a size is given')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('id', help='Id of the thin device, 0 to 16777215', type=int)
    p.add_argument('--bdev-name', dest='bdev_name', help='Name of the bdev to activate it as (default POOL_ID)')
    p.add_argument('--size-mib', dest='size_mib', help='Activate it with this size in MiB, which may exceed the pool', type=int)
    p.add_argument('--origin-bdev', dest='origin_bdev', help='External origin: a bdev outside the pool that unmapped blocks show (give it for each snapshot too)')
    p.set_defaults(func=lambda args: _call(args, 'thin_create', ['pool', 'id', 'bdev_name', 'size_mib', 'origin_bdev']))

    p = subparsers.add_parser('thin_snapshot', help='Create a snapshot of a thin device, active or not', description='Create a snapshot of a thin device, active or not')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('id', help='Id of the snapshot, 0 to 16777215', type=int)
    p.add_argument('origin_id', help='Id of the thin device to take it of', type=int)
    p.set_defaults(func=lambda args: _call(args, 'thin_snapshot', ['pool', 'id', 'origin_id']))

    p = subparsers.add_parser('thin_delete', help='Delete a thin device that is not active, with all data that only it has', description='Delete a thin device that is not active, with all data that only it has')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('id', help='Id of the thin device, 0 to 16777215', type=int)
    p.set_defaults(func=lambda args: _call(args, 'thin_delete', ['pool', 'id']))

    p = subparsers.add_parser('thin_activate', help='Make a thin device available as a bdev', description='Make a thin device available as a bdev')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('id', help='Id of the thin device, 0 to 16777215', type=int)
    p.add_argument('--bdev-name', dest='bdev_name', help='Name of the bdev (default POOL_ID)')
    p.add_argument('--size-mib', dest='size_mib', help='Size in MiB, which may exceed the pool', type=int)
    p.add_argument('--size-sectors', dest='size_sectors', help='Size in sectors of 512 bytes, instead of size_mib', type=int)
    p.add_argument('--origin-bdev', dest='origin_bdev', help='External origin: a bdev outside the pool that unmapped blocks show (give it for each snapshot too)')
    p.add_argument('--create', dest='create', help='Create the thin device if there is none of this id', action='store_true')
    p.add_argument('--wait', dest='wait', help='If the pool is waiting for its bdevs, activate when they are there', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'thin_activate', ['pool', 'id', 'bdev_name', 'size_mib', 'size_sectors', 'origin_bdev', 'create', 'wait']))

    p = subparsers.add_parser('thin_deactivate', help='Remove a thin bdev; the thin device stays in its pool', description='Remove a thin bdev; the thin device stays in its pool')
    p.add_argument('bdev_name', help='Name of the thin bdev')
    p.add_argument('--suspension', dest='suspension', help='Only if it is still suspended: what thin_suspend has answered; what waits fails', type=int)
    p.set_defaults(func=lambda args: _call(args, 'thin_deactivate', ['bdev_name', 'suspension']))

    p = subparsers.add_parser('thin_list', help='List the thin devices of a pool', description='List the thin devices of a pool')
    p.add_argument('pool', help='Name of the pool')
    p.set_defaults(func=lambda args: _call(args, 'thin_list', ['pool']))

    p = subparsers.add_parser('thin_set_transaction_id', help='Set the pool\'s userspace transaction id, if it is what the caller believes', description='Set the pool\'s userspace transaction id, if it is what the caller believes')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('current', help='What it must be now', type=int)
    p.add_argument('new', help='What it shall be', type=int)
    p.set_defaults(func=lambda args: _call(args, 'thin_set_transaction_id', ['pool', 'current', 'new']))

    p = subparsers.add_parser('thin_reserve_metadata_snap', help='Keep the pool\'s metadata as it is now readable: for thin_dump, thin_delta and thin_metadata_snap_export', description='Keep the pool\'s metadata as it is now readable: for thin_dump, thin_delta and thin_metadata_snap_export')
    p.add_argument('pool', help='Name of the pool')
    p.set_defaults(func=lambda args: _call(args, 'thin_reserve_metadata_snap', ['pool']))

    p = subparsers.add_parser('thin_release_metadata_snap', help='Let the metadata snapshot go, if nobody is reading it', description='Let the metadata snapshot go, if nobody is reading it')
    p.add_argument('pool', help='Name of the pool')
    p.set_defaults(func=lambda args: _call(args, 'thin_release_metadata_snap', ['pool']))

    p = subparsers.add_parser('thin_metadata_snap_export', help='Make the pool\'s metadata bdev readable as another, read-only bdev while there is a metadata snapshot: for thin_dump -m, thin_delta -m and the like on any host', description='Make the pool\'s metadata bdev readable as another, read-only bdev while there is a metadata snapshot: for thin_dump -m, thin_delta -m and the like on any host')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('--bdev-name', dest='bdev_name', help='Name of the bdev (default POOL_metadata_snap)')
    p.add_argument('--wait', dest='wait', help='As in saved configurations: wait while the pool is being opened, and only warn if it or its metadata snapshot is missing', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'thin_metadata_snap_export', ['pool', 'bdev_name', 'wait']))

    p = subparsers.add_parser('thin_metadata_snap_unexport', help='Remove the bdev that thin_metadata_snap_export has made', description='Remove the bdev that thin_metadata_snap_export has made')
    p.add_argument('pool', help='Name of the pool')
    p.set_defaults(func=lambda args: _call(args, 'thin_metadata_snap_unexport', ['pool']))

    p = subparsers.add_parser('thin_dump', help='Show the metadata snapshot page by page (without id: the devices, with id: the mappings of one), or write it to a file as thin_dump does', description='Show the metadata snapshot page by page (without id: the devices, with id: the mappings of one), or write it to a file as thin_dump does')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('--id', dest='id', help='Id of the thin device whose mappings to show', type=int)
    p.add_argument('--begin-block', dest='begin_block', help='With id: first virtual block to show, as next_block of the page before (default 0)', type=int)
    p.add_argument('--begin-id', dest='begin_id', help='Without id: first device to show, as next_id of the page before (default 0)', type=int)
    p.add_argument('--limit', dest='limit', help='Most runs of mappings or devices to show, 1 to 65536 (default 1024)', type=int)
    p.add_argument('--snapshot', dest='snapshot', help='Refuse if the metadata snapshot is not the one of which a page said this', type=int)
    p.add_argument('--file', dest='file', help='Write XML to this new file, given with its full path, on the machine of the target')
    p.add_argument('--ids', dest='ids', help='With file: only these thin devices (default all)', type=_numbers, metavar='NUMBER,NUMBER...')
    p.add_argument('--format', dest='format', help='With file: xml is that of thin_dump 0.9, xml_shared that of 1.x, where mappings that devices share come once (default xml)', choices=['xml', 'xml_shared'])
    p.set_defaults(func=lambda args: _call(args, 'thin_dump', ['pool', 'id', 'begin_block', 'begin_id', 'limit', 'snapshot', 'file', 'ids', 'format']))

    p = subparsers.add_parser('thin_delta', help='Show the differences of two thin devices in the metadata snapshot page by page, or write them to a file as thin_delta does', description='Show the differences of two thin devices in the metadata snapshot page by page, or write them to a file as thin_delta does')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('left_id', help='Id of the first thin device', type=int)
    p.add_argument('right_id', help='Id of the second thin device', type=int)
    p.add_argument('--begin-block', dest='begin_block', help='First virtual block to show, as next_block of the page before (default 0)', type=int)
    p.add_argument('--limit', dest='limit', help='Most differences to show, 1 to 65536 (default 1024)', type=int)
    p.add_argument('--snapshot', dest='snapshot', help='Refuse if the metadata snapshot is not the one of which a page said this', type=int)
    p.add_argument('--file', dest='file', help='Write XML to this new file, given with its full path, on the machine of the target')
    p.add_argument('--verbose', dest='verbose', help='With file: with data blocks, as thin_delta --verbose', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'thin_delta', ['pool', 'left_id', 'right_id', 'begin_block', 'limit', 'snapshot', 'file', 'verbose']))

    p = subparsers.add_parser('dm_create', help='Create a device from a device-mapper table line with bdev names for devices', description='Create a device from a device-mapper table line with bdev names for devices')
    p.add_argument('name', help='Name of the device')
    p.add_argument('table', help='e.g. \'0 2097152 thin-pool META DATA 128 0\', \'0 2097152 thin POOL 1\', \'0 2097152 era META ORIGIN 128\' \'0 2097152 snapshot ORIGIN COW P 16\' or \'0 2097152 ploop 11 TOP BASE\'')
    p.set_defaults(func=lambda args: _call(args, 'dm_create', ['name', 'table']))

    p = subparsers.add_parser('dm_remove', help='Remove a device by its name', description='Remove a device by its name')
    p.add_argument('name', help='Name of the device')
    p.set_defaults(func=lambda args: _call(args, 'dm_remove', ['name']))

    p = subparsers.add_parser('dm_message', help='Send a device-mapper message, e.g. \'create_thin 1\' to a pool \'checkpoint\' to an era target or \'merge\' to a ploop target', description='Send a device-mapper message, e.g. \'create_thin 1\' to a pool \'checkpoint\' to an era target or \'merge\' to a ploop target')
    p.add_argument('name', help='Name of the device')
    p.add_argument('message', help='The message')
    p.add_argument('--sector', dest='sector', help='As dmsetup has it; must be 0', type=int)
    p.set_defaults(func=lambda args: _call(args, 'dm_message', ['name', 'message', 'sector']))

    p = subparsers.add_parser('dm_status', help='Show a device\'s status: the kernel\'s line, and the same as JSON', description='Show a device\'s status: the kernel\'s line, and the same as JSON')
    p.add_argument('name', help='Name of the device')
    p.set_defaults(func=lambda args: _call(args, 'dm_status', ['name']))

    p = subparsers.add_parser('dm_table', help='Show a device\'s table line', description='Show a device\'s table line')
    p.add_argument('name', help='Name of the device')
    p.set_defaults(func=lambda args: _call(args, 'dm_table', ['name']))

    p = subparsers.add_parser('thin_merge_external', help='Merge what an active thin device has into its external origin, which must not be in use otherwise; the device reads the same all the time. See thin_merge_external_status and the notifications for the end', description='Merge what an active thin device has into its external origin, which must not be in use otherwise; the device reads the same all the time. See thin_merge_external_status and the notifications for the end')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('id', help='Id of the thin device, 0 to 16777215', type=int)
    p.add_argument('--mib-per-second', dest='mib_per_second', help='Most MiB merged per second; 0: as many as can be (default 0)', type=int)
    p.set_defaults(func=lambda args: _call(args, 'thin_merge_external', ['pool', 'id', 'mib_per_second']))

    p = subparsers.add_parser('thin_merge_external_stop', help='Stop such a merge after the batch in hand; thin_merge_external goes on with what is left', description='Stop such a merge after the batch in hand; thin_merge_external goes on with what is left')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('id', help='Id of the thin device, 0 to 16777215', type=int)
    p.set_defaults(func=lambda args: _call(args, 'thin_merge_external_stop', ['pool', 'id']))

    p = subparsers.add_parser('thin_merge_external_status', help='Show how such a merge is, or how the last one since the device was activated has ended', description='Show how such a merge is, or how the last one since the device was activated has ended')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('id', help='Id of the thin device, 0 to 16777215', type=int)
    p.set_defaults(func=lambda args: _call(args, 'thin_merge_external_status', ['pool', 'id']))

    p = subparsers.add_parser('linear_create', help='Make a bdev of parts of other bdevs, one after the other, as dm-linear does: for logical volumes of LVM. Several may have parts of the same bdev, which nobody else may then write to', description='Make a bdev of parts of other bdevs, one after the other, as dm-linear does: for logical volumes of LVM. Several may have parts of the same bdev, which nobody else may then write to')
    p.add_argument('name', help='Name of the bdev')
    p.add_argument('segments', help='The parts in order, each bdev:first_sector:sectors, in sectors of 512 bytes', type=_words, metavar='WORD,WORD...')
    p.add_argument('--wait', dest='wait', help='If a bdev is not there yet, make it when they are there', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'linear_create', ['name', 'segments', 'wait']))

    p = subparsers.add_parser('linear_delete', help='Remove a linear bdev; what is on its bdevs stays', description='Remove a linear bdev; what is on its bdevs stays')
    p.add_argument('name', help='Name of the bdev')
    p.set_defaults(func=lambda args: _call(args, 'linear_delete', ['name']))

    p = subparsers.add_parser('thin_suspend', help='Let new I/O of a thin bdev wait, when what is under way is over; shows the number of the suspension', description='Let new I/O of a thin bdev wait, when what is under way is over; shows the number of the suspension')
    p.add_argument('bdev_name', help='Name of the thin bdev')
    p.add_argument('--timeout-ms', dest='timeout_ms', help='When it goes on by itself, in ms (default 5000)', type=int)
    p.set_defaults(func=lambda args: _call(args, 'thin_suspend', ['bdev_name', 'timeout_ms']))

    p = subparsers.add_parser('thin_resume', help='Let a suspended thin bdev go on', description='Let a suspended thin bdev go on')
    p.add_argument('bdev_name', help='Name of the thin bdev')
    p.set_defaults(func=lambda args: _call(args, 'thin_resume', ['bdev_name']))

    p = subparsers.add_parser('thin_switch', help='Let a suspended thin bdev be that of another thin device from now on, with all who have it open, and go on; that the contents are the same is the caller\'s affair', description='Let a suspended thin bdev be that of another thin device from now on, with all who have it open, and go on; that the contents are the same is the caller\'s affair')
    p.add_argument('bdev_name', help='Name of the thin bdev')
    p.add_argument('pool', help='Name of the pool')
    p.add_argument('id', help='Id of the thin device, 0 to 16777215', type=int)
    p.add_argument('suspension', help='What thin_suspend has answered', type=int)
    p.set_defaults(func=lambda args: _call(args, 'thin_switch', ['bdev_name', 'pool', 'id', 'suspension']))

    p = subparsers.add_parser('era_create', help='Record on a metadata bdev in which era each block of an origin bdev is written, and make the origin available as a bdev of this name; a metadata bdev that begins with 4096 zero bytes is formatted', description='Record on a metadata bdev in which era each block of an origin bdev is written, and make the origin available as a bdev of this name; a metadata bdev that begins with 4096 zero bytes is formatted')
    p.add_argument('name', help='Name of the era target')
    p.add_argument('metadata_bdev', help='Bdev for the metadata')
    p.add_argument('origin_bdev', help='Bdev with the data; nothing of it is changed but by writes')
    p.add_argument('--block-size-sectors', dest='block_size_sectors', help='Sectors of 512 bytes per data block: a multiple of 8 (default 128, that is 64 KiB); fixed for ever when the metadata is formatted', type=int)
    p.add_argument('--size-sectors', dest='size_sectors', help='Size in sectors of 512 bytes (default that of the origin, also when that grows)', type=int)
    p.add_argument('--metadata-cache-mib', dest='metadata_cache_mib', help='Limit of the metadata cache in MiB (default 64)', type=int)
    p.add_argument('--wait', dest='wait', help='If a base bdev is not there yet, open the era target when it appears', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'era_create', ['name', 'metadata_bdev', 'origin_bdev', 'block_size_sectors', 'size_sectors', 'metadata_cache_mib', 'wait']))

    p = subparsers.add_parser('era_delete', help='Remove an era target and its bdev; origin and metadata stay as they are', description='Remove an era target and its bdev; origin and metadata stay as they are')
    p.add_argument('name', help='Name of the era target')
    p.set_defaults(func=lambda args: _call(args, 'era_delete', ['name']))

    p = subparsers.add_parser('era_checkpoint', help='Begin a new era, and show its number once it has begun: every write that was under way is over and recorded in an era before', description='Begin a new era, and show its number once it has begun: every write that was under way is over and recorded in an era before')
    p.add_argument('name', help='Name of the era target')
    p.set_defaults(func=lambda args: _call(args, 'era_checkpoint', ['name']))

    p = subparsers.add_parser('era_take_metadata_snap', help='Begin a new era and keep what was written in all before it readable, for era_written_since and era_metadata_snap_export', description='Begin a new era and keep what was written in all before it readable, for era_written_since and era_metadata_snap_export')
    p.add_argument('name', help='Name of the era target')
    p.set_defaults(func=lambda args: _call(args, 'era_take_metadata_snap', ['name']))

    p = subparsers.add_parser('era_drop_metadata_snap', help='Let the metadata snapshot go, if nobody is reading it', description='Let the metadata snapshot go, if nobody is reading it')
    p.add_argument('name', help='Name of the era target')
    p.set_defaults(func=lambda args: _call(args, 'era_drop_metadata_snap', ['name']))

    p = subparsers.add_parser('era_status', help='Show one era target or all: current era, metadata space, counters', description='Show one era target or all: current era, metadata space, counters')
    p.add_argument('--name', dest='name', help='Name of the era target (default: all)')
    p.set_defaults(func=lambda args: _call(args, 'era_status', ['name']))

    p = subparsers.add_parser('era_written_since', help='Show which data blocks the metadata snapshot has as written in an era or later, page by page, or write them to a file as era_invalidate does', description='Show which data blocks the metadata snapshot has as written in an era or later, page by page, or write them to a file as era_invalidate does')
    p.add_argument('name', help='Name of the era target')
    p.add_argument('era', help='The era; 0 shows every block', type=int)
    p.add_argument('--begin-block', dest='begin_block', help='First data block to show, as next_block of the page before (default 0)', type=int)
    p.add_argument('--limit', dest='limit', help='Most ranges to show, 1 to 65536 (default 1024)', type=int)
    p.add_argument('--snapshot', dest='snapshot', help='Refuse if the metadata snapshot is not the one of which a page said this', type=int)
    p.add_argument('--file', dest='file', help='Write XML to this new file, given with its full path, on the machine of the target')
    p.set_defaults(func=lambda args: _call(args, 'era_written_since', ['name', 'era', 'begin_block', 'limit', 'snapshot', 'file']))

    p = subparsers.add_parser('era_metadata_snap_export', help='Make the metadata bdev readable as another, read-only bdev while there is a metadata snapshot: for era_invalidate --metadata-snapshot (of version 1.x; 0.9 reads elsewhere) on any host', description='Make the metadata bdev readable as another, read-only bdev while there is a metadata snapshot: for era_invalidate --metadata-snapshot (of version 1.x; 0.9 reads elsewhere) on any host')
    p.add_argument('name', help='Name of the era target')
    p.add_argument('--bdev-name', dest='bdev_name', help='Name of the bdev (default NAME_metadata_snap)')
    p.add_argument('--wait', dest='wait', help='As in saved configurations: wait while the era target is being opened, and only warn if it or its metadata snapshot is missing', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'era_metadata_snap_export', ['name', 'bdev_name', 'wait']))

    p = subparsers.add_parser('era_metadata_snap_unexport', help='Remove the bdev that era_metadata_snap_export has made', description='Remove the bdev that era_metadata_snap_export has made')
    p.add_argument('name', help='Name of the era target')
    p.set_defaults(func=lambda args: _call(args, 'era_metadata_snap_unexport', ['name']))

    p = subparsers.add_parser('snapshot_origin_create', help='Make a bdev available as an origin, of which snapshots can be made while it is in use; write to the origin only through the bdev of this name', description='Make a bdev available as an origin, of which snapshots can be made while it is in use; write to the origin only through the bdev of this name')
    p.add_argument('name', help='Name of the origin target and of its bdev')
    p.add_argument('origin_bdev', help='Bdev with the data')
    p.add_argument('--size-sectors', dest='size_sectors', help='Size in sectors of 512 bytes (default that of the origin bdev, also when that grows)', type=int)
    p.add_argument('--exceptions-cache-mib', dest='exceptions_cache_mib', help='Limit in MiB of what is kept of where exceptions are, 8 bytes per chunk, of all snapshots together (default 64)', type=int)
    p.add_argument('--wait', dest='wait', help='If the origin bdev, or the COW bdev of a snapshot that is declared meanwhile, is not there yet, open when all are', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'snapshot_origin_create', ['name', 'origin_bdev', 'size_sectors', 'exceptions_cache_mib', 'wait']))

    p = subparsers.add_parser('snapshot_create', help='Make a snapshot of an origin as it is now, or open the one that a COW bdev holds; a COW bdev that begins with zeroes is formatted', description='Make a snapshot of an origin as it is now, or open the one that a COW bdev holds; a COW bdev that begins with zeroes is formatted')
    p.add_argument('name', help='Name of the snapshot')
    p.add_argument('origin', help='Name of the origin target')
    p.add_argument('cow_bdev', help='Bdev for the exceptions; that of another snapshot of this origin hands its store over')
    p.add_argument('--store', dest='store', help='Kind of store: P persistent, PO persistent and full of writes to the snapshot it overflows instead of becoming invalid, N in memory only (default P)')
    p.add_argument('--chunk-size-sectors', dest='chunk_size_sectors', help='Sectors of 512 bytes per chunk: a power of two up to 2097152 (default 32, that is 16 KiB; to be given for N); a store that is there has its own', type=int)
    p.add_argument('--size-sectors', dest='size_sectors', help='Length in sectors of 512 bytes of the part of the origin that is snapshotted (default: all)', type=int)
    p.add_argument('--discard-zeroes-cow', dest='discard_zeroes_cow', help='Take unmaps: they zero chunks that have an exception', action='store_true')
    p.add_argument('--discard-passdown-origin', dest='discard_passdown_origin', help='Pass unmaps on to the origin bdev, too; without exceptions in any snapshot', action='store_true')
    p.add_argument('--wait', dest='wait', help='If the origin is waiting for its bdevs, make or open the snapshot when they are there', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'snapshot_create', ['name', 'origin', 'cow_bdev', 'store', 'chunk_size_sectors', 'size_sectors', 'discard_zeroes_cow', 'discard_passdown_origin', 'wait']))

    p = subparsers.add_parser('snapshot_merge', help='Merge a snapshot into its origin, which shows the snapshot\'s content at once; the snapshot\'s bdev answers with errors from then on. Save the configuration afterwards: a merge must go on after a restart', description='Merge a snapshot into its origin, which shows the snapshot\'s content at once; the snapshot\'s bdev answers with errors from then on. Save the configuration afterwards: a merge must go on after a restart')
    p.add_argument('name', help='Name of the snapshot')
    p.add_argument('--origin', dest='origin', help='Name of the origin target, to merge the store of a COW bdev that no snapshot has open')
    p.add_argument('--cow-bdev', dest='cow_bdev', help='That COW bdev')
    p.add_argument('--chunk-size-sectors', dest='chunk_size_sectors', help='Of that store (default what its header says)', type=int)
    p.add_argument('--size-sectors', dest='size_sectors', help='Of that store: length in sectors of 512 bytes (default that of the origin)', type=int)
    p.add_argument('--mib-per-second', dest='mib_per_second', help='Most MiB merged per second; 0: as many as can be', type=int)
    p.add_argument('--wait', dest='wait', help='With origin and cow_bdev: if the origin is waiting for its bdevs, merge when they are there', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'snapshot_merge', ['name', 'origin', 'cow_bdev', 'chunk_size_sectors', 'size_sectors', 'mib_per_second', 'wait']))

    p = subparsers.add_parser('snapshot_merge_stop', help='Stop merging after the batch in hand; the origin goes on showing the snapshot\'s content', description='Stop merging after the batch in hand; the origin goes on showing the snapshot\'s content')
    p.add_argument('name', help='Name of the snapshot')
    p.set_defaults(func=lambda args: _call(args, 'snapshot_merge_stop', ['name']))

    p = subparsers.add_parser('snapshot_merge_resume', help='Go on with a merge that was stopped or has failed, or change the rate of one that runs', description='Go on with a merge that was stopped or has failed, or change the rate of one that runs')
    p.add_argument('name', help='Name of the snapshot')
    p.add_argument('--mib-per-second', dest='mib_per_second', help='Most MiB merged per second; 0: as many as can be', type=int)
    p.set_defaults(func=lambda args: _call(args, 'snapshot_merge_resume', ['name', 'mib_per_second']))

    p = subparsers.add_parser('snapshot_status', help='Show an origin with its snapshots and its merge, one of these, or all origins', description='Show an origin with its snapshots and its merge, one of these, or all origins')
    p.add_argument('--name', dest='name', help='Name of the origin or snapshot (default: all origins)')
    p.add_argument('--wait', dest='wait', help='As in saved configurations: if the bdevs of an origin are there, wait until it has opened', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'snapshot_status', ['name', 'wait']))

    p = subparsers.add_parser('snapshot_delete', help='Remove a snapshot, a merge that has ended, or an origin without any; what is on the bdevs stays, but a snapshot whose origin is written to meanwhile must not be opened again', description='Remove a snapshot, a merge that has ended, or an origin without any; what is on the bdevs stays, but a snapshot whose origin is written to meanwhile must not be opened again')
    p.add_argument('name', help='Name of the snapshot or origin')
    p.set_defaults(func=lambda args: _call(args, 'snapshot_delete', ['name']))

    p = subparsers.add_parser('ploop_create', help='Make a ploop or Parallels image available as a bdev of this name, alone or with lower deltas; with a size, a bdev of zeroes is formatted first', description='Make a ploop or Parallels image available as a bdev of this name, alone or with lower deltas; with a size, a bdev of zeroes is formatted first')
    p.add_argument('name', help='Name of the ploop target and of its bdev')
    p.add_argument('top_bdev', help='Bdev with the image that is written')
    p.add_argument('--lower-bdevs', dest='lower_bdevs', help='Bdevs with the lower, read-only deltas, oldest first; the first can be raw@BDEV, without a format', type=_words, metavar='WORD,WORD...')
    p.add_argument('--size-mib', dest='size_mib', help='Size in MiB of a new image; one that is there must have it', type=int)
    p.add_argument('--size-sectors', dest='size_sectors', help='The same in sectors of 512 bytes, instead of size_mib', type=int)
    p.add_argument('--cluster-size-sectors', dest='cluster_size_sectors', help='Sectors of 512 bytes per cluster of a new image (default 2048, that is 1 MiB, or that of the lower deltas)', type=int)
    p.add_argument('--overwrite', dest='overwrite', help='With a size: make a new image whatever the top bdev holds', action='store_true')
    p.add_argument('--force', dest='force', help='Use an image that says it is in use, as after a crash, if nothing is wrong with it; make sure that nobody else has it open', action='store_true')
    p.add_argument('--bat-cache-mib', dest='bat_cache_mib', help='Limit in MiB of what is kept of where clusters are, 8 bytes per cluster (default 64)', type=int)
    p.add_argument('--wait', dest='wait', help='If a bdev is not there yet, open the target when all are', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'ploop_create', ['name', 'top_bdev', 'lower_bdevs', 'size_mib', 'size_sectors', 'cluster_size_sectors', 'overwrite', 'force', 'bat_cache_mib', 'wait']))

    p = subparsers.add_parser('ploop_delete', help='Close a ploop target and remove its bdev; what is on its bdevs stays', description='Close a ploop target and remove its bdev; what is on its bdevs stays')
    p.add_argument('name', help='Name of the ploop target')
    p.set_defaults(func=lambda args: _call(args, 'ploop_delete', ['name']))

    p = subparsers.add_parser('ploop_status', help='Show a ploop target or all: the chain of deltas, room, merge, tracking, push backup, counters', description='Show a ploop target or all: the chain of deltas, room, merge, tracking, push backup, counters')
    p.add_argument('--name', dest='name', help='Name of the ploop target (default all)')
    p.add_argument('--wait', dest='wait', help='As in saved configurations: if a target\'s bdevs are there, wait until it has opened', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'ploop_status', ['name', 'wait']))

    p = subparsers.add_parser('ploop_check', help='Look at all of an image that nothing uses: damaged entries, leaks, whether it was closed', description='Look at all of an image that nothing uses: damaged entries, leaks, whether it was closed')
    p.add_argument('bdev', help='Bdev with the image')
    p.add_argument('--repair', dest='repair', help='Mark an image as closed that was not, if nothing else is wrong with it; targets that wait for it open', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'ploop_check', ['bdev', 'repair']))

    p = subparsers.add_parser('ploop_suspend', help='Hold all I/O until ploop_resume; what was answered before is durable', description='Hold all I/O until ploop_resume; what was answered before is durable')
    p.add_argument('name', help='Name of the ploop target')
    p.set_defaults(func=lambda args: _call(args, 'ploop_suspend', ['name']))

    p = subparsers.add_parser('ploop_resume', help='Let I/O go on', description='Let I/O go on')
    p.add_argument('name', help='Name of the ploop target')
    p.set_defaults(func=lambda args: _call(args, 'ploop_resume', ['name']))

    p = subparsers.add_parser('ploop_add_delta', help='Put a read-only delta directly below the top one; the target must be suspended', description='Put a read-only delta directly below the top one; the target must be suspended')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('bdev', help='Bdev with the delta')
    p.add_argument('--raw', dest='raw', help='It has no format; as the oldest delta only', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'ploop_add_delta', ['name', 'bdev', 'raw']))

    p = subparsers.add_parser('ploop_resize', help='Make the disk larger while it is in use; save the configuration of what uses its size', description='Make the disk larger while it is in use; save the configuration of what uses its size')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('size_sectors', help='New size in sectors of 512 bytes: a whole number of clusters', type=int)
    p.set_defaults(func=lambda args: _call(args, 'ploop_resize', ['name', 'size_sectors']))

    p = subparsers.add_parser('ploop_merge', help='Merge the newest lower delta up into the top one, or a lower delta into a neighbour, which is written for this; it then leaves the chain. Save the configuration afterwards', description='Merge the newest lower delta up into the top one, or a lower delta into a neighbour, which is written for this; it then leaves the chain. Save the configuration afterwards')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('--level', dest='level', help='Number of the lower delta that goes: 0 is the oldest', type=int)
    p.add_argument('--direction', dest='direction', help='forward: into the next newer delta; backward: into the next older one')
    p.add_argument('--wait', dest='wait', help='Answer when it has ended; otherwise see ploop_status and the notifications', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'ploop_merge', ['name', 'level', 'direction', 'wait']))

    p = subparsers.add_parser('ploop_merge_cancel', help='Stop the merge that is under way; what has been copied stays', description='Stop the merge that is under way; what has been copied stays')
    p.add_argument('name', help='Name of the ploop target')
    p.set_defaults(func=lambda args: _call(args, 'ploop_merge_cancel', ['name']))

    p = subparsers.add_parser('ploop_notify_merged', help='Tell that a lower delta has been merged into a neighbour from outside: that is read again, the delta leaves the chain', description='Tell that a lower delta has been merged into a neighbour from outside: that is read again, the delta leaves the chain')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('level', help='Number of the lower delta: 0 is the oldest', type=int)
    p.add_argument('direction', help='forward: into the next newer delta; backward: into the next older one')
    p.set_defaults(func=lambda args: _call(args, 'ploop_notify_merged', ['name', 'level', 'direction']))

    p = subparsers.add_parser('ploop_snapshot', help='Keep the disk as it is now: the top image becomes the newest lower delta, a new one is written from now on. Save the configuration afterwards', description='Keep the disk as it is now: the top image becomes the newest lower delta, a new one is written from now on. Save the configuration afterwards')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('new_top_bdev', help='Bdev with an empty image of the same size and clusters, or one that begins with 4096 zero bytes, which is formatted')
    p.set_defaults(func=lambda args: _call(args, 'ploop_snapshot', ['name', 'new_top_bdev']))

    p = subparsers.add_parser('ploop_tracking_start', help='Begin to note which clusters of the top image\'s bdev are written; those in use now count as written', description='Begin to note which clusters of the top image\'s bdev are written; those in use now count as written')
    p.add_argument('name', help='Name of the ploop target')
    p.set_defaults(func=lambda args: _call(args, 'ploop_tracking_start', ['name']))

    p = subparsers.add_parser('ploop_tracking_get_next', help='Take clusters of the top image\'s bdev that were written; each is told once until it is written again', description='Take clusters of the top image\'s bdev that were written; each is told once until it is written again')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('--max', dest='max', help='Most clusters to return, 1 to 65536 (default 1024)', type=int)
    p.set_defaults(func=lambda args: _call(args, 'ploop_tracking_get_next', ['name', 'max']))

    p = subparsers.add_parser('ploop_tracking_stop', help='End tracking', description='End tracking')
    p.add_argument('name', help='Name of the ploop target')
    p.set_defaults(func=lambda args: _call(args, 'ploop_tracking_stop', ['name']))

    p = subparsers.add_parser('ploop_update_delta_index', help='Tell that clusters have been moved within a lower delta from outside', description='Tell that clusters have been moved within a lower delta from outside')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('level', help='Number of the lower delta: 0 is the oldest', type=int)
    p.add_argument('map', help='Guest clusters and their BAT entries now, e.g. \'5:9;6:12\'')
    p.set_defaults(func=lambda args: _call(args, 'ploop_update_delta_index', ['name', 'level', 'map']))

    p = subparsers.add_parser('ploop_set_noresume', help='Refuse to resume the target (1), or not any more (0)', description='Refuse to resume the target (1), or not any more (0)')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('value', help='0 or 1', type=int)
    p.set_defaults(func=lambda args: _call(args, 'ploop_set_noresume', ['name', 'value']))

    p = subparsers.add_parser('ploop_flip_upper_deltas', help='Let the top image and the newest lower delta change places, while suspended with noresume set. Save the configuration afterwards', description='Let the top image and the newest lower delta change places, while suspended with noresume set. Save the configuration afterwards')
    p.add_argument('name', help='Name of the ploop target')
    p.set_defaults(func=lambda args: _call(args, 'ploop_flip_upper_deltas', ['name']))

    p = subparsers.add_parser('ploop_push_backup_start', help='Begin a backup of the disk as it is now: writes wait until what they overwrite has been read', description='Begin a backup of the disk as it is now: writes wait until what they overwrite has been read')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('uuid', help='Name of the push backup: 1 to 39 characters without spaces')
    p.add_argument('--clusters', dest='clusters', help='Guest clusters to back up, e.g. \'0-99,200\' (default all)')
    p.add_argument('--timeout-s', dest='timeout_s', help='Seconds, 1 to 17999, that a write waits at most; then the backup has expired and all writes go on (default 60)', type=int)
    p.add_argument('--record', dest='record', help='Record what is written from now on, for a backup since this one', action='store_true')
    p.add_argument('--since', dest='since', help='The same, and back up only what was written since the backup of this uuid')
    p.set_defaults(func=lambda args: _call(args, 'ploop_push_backup_start', ['name', 'uuid', 'clusters', 'timeout_s', 'record', 'since']))

    p = subparsers.add_parser('ploop_push_backup_left', help='List guest clusters that have yet to be read, and which of them are holes', description='List guest clusters that have yet to be read, and which of them are holes')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('uuid', help='Name of the push backup: 1 to 39 characters without spaces')
    p.add_argument('--begin-cluster', dest='begin_cluster', help='The first of them: next_cluster of the page before', type=int)
    p.add_argument('--max', dest='max', help='Most clusters to return, 1 to 65536 (default 1024)', type=int)
    p.set_defaults(func=lambda args: _call(args, 'ploop_push_backup_left', ['name', 'uuid', 'begin_cluster', 'max']))

    p = subparsers.add_parser('ploop_push_backup_read', help='Take guest clusters that writes wait for; each is told once', description='Take guest clusters that writes wait for; each is told once')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('uuid', help='Name of the push backup: 1 to 39 characters without spaces')
    p.add_argument('--max', dest='max', help='Most clusters to return, 1 to 65536 (default 1024)', type=int)
    p.set_defaults(func=lambda args: _call(args, 'ploop_push_backup_read', ['name', 'uuid', 'max']))

    p = subparsers.add_parser('ploop_push_backup_write', help='Tell that guest clusters have been read: writes to them go on', description='Tell that guest clusters have been read: writes to them go on')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('uuid', help='Name of the push backup: 1 to 39 characters without spaces')
    p.add_argument('cluster', help='The first of them', type=int)
    p.add_argument('--count', dest='count', help='How many (default 1)', type=int)
    p.set_defaults(func=lambda args: _call(args, 'ploop_push_backup_write', ['name', 'uuid', 'cluster', 'count']))

    p = subparsers.add_parser('ploop_push_backup_get_uuid', help='Show the name of the push backup', description='Show the name of the push backup')
    p.add_argument('name', help='Name of the ploop target')
    p.set_defaults(func=lambda args: _call(args, 'ploop_push_backup_get_uuid', ['name']))

    p = subparsers.add_parser('ploop_push_backup_stop', help='End a push backup, also one that has expired: all writes go on', description='End a push backup, also one that has expired: all writes go on')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('uuid', help='Name of the push backup: 1 to 39 characters without spaces')
    p.add_argument('--complete', dest='complete', help='All was read and is safe: another backup can be made since this one, and no more since the one before', action='store_true')
    p.add_argument('--keep', dest='keep', help='With complete: another one can still be made since the one before, too', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'ploop_push_backup_stop', ['name', 'uuid', 'complete', 'keep']))

    p = subparsers.add_parser('ploop_push_backup_forget', help='Do not record any more what is written since a backup', description='Do not record any more what is written since a backup')
    p.add_argument('name', help='Name of the ploop target')
    p.add_argument('uuid', help='Name of the push backup: 1 to 39 characters without spaces')
    p.set_defaults(func=lambda args: _call(args, 'ploop_push_backup_forget', ['name', 'uuid']))

    p = subparsers.add_parser('nbd_export_create', help='Serve any bdev over NBD at a Unix socket, to programs of the same user on this machine; shows its URI', description='Serve any bdev over NBD at a Unix socket, to programs of the same user on this machine; shows its URI')
    p.add_argument('bdev_name', help='Name of the bdev')
    p.add_argument('path', help='Full path of the socket')
    p.add_argument('--writable', dest='writable', help='Let clients write; the bdev must not be in use by another module', action='store_true')
    p.add_argument('--exclusive', dest='exclusive', help='Claim the bdev, so that nobody else writes to it as long as it is exported', action='store_true')
    p.set_defaults(func=lambda args: _call(args, 'nbd_export_create', ['bdev_name', 'path', 'writable', 'exclusive']))

    p = subparsers.add_parser('nbd_export_delete', help='End an export: its clients are cut', description='End an export: its clients are cut')
    p.add_argument('path', help='Full path of the socket')
    p.set_defaults(func=lambda args: _call(args, 'nbd_export_delete', ['path']))

    p = subparsers.add_parser('nbd_export_list', help='Show what is served over NBD, to how many clients, and bytes read and written', description='Show what is served over NBD, to how many clients, and bytes read and written')
    p.set_defaults(func=lambda args: _call(args, 'nbd_export_list', []))
