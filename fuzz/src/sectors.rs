//! A device in memory, by the byte: what a target that reads and writes a bdev directly works on.
//!
//! Only what such targets ask for is there; what lies past the end fails.

use async_trait::async_trait;
use bdev::device::{ByteDevice, Contents, DataDevice, SECTOR_BYTES};
use bdev::errno::Errno;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// The device.
pub struct Sectors(pub RefCell<Vec<u8>>);

impl Sectors {
    /// A device that holds these bytes.
    pub fn new(bytes: Vec<u8>) -> Rc<Self> {
        Rc::new(Sectors(RefCell::new(bytes)))
    }

    /// A device of zeroes.
    pub fn zeroes(nr_sectors: u64) -> Rc<Self> {
        let nr_bytes = usize::try_from(nr_sectors * SECTOR_BYTES).unwrap();
        Sectors::new(vec![0; nr_bytes])
    }

    /// Where `len` bytes from a sector on lie.
    fn part(&self, first_sector: u64, len: usize) -> Result<Range<usize>, Errno> {
        let first = first_sector.checked_mul(SECTOR_BYTES).ok_or(Errno::EIO)?;
        let first = usize::try_from(first).map_err(|_| Errno::EIO)?;
        let end = first.checked_add(len).ok_or(Errno::EIO)?;
        (end <= self.0.borrow().len())
            .then_some(first..end)
            .ok_or(Errno::EIO)
    }
}

#[async_trait(?Send)]
impl DataDevice for Sectors {
    fn nr_sectors(&self) -> u64 {
        self.0.borrow().len() as u64 / SECTOR_BYTES
    }

    fn block_bytes(&self) -> u32 {
        SECTOR_BYTES as u32
    }

    fn supports_discard(&self) -> bool {
        false
    }

    async fn zero(&self, first: u64, len: u64) -> Result<(), Errno> {
        let len = len.checked_mul(SECTOR_BYTES).ok_or(Errno::EIO)?;
        let len = usize::try_from(len).map_err(|_| Errno::EIO)?;
        let part = self.part(first, len)?;
        self.0.borrow_mut()[part].fill(0);
        Ok(())
    }

    async fn read(&self, _: u64, _: u64) -> Result<Contents, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    async fn write(&self, _: u64, _: Contents) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    async fn discard(&self, _: u64, _: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    async fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
}

#[async_trait(?Send)]
impl ByteDevice for Sectors {
    async fn read_bytes(&self, first: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let part = self.part(first, buf.len())?;
        buf.copy_from_slice(&self.0.borrow()[part]);
        Ok(())
    }

    async fn write_bytes(&self, first: u64, buf: &[u8]) -> Result<(), Errno> {
        let part = self.part(first, buf.len())?;
        self.0.borrow_mut()[part].copy_from_slice(buf);
        Ok(())
    }
}
