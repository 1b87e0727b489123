//! The methods of ploop targets.

use super::{Kind, Method, Parameter, optional, required};

const NAME: Parameter = required("name", Kind::String, "Name of the ploop target");
const LEVEL: Parameter = required(
    "level",
    Kind::Unsigned,
    "Number of the lower delta: 0 is the oldest",
);
const DIRECTION: &str = "forward: into the next newer delta; backward: into the next older one";
const UUID: Parameter = required(
    "uuid",
    Kind::String,
    "Name of the push backup: 1 to 39 characters without spaces",
);
const MAX: Parameter = optional(
    "max",
    Kind::Unsigned,
    "Most clusters to return, 1 to 65536 (default 1024)",
);

const fn of_name(name: &'static str, help: &'static str) -> Method {
    Method {
        name,
        help,
        parameters: &[NAME],
    }
}

/// All of them.
pub const METHODS: [Method; 25] = [
    Method {
        name: "ploop_create",
        help: "Make a ploop or Parallels image available as a bdev of this name, alone or with lower deltas; with a size, a bdev of zeroes is formatted first",
        parameters: &[
            required(
                "name",
                Kind::String,
                "Name of the ploop target and of its bdev",
            ),
            required(
                "top_bdev",
                Kind::String,
                "Bdev with the image that is written",
            ),
            optional(
                "lower_bdevs",
                Kind::Strings,
                "Bdevs with the lower, read-only deltas, oldest first; the first can be raw@BDEV, without a format",
            ),
            optional(
                "size_mib",
                Kind::Unsigned,
                "Size in MiB of a new image; one that is there must have it",
            ),
            optional(
                "size_sectors",
                Kind::Unsigned,
                "The same in sectors of 512 bytes, instead of size_mib",
            ),
            optional(
                "cluster_size_sectors",
                Kind::Unsigned,
                "Sectors of 512 bytes per cluster of a new image (default 2048, that is 1 MiB, or that of the lower deltas)",
            ),
            optional(
                "overwrite",
                Kind::Flag,
                "With a size: make a new image whatever the top bdev holds",
            ),
            optional(
                "force",
                Kind::Flag,
                "Use an image that says it is in use, as after a crash, if nothing is wrong with it; make sure that nobody else has it open",
            ),
            optional(
                "bat_cache_mib",
                Kind::Unsigned,
                "Limit in MiB of what is kept of where clusters are, 8 bytes per cluster (default 64)",
            ),
            optional(
                "wait",
                Kind::Flag,
                "If a bdev is not there yet, open the target when all are",
            ),
        ],
    },
    of_name(
        "ploop_delete",
        "Close a ploop target and remove its bdev; what is on its bdevs stays",
    ),
    Method {
        name: "ploop_status",
        help: "Show a ploop target or all: the chain of deltas, room, merge, tracking, push backup, counters",
        parameters: &[
            optional(
                "name",
                Kind::String,
                "Name of the ploop target (default all)",
            ),
            optional(
                "wait",
                Kind::Flag,
                "As in saved configurations: if a target's bdevs are there, wait until it has opened",
            ),
        ],
    },
    Method {
        name: "ploop_check",
        help: "Look at all of an image that nothing uses: damaged entries, leaks, whether it was closed",
        parameters: &[
            required("bdev", Kind::String, "Bdev with the image"),
            optional(
                "repair",
                Kind::Flag,
                "Mark an image as closed that was not, if nothing else is wrong with it; targets that wait for it open",
            ),
        ],
    },
    of_name(
        "ploop_suspend",
        "Hold all I/O until ploop_resume; what was answered before is durable",
    ),
    of_name("ploop_resume", "Let I/O go on"),
    Method {
        name: "ploop_add_delta",
        help: "Put a read-only delta directly below the top one; the target must be suspended",
        parameters: &[
            NAME,
            required("bdev", Kind::String, "Bdev with the delta"),
            optional(
                "raw",
                Kind::Flag,
                "It has no format; as the oldest delta only",
            ),
        ],
    },
    Method {
        name: "ploop_resize",
        help: "Make the disk larger while it is in use; save the configuration of what uses its size",
        parameters: &[
            NAME,
            required(
                "size_sectors",
                Kind::Unsigned,
                "New size in sectors of 512 bytes: a whole number of clusters",
            ),
        ],
    },
    Method {
        name: "ploop_merge",
        help: "Merge the newest lower delta up into the top one, or a lower delta into a neighbour, which is written for this; it then leaves the chain. Save the configuration afterwards",
        parameters: &[
            NAME,
            optional(
                "level",
                Kind::Unsigned,
                "Number of the lower delta that goes: 0 is the oldest",
            ),
            optional("direction", Kind::String, DIRECTION),
            optional(
                "wait",
                Kind::Flag,
                "Answer when it has ended; otherwise see ploop_status and the notifications",
            ),
        ],
    },
    of_name(
        "ploop_merge_cancel",
        "Stop the merge that is under way; what has been copied stays",
    ),
    Method {
        name: "ploop_notify_merged",
        help: "Tell that a lower delta has been merged into a neighbour from outside: that is read again, the delta leaves the chain",
        parameters: &[NAME, LEVEL, required("direction", Kind::String, DIRECTION)],
    },
    Method {
        name: "ploop_snapshot",
        help: "Keep the disk as it is now: the top image becomes the newest lower delta, a new one is written from now on. Save the configuration afterwards",
        parameters: &[
            NAME,
            required(
                "new_top_bdev",
                Kind::String,
                "Bdev with an empty image of the same size and clusters, or one that begins with 4096 zero bytes, which is formatted",
            ),
        ],
    },
    of_name(
        "ploop_tracking_start",
        "Begin to note which clusters of the top image's bdev are written; those in use now count as written",
    ),
    Method {
        name: "ploop_tracking_get_next",
        help: "Take clusters of the top image's bdev that were written; each is told once until it is written again",
        parameters: &[NAME, MAX],
    },
    of_name("ploop_tracking_stop", "End tracking"),
    Method {
        name: "ploop_update_delta_index",
        help: "Tell that clusters have been moved within a lower delta from outside",
        parameters: &[
            NAME,
            LEVEL,
            required(
                "map",
                Kind::String,
                "Guest clusters and their BAT entries now, e.g. '5:9;6:12'",
            ),
        ],
    },
    Method {
        name: "ploop_set_noresume",
        help: "Refuse to resume the target (1), or not any more (0)",
        parameters: &[NAME, required("value", Kind::Unsigned, "0 or 1")],
    },
    of_name(
        "ploop_flip_upper_deltas",
        "Let the top image and the newest lower delta change places, while suspended with noresume set. Save the configuration afterwards",
    ),
    Method {
        name: "ploop_push_backup_start",
        help: "Begin a backup of the disk as it is now: writes wait until what they overwrite has been read",
        parameters: &[
            NAME,
            UUID,
            optional(
                "clusters",
                Kind::String,
                "Guest clusters to back up, e.g. '0-99,200' (default all)",
            ),
            optional(
                "timeout_s",
                Kind::Unsigned,
                "Seconds, 1 to 17999, that a write waits at most; then the backup has expired and all writes go on (default 60)",
            ),
            optional(
                "record",
                Kind::Flag,
                "Record what is written from now on, for a backup since this one",
            ),
            optional(
                "since",
                Kind::String,
                "The same, and back up only what was written since the backup of this uuid",
            ),
        ],
    },
    Method {
        name: "ploop_push_backup_left",
        help: "List guest clusters that have yet to be read, and which of them are holes",
        parameters: &[
            NAME,
            UUID,
            optional(
                "begin_cluster",
                Kind::Unsigned,
                "The first of them: next_cluster of the page before",
            ),
            MAX,
        ],
    },
    Method {
        name: "ploop_push_backup_read",
        help: "Take guest clusters that writes wait for; each is told once",
        parameters: &[NAME, UUID, MAX],
    },
    Method {
        name: "ploop_push_backup_write",
        help: "Tell that guest clusters have been read: writes to them go on",
        parameters: &[
            NAME,
            UUID,
            required("cluster", Kind::Unsigned, "The first of them"),
            optional("count", Kind::Unsigned, "How many (default 1)"),
        ],
    },
    of_name(
        "ploop_push_backup_get_uuid",
        "Show the name of the push backup",
    ),
    Method {
        name: "ploop_push_backup_stop",
        help: "End a push backup, also one that has expired: all writes go on",
        parameters: &[
            NAME,
            UUID,
            optional(
                "complete",
                Kind::Flag,
                "All was read and is safe: another backup can be made since this one, and no more since the one before",
            ),
            optional(
                "keep",
                Kind::Flag,
                "With complete: another one can still be made since the one before, too",
            ),
        ],
    },
    Method {
        name: "ploop_push_backup_forget",
        help: "Do not record any more what is written since a backup",
        parameters: &[NAME, UUID],
    },
];
