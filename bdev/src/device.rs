//! Slow-path access to the device that holds data, from the core that owns a target.
//!
//! The hot path never comes here: a channel forwards I/O to its own base channel. Metadata devices
//! are reached through [`persistent_data::device::BlockDevice`].

use crate::errno::Errno;
use async_trait::async_trait;
use std::any::Any;
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

    /// Reads a range, to be written to this or another device of the same host.
    async fn read(&self, offset_sectors: u64, len_sectors: u64) -> Result<Contents, Errno>;

    /// Writes what a device of the same host has read. Error: EINVAL for anything else.
    async fn write(&self, offset_sectors: u64, contents: Contents) -> Result<(), Errno>;

    /// Copies a range to another place of the device; the two do not overlap.
    async fn copy_within(
        &self,
        from_sectors: u64,
        to_sectors: u64,
        len_sectors: u64,
    ) -> Result<(), Errno> {
        copy_by_reading(self, from_sectors, to_sectors, len_sectors).await
    }

    /// Tells the device that a range is no longer needed.
    async fn discard(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno>;

    /// Makes every write completed before this call durable.
    async fn flush(&self) -> Result<(), Errno>;
}

/// What was read, in a host's own form.
pub type Contents = Box<dyn Any>;

/// Copies go in pieces of this size, to bound memory.
const PIECE_SECTORS: u64 = 2048;

/// What [`DataDevice::copy_within`] is where a device has nothing better.
pub async fn copy_by_reading<D: DataDevice + ?Sized>(
    device: &D,
    from_sectors: u64,
    to_sectors: u64,
    len_sectors: u64,
) -> Result<(), Errno> {
    let contents = device.read(from_sectors, len_sectors).await?;
    device.write(to_sectors, contents).await
}

/// The pieces of a range: where they begin in it and how long they are, in sectors.
pub fn pieces(len_sectors: u64) -> impl Iterator<Item = (u64, u64)> {
    let begins = (0..len_sectors).step_by(PIECE_SECTORS as usize);
    begins.map(move |at| (at, PIECE_SECTORS.min(len_sectors - at)))
}

/// Copies a range to another place of a device; the two do not overlap.
pub async fn copy_within(
    device: &dyn DataDevice,
    from_sectors: u64,
    to_sectors: u64,
    len_sectors: u64,
) -> Result<(), Errno> {
    for (at, len) in pieces(len_sectors) {
        device
            .copy_within(from_sectors + at, to_sectors + at, len)
            .await?;
    }
    Ok(())
}

/// Copies a range of one device to another.
pub async fn copy(
    from: &dyn DataDevice,
    from_sectors: u64,
    to: &dyn DataDevice,
    to_sectors: u64,
    len_sectors: u64,
) -> Result<(), Errno> {
    for (at, len) in pieces(len_sectors) {
        let contents = from.read(from_sectors + at, len).await?;
        to.write(to_sectors + at, contents).await?;
    }
    Ok(())
}

/// A shared handle on a data device.
pub type DataDeviceRef = Rc<dyn DataDevice>;

/// A data device on which the owner keeps metadata of its own beside the data: a COW device.
#[async_trait(?Send)]
pub trait ByteDevice: DataDevice {
    /// Reads bytes; as many as whole logical blocks.
    async fn read_bytes(&self, offset_sectors: u64, buf: &mut [u8]) -> Result<(), Errno>;

    /// Writes bytes; as many as whole logical blocks.
    async fn write_bytes(&self, offset_sectors: u64, buf: &[u8]) -> Result<(), Errno>;
}

/// A shared handle on such a device.
pub type ByteDeviceRef = Rc<dyn ByteDevice>;
