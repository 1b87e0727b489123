//! What the methods are called and take, for `--help`, for the `rpc.py` plugin, and for tests that
//! hold it against the parameter structs.

mod era;
mod external_merge;
mod linear;
mod nbd;
mod ploop;
mod snapshot;
mod switching;

use serde::Serialize;

/// Type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text.
    String,
    /// A number from 0 up.
    Unsigned,
    /// true or false; false when left out.
    Flag,
    /// Texts.
    Strings,
    /// Numbers from 0 up.
    Numbers,
    /// A [`crate::params::DumpFormat`].
    DumpFormat,
}

/// A parameter.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Parameter {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Whether it must be given.
    pub required: bool,
    /// One line, with units and default.
    pub help: &'static str,
}

/// A method.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Method {
    /// Name.
    pub name: &'static str,
    /// One line.
    pub help: &'static str,
    /// What it takes.
    pub parameters: &'static [Parameter],
}

const fn required(name: &'static str, kind: Kind, help: &'static str) -> Parameter {
    Parameter {
        name,
        kind,
        required: true,
        help,
    }
}

const fn optional(name: &'static str, kind: Kind, help: &'static str) -> Parameter {
    Parameter {
        name,
        kind,
        required: false,
        help,
    }
}

const POOL: Parameter = required("pool", Kind::String, "Name of the pool");
const ID: Parameter = required("id", Kind::Unsigned, "Id of the thin device, 0 to 16777215");

const SNAPSHOT: Parameter = optional(
    "snapshot",
    Kind::Unsigned,
    "Refuse if the metadata snapshot is not the one of which a page said this",
);
const FILE: Parameter = optional(
    "file",
    Kind::String,
    "Write XML to this new file, given with its full path, on the machine of the target",
);

const PARTS: [&[Method]; 8] = [
    OWN,
    &external_merge::METHODS,
    &linear::METHODS,
    &switching::METHODS,
    &era::METHODS,
    &snapshot::METHODS,
    &ploop::METHODS,
    &nbd::METHODS,
];

/// All methods.
pub const METHODS: &[Method] = &joined::<{ count(&PARTS) }>(&PARTS);

const fn count(parts: &[&[Method]]) -> usize {
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        count += parts[part].len();
        part += 1;
    }
    count
}

const fn joined<const N: usize>(parts: &[&[Method]]) -> [Method; N] {
    let mut all = [OWN[0]; N];
    let (mut at, mut part) = (0, 0);
    while part < parts.len() {
        let mut i = 0;
        while i < parts[part].len() {
            all[at] = parts[part][i];
            at += 1;
            i += 1;
        }
        part += 1;
    }
    all
}

