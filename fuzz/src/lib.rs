//! Fuzzing of everything that reads bytes of disks and users.
//!
//! One module per target, each with a `run` that takes any bytes and panics where a promise is
//! broken: no panic, no endless loop, no memory beyond the limit, an error that names the block. The
//! programs in `targets/` give `run` to libFuzzer; `tests/replay.rs` gives it the committed inputs.
//!
//! A new target is a module here, a line in [`TARGETS`], a program in `targets/` with its `[[bin]]`,
//! and `seeds/<target>/`. For another metadata format, [`image`] re-seals mutated blocks and `damaged`
//! says what must hold.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness reports by panicking"
)]

pub mod cow_store;
mod damaged;
pub mod dm_lines;
pub mod era_metadata;
pub mod image;
pub mod json_rpc;
pub mod persistent_data;
pub mod ploop_image;
pub mod sectors;
pub mod thin_metadata;
pub mod xml;

/// The name of a target, and what runs one input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("thin_metadata", thin_metadata::run),
    ("era_metadata", era_metadata::run),
    ("cow_store", cow_store::run),
    ("persistent_data", persistent_data::run),
    ("ploop_image", ploop_image::run),
    ("json_rpc", json_rpc::run),
    ("dm_lines", dm_lines::run),
    ("xml", xml::run),
];
