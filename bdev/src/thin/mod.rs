//! dm-thin: pools, thin devices and their snapshots (thin.md).
//!
//! - [`metadata`]: the on-disk state.
//! - [`map`], [`cache`]: the hot path and the published mappings it reads.
//! - [`pool`]: the owner: opening, its message loop, closing.
//! - `provision`, `worker`, `ranges`, `commit`: the slow paths the owner runs as tasks.
//! - [`external_merge`]: what a device has goes back into its external origin.
//! - `control`, `deletion`, `grow`: what RPCs and messages ask for, and growth. [`events`]: what watchers are told. [`status`]: what they are told.

pub mod cache;
#[cfg(test)]
mod cache_model;
mod commit;
mod control;
mod deletion;
mod error;
pub mod events;
pub mod external_merge;
mod grow;
pub mod map;
mod mergeable;
pub mod metadata;
mod pages;
pub mod pool;
mod provision;
mod ranges;
mod space;
pub mod status;
mod worker;

pub use deletion::Deletion;
pub use error::PoolError;
pub use events::PoolEvent;
pub use external_merge::{ExternalMerge, ExternalMergeState};
pub use map::{PoolMode, PoolShared, Thin, ThinDev};
pub use pool::{Pool, PoolConfig};