/// Pools, thin devices, and device-mapper's words.
const OWN: &[Method] = &[
    Method {
        name: "thin_pool_create",
        help: "Open a thin pool, formatting its metadata bdev if that begins with 4096 zero bytes",
        parameters: &[
            required("name", Kind::String, "Name of the pool"),
            required(
                "metadata_bdev",
                Kind::String,
                "Bdev for the metadata (at most 15.875 GiB of it are used)",
            ),
            required("data_bdev", Kind::String, "Bdev for the data"),
            optional(
                "data_block_size_sectors",
                Kind::Unsigned,
                "Sectors of 512 bytes per data block: a multiple of 128 up to 2097152 (default 128, that is 64 KiB); fixed for ever when the pool is formatted",
            ),
            optional(
                "low_water_mark_blocks",
                Kind::Unsigned,
                "Warn when this few data blocks are free (default 0)",
            ),
            optional(
                "features",
                Kind::Strings,
                "Of skip_block_zeroing, ignore_discard, no_discard_passdown, read_only, error_if_no_space",
            ),
            optional(
                "no_space_timeout_s",
                Kind::Unsigned,
                "How long writes wait for data space in seconds, as the kernel's module parameter says (default 60; 0: for ever)",
            ),
            optional(
                "metadata_cache_mib",
                Kind::Unsigned,
                "Limit of the metadata cache in MiB (default 64)",
            ),
            optional(
                "mapping_cache_mib",
                Kind::Unsigned,
                "Limit of the mapping cache in MiB, 8 bytes per mapping; what was written in order takes hardly any (default 256)",
            ),
            optional(
                "wait",
                Kind::Flag,
                "If a base bdev is not there yet, open the pool when it appears",
            ),
        ],
    },
    Method {
        name: "thin_pool_delete",
        help: "Close a thin pool without active devices; what is on its bdevs stays",
        parameters: &[required("name", Kind::String, "Name of the pool")],
    },
    Method {
        name: "thin_pool_status",
        help: "Show one pool or all: mode, space, caches, counters",
        parameters: &[optional(
            "name",
            Kind::String,
            "Name of the pool (default: all)",
        )],
    },
    Method {
        name: "thin_create",
        help: "Create a thin device in a pool, and activate it if a size is given",
        parameters: &[
            POOL,
            ID,
            optional(
                "bdev_name",
                Kind::String,
                "Name of the bdev to activate it as (default POOL_ID)",
            ),
            optional(
                "size_mib",
                Kind::Unsigned,
                "Activate it with this size in MiB, which may exceed the pool",
            ),
            optional(
                "origin_bdev",
                Kind::String,
                "External origin: a bdev outside the pool that unmapped blocks show (give it for each snapshot too)",
            ),
        ],
    },
    Method {
        name: "thin_snapshot",
        help: "Create a snapshot of a thin device, active or not",
        parameters: &[
            POOL,
            required("id", Kind::Unsigned, "Id of the snapshot, 0 to 16777215"),
            required(
                "origin_id",
                Kind::Unsigned,
                "Id of the thin device to take it of",
            ),
        ],
    },
    Method {
        name: "thin_delete",
        help: "Delete a thin device that is not active, with all data that only it has",
        parameters: &[POOL, ID],
    },
    Method {
        name: "thin_activate",
        help: "Make a thin device available as a bdev",
        parameters: &[
            POOL,
            ID,
            optional(
                "bdev_name",
                Kind::String,
                "Name of the bdev (default POOL_ID)",
            ),
            optional(
                "size_mib",
                Kind::Unsigned,
                "Size in MiB, which may exceed the pool",
            ),
            optional(
                "size_sectors",
                Kind::Unsigned,
                "Size in sectors of 512 bytes, instead of size_mib",
            ),
            optional(
                "origin_bdev",
                Kind::String,
                "External origin: a bdev outside the pool that unmapped blocks show (give it for each snapshot too)",
            ),
            optional(
                "create",
                Kind::Flag,
                "Create the thin device if there is none of this id",
            ),
            optional(
                "wait",
                Kind::Flag,
                "If the pool is waiting for its bdevs, activate when they are there",
            ),
        ],
    },
    Method {
        name: "thin_deactivate",
        help: "Remove a thin bdev; the thin device stays in its pool",
        parameters: &[
            required("bdev_name", Kind::String, "Name of the thin bdev"),
            optional(
                "suspension",
                Kind::Unsigned,
                "Only if it is still suspended: what thin_suspend has answered; what waits fails",
            ),
        ],
    },
    Method {
        name: "thin_list",
        help: "List the thin devices of a pool",
        parameters: &[POOL],
    },
    Method {
        name: "thin_set_transaction_id",
        help: "Set the pool's userspace transaction id, if it is what the caller believes",
        parameters: &[
            POOL,
            required("current", Kind::Unsigned, "What it must be now"),
            required("new", Kind::Unsigned, "What it shall be"),
        ],
    },
    Method {
        name: "thin_reserve_metadata_snap",
        help: "Keep the pool's metadata as it is now readable: for thin_dump, thin_delta and thin_metadata_snap_export",
        parameters: &[POOL],
    },
    Method {
        name: "thin_release_metadata_snap",
        help: "Let the metadata snapshot go, if nobody is reading it",
        parameters: &[POOL],
    },
    Method {
        name: "thin_metadata_snap_export",
        help: "Make the pool's metadata bdev readable as another, read-only bdev while there is a metadata snapshot: for thin_dump -m, thin_delta -m and the like on any host",
        parameters: &[
            POOL,
            optional(
                "bdev_name",
                Kind::String,
                "Name of the bdev (default POOL_metadata_snap)",
            ),
            optional(
                "wait",
                Kind::Flag,
                "As in saved configurations: wait while the pool is being opened, and only warn if it or its metadata snapshot is missing",
            ),
        ],
    },
    Method {
        name: "thin_metadata_snap_unexport",
        help: "Remove the bdev that thin_metadata_snap_export has made",
        parameters: &[POOL],
    },
    Method {
        name: "thin_dump",
        help: "Show the metadata snapshot page by page (without id: the devices, with id: the mappings of one), or write it to a file as thin_dump does",
        parameters: &[
            POOL,
            optional(
                "id",
                Kind::Unsigned,
                "Id of the thin device whose mappings to show",
            ),
            optional(
                "begin_block",
                Kind::Unsigned,
                "With id: first virtual block to show, as next_block of the page before (default 0)",
            ),
            optional(
                "begin_id",
                Kind::Unsigned,
                "Without id: first device to show, as next_id of the page before (default 0)",
            ),
            optional(
                "limit",
                Kind::Unsigned,
                "Most runs of mappings or devices to show, 1 to 65536 (default 1024)",
            ),
            SNAPSHOT,
            FILE,
            optional(
                "ids",
                Kind::Numbers,
                "With file: only these thin devices (default all)",
            ),
            optional(
                "format",
                Kind::DumpFormat,
                "With file: xml is that of thin_dump 0.9, xml_shared that of 1.x, where mappings that devices share come once (default xml)",
            ),
        ],
    },
    Method {
        name: "thin_delta",
        help: "Show the differences of two thin devices in the metadata snapshot page by page, or write them to a file as thin_delta does",
        parameters: &[
            POOL,
            required("left_id", Kind::Unsigned, "Id of the first thin device"),
            required("right_id", Kind::Unsigned, "Id of the second thin device"),
            optional(
                "begin_block",
                Kind::Unsigned,
                "First virtual block to show, as next_block of the page before (default 0)",
            ),
            optional(
                "limit",
                Kind::Unsigned,
                "Most differences to show, 1 to 65536 (default 1024)",
            ),
            SNAPSHOT,
            FILE,
            optional(
                "verbose",
                Kind::Flag,
                "With file: with data blocks, as thin_delta --verbose",
            ),
        ],
    },
    Method {
        name: "dm_create",
        help: "Create a device from a device-mapper table line with bdev names for devices",
        parameters: &[
            required("name", Kind::String, "Name of the device"),
            required(
                "table",
                Kind::String,
                "e.g. '0 2097152 thin-pool META DATA 128 0', '0 2097152 thin POOL 1', '0 2097152 era META ORIGIN 128' '0 2097152 snapshot ORIGIN COW P 16' or '0 2097152 ploop 11 TOP BASE'",
            ),
        ],
    },
    Method {
        name: "dm_remove",
        help: "Remove a device by its name",
        parameters: &[required("name", Kind::String, "Name of the device")],
    },
    Method {
        name: "dm_message",
        help: "Send a device-mapper message, e.g. 'create_thin 1' to a pool 'checkpoint' to an era target or 'merge' to a ploop target",
        parameters: &[
            required("name", Kind::String, "Name of the device"),
            required("message", Kind::String, "The message"),
            optional("sector", Kind::Unsigned, "As dmsetup has it; must be 0"),
        ],
    },
    Method {
        name: "dm_status",
        help: "Show a device's status: the kernel's line, and the same as JSON",
        parameters: &[required("name", Kind::String, "Name of the device")],
    },
    Method {
        name: "dm_table",
        help: "Show a device's table line",
        parameters: &[required("name", Kind::String, "Name of the device")],
    },
];
