//! Methods for linear bdevs.

use super::{Kind, Method, optional, required};

/// All of them.
pub const METHODS: [Method; 2] = [
    Method {
        name: "linear_create",
        help: "Make a bdev of parts of other bdevs, one after the other, as dm-linear does: for logical volumes of LVM. Several may have parts of the same bdev, which nobody else may then write to",
        parameters: &[
            required("name", Kind::String, "Name of the bdev"),
            required(
                "segments",
                Kind::Strings,
                "The parts in order, each bdev:first_sector:sectors, in sectors of 512 bytes",
            ),
            optional(
                "wait",
                Kind::Flag,
                "If a bdev is not there yet, make it when they are there",
            ),
        ],
    },
    Method {
        name: "linear_delete",
        help: "Remove a linear bdev; what is on its bdevs stays",
        parameters: &[required("name", Kind::String, "Name of the bdev")],
    },
];
