//! Simulated disks and cores, on which the code of `bdev` runs unchanged.
//!
//! Everything that happens follows from a seed: which ready task runs next, how long an I/O takes, which
//! fails, what a crash leaves of what was not flushed. [`thin`] is the workload for thin pools,
//! [`era`] that for era targets,
//! [`snapshot`] that for an origin and its snapshots, [`ploop`] that for a ploop device.
#![forbid(unsafe_code)]

pub mod cores;
pub mod course;
pub mod disk;
pub mod era;
pub mod executor;
pub mod faults;
pub mod history;
pub mod losses;
pub mod ploop;
pub mod snapshot;
pub mod thin;
mod watched;
