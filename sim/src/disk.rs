//! Disks with a volatile write cache and faults.
//!
//! What was written and not flushed may or may not be there after a crash, physical sector by physical
//! sector, in any of the versions written since the last flush; a write under way may be there in
//! part. I/O may fail, be slow, or hang; sectors may become unreadable until they are written again; the
//! disk may grow, or be gone.
//!
//! A flush that fails may lose what it was to make durable: older versions come back, without a power cut. It
//! says so once: the flushes under way then all fail, and a later one knows nothing of it.

mod devices;

use crate::executor::Executor;
use crate::faults::FaultRates;
use bdev::device::SECTOR_BYTES;
use bdev::errno::Errno;
use persistent_data::device::BLOCK_BYTES;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// What a discarded block reads as: nobody may ever see it.
pub const GARBAGE: u64 = 0xDEAD_DEAD_DEAD_DEAD;

/// What a logical block holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A number that stands for data; 0 is zeroes.
    Value(u64),
    /// Real bytes.
    Bytes(Rc<[u8]>),
}

impl Content {
    /// As data.
    fn value(&self) -> u64 {
        match self {
            Content::Value(value) => *value,
            Content::Bytes(bytes) if bytes.iter().all(|b| *b == 0) => 0,
            Content::Bytes(_) => GARBAGE ^ 1,
        }
    }

    /// As bytes: the number first, then zeroes.
    fn put(&self, buf: &mut [u8]) {
        match self {
            Content::Value(value) => {
                buf.fill(0);
                if let Some(first) = buf.first_chunk_mut() {
                    *first = value.to_le_bytes();
                }
            }
            Content::Bytes(bytes) => {
                for (to, from) in buf.iter_mut().zip(bytes.iter()) {
                    *to = *from;
                }
            }
        }
    }
}

/// The shape of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per logical block, 512 or 4096.
    pub block_bytes: u32,
    /// Bytes that are written as a whole or not at all: 512 or 4096, not less than a block.
    pub physical_bytes: u32,
}

impl Geometry {
    /// With physical sectors of a block, or of 4096 bytes.
    pub fn roll(dice: &Executor, block_bytes: u32) -> Self {
        Geometry {
            block_bytes,
            physical_bytes: if dice.one_in(2) { 4096 } else { block_bytes },
        }
    }

    /// Of a disk for metadata.
    pub fn of_metadata(dice: &Executor) -> Self {
        Geometry {
            block_bytes: 512,
            physical_bytes: if dice.one_in(2) { 512 } else { 4096 },
        }
    }
}

/// A disk.
pub struct Disk {
    name: &'static str,
    executor: Rc<Executor>,
    geometry: Geometry,
    durable: RefCell<Vec<Content>>,
    /// Versions written since the last flush, oldest first, by number of the write.
    cached: RefCell<BTreeMap<u64, Vec<(u64, Content)>>>,
    writes: Cell<u64>,
    /// Of each block the number of the last write that reached it, power cut or not.
    reached: RefCell<BTreeMap<u64, u64>>,
    rates: Cell<FaultRates>,
    /// Failed flushes that have lost something.
    losses: Cell<u64>,
    /// Told of each.
    watcher: RefCell<Option<Box<dyn Fn()>>>,
    /// Physical sectors that cannot be read.
    latent: RefCell<BTreeSet<u64>>,
    removed: Cell<bool>,
}

/// An I/O error.
const EIO: Errno = Errno::EIO;

impl Disk {
    /// A disk with these contents, logical block by logical block.
    pub fn new(
        name: &'static str,
        executor: &Rc<Executor>,
        geometry: Geometry,
        contents: impl Iterator<Item = u64>,
    ) -> Rc<Self> {
        Rc::new(Disk {
            name,
            executor: executor.clone(),
            geometry,
            durable: RefCell::new(contents.map(Content::Value).collect()),
            cached: RefCell::default(),
            writes: Cell::new(0),
            reached: RefCell::default(),
            rates: Cell::default(),
            losses: Cell::new(0),
            watcher: RefCell::default(),
            latent: RefCell::default(),
            removed: Cell::new(false),
        })
    }

    /// Sets the faults to come.
    pub fn set_faults(&self, rates: FaultRates) {
        self.rates.set(rates);
    }

    /// Has somebody told when writes are lost.
    pub fn watch_losses(&self, watcher: impl Fn() + 'static) {
        *self.watcher.borrow_mut() = Some(Box::new(watcher));
    }

    /// The disk is gone: every I/O fails from now on.
    pub fn remove(&self) {
        self.executor.count("disk removed");
        self.removed.set(true);
    }

    /// Adds blocks at the end, full of `content`.
    pub fn grow(&self, nr_blocks: u64, content: u64) {
        self.executor.count("disk grown");
        let mut durable = self.durable.borrow_mut();
        let len = durable.len() + nr_blocks as usize;
        durable.resize(len, Content::Value(content));
    }

