//! dm-snapshot: snapshots of an origin by copy on write, and their merging back (snapshot.md).
//!
//! - [`layout`], [`store`]: the exception store on disk; [`exceptions`]: what every core sees of it.
//! - [`map`]: the hot path of the origin and its snapshots.
//! - `owner`: the one core where exceptions are made; `copying`: how. `origin_io`, `snapshot_io`: what
//!   comes to the owner from either. `merge`: the way back. `control`: snapshots and merges come and
//!   go; `handover`: a store changes hands, devices change.
//! - [`table`], [`status`], [`events`]: what is said in and out.

mod control;
mod copying;
mod cow;
pub mod error;
pub mod events;
pub mod exceptions;
mod handover;
pub mod layout;
pub mod map;
mod merge;
mod origin_io;
mod owner;
mod snapshot_io;
pub mod status;
pub mod store;
pub mod table;

pub use error::SnapshotError;
pub use events::SnapshotEvent;
pub use map::{Discards, SnapshotTarget, State, Volume};
pub use merge::{Merge, MergeState};
pub use owner::{Origin, OriginConfig, Snapshot, SnapshotConfig, SnapshotCounters};
pub use status::{Condition, OriginStatus, SnapshotStatus};
pub use table::{SnapshotTable, StoreKind};
