//! dm-era: which blocks of an origin were written since when (era.md).
//!
//! - [`metadata`]: the on-disk state.
//! - [`map`], [`marks`]: the hot path and the published bitmap it tests.
//! - [`worker`]: the owner: opening, its message loop, first writes, digestion.
//! - `messages`: what RPCs and messages ask for, growth, closing. [`status`]: what they are told.

pub mod map;
pub mod marks;
mod messages;
pub mod metadata;
pub mod status;
pub mod worker;

pub use map::{EraDev, EraTarget};
pub use messages::Message;
pub use metadata::{EraError, View};
pub use status::EraStatus;
pub use worker::{Era, EraConfig, EraTargetError};
