//! Methods that merge a thin device into its external origin.

use super::{ID, Kind, Method, POOL, optional};

/// All of them.
pub const METHODS: [Method; 3] = [
    Method {
        name: "thin_merge_external",
        help: "Merge what an active thin device has into its external origin, which must not be in use otherwise; the device reads the same all the time. See thin_merge_external_status and the notifications for the end",
        parameters: &[
            POOL,
            ID,
            optional(
                "mib_per_second",
                Kind::Unsigned,
                "Most MiB merged per second; 0: as many as can be (default 0)",
            ),
        ],
    },
    Method {
        name: "thin_merge_external_stop",
        help: "Stop such a merge after the batch in hand; thin_merge_external goes on with what is left",
        parameters: &[POOL, ID],
    },
    Method {
        name: "thin_merge_external_status",
        help: "Show how such a merge is, or how the last one since the device was activated has ended",
        parameters: &[POOL, ID],
    },
];
