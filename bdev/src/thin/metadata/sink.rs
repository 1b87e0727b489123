//! A pool's contents as a stream: what a dump produces, and XML or new metadata consume.

use super::refs::Details;
use super::runs::Run;

/// What is true of a whole pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolInfo {
    /// Snapshot counter.
    pub time: u32,
    /// Userspace transaction id.
    pub transaction_id: u64,
    /// A check is needed before anything may change.
    pub needs_check: bool,
    /// Sectors per data block.
    pub data_block_size_sectors: u32,
    /// Blocks of the data device; of a metadata snapshot 0.
    pub nr_data_blocks: u64,
}

/// Takes a pool's contents in this order: `begin`, all shared parts, devices by ascending id, `end`.
/// A shared part is `shared_begin`, mappings, `shared_end`; a device is `device_begin`, mappings and
/// references to shared parts in the order of virtual blocks, `device_end`.
#[allow(async_fn_in_trait, reason = "everything here stays on one thread")]
pub trait Sink {
    /// Why it may not be taken.
    type Error;

    /// The pool.
    async fn begin(&mut self, pool: &PoolInfo) -> Result<(), Self::Error>;
    /// Mappings that several devices have follow; `name` is unique.
    async fn shared_begin(&mut self, name: &str) -> Result<(), Self::Error>;
    /// They are through.
    async fn shared_end(&mut self) -> Result<(), Self::Error>;
    /// A device.
    async fn device_begin(&mut self, id: u32, details: &Details) -> Result<(), Self::Error>;
    /// Mappings of the device or shared part.
    async fn run(&mut self, run: &Run) -> Result<(), Self::Error>;
    /// The mappings of a shared part belong here.
    async fn shared(&mut self, name: &str) -> Result<(), Self::Error>;
    /// The device is through.
    async fn device_end(&mut self) -> Result<(), Self::Error>;
    /// The pool is through.
    async fn end(&mut self) -> Result<(), Self::Error>;
}
