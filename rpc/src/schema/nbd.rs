//! The methods that serve bdevs over NBD.

use super::{Kind, Method, Parameter, optional, required};

const PATH: Parameter = required("path", Kind::String, "Full path of the socket");

/// All of them.
pub const METHODS: [Method; 3] = [
    Method {
        name: "nbd_export_create",
        help: "Serve any bdev over NBD at a Unix socket, to programs of the same user on this machine; shows its URI",
        parameters: &[
            required("bdev_name", Kind::String, "Name of the bdev"),
            PATH,
            optional(
                "writable",
                Kind::Flag,
                "Let clients write; the bdev must not be in use by another module",
            ),
            optional(
                "exclusive",
                Kind::Flag,
                "Claim the bdev, so that nobody else writes to it as long as it is exported",
            ),
        ],
    },
    Method {
        name: "nbd_export_delete",
        help: "End an export: its clients are cut",
        parameters: &[PATH],
    },
    Method {
        name: "nbd_export_list",
        help: "Show what is served over NBD, to how many clients, and bytes read and written",
        parameters: &[],
    },
];
