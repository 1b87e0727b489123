//! A metadata device in memory, for tests and tools.

use crate::device::{BLOCK_BYTES, BlockBytes, BlockDevice, DeviceError};
use async_trait::async_trait;
use std::cell::{Cell, RefCell};

/// What was done to a [`MemoryDevice`], in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A block was written.
    Write(u64),
    /// The device was flushed.
    Flush,
}

/// Blocks in memory; remembers what is durable and can be told to fail.
pub struct MemoryDevice {
    blocks: RefCell<Vec<BlockBytes>>,
    durable: RefCell<Vec<BlockBytes>>,
    events: RefCell<Vec<Event>>,
    /// Writes and flushes left before every one fails.
    fail_after: Cell<Option<u64>>,
}

impl MemoryDevice {
    /// A device of zeroes.
    pub fn new(nr_blocks: u64) -> Self {
        Self::from_blocks(vec![[0; BLOCK_BYTES]; nr_blocks as usize])
    }

    /// A device with these contents, all durable.
    pub fn from_blocks(blocks: Vec<BlockBytes>) -> Self {
        MemoryDevice {
            durable: RefCell::new(blocks.clone()),
            blocks: RefCell::new(blocks),
            events: RefCell::default(),
            fail_after: Cell::new(None),
        }
    }

    /// A copy of the contents.
    pub fn blocks(&self) -> Vec<BlockBytes> {
        self.blocks.borrow().clone()
    }

    /// What a crash leaves: of the blocks written since the last flush, those that `survives` picks.
    pub fn after_crash(&self, mut survives: impl FnMut(u64) -> bool) -> Vec<BlockBytes> {
        let mut left = self.durable.borrow().clone();
        for (nr, (old, new)) in (0..).zip(left.iter_mut().zip(self.blocks.borrow().iter())) {
            if old != new && survives(nr) {
                *old = *new;
            }
        }
        left
    }

    /// Takes the record of what was done.
    pub fn take_events(&self) -> Vec<Event> {
        self.events.take()
    }

    /// Lets `count` more writes and flushes succeed, then fails them all; `None` heals.
    pub fn fail_after(&self, count: Option<u64>) {
        self.fail_after.set(count);
    }

    /// Adds blocks of zeroes at the end.
    pub fn grow(&self, nr_blocks: u64) {
        for blocks in [&self.blocks, &self.durable] {
            blocks
                .borrow_mut()
                .resize(nr_blocks as usize, [0; BLOCK_BYTES]);
        }
    }

    fn may_fail(&self) -> Result<(), DeviceError> {
        match self.fail_after.get() {
            Some(0) => Err(DeviceError { errno: 5 }),
            Some(left) => {
                self.fail_after.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[async_trait(?Send)]
impl BlockDevice for MemoryDevice {
    fn nr_blocks(&self) -> u64 {
        self.blocks.borrow().len() as u64
    }

    async fn read(&self, block: u64, buf: &mut BlockBytes) -> Result<(), DeviceError> {
        let blocks = self.blocks.borrow();
        let found = blocks.get(block as usize).ok_or(DeviceError { errno: 5 })?;
        buf.copy_from_slice(found);
        Ok(())
    }

    async fn write(&self, block: u64, buf: &BlockBytes) -> Result<(), DeviceError> {
        self.may_fail()?;
        let mut blocks = self.blocks.borrow_mut();
        let found = blocks
            .get_mut(block as usize)
            .ok_or(DeviceError { errno: 5 })?;
        found.copy_from_slice(buf);
        self.events.borrow_mut().push(Event::Write(block));
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.may_fail()?;
        self.durable.borrow_mut().clone_from(&self.blocks.borrow());
        self.events.borrow_mut().push(Event::Flush);
        Ok(())
    }
}
