//! Reads and writes that the hot path could not map: loading mappings, provisioning, breaking of
//! sharing (thin.md 7.1, 7.2).
//!
//! One task at a time works on a virtual block; I/O on that block that arrives meanwhile joins it.

use super::cache::{Entry, PAGE_BLOCKS, UNMAPPED, pack};
use super::map::{DATA, PoolMode, Thin, ThinDev};
use super::metadata::{ThinError, ThinMetadata};
use super::pool::Pool;
use crate::channel::Deferred;
use crate::device::{copy, copy_within};
use crate::errno::Errno;
use crate::target::IoKind;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::MutexGuard;

/// What becomes of the I/O that waits for a block.
#[derive(Clone, Copy)]
pub(super) enum Outcome {
    /// Map it again.
    Retry,
    /// The writes among it fail; reads are mapped again.
    FailWrites(Errno),
    /// All of it fails.
    FailAll(Errno),
    /// The writes among it wait for data space; reads are mapped again.
    NoSpace,
}

/// Why a block could not be made writable.
pub(super) enum NotWritable {
    /// There is no data block to be had.
    NoSpace,
    /// Anything else.
    Failed(Errno),
}

impl NotWritable {
    /// What a write is answered that cannot be mapped again.
    pub(super) fn errno(self) -> Errno {
        match self {
            NotWritable::NoSpace => Errno::ENOSPC,
            NotWritable::Failed(errno) => errno,
        }
    }
}

impl From<Result<(), NotWritable>> for Outcome {
    fn from(made: Result<(), NotWritable>) -> Self {
        match made {
            Ok(()) => Outcome::Retry,
            Err(NotWritable::NoSpace) => Outcome::NoSpace,
            Err(NotWritable::Failed(errno)) => Outcome::FailWrites(errno),
        }
    }
}

impl Pool {
    /// Resolves a block for all I/O that waits for it.
    pub(super) async fn resolve_block(self: Rc<Self>, dev: Arc<ThinDev>, block: u64) {
        let guard = self.locks.lock_block(u64::from(dev.id), block).await;
        let outcome = self.resolve_locked(&dev, block).await;
        drop(guard);
        let waiting = self.pending.borrow_mut().remove(&(dev.id, block));
        self.answer(waiting.unwrap_or_default(), outcome);
    }

    /// Answers I/O that waited for a block, or has it mapped again.
    pub(super) fn answer(
        &self,
        waiting: impl IntoIterator<Item = Deferred<Thin>>,
        outcome: Outcome,
    ) {
        for deferred in waiting {
            let is_write = deferred.request.kind == IoKind::Write;
            match outcome {
                Outcome::FailAll(errno) => self.channels.complete(&deferred, Err(errno)),
                Outcome::FailWrites(errno) if is_write => {
                    self.channels.complete(&deferred, Err(errno));
                }
                Outcome::NoSpace if is_write => self.wait_for_space(deferred),
                _ => self.channels.retry(&deferred),
            }
        }
    }

    async fn resolve_locked(&self, dev: &Arc<ThinDev>, block: u64) -> Outcome {
        let entry = match self.entry(dev, block).await {
            Ok(entry) => entry,
            Err(errno) => return Outcome::FailAll(errno),
        };
        let has_write = self
            .pending
            .borrow()
            .get(&(dev.id, block))
            .is_some_and(|waiting| waiting.iter().any(|d| d.request.kind == IoKind::Write));
        let old = match entry {
            Entry::Mapped { data_block, time } if dev.is_shared(time) => Some(data_block),
            Entry::Unmapped => None,
            // Nobody holds a block while another has its lock.
            Entry::Mapped { .. } | Entry::Held { .. } | Entry::NotCached => return Outcome::Retry,
        };
        if !has_write {
            return Outcome::Retry;
        }
        let made = match self.take_whole_block_write(dev, block) {
            Some(write) => self.overwrite(dev, block, old, write).await,
            None => self.make_writable(dev, block, old).await,
        };
        made.into()
    }

