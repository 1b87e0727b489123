//! A simulated disk as the engines' devices.

use super::{Content, Disk, GARBAGE};
use async_trait::async_trait;
use bdev::device::{self, ByteDevice, DataDevice, SECTOR_BYTES};
use bdev::errno::Errno;
use persistent_data::device::{BlockBytes, BlockDevice, DeviceError};

#[async_trait(?Send)]
impl DataDevice for Disk {
    fn nr_sectors(&self) -> u64 {
        self.nr_logical_blocks() * u64::from(self.geometry.block_bytes) / SECTOR_BYTES
    }

    fn block_bytes(&self) -> u32 {
        self.geometry.block_bytes
    }

    fn supports_discard(&self) -> bool {
        true
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let zeroes = vec![0; self.blocks(len) as usize];
        self.write_values(self.blocks(offset), &zeroes).await
    }

    async fn read(&self, offset: u64, len: u64) -> Result<device::Contents, Errno> {
        let found = self.read_blocks(self.blocks(offset), self.blocks(len));
        Ok(Box::new(found.await?))
    }

    async fn write(&self, offset: u64, contents: device::Contents) -> Result<(), Errno> {
        let contents = contents
            .downcast::<Vec<Content>>()
            .map_err(|_| Errno::EINVAL)?;
        self.write_blocks(self.blocks(offset), *contents).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let garbage = vec![GARBAGE; self.blocks(len) as usize];
        self.write_values(self.blocks(offset), &garbage).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.flush_all().await
    }
}

#[async_trait(?Send)]
impl ByteDevice for Disk {
    async fn read_bytes(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let size = self.geometry.block_bytes as usize;
        let count = (buf.len() / size) as u64;
        let found = self.read_blocks(self.blocks(offset), count).await?;
        for (content, part) in found.iter().zip(buf.chunks_exact_mut(size)) {
            content.put(part);
        }
        Ok(())
    }

    async fn write_bytes(&self, offset: u64, buf: &[u8]) -> Result<(), Errno> {
        let size = self.geometry.block_bytes as usize;
        let contents = buf
            .chunks_exact(size)
            .map(|part| Content::Bytes(part.into()))
            .collect();
        self.write_blocks(self.blocks(offset), contents).await
    }
}

fn device_error(errno: Errno) -> DeviceError {
    DeviceError { errno: errno.0 }
}

#[async_trait(?Send)]
impl BlockDevice for Disk {
    fn nr_blocks(&self) -> u64 {
        self.nr_logical_blocks() / self.blocks_per_metadata_block()
    }

    async fn read(&self, block: u64, buf: &mut BlockBytes) -> Result<(), DeviceError> {
        let per = self.blocks_per_metadata_block();
        let found = self
            .read_blocks(block * per, per)
            .await
            .map_err(device_error)?;
        let size = self.geometry.block_bytes as usize;
        for (content, part) in found.iter().zip(buf.chunks_exact_mut(size)) {
            content.put(part);
        }
        Ok(())
    }

    async fn write(&self, block: u64, buf: &BlockBytes) -> Result<(), DeviceError> {
        let size = self.geometry.block_bytes as usize;
        let contents = buf
            .chunks_exact(size)
            .map(|part| Content::Bytes(part.into()))
            .collect();
        self.write_blocks(block * self.blocks_per_metadata_block(), contents)
            .await
            .map_err(device_error)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.flush_all().await.map_err(device_error)
    }
}
