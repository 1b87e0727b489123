//! dm-era: which blocks of an origin were written since when (era.md).
//!
//! - [`metadata`]: the on-disk state.

pub mod metadata;
