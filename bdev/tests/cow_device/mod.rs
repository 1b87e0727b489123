//! A COW device in memory, with a volatile cache and failures.

use async_trait::async_trait;
use bdev::device::{ByteDevice, Contents, DataDevice, SECTOR_BYTES};
use bdev::errno::Errno;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Bytes; those written since the last flush may be lost sector by sector.
pub struct CowFile {
    bytes: RefCell<Vec<u8>>,
    durable: RefCell<Vec<u8>>,
    /// Sectors written since the last flush.
    dirty: RefCell<BTreeSet<usize>>,
    fail_after: Cell<Option<u64>>,
}

impl CowFile {
    pub fn new(nr_sectors: u64) -> Rc<Self> {
        let bytes = vec![0; (nr_sectors * SECTOR_BYTES) as usize];
        Rc::new(CowFile {
            durable: RefCell::new(bytes.clone()),
            bytes: RefCell::new(bytes),
            dirty: RefCell::default(),
            fail_after: Cell::new(None),
        })
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        self.bytes.borrow()[at as usize..at as usize + len].to_vec()
    }

    /// Durable at once.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        for all in [&self.bytes, &self.durable] {
            for (to, from) in all.borrow_mut().iter_mut().skip(at as usize).zip(bytes) {
                *to = *from;
            }
        }
    }

    pub fn fill(&self, at: u64, byte: u8, len: usize) {
        self.put(at, &vec![byte; len]);
    }

    pub fn grow(&self, nr_sectors: u64) {
        for all in [&self.bytes, &self.durable] {
            let len = all.borrow().len() + (nr_sectors * SECTOR_BYTES) as usize;
            all.borrow_mut().resize(len, 0x77);
        }
    }

    /// Lets so many writes and flushes succeed, then none.
    pub fn fail_after(&self, count: Option<u64>) {
        self.fail_after.set(count);
    }

    /// Of the sectors written since the last flush, the seed's choice is lost.
    pub fn crash(&self, mut seed: u64) {
        for sector in self.dirty.take() {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            match seed >> 63 {
                0 => copy_sector(&self.durable, &self.bytes, sector),
                _ => copy_sector(&self.bytes, &self.durable, sector),
            }
        }
    }

    fn may_fail(&self) -> Result<(), Errno> {
        match self.fail_after.get() {
            Some(0) => Err(Errno::EIO),
            Some(left) => {
                self.fail_after.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn copy_sector(from: &RefCell<Vec<u8>>, to: &RefCell<Vec<u8>>, sector: usize) {
    let range = sector * 512..(sector + 1) * 512;
    to.borrow_mut()[range.clone()].copy_from_slice(&from.borrow()[range]);
}

#[async_trait(?Send)]
impl DataDevice for CowFile {
    fn nr_sectors(&self) -> u64 {
        self.bytes.borrow().len() as u64 / SECTOR_BYTES
    }

    fn block_bytes(&self) -> u32 {
        512
    }

    fn supports_discard(&self) -> bool {
        false
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.write_bytes(offset, &vec![0; (len * SECTOR_BYTES) as usize])
            .await
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Contents, Errno> {
        let mut bytes = vec![0; (len * SECTOR_BYTES) as usize];
        self.read_bytes(offset, &mut bytes).await?;
        Ok(Box::new(bytes))
    }

    async fn write(&self, offset: u64, contents: Contents) -> Result<(), Errno> {
        let bytes = contents.downcast::<Vec<u8>>().map_err(|_| Errno::EINVAL)?;
        self.write_bytes(offset, &bytes).await
    }

    async fn discard(&self, _: u64, _: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.may_fail()?;
        for sector in self.dirty.take() {
            copy_sector(&self.bytes, &self.durable, sector);
        }
        Ok(())
    }
}

#[async_trait(?Send)]
impl ByteDevice for CowFile {
    async fn read_bytes(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let bytes = self.bytes.borrow();
        let at = (offset * SECTOR_BYTES) as usize;
        buf.copy_from_slice(bytes.get(at..at + buf.len()).ok_or(Errno::EIO)?);
        Ok(())
    }

    async fn write_bytes(&self, offset: u64, buf: &[u8]) -> Result<(), Errno> {
        self.may_fail()?;
        let mut bytes = self.bytes.borrow_mut();
        let at = (offset * SECTOR_BYTES) as usize;
        let place = bytes.get_mut(at..at + buf.len()).ok_or(Errno::EIO)?;
        place.copy_from_slice(buf);
        let first = offset as usize;
        self.dirty
            .borrow_mut()
            .extend(first..first + buf.len() / 512);
        Ok(())
    }
}