    /// Writes so far; the next one gets a higher number.
    pub fn nr_writes(&self) -> u64 {
        self.writes.get()
    }

    /// Blocks that were reached by writes with a number above `number`, whether or not a power cut has
    /// undone them since.
    pub fn reached_since(&self, number: u64) -> Vec<u64> {
        let reached = self.reached.borrow();
        let later = reached.iter().filter(|(_, of)| **of > number);
        later.map(|(block, _)| *block).collect()
    }

    /// Number of logical blocks.
    pub fn nr_logical_blocks(&self) -> u64 {
        self.durable.borrow().len() as u64
    }

    /// What a block holds for certain, also after a power cut.
    pub fn durable(&self, block: u64) -> Option<u64> {
        let durable = self.durable.borrow();
        Some(durable.get(block as usize)?.value())
    }

    /// All that a block may hold after a power cut.
    pub fn versions(&self, block: u64) -> Vec<u64> {
        let cached = self.cached.borrow();
        let written = cached.get(&block).into_iter().flatten();
        let written = written.map(|(_, content)| content.value());
        self.durable(block).into_iter().chain(written).collect()
    }

    fn get(&self, block: u64) -> Option<Content> {
        let cached = self.cached.borrow();
        let newest = cached.get(&block).and_then(|versions| versions.last());
        match newest {
            Some((_, content)) => Some(content.clone()),
            None => self.durable.borrow().get(block as usize).cloned(),
        }
    }

    fn put(&self, number: u64, block: u64, content: Content) {
        self.latent.borrow_mut().remove(&self.physical(block));
        self.reached.borrow_mut().insert(block, number);
        self.cached
            .borrow_mut()
            .entry(block)
            .or_default()
            .push((number, content));
    }

    /// The physical sector a block is in.
    fn physical(&self, block: u64) -> u64 {
        block * u64::from(self.geometry.block_bytes) / u64::from(self.geometry.physical_bytes)
    }

    /// The time an I/O takes, and how that may go wrong.
    async fn take_time(&self) -> Result<(), Errno> {
        let rates = self.rates.get();
        if self.executor.one_in(rates.stuck) {
            self.executor.count("stuck I/O");
            futures::future::pending::<()>().await;
        }
        if self.executor.one_in(rates.slow) {
            self.executor.count("slow I/O");
            let millis = self.executor.below(500);
            self.executor.pass(Duration::from_millis(millis)).await;
        }
        self.executor.delay().await;
        match self.removed.get() {
            true => Err(Errno::ENODEV),
            false => Ok(()),
        }
    }

    async fn read_blocks(&self, first: u64, count: u64) -> Result<Vec<Content>, Errno> {
        self.take_time().await?;
        if self.executor.one_in(self.rates.get().read_error) {
            self.executor.count("read error");
            return Err(EIO);
        }
        let mut contents = Vec::with_capacity(count as usize);
        for block in first..first + count {
            if self.latent.borrow().contains(&self.physical(block)) {
                self.executor.count("latent sector read");
                return Err(EIO);
            }
            contents.push(self.get(block).ok_or(EIO)?);
        }
        Ok(contents)
    }

    async fn write_blocks(&self, first: u64, contents: Vec<Content>) -> Result<(), Errno> {
        let rates = self.rates.get();
        let fails = self.executor.one_in(rates.write_error);
        if fails || self.executor.one_in(4) {
            // Part of it reaches the cache early, or at all.
            self.executor.delay().await;
            if !self.removed.get() {
                let (salt, number) = (self.executor.below(1 << 32), self.next_number());
                for (block, content) in (first..).zip(&contents) {
                    if mix(self.physical(block) ^ salt) & 1 == 0 {
                        self.put(number, block, content.clone());
                    }
                }
            }
        }
        self.take_time().await?;
        if fails {
            self.executor.count("write error");
            return Err(EIO);
        }
        if first + contents.len() as u64 > self.nr_logical_blocks() {
            return Err(EIO);
        }
        let number = self.next_number();
        let count = contents.len() as u64;
        self.executor
            .trace(|| format!("{} write {first}+{count} is number {number}", self.name));
        for (block, content) in (first..).zip(contents) {
            self.put(number, block, content);
        }
        if self.executor.one_in(rates.latent) {
            self.executor.count("latent sector made");
            let victim = first + self.executor.below(count);
            self.latent.borrow_mut().insert(self.physical(victim));
        }
        Ok(())
    }

    fn next_number(&self) -> u64 {
        let number = self.writes.get() + 1;
        self.writes.set(number);
        number
    }

