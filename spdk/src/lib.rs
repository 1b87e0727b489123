//! Safe bindings to the part of SPDK that a bdev module needs.
//!
//! A narrow C shim (`shim/`) hides SPDK's structures and its version differences; nothing of SPDK's
//! layout is known here. This is the only crate of the project with `unsafe`. SPDK's central rule is
//! that objects belong to the SPDK thread they were made on; types here either check that
//! ([`thread::ThreadBound`]) or send what must be done to the right thread.
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::undocumented_unsafe_blocks)]

#[cfg(feature = "app")]
pub mod app;
pub mod base;
pub mod dma;
pub mod executor;
mod ffi;
pub mod io;
pub mod io_device;
pub mod logging;
pub mod module;
pub mod part;
pub mod passage;
pub mod rpc;
pub mod thread;
pub mod vbdev;
