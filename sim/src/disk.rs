//! Disks with a volatile write cache: a crash keeps any subset of the sectors that were not flushed.

use crate::executor::Executor;
use async_trait::async_trait;
use bdev::device::DataDevice;
use bdev::errno::Errno;
use persistent_data::device::{BLOCK_BYTES, BlockBytes, BlockDevice, DeviceError};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a discarded sector reads as: nobody may ever see it.
pub const GARBAGE: u64 = 0xDEAD_DEAD_DEAD_DEAD;

/// Sectors holding values of type `S`.
pub struct Disk<S> {
    executor: Rc<Executor>,
    durable: RefCell<Vec<S>>,
    /// When each sector's durable value was written: a slow flush must not bring back older data.
    durable_since: RefCell<BTreeMap<u64, u64>>,
    /// Written and not flushed, and when.
    cached: RefCell<BTreeMap<u64, (u64, S)>>,
    writes: Cell<u64>,
    /// 0: never; else one flush in so many is not carried out. Only for showing that this is found.
    lose_flushes: Cell<u64>,
}

impl<S: Clone> Disk<S> {
    /// A disk.
    pub fn new(executor: &Rc<Executor>, sectors: Vec<S>) -> Rc<Self> {
        Rc::new(Disk {
            executor: executor.clone(),
            durable: RefCell::new(sectors),
            durable_since: RefCell::default(),
            cached: RefCell::default(),
            writes: Cell::new(0),
            lose_flushes: Cell::new(0),
        })
    }

    /// Makes the disk lie about one flush in `n`.
    pub fn lose_flushes(&self, n: u64) {
        self.lose_flushes.set(n);
    }

    fn get(&self, sector: u64) -> Option<S> {
        let cached = self.cached.borrow().get(&sector).map(|(_, v)| v.clone());
        cached.or_else(|| self.durable.borrow().get(sector as usize).cloned())
    }

    fn put(&self, sector: u64, value: S) {
        let now = self.writes.get() + 1;
        self.writes.set(now);
        self.cached.borrow_mut().insert(sector, (now, value));
    }

    /// Number of sectors.
    pub fn len(&self) -> u64 {
        self.durable.borrow().len() as u64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes durable what was written before the call.
    pub async fn flush_all(&self) {
        let written = self.cached.borrow().clone();
        self.executor.delay().await;
        let lose = self.lose_flushes.get();
        if lose > 0 && self.executor.below(lose) == 0 {
            return;
        }
        let mut cached = self.cached.borrow_mut();
        let mut durable = self.durable.borrow_mut();
        let mut since = self.durable_since.borrow_mut();
        for (sector, (at, value)) in written {
            if cached.get(&sector).is_some_and(|(newest, _)| *newest == at) {
                cached.remove(&sector);
            }
            let durable_at = since.entry(sector).or_default();
            if *durable_at < at
                && let Some(slot) = durable.get_mut(sector as usize)
            {
                *durable_at = at;
                *slot = value;
            }
        }
    }

    /// Power fails: any of what is cached may have reached the disk.
    pub fn crash(&self) {
        let mut durable = self.durable.borrow_mut();
        for (sector, (_, value)) in self.cached.take() {
            if self.executor.below(2) == 0
                && let Some(slot) = durable.get_mut(sector as usize)
            {
                *slot = value;
            }
        }
    }
}

/// A data disk: a sector holds a number that stands for its contents; 0 is zeroes.
pub type DataDisk = Disk<u64>;

impl DataDisk {
    /// Reads sectors.
    pub async fn read(&self, offset: u64, len: u64) -> Vec<u64> {
        self.executor.delay().await;
        (offset..offset + len)
            .map(|sector| self.get(sector).unwrap_or(GARBAGE))
            .collect()
    }

    /// Writes sectors.
    pub async fn write(&self, offset: u64, values: &[u64]) {
        self.executor.delay().await;
        for (sector, value) in (offset..).zip(values) {
            self.put(sector, *value);
        }
    }
}

#[async_trait(?Send)]
impl DataDevice for DataDisk {
    fn nr_sectors(&self) -> u64 {
        self.len()
    }

    fn block_bytes(&self) -> u32 {
        512
    }

    fn supports_discard(&self) -> bool {
        true
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.write(offset, &vec![0; len as usize]).await;
        Ok(())
    }

    async fn copy(&self, from: u64, to: u64, len: u64) -> Result<(), Errno> {
        let values = self.read(from, len).await;
        self.write(to, &values).await;
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.write(offset, &vec![GARBAGE; len as usize]).await;
        Ok(())
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.flush_all().await;
        Ok(())
    }
}

/// A metadata disk, of real sectors of 512 bytes: a block's write may be torn.
pub type MetadataDisk = Disk<[u8; 512]>;

const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES as u64 / 512;

#[async_trait(?Send)]
impl BlockDevice for MetadataDisk {
    fn nr_blocks(&self) -> u64 {
        self.len() / SECTORS_PER_BLOCK
    }

    async fn read(&self, block: u64, buf: &mut BlockBytes) -> Result<(), DeviceError> {
        self.executor.delay().await;
        for (sector, part) in (block * SECTORS_PER_BLOCK..).zip(buf.chunks_exact_mut(512)) {
            let value = self.get(sector).ok_or(DeviceError { errno: 5 })?;
            part.copy_from_slice(&value);
        }
        Ok(())
    }

    async fn write(&self, block: u64, buf: &BlockBytes) -> Result<(), DeviceError> {
        self.executor.delay().await;
        for (sector, part) in (block * SECTORS_PER_BLOCK..).zip(buf.chunks_exact(512)) {
            let value = part.try_into().map_err(|_| DeviceError { errno: 5 })?;
            self.put(sector, value);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.flush_all().await;
        Ok(())
    }
}