    /// Makes durable what was written before the call.
    pub async fn flush_all(&self) -> Result<(), Errno> {
        let (until, losses) = (self.writes.get(), self.losses.get());
        self.take_time().await?;
        let rates = self.rates.get();
        if self.losses.get() > losses {
            self.executor.count("flush error because of another");
            return Err(EIO);
        }
        if self.executor.one_in(rates.flush_error) {
            self.executor.count("flush error");
            self.lose(until);
            return Err(EIO);
        }
        if self.executor.one_in(rates.lost_flush) {
            return Ok(());
        }
        self.executor
            .trace(|| format!("{} flushed up to number {until}", self.name));
        let mut durable = self.durable.borrow_mut();
        self.cached.borrow_mut().retain(|block, versions| {
            let settled = versions.iter().take_while(|(n, _)| *n <= until).count();
            for (_, content) in versions.drain(..settled) {
                if let Some(slot) = durable.get_mut(*block as usize) {
                    *slot = content;
                }
            }
            !versions.is_empty()
        });
        Ok(())
    }

    /// Of each physical sector with unflushed writes up to number `until`: the last that is kept by chance. 0: none.
    /// Blocks of a physical sector written at once stay together.
    fn roll_kept(&self, until: u64) -> BTreeMap<u64, u64> {
        let luck = self.executor.below(4);
        let mut units: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (block, versions) in self.cached.borrow().iter() {
            let unit = units.entry(self.physical(*block)).or_default();
            unit.extend(versions.iter().map(|(n, _)| *n).filter(|n| *n <= until));
        }
        let kept = |(sector, mut unit): (u64, Vec<u64>)| {
            unit.sort_unstable();
            let kept = match luck {
                0 => 0,
                1 => unit.len() as u64,
                _ => self.executor.below(unit.len() as u64 + 1),
            };
            let last = kept.checked_sub(1).and_then(|i| unit.get(i as usize));
            (sector, last.copied().unwrap_or_default())
        };
        units.into_iter().map(kept).collect()
    }

    /// A flush of the writes up to number `until` has failed: some of them are gone.
    fn lose(&self, until: u64) {
        let kept = self.roll_kept(until);
        let mut nr_lost = 0;
        self.cached.borrow_mut().retain(|block, versions| {
            let last = kept.get(&self.physical(*block)).copied();
            let before = versions.len();
            versions.retain(|(n, _)| *n > until || last.is_none_or(|last| *n <= last));
            nr_lost += before - versions.len();
            !versions.is_empty()
        });
        if nr_lost == 0 {
            return;
        }
        self.executor.count("writes lost by a flush error");
        let name = self.name;
        self.executor
            .trace(|| format!("{name} lost {nr_lost} versions up to number {until}"));
        self.losses.set(self.losses.get() + 1);
        if let Some(watcher) = &*self.watcher.borrow() {
            watcher();
        }
    }

    /// Power fails. Faults, also unreadable sectors, are over afterwards.
    pub fn crash(&self) {
        let kept = self.roll_kept(u64::MAX);
        let mut durable = self.durable.borrow_mut();
        for (block, versions) in self.cached.take() {
            let last = kept.get(&self.physical(block)).copied().unwrap_or_default();
            let newest = versions.into_iter().rev().find(|(n, _)| *n <= last);
            if let Some((_, content)) = newest
                && let Some(slot) = durable.get_mut(block as usize)
            {
                *slot = content;
            }
        }
        self.rates.set(FaultRates::default());
        self.latent.borrow_mut().clear();
        self.removed.set(false);
    }

    /// Reads data, in logical blocks.
    pub async fn read_values(&self, first: u64, count: u64) -> Result<Vec<u64>, Errno> {
        let contents = self.read_blocks(first, count).await?;
        Ok(contents.iter().map(Content::value).collect())
    }

    /// Writes data, in logical blocks.
    pub async fn write_values(&self, first: u64, values: &[u64]) -> Result<(), Errno> {
        let contents = values.iter().map(|value| Content::Value(*value)).collect();
        self.write_blocks(first, contents).await
    }

    fn blocks(&self, sectors: u64) -> u64 {
        sectors * SECTOR_BYTES / u64::from(self.geometry.block_bytes)
    }

    fn blocks_per_metadata_block(&self) -> u64 {
        BLOCK_BYTES as u64 / u64::from(self.geometry.block_bytes)
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} blocks", self.name, self.nr_logical_blocks())
    }
}

/// Scrambles a number (the finalizer of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The disks of a world, by their number as base devices. There is at least one.
pub struct Disks(Vec<Rc<Disk>>);

impl Disks {
    /// These.
    pub fn new(disks: Vec<Rc<Disk>>) -> Self {
        Disks(disks)
    }

    /// All of them.
    pub fn all(&self) -> &[Rc<Disk>] {
        &self.0
    }

    /// The one with this number; a number too large stands for the first.
    pub fn numbered(&self, number: usize) -> Rc<Disk> {
        match self.0.get(number).or(self.0.first()) {
            Some(disk) => disk.clone(),
            None => unreachable!("a world has disks"),
        }
    }
}
