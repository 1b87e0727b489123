//! The NBD protocol, both ends, over any stream of bytes: fixed newstyle handshake, simple replies.
//!
//! The plugin is a server of it ([`server`]): an SPDK bdev on a Unix socket, for `spdk-dm backup`, `qemu-img`,
//! `nbdcopy` and whatever else speaks NBD. `spdk-dm` is a client ([`client`]). Sources of the format: the
//! protocol's public description, and `qemu-nbd` and `qemu-img` as the other end in the tests.
//!
//! What the other end sends is not trusted: lengths are bounded before memory is taken.

#![forbid(unsafe_code)]

pub mod client;
pub mod server;
mod wire;

pub use wire::{Export, Kind, MAX_TRANSFER_BYTES, Request};
