//! The methods that suspend thin bdevs and have them lead to other thin devices.

use super::{ID, Kind, Method, POOL, Parameter, optional, required};

const BDEV: Parameter = required("bdev_name", Kind::String, "Name of the thin bdev");

/// All of them.
pub const METHODS: [Method; 3] = [
    Method {
        name: "thin_suspend",
        help: "Let new I/O of a thin bdev wait, when what is under way is over; shows the number of the suspension",
        parameters: &[
            BDEV,
            optional(
                "timeout_ms",
                Kind::Unsigned,
                "When it goes on by itself, in ms (default 5000)",
            ),
        ],
    },
    Method {
        name: "thin_resume",
        help: "Let a suspended thin bdev go on",
        parameters: &[BDEV],
    },
    Method {
        name: "thin_switch",
        help: "Let a suspended thin bdev be that of another thin device from now on, with all who have it open, and go on; that the contents are the same is the caller's affair",
        parameters: &[
            BDEV,
            POOL,
            ID,
            required(
                "suspension",
                Kind::Unsigned,
                "What thin_suspend has answered",
            ),
        ],
    },
];
