//! dm-thin: pools, thin devices and their snapshots (thin.md).

pub mod metadata;
