//! An image on disk: header, BAT, format extension, and what of its file is in use (ploop.md).
//!
//! Everything read here may come from anybody: nothing is believed before it has been looked at.

pub mod extension;
pub mod header;
pub mod problem;
mod read;
pub mod space;
pub mod survey;

pub use extension::Extension;
pub use header::{Header, InUse, Version};
pub use problem::Problem;
pub use read::read_header;
pub(super) use read::{Page, page_entries, read_page};
