//! The owner's slow-path access to base bdevs, as the traits of `bdev` and `persistent-data`.

use async_trait::async_trait;
use bdev::device::{Contents, DataDevice, SECTOR_BYTES, copy_by_reading, pieces};
use bdev::errno::Errno;
use persistent_data::device::{BLOCK_BYTES, BlockBytes, BlockDevice, DeviceError};
use spdk::base::{BaseChannel, Info, IoKind};
use spdk::dma::DmaBuf;
use std::cell::RefCell;
use std::rc::Rc;

/// Most bytes of buffers kept for the next I/Os of their size.
const KEPT_BYTES: usize = 8 << 20;

/// Buffers for the next I/Os: making one costs more than copying what it holds. What a kept buffer holds is
/// what was in it last, so it is only for what overwrites all of it.
#[derive(Default)]
pub struct Buffers(RefCell<Vec<DmaBuf>>);

impl Buffers {
    fn take(&self, bytes: usize) -> Option<DmaBuf> {
        let kept = self.0.borrow_mut().pop();
        kept.filter(|buf| buf.len() == bytes)
            .or_else(|| DmaBuf::new(bytes))
    }

    fn keep(&self, buf: DmaBuf) {
        let mut kept = self.0.borrow_mut();
        if (kept.len() + 1) * buf.len() <= KEPT_BYTES {
            kept.push(buf);
        }
    }
}

/// A bdev holding metadata.
pub struct MetadataBdev {
    channel: BaseChannel,
    info: Info,
    buffers: Buffers,
}

impl MetadataBdev {
    /// Through this channel.
    pub fn new(channel: BaseChannel) -> Self {
        MetadataBdev {
            info: channel.descriptor().info(),
            channel,
            buffers: Buffers::default(),
        }
    }

    fn buffer(&self) -> Result<DmaBuf, DeviceError> {
        let errno = Errno::ENOMEM.0;
        self.buffers.take(BLOCK_BYTES).ok_or(DeviceError { errno })
    }

    fn offset(&self, block: u64) -> u64 {
        block * (BLOCK_BYTES as u64 / u64::from(self.info.block_bytes))
    }
}

fn device_error(errno: i32) -> DeviceError {
    DeviceError { errno }
}

#[async_trait(?Send)]
impl BlockDevice for MetadataBdev {
    fn nr_blocks(&self) -> u64 {
        let info = self.channel.descriptor().info();
        info.nr_blocks * u64::from(info.block_bytes) / BLOCK_BYTES as u64
    }

    async fn read(&self, block: u64, buf: &mut BlockBytes) -> Result<(), DeviceError> {
        let dma = self.buffer()?;
        let dma = self
            .channel
            .read(dma, self.offset(block))
            .await
            .map_err(device_error)?;
        buf.copy_from_slice(&dma);
        self.buffers.keep(dma);
        Ok(())
    }

    async fn write(&self, block: u64, buf: &BlockBytes) -> Result<(), DeviceError> {
        let mut dma = self.buffer()?;
        dma.copy_from_slice(buf);
        let dma = self
            .channel
            .write(dma, self.offset(block))
            .await
            .map_err(device_error)?;
        self.buffers.keep(dma);
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        flush(&self.channel, &self.info).await.map_err(device_error)
    }
}

async fn flush(channel: &BaseChannel, info: &Info) -> Result<(), i32> {
    // A bdev without flush has no volatile cache.
    match info.supports(IoKind::Flush) {
        true => {
            let nr_blocks = channel.descriptor().info().nr_blocks;
            channel.range(IoKind::Flush, 0, nr_blocks).await
        }
        false => Ok(()),
    }
}

/// A bdev holding data.
pub struct DataBdev {
    channel: BaseChannel,
    info: Info,
    buffers: Rc<Buffers>,
}

impl DataBdev {
    /// Through this channel.
    pub fn new(channel: BaseChannel) -> Self {
        DataBdev::with_buffers(channel, Rc::default())
    }

    /// The same, with buffers shared with bdevs it is copied from and to.
    pub fn with_buffers(channel: BaseChannel, buffers: Rc<Buffers>) -> Self {
        DataBdev {
            info: channel.descriptor().info(),
            channel,
            buffers,
        }
    }

    fn blocks(&self, sectors: u64) -> u64 {
        sectors * SECTOR_BYTES / u64::from(self.info.block_bytes)
    }

    async fn range(&self, kind: IoKind, offset: u64, len: u64) -> Result<(), Errno> {
        self.channel
            .range(kind, self.blocks(offset), self.blocks(len))
            .await
            .map_err(Errno)
    }
}

#[async_trait(?Send)]
impl DataDevice for DataBdev {
    fn nr_sectors(&self) -> u64 {
        let info = self.channel.descriptor().info();
        info.nr_blocks * u64::from(info.block_bytes) / SECTOR_BYTES
    }

    fn block_bytes(&self) -> u32 {
        self.info.block_bytes
    }

    fn supports_discard(&self) -> bool {
        self.info.supports(IoKind::Unmap)
    }

    async fn zero(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno> {
        if self.info.supports(IoKind::WriteZeroes) {
            return self
                .range(IoKind::WriteZeroes, offset_sectors, len_sectors)
                .await;
        }
        for (at, len) in pieces(len_sectors) {
            let buf = DmaBuf::new((len * SECTOR_BYTES) as usize).ok_or(Errno::ENOMEM)?;
            self.channel
                .write(buf, self.blocks(offset_sectors + at))
                .await
                .map_err(Errno)?;
        }
        Ok(())
    }

    async fn read(&self, offset_sectors: u64, len_sectors: u64) -> Result<Contents, Errno> {
        let bytes = (len_sectors * SECTOR_BYTES) as usize;
        let buf = self.buffers.take(bytes).ok_or(Errno::ENOMEM)?;
        let buf = self.channel.read(buf, self.blocks(offset_sectors)).await;
        Ok(Box::new(buf.map_err(Errno)?))
    }

    async fn write(&self, offset_sectors: u64, contents: Contents) -> Result<(), Errno> {
        let buf = contents.downcast::<DmaBuf>().map_err(|_| Errno::EINVAL)?;
        let written = self.channel.write(*buf, self.blocks(offset_sectors)).await;
        self.buffers.keep(written.map_err(Errno)?);
        Ok(())
    }

    async fn copy_within(
        &self,
        from_sectors: u64,
        to_sectors: u64,
        len_sectors: u64,
    ) -> Result<(), Errno> {
        if !self.info.copies {
            return copy_by_reading(self, from_sectors, to_sectors, len_sectors).await;
        }
        self.channel
            .copy(
                self.blocks(from_sectors),
                self.blocks(to_sectors),
                self.blocks(len_sectors),
            )
            .await
            .map_err(Errno)
    }

    async fn discard(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno> {
        self.range(IoKind::Unmap, offset_sectors, len_sectors).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        flush(&self.channel, &self.info).await.map_err(Errno)
    }
}
