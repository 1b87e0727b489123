//! Slow-path access to the device that holds data, from the core that owns a target.
//!
//! The hot path never comes here: a channel forwards I/O to its own base channel. Metadata devices
//! are reached through [`persistent_data::device::BlockDevice`].

use crate::errno::Errno;
use async_trait::async_trait;
use std::rc::Rc;

/// Bytes per sector, the unit of every on-disk size and of table lines.
pub const SECTOR_BYTES: u64 = 512;

/// A data device. Offsets and lengths are in sectors of 512 bytes and are multiples of
/// [`DataDevice::block_bytes`].
#[async_trait(?Send)]
pub trait DataDevice {
    /// Size now; may grow.
    fn nr_sectors(&self) -> u64;

    /// Logical block size in bytes, 512 or 4096.
    fn block_bytes(&self) -> u32;

    /// Whether [`DataDevice::discard`] does anything.
    fn supports_discard(&self) -> bool;

    /// Makes a range read as zeroes.
    async fn zero(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno>;

    /// Copies one range of the device to another; the two do not overlap.
    async fn copy(&self, from_sectors: u64, to_sectors: u64, len_sectors: u64)
    -> Result<(), Errno>;

    /// Tells the device that a range is no longer needed.
    async fn discard(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno>;

    /// Makes every write completed before this call durable.
    async fn flush(&self) -> Result<(), Errno>;
}

/// A shared handle on a data device.
pub type DataDeviceRef = Rc<dyn DataDevice>;
