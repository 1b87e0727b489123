//! ploop: expandable images with deltas (ploop.md).
//!
//! - [`image`]: what is on disk. `delta`: an image of the chain in service.
//! - [`map`]: the hot path.
//! - `owner`: the one core where images change; `places`: where clusters are, and how that is changed;
//!   `writes`, `discards`: what comes to the owner; `suspension`: when nothing does.
//! - `chain`, `merge`, `resize`, `tracking`, `backup`, `changes`: the messages. [`status`], `events`: what is told.
//! - [`create`]: new images. [`offline`]: images without a service.

mod backup;
mod chain;
mod changes;
pub mod create;
mod delta;
mod discards;
pub mod error;
mod events;
pub mod image;
pub mod map;
mod merge;
pub mod messages;
pub mod offline;
mod owner;
mod places;
mod resize;
pub mod status;
mod suspension;
mod tracking;
mod unsettled;
mod writes;

pub use backup::{Left, Of, Uuid};
pub use changes::RecordStatus;
pub use delta::Source;
pub use error::PloopError;
pub use events::PloopEvent;
pub use image::Problem;
pub use map::{PloopDev, PloopTarget};
pub use merge::{Direction, MergeProgress};
pub use owner::{Lower, Ploop, PloopConfig, PloopCounters};
pub use status::PloopStatus;
