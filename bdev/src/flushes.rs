//! Flushes of a device on behalf of several, each of whom hears of every one that failed.
//!
//! A device tells of a failed flush once, and then what was written before may be lost: the next flush succeeds
//! and says nothing. So a target that flushes a device for its own purposes and for a guest's lets both listen to
//! the same errors: the flush of one that comes after a failed flush of the other fails, too.

use crate::device::{ByteDevice, Contents, DataDevice};
use crate::errno::Errno;
use async_trait::async_trait;
use std::cell::Cell;
use std::rc::Rc;

/// How many flushes of a device have failed, and how the last did.
pub struct FlushErrors(Cell<(u64, Errno)>);

impl Default for FlushErrors {
    fn default() -> Self {
        FlushErrors(Cell::new((0, Errno::EIO)))
    }
}

impl FlushErrors {
    /// Everybody who listens is to be told of an error.
    pub fn note(&self, errno: Errno) {
        self.0.set((self.0.get().0 + 1, errno));
    }
}

/// A flush, counted, until it is dropped.
pub(crate) struct UnderWay<'a>(&'a Cell<u64>);

impl<'a> UnderWay<'a> {
    /// One more.
    pub fn new(count: &'a Cell<u64>) -> Self {
        count.set(count.get() + 1);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A flush that the device has answered and the target not yet.
pub struct Begun {
    heard: u64,
}

/// A device as one of those who write to it has it.
pub struct Listening<D: ?Sized> {
    device: Rc<D>,
    errors: Rc<FlushErrors>,
    /// Errors this one knows of.
    heard: Cell<u64>,
}

impl<D: DataDevice + ?Sized> Listening<D> {
    /// Hears of all errors from now on.
    pub fn new(device: Rc<D>, errors: &Rc<FlushErrors>) -> Self {
        Listening {
            device,
            errors: errors.clone(),
            heard: Cell::new(errors.0.get().0),
        }
    }

    /// Nothing of this one's is unflushed now: what has failed until now is none of its business.
    pub fn catch_up(&self) {
        self.heard.set(self.errors.0.get().0);
    }

    /// The first half of a flush, for who answers only when other devices are flushed, too. Nothing counts as heard
    /// before [`Listening::conclude`]: a flush that begins in between and is answered earlier fails as well.
    pub async fn flush_device(&self) -> Begun {
        let heard = self.heard.get();
        if let Err(errno) = self.device.flush().await {
            self.errors.note(errno);
        }
        Begun { heard }
    }

    /// The second half. Error: of that flush, or of any other since the last one before it.
    pub fn conclude(&self, begun: Begun) -> Result<(), Errno> {
        let (count, errno) = self.errors.0.get();
        self.heard.set(count);
        match count == begun.heard {
            true => Ok(()),
            false => Err(errno),
        }
    }

    /// Whether the next flush will fail because of an earlier one.
    pub fn is_due(&self) -> bool {
        self.heard.get() < self.errors.0.get().0
    }
}

#[async_trait(?Send)]
impl<D: DataDevice + ?Sized> DataDevice for Listening<D> {
    fn nr_sectors(&self) -> u64 {
        self.device.nr_sectors()
    }

    fn block_bytes(&self) -> u32 {
        self.device.block_bytes()
    }

    fn supports_discard(&self) -> bool {
        self.device.supports_discard()
    }

    async fn zero(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno> {
        self.device.zero(offset_sectors, len_sectors).await
    }

    async fn read(&self, offset_sectors: u64, len_sectors: u64) -> Result<Contents, Errno> {
        self.device.read(offset_sectors, len_sectors).await
    }

    async fn write(&self, offset_sectors: u64, contents: Contents) -> Result<(), Errno> {
        self.device.write(offset_sectors, contents).await
    }

    async fn copy_within(&self, from: u64, to: u64, len: u64) -> Result<(), Errno> {
        self.device.copy_within(from, to, len).await
    }

    async fn discard(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno> {
        self.device.discard(offset_sectors, len_sectors).await
    }

    /// Error: of this flush, or of any other since the last one here began.
    async fn flush(&self) -> Result<(), Errno> {
        let begun = self.flush_device().await;
        self.conclude(begun)
    }
}

#[async_trait(?Send)]
impl<D: ByteDevice + ?Sized> ByteDevice for Listening<D> {
    async fn read_bytes(&self, offset_sectors: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.device.read_bytes(offset_sectors, buf).await
    }

    async fn write_bytes(&self, offset_sectors: u64, buf: &[u8]) -> Result<(), Errno> {
        self.device.write_bytes(offset_sectors, buf).await
    }
}
