//! The methods of snapshot targets.

use super::{Kind, Method, Parameter, optional, required};

const SNAPSHOT_NAME: Parameter = required("name", Kind::String, "Name of the snapshot");
const RATE: Parameter = optional(
    "mib_per_second",
    Kind::Unsigned,
    "Most MiB merged per second; 0: as many as can be",
);

/// All of them.
pub const METHODS: [Method; 7] = [
    Method {
        name: "snapshot_origin_create",
        help: "Make a bdev available as an origin, of which snapshots can be made while it is in use; write to the origin only through the bdev of this name",
        parameters: &[
            required(
                "name",
                Kind::String,
                "Name of the origin target and of its bdev",
            ),
            required("origin_bdev", Kind::String, "Bdev with the data"),
            optional(
                "size_sectors",
                Kind::Unsigned,
                "Size in sectors of 512 bytes (default that of the origin bdev, also when that grows)",
            ),
            optional(
                "exceptions_cache_mib",
                Kind::Unsigned,
                "Limit in MiB of what is kept of where exceptions are, 8 bytes per chunk, of all snapshots together (default 64)",
            ),
            optional(
                "wait",
                Kind::Flag,
                "If the origin bdev, or the COW bdev of a snapshot that is declared meanwhile, is not there yet, open when all are",
            ),
        ],
    },
    Method {
        name: "snapshot_create",
        help: "Make a snapshot of an origin as it is now, or open the one that a COW bdev holds; a COW bdev that begins with zeroes is formatted",
        parameters: &[
            SNAPSHOT_NAME,
            required("origin", Kind::String, "Name of the origin target"),
            required(
                "cow_bdev",
                Kind::String,
                "Bdev for the exceptions; that of another snapshot of this origin hands its store over",
            ),
            optional(
                "store",
                Kind::String,
                "Kind of store: P persistent, PO persistent and full of writes to the snapshot it overflows instead of becoming invalid, N in memory only (default P)",
            ),
            optional(
                "chunk_size_sectors",
                Kind::Unsigned,
                "Sectors of 512 bytes per chunk: a power of two up to 2097152 (default 32, that is 16 KiB; to be given for N); a store that is there has its own",
            ),
            optional(
                "size_sectors",
                Kind::Unsigned,
                "Length in sectors of 512 bytes of the part of the origin that is snapshotted (default: all)",
            ),
            optional(
                "discard_zeroes_cow",
                Kind::Flag,
                "Take unmaps: they zero chunks that have an exception",
            ),
            optional(
                "discard_passdown_origin",
                Kind::Flag,
                "Pass unmaps on to the origin bdev, too; without exceptions in any snapshot",
            ),
            optional(
                "wait",
                Kind::Flag,
                "If the origin is waiting for its bdevs, make or open the snapshot when they are there",
            ),
        ],
    },
    Method {
        name: "snapshot_merge",
        help: "Merge a snapshot into its origin, which shows the snapshot's content at once; the snapshot's bdev answers with errors from then on. Save the configuration afterwards: a merge must go on after a restart",
        parameters: &[
            SNAPSHOT_NAME,
            optional(
                "origin",
                Kind::String,
                "Name of the origin target, to merge the store of a COW bdev that no snapshot has open",
            ),
            optional("cow_bdev", Kind::String, "That COW bdev"),
            optional(
                "chunk_size_sectors",
                Kind::Unsigned,
                "Of that store (default what its header says)",
            ),
            optional(
                "size_sectors",
                Kind::Unsigned,
                "Of that store: length in sectors of 512 bytes (default that of the origin)",
            ),
            RATE,
            optional(
                "wait",
                Kind::Flag,
                "With origin and cow_bdev: if the origin is waiting for its bdevs, merge when they are there",
            ),
        ],
    },
    Method {
        name: "snapshot_merge_stop",
        help: "Stop merging after the batch in hand; the origin goes on showing the snapshot's content",
        parameters: &[SNAPSHOT_NAME],
    },
    Method {
        name: "snapshot_merge_resume",
        help: "Go on with a merge that was stopped or has failed, or change the rate of one that runs",
        parameters: &[SNAPSHOT_NAME, RATE],
    },
    Method {
        name: "snapshot_status",
        help: "Show an origin with its snapshots and its merge, one of these, or all origins",
        parameters: &[
            optional(
                "name",
                Kind::String,
                "Name of the origin or snapshot (default: all origins)",
            ),
            optional(
                "wait",
                Kind::Flag,
                "As in saved configurations: if the bdevs of an origin are there, wait until it has opened",
            ),
        ],
    },
    Method {
        name: "snapshot_delete",
        help: "Remove a snapshot, a merge that has ended, or an origin without any; what is on the bdevs stays, but a snapshot whose origin is written to meanwhile must not be opened again",
        parameters: &[required(
            "name",
            Kind::String,
            "Name of the snapshot or origin",
        )],
    },
];
