//! The one small trait through which this crate reaches a disk.
//!
//! Everything above works in metadata blocks of 4096 bytes (persistent-data.md 1). The caller
//! supplies an implementation over an SPDK bdev, a file, or a simulated disk.

use async_trait::async_trait;

/// Size of every metadata block in bytes, fixed by the format.
pub const BLOCK_BYTES: usize = 4096;

/// The bytes of one metadata block.
pub type BlockBytes = [u8; BLOCK_BYTES];

/// Why a device did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("device error (errno {errno})")]
pub struct DeviceError {
    /// Positive Linux errno.
    pub errno: i32,
}

/// A block device holding metadata, addressed in blocks of [`BLOCK_BYTES`].
///
/// Calls may be outstanding concurrently. A write that has completed may still sit in a volatile
/// cache until [`BlockDevice::flush`] completes; a write that was interrupted may leave any mix of
/// old and new physical sectors.
#[async_trait(?Send)]
pub trait BlockDevice {
    /// Whole blocks on the device now; a partial tail block does not count. May grow.
    fn nr_blocks(&self) -> u64;

    /// Reads one block.
    async fn read(&self, block: u64, buf: &mut BlockBytes) -> Result<(), DeviceError>;

    /// Writes one block.
    async fn write(&self, block: u64, buf: &BlockBytes) -> Result<(), DeviceError>;

    /// Makes every write completed before this call durable.
    async fn flush(&self) -> Result<(), DeviceError>;
}
