//! The on-disk structures shared by dm-thin, dm-cache and dm-era, byte-compatible with the kernel.
//!
//! Relies on nothing but a small asynchronous block-device trait ([`device::BlockDevice`]); it
//! knows no target, no SPDK and no threads. Formats and rules follow `spec/persistent-data.md`.
//!
//! From the bottom up: [`block`] (types and checksums), [`cache`], [`tm`] (copy-on-write, commits,
//! the data device's space map), [`space_map`] (reference counts), [`node`] and [`btree`],
//! [`mod@array`] and [`bitset`] on top of it, and [`check`], which counts what trees refer to. [`turn`] is for whoever works long.
#![forbid(unsafe_code)]

pub mod array;
pub mod bitset;
pub mod block;
mod block_set;
pub mod btree;
pub mod cache;
pub mod check;
pub mod device;
pub mod error;
pub mod memory;
pub mod node;
pub mod space_map;
pub mod tm;
pub mod turn;

pub use error::{Error, Result};
