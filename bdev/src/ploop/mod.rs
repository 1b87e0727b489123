//! ploop: expandable images with deltas (ploop.md).
//!
//! - [`image`]: what is on disk. `delta`: an image of the chain in service.
//! - [`map`]: the hot path.
//! - `owner`: the one core where images change; `places`: where clusters are, and how that is changed;
//!   `writes`, `discards`: what comes to the owner.
//! - `chain`, `merge`, `resize`, `tracking`, `backup`: the messages. [`status`]: what is told.
//! - [`create`]: new images. [`offline`]: images without a service.

mod backup;
mod chain;
pub mod create;
mod delta;
mod discards;
pub mod error;
pub mod image;
pub mod map;
mod merge;
pub mod messages;
pub mod offline;
mod owner;
mod places;
mod resize;
pub mod status;
mod tracking;
mod writes;

pub use backup::Uuid;
pub use delta::Source;
pub use error::PloopError;
pub use image::Problem;
pub use map::{PloopDev, PloopTarget};
pub use merge::{Direction, MergeProgress};
pub use owner::{Lower, Ploop, PloopConfig, PloopCounters};
pub use status::PloopStatus;
