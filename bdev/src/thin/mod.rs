//! dm-thin: pools, thin devices and their snapshots (thin.md).
//!
//! - [`metadata`]: the on-disk state.
//! - [`map`], [`cache`]: the hot path and the published mappings it reads.
//! - [`pool`]: the owner: opening, its message loop, closing.
//! - `worker`, `ranges`, `commit`: the slow paths the owner runs as tasks.
//! - `control`: what RPCs and messages ask for. [`status`]: what they are told.

pub mod cache;
mod commit;
mod control;
pub mod map;
pub mod metadata;
pub mod pool;
mod ranges;
pub mod status;
mod worker;

pub use map::{PoolMode, PoolShared, Thin, ThinDev};
pub use pool::{Pool, PoolConfig, PoolError};
