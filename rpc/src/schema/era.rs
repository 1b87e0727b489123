//! The methods of era targets.

use super::{FILE, Kind, Method, Parameter, SNAPSHOT, optional, required};

const NAME: Parameter = required("name", Kind::String, "Name of the era target");

/// All of them.
pub const METHODS: [Method; 9] = [
    Method {
        name: "era_create",
        help: "Record on a metadata bdev in which era each block of an origin bdev is written, and make the origin available as a bdev of this name; a metadata bdev that begins with 4096 zero bytes is formatted",
        parameters: &[
            NAME,
            required("metadata_bdev", Kind::String, "Bdev for the metadata"),
            required(
                "origin_bdev",
                Kind::String,
                "Bdev with the data; nothing of it is changed but by writes",
            ),
            optional(
                "block_size_sectors",
                Kind::Unsigned,
                "Sectors of 512 bytes per data block: a multiple of 8 (default 128, that is 64 KiB); fixed for ever when the metadata is formatted",
            ),
            optional(
                "size_sectors",
                Kind::Unsigned,
                "Size in sectors of 512 bytes (default that of the origin, also when that grows)",
            ),
            optional(
                "metadata_cache_mib",
                Kind::Unsigned,
                "Limit of the metadata cache in MiB (default 64)",
            ),
            optional(
                "wait",
                Kind::Flag,
                "If a base bdev is not there yet, open the era target when it appears",
            ),
        ],
    },
    Method {
        name: "era_delete",
        help: "Remove an era target and its bdev; origin and metadata stay as they are",
        parameters: &[NAME],
    },
    Method {
        name: "era_checkpoint",
        help: "Begin a new era, and show its number once it has begun: every write that was under way is over and recorded in an era before",
        parameters: &[NAME],
    },
    Method {
        name: "era_take_metadata_snap",
        help: "Begin a new era and keep what was written in all before it readable, for era_written_since and era_metadata_snap_export",
        parameters: &[NAME],
    },
    Method {
        name: "era_drop_metadata_snap",
        help: "Let the metadata snapshot go, if nobody is reading it",
        parameters: &[NAME],
    },
    Method {
        name: "era_status",
        help: "Show one era target or all: current era, metadata space, counters",
        parameters: &[optional(
            "name",
            Kind::String,
            "Name of the era target (default: all)",
        )],
    },
    Method {
        name: "era_written_since",
        help: "Show which data blocks the metadata snapshot has as written in an era or later, page by page, or write them to a file as era_invalidate does",
        parameters: &[
            NAME,
            required("era", Kind::Unsigned, "The era; 0 shows every block"),
            optional(
                "begin_block",
                Kind::Unsigned,
                "First data block to show, as next_block of the page before (default 0)",
            ),
            optional(
                "limit",
                Kind::Unsigned,
                "Most ranges to show, 1 to 65536 (default 1024)",
            ),
            SNAPSHOT,
            FILE,
        ],
    },
    Method {
        name: "era_metadata_snap_export",
        help: "Make the metadata bdev readable as another, read-only bdev while there is a metadata snapshot: for era_invalidate --metadata-snapshot (of version 1.x; 0.9 reads elsewhere) on any host",
        parameters: &[
            NAME,
            optional(
                "bdev_name",
                Kind::String,
                "Name of the bdev (default NAME_metadata_snap)",
            ),
            optional(
                "wait",
                Kind::Flag,
                "As in saved configurations: wait while the era target is being opened, and only warn if it or its metadata snapshot is missing",
            ),
        ],
    },
    Method {
        name: "era_metadata_snap_unexport",
        help: "Remove the bdev that era_metadata_snap_export has made",
        parameters: &[NAME],
    },
];
