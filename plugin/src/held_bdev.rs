//! The owner's access to base bdevs that can be taken away while others hold the device.
//!
//! One that was removed answers ENODEV until it is back. Its size stays what it was last.

use crate::devices::{Buffers, DataBdev};
use async_trait::async_trait;
use bdev::device::{ByteDevice, Contents, DataDevice, SECTOR_BYTES};
use bdev::errno::Errno;
use spdk::base::BaseChannel;
use spdk::dma::DmaBuf;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Transfers go in pieces of this size, to bound memory.
const PIECE_BYTES: usize = 1 << 20;

struct There {
    channel: BaseChannel,
    data: DataBdev,
}

/// A base bdev, there or not.
pub struct HeldBdev {
    there: RefCell<Option<Rc<There>>>,
    nr_sectors: Cell<u64>,
    block_bytes: u32,
    discards: Cell<bool>,
    buffers: Rc<Buffers>,
}

impl HeldBdev {
    /// Through this channel. `buffers`: shared by all that copy to each other.
    pub fn new(channel: BaseChannel, buffers: Rc<Buffers>) -> Rc<Self> {
        let held = HeldBdev {
            block_bytes: channel.descriptor().info().block_bytes,
            there: RefCell::default(),
            nr_sectors: Cell::new(0),
            discards: Cell::new(false),
            buffers,
        };
        held.attach(channel);
        Rc::new(held)
    }

    /// The bdev is there again.
    pub fn attach(&self, channel: BaseChannel) {
        let data = DataBdev::with_buffers(channel.clone(), self.buffers.clone());
        self.nr_sectors.set(data.nr_sectors());
        self.discards.set(data.supports_discard());
        *self.there.borrow_mut() = Some(Rc::new(There { channel, data }));
    }

    /// Lets the bdev go, as soon as what is under way is over.
    pub fn detach(&self) {
        let there = self.there.take();
        drop(there);
    }

    /// Its logical block size.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn there(&self) -> Result<Rc<There>, Errno> {
        self.there.borrow().clone().ok_or(Errno::ENODEV)
    }

    fn block(&self, sectors: u64) -> u64 {
        sectors * SECTOR_BYTES / u64::from(self.block_bytes)
    }
}

#[async_trait(?Send)]
impl DataDevice for HeldBdev {
    fn nr_sectors(&self) -> u64 {
        if let Ok(there) = self.there() {
            self.nr_sectors.set(there.data.nr_sectors());
        }
        self.nr_sectors.get()
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn supports_discard(&self) -> bool {
        self.discards.get()
    }

    async fn zero(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno> {
        self.there()?.data.zero(offset_sectors, len_sectors).await
    }

    async fn read(&self, offset_sectors: u64, len_sectors: u64) -> Result<Contents, Errno> {
        self.there()?.data.read(offset_sectors, len_sectors).await
    }

    async fn write(&self, offset_sectors: u64, contents: Contents) -> Result<(), Errno> {
        self.there()?.data.write(offset_sectors, contents).await
    }

    async fn copy_within(&self, from: u64, to: u64, len: u64) -> Result<(), Errno> {
        self.there()?.data.copy_within(from, to, len).await
    }

    async fn discard(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno> {
        self.there()?
            .data
            .discard(offset_sectors, len_sectors)
            .await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.there()?.data.flush().await
    }
}

#[async_trait(?Send)]
impl ByteDevice for HeldBdev {
    async fn read_bytes(&self, offset_sectors: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let there = self.there()?;
        let mut block = self.block(offset_sectors);
        for piece in buf.chunks_mut(PIECE_BYTES) {
            let dma = DmaBuf::new(piece.len()).ok_or(Errno::ENOMEM)?;
            let dma = there.channel.read(dma, block).await.map_err(Errno)?;
            piece.copy_from_slice(&dma);
            block += piece.len() as u64 / u64::from(self.block_bytes);
        }
        Ok(())
    }

    async fn write_bytes(&self, offset_sectors: u64, buf: &[u8]) -> Result<(), Errno> {
        let there = self.there()?;
        let mut block = self.block(offset_sectors);
        for piece in buf.chunks(PIECE_BYTES) {
            let mut dma = DmaBuf::new(piece.len()).ok_or(Errno::ENOMEM)?;
            dma.copy_from_slice(piece);
            there.channel.write(dma, block).await.map_err(Errno)?;
            block += piece.len() as u64 / u64::from(self.block_bytes);
        }
        Ok(())
    }
}
