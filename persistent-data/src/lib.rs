//! The on-disk structures shared by dm-thin, dm-cache and dm-era, byte-compatible with the kernel.
//!
//! Relies on nothing but a small asynchronous block-device trait ([`device::BlockDevice`]); it
//! knows no target, no SPDK and no threads. Formats and rules follow `spec/persistent-data.md`.
#![forbid(unsafe_code)]

pub mod device;