    /// What is mapped at a block, loading its page if need be.
    pub(super) async fn entry(&self, dev: &Arc<ThinDev>, block: u64) -> Result<Entry, Errno> {
        match dev.pages.get(block) {
            Entry::NotCached => {}
            entry => return Ok(entry),
        }
        let page = block / PAGE_BLOCKS as u64;
        let frame = loop {
            if let Some(frame) = self.cache.take_frame(&self.channels).await {
                break frame;
            }
            self.channels.quiesce().await;
        };
        let first = page * PAGE_BLOCKS as u64;
        let wanted = (dev.id, first..first + PAGE_BLOCKS as u64);
        let mut metadata = self.metadata_of(vec![wanted]).await;
        if dev.pages.is_cached(block) {
            return Ok(dev.pages.get(block));
        }
        let mut values = [UNMAPPED; PAGE_BLOCKS];
        metadata
            .lookup_range(dev.id, first, &mut values)
            .await
            .map_err(|error| self.read_failed(&error))?;
        self.hold_merging(dev.id, first, &mut values);
        self.cache.publish(dev, page, frame, &values);
        Ok(dev.pages.get(block))
    }

    /// The metadata, with what is needed of it for blocks of devices. Who gets it reads ahead for all who wait for it.
    pub(super) async fn metadata_of(
        &self,
        wanted: Vec<(u32, Range<u64>)>,
    ) -> MutexGuard<'_, ThinMetadata> {
        self.wanted.borrow_mut().extend(wanted);
        let mut metadata = self.metadata.lock().await;
        let wanted = self.wanted.take();
        metadata.fetch(wanted).await;
        metadata
    }

    fn read_failed(&self, error: &ThinError) -> Errno {
        log::error!("pool '{}': {error}", self.config.name);
        Errno::EIO
    }

    /// Makes a block mapped and unshared. The caller holds the block's lock.
    pub(super) async fn make_writable(
        &self,
        dev: &Arc<ThinDev>,
        block: u64,
        old: Option<u64>,
    ) -> Result<(), NotWritable> {
        let new = self.allocate().await?;
        let prepared = self.prepare(dev, block, old, new).await;
        self.publish_new(dev, block, old, new, prepared).await
    }

    /// Puts into a new block what its virtual block shows now.
    pub(super) async fn prepare(
        &self,
        dev: &ThinDev,
        block: u64,
        old: Option<u64>,
        new: u64,
    ) -> Result<(), Errno> {
        let sectors = u64::from(self.config.data_block_size_sectors);
        match old {
            Some(old) => copy_within(&*self.data, old * sectors, new * sectors, sectors).await,
            None => self.fill_new(dev, block, new * sectors).await,
        }
    }

    /// Gives a new block the contents of the hole it fills: the external origin's, and zeroes.
    pub(super) async fn fill_new(
        &self,
        dev: &ThinDev,
        block: u64,
        at_sectors: u64,
    ) -> Result<(), Errno> {
        let sectors = u64::from(self.config.data_block_size_sectors);
        let from = block * sectors;
        let origin = self.origins.borrow().get(&dev.id).cloned();
        let inside = dev.origin_sectors().saturating_sub(from).min(sectors);
        if let Some(origin) = origin
            && inside > 0
        {
            copy(&*origin, from, &*self.data, at_sectors, inside).await?;
        }
        if inside == sectors || self.config.skip_block_zeroing {
            return Ok(());
        }
        self.data.zero(at_sectors + inside, sectors - inside).await
    }

    /// A write of exactly one whole block that is alone on its block needs neither zeroing nor
    /// copying (thin.md 7.1).
    fn take_whole_block_write(&self, dev: &ThinDev, block: u64) -> Option<Deferred<Thin>> {
        let mut pending = self.pending.borrow_mut();
        let waiting = pending.get_mut(&(dev.id, block))?;
        match waiting.as_slice() {
            [only]
                if only.request.kind == IoKind::Write
                    && self.shared.is_whole_block(&only.request) =>
            {
                waiting.pop()
            }
            _ => None,
        }
    }

    async fn overwrite(
        &self,
        dev: &Arc<ThinDev>,
        block: u64,
        old: Option<u64>,
        write: Deferred<Thin>,
    ) -> Result<(), NotWritable> {
        let new = match self.allocate().await {
            Ok(new) => new,
            Err(NotWritable::NoSpace) => {
                self.wait_for_space(write);
                return Err(NotWritable::NoSpace);
            }
            Err(NotWritable::Failed(errno)) => {
                self.channels.complete(&write, Err(errno));
                return Err(NotWritable::Failed(errno));
            }
        };
        let base_block = new * self.shared.logical_per_block();
        let written = self.channels.forward_to(&write, DATA, base_block).await;
        let published = self.publish_new(dev, block, old, new, written).await;
        self.channels
            .complete(&write, published.map_err(NotWritable::errno));
        // An error of this write says nothing about the others: they are mapped again.
        Ok(())
    }

    /// Inserts the mapping of a block whose data is in place, and shows it to the channels.
    async fn publish_new(
        &self,
        dev: &Arc<ThinDev>,
        block: u64,
        old: Option<u64>,
        new: u64,
        prepared: Result<(), Errno>,
    ) -> Result<(), NotWritable> {
        let mut metadata = self.metadata.lock().await;
        self.publish_locked(&mut metadata, dev, block, old, new, prepared)
            .await
    }

    /// [`Pool::publish_new`] for who holds the metadata.
    pub(super) async fn publish_locked(
        &self,
        metadata: &mut ThinMetadata,
        dev: &Arc<ThinDev>,
        block: u64,
        old: Option<u64>,
        new: u64,
        prepared: Result<(), Errno>,
    ) -> Result<(), NotWritable> {
        if let Err(errno) = prepared {
            // The kernel leaks the block here; giving it back keeps thin_check content.
            metadata.free_data_block(new);
            return Err(NotWritable::Failed(errno));
        }
        let relieved = self.relieve(metadata).await;
        if relieved.is_err() || self.shared.mode().refuses_changes() {
            metadata.free_data_block(new);
            return Err(NotWritable::Failed(Errno::EIO));
        }
        let inserted = metadata.insert(dev.id, block, new).await;
        if let Err(error) = inserted {
            self.metadata_failed(metadata, &error).await;
            return Err(NotWritable::Failed(Errno::EIO));
        }
        self.set_dirty(dev);
        self.cache.set(dev, block, pack(new, metadata.time()));
        self.count(|counters| match old {
            Some(_) => counters.shares_broken += 1,
            None => counters.provisioned += 1,
        });
        if old.is_some() {
            self.unmapped_some.set(true);
        }
        Ok(())
    }

    /// Allocates so many data blocks; fewer, perhaps none, when that fails.
    pub(super) async fn new_blocks(&self, metadata: &mut ThinMetadata, wanted: usize) -> Vec<u64> {
        self.shared.set_new_blocks(true);
        metadata.alloc_data_blocks(wanted).await
    }

    /// Allocates a data block, committing once if only blocks freed in this transaction are left.
    async fn allocate(&self) -> Result<u64, NotWritable> {
        let mut metadata = self.metadata.lock().await;
        for attempt in 0.. {
            match self.shared.mode() {
                PoolMode::Write => {}
                PoolMode::OutOfDataSpace => return Err(NotWritable::NoSpace),
                _ => return Err(NotWritable::Failed(Errno::EIO)),
            }
            self.shared.set_new_blocks(true);
            match metadata.alloc_data_block().await {
                Ok(block) => {
                    self.check_low_water(&metadata);
                    return Ok(block);
                }
                Err(error) if error.is_no_data_space() && attempt == 0 => {
                    self.commit_locked(&mut metadata)
                        .await
                        .map_err(NotWritable::Failed)?;
                }
                Err(error) if error.is_no_data_space() => {
                    self.out_of_data_space();
                    return Err(NotWritable::NoSpace);
                }
                Err(error) => {
                    self.metadata_failed(&mut metadata, &error).await;
                    return Err(NotWritable::Failed(Errno::EIO));
                }
            }
        }
        Err(NotWritable::NoSpace)
    }
}
