//! Merging a thin device back into its external origin (thin.md 10; the kernel has nothing like it).
//!
//! Batch by batch: what mapped blocks hold is written to the origin at their place and flushed, and only
//! then do the mappings go, so that the holes show the origin. Until a mapping is gone nobody reads what
//! is below it. So a batch that is repeated after a crash is harmless, and a crash at any moment leaves a
//! device that reads as before: a merge keeps no state of its own.
//!
//! Writes to the blocks of a batch wait at the owner meanwhile, reads go on. Blocks that are written to
//! later are mapped anew and merged by a later pass. When little is left, or passes no longer make it
//! less, first writes to the whole device wait until the rest is merged: at that moment the origin holds
//! everything.

use super::cache::{PAGE_BLOCKS, UNMAPPED, held};
use super::error::PoolError;
use super::events::PoolEvent;
use super::map::ThinDev;
use super::metadata::{ThinError, ThinMetadata};
use super::pages::TIME_BITS;
use super::pool::Pool;
use crate::device::{DataDeviceRef, SECTOR_BYTES, copy};
use crate::errno::Errno;
use crate::locks::RangeGuard;
use crate::waits::Bell;
use futures::stream::StreamExt;
use persistent_data::turn::yield_now;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Most sectors of a batch, or one block: writes to them wait.
const BATCH_SECTORS: u64 = 8192;

/// Widest range of virtual blocks of a batch: first writes to its holes wait, too.
const WIDEST_BLOCKS: u64 = 8 * PAGE_BLOCKS as u64;

/// Passes after which the rest is merged while first writes wait, however much it is.
const MOST_PASSES: u32 = 8;

/// Copies under way at a time.
const COPIES: usize = 8;

/// Longest a throttled merge sleeps without looking whether it is to stop.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// How a merge is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExternalMergeState {
    /// At work.
    Running,
    /// Stopped on demand. What is left is still the device's.
    Stopped,
    /// Stopped by an error; the same.
    Failed(String),
    /// At one moment nothing was left.
    Finished,
}

/// A merge, for whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalMerge {
    /// The device.
    pub id: u32,
    /// How it is.
    pub state: ExternalMergeState,
    /// Blocks merged, those that were written to in between more than once.
    pub merged_blocks: u64,
    /// Blocks the device has mapped now: what is left, and what was written since.
    pub mapped_blocks: u64,
    /// Sectors per block.
    pub block_sectors: u32,
    /// Most bytes per second; 0: no limit.
    pub bytes_per_second: u64,
}

/// A merge, on the owner's core.
pub(super) struct Merging {
    state: RefCell<ExternalMergeState>,
    stop: Cell<bool>,
    merged_blocks: Cell<u64>,
    bytes_per_second: u64,
    /// The batch in hand: writes to what is mapped here come to the owner.
    held: RefCell<Range<u64>>,
    ended: Bell,
}

impl Merging {
    fn is_running(&self) -> bool {
        *self.state.borrow() == ExternalMergeState::Running
    }
}

/// Why a pass ended before its end.
enum Stopped {
    OnDemand,
    By(String),
}

/// What a merge works on.
struct Work {
    dev: Arc<ThinDev>,
    merging: Rc<Merging>,
    /// The external origin, to be written to.
    target: DataDeviceRef,
    /// Virtual blocks that can be merged.
    end: u64,
}

impl Pool {
    /// Begins to merge an active device into its external origin, to which `target` leads; nobody else
    /// may write to that, and no other device may show it, until the merge has ended. At most
    /// `bytes_per_second`, unless 0. Errors: EBUSY while it is being merged, and when snapshots or the
    /// origin of the device share blocks with it; EINVAL without an external origin, and when blocks are
    /// mapped beyond its end; ENODEV, EOPNOTSUPP.
    pub async fn merge_external(
        self: &Rc<Self>,
        id: u32,
        target: DataDeviceRef,
        bytes_per_second: u64,
    ) -> Result<(), PoolError> {
        self.check_open()?;
        self.writable()?;
        let dev = self.active_to_merge(id)?;
        self.check_no_external_merge(id)?;
        let end = self.mergeable_end(&dev, &*target)?;
        let merging = Rc::new(Merging {
            state: RefCell::new(ExternalMergeState::Running),
            stop: Cell::new(false),
            merged_blocks: Cell::new(0),
            bytes_per_second,
            held: RefCell::new(0..0),
            ended: Bell::default(),
        });
        // From here on nobody takes a snapshot of the device.
        let before = self.merging.borrow_mut().insert(id, merging.clone());
        let checked = self.check_merge(id, end).await;
        if let Err(error) = checked.and_then(|()| self.active_to_merge(id).map(drop)) {
            let mut all = self.merging.borrow_mut();
            match before {
                Some(before) => all.insert(id, before),
                None => all.remove(&id),
            };
            return Err(error);
        }
        let work = Work {
            dev,
            merging,
            target,
            end,
        };
        self.run_task(id, self.clone().merge_all(work));
        Ok(())
    }

    /// Ends a merge after the batch in hand. Error: ENODEV when none runs.
    pub async fn stop_external_merge(&self, id: u32) -> Result<(), PoolError> {
        let found = self.merging.borrow().get(&id).cloned();
        let Some(merging) = found.filter(|merging| merging.is_running()) else {
            return Err(PoolError::NotMerging {
                pool: self.config.name.clone(),
                id,
            });
        };
        merging.stop.set(true);
        while merging.is_running() {
            let _ = merging.ended.heard().await;
        }
        Ok(())
    }

    /// How the merge of a device is, or how the last one since its activation ended.
    pub async fn external_merge(&self, id: u32) -> Result<Option<ExternalMerge>, PoolError> {
        self.check_open()?;
        let Some(merging) = self.merging.borrow().get(&id).cloned() else {
            return Ok(None);
        };
        let details = self.metadata.lock().await.details(id).await?;
        let state = merging.state.borrow().clone();
        Ok(Some(ExternalMerge {
            id,
            state,
            merged_blocks: merging.merged_blocks.get(),
            mapped_blocks: details.mapped_blocks,
            block_sectors: self.config.data_block_size_sectors,
            bytes_per_second: merging.bytes_per_second,
        }))
    }

    /// Refuses what cannot be done with a device that is being merged. Error: EBUSY.
    pub fn check_no_external_merge(&self, id: u32) -> Result<(), PoolError> {
        match self.merging.borrow().get(&id) {
            Some(merging) if merging.is_running() => Err(PoolError::Merging {
                pool: self.config.name.clone(),
                id,
            }),
            _ => Ok(()),
        }
    }

    /// The device is going: its merge ends after the batch in hand.
    pub(super) fn let_merge_go(&self, id: u32) {
        if let Some(merging) = self.merging.borrow().get(&id) {
            merging.stop.set(true);
        }
    }

    /// Holds those of a page's values that are in a batch in hand, before they are published.
    pub(super) fn hold_merging(&self, id: u32, first: u64, values: &mut [u64]) {
        let merging = self.merging.borrow();
        let Some(merging) = merging.get(&id) else {
            return;
        };
        let range = merging.held.borrow();
        for (_, value) in (first..)
            .zip(values)
            .filter(|(block, _)| range.contains(block))
        {
            *value = held(*value);
        }
    }

    async fn merge_all(self: Rc<Self>, work: Work) {
        let result = self.merge_passes(&work).await;
        let Work {
            dev,
            merging,
            target,
            ..
        } = work;
        // Whoever hears of the end can have the origin.
        drop(target);
        let (state, event) = match &result {
            Ok(_) => (
                ExternalMergeState::Finished,
                Some(PoolEvent::ExternalMergeFinished { id: dev.id }),
            ),
            Err(Stopped::OnDemand) => (ExternalMergeState::Stopped, None),
            Err(Stopped::By(reason)) => {
                log::error!(
                    "pool '{}': thin device {} is not merged into its external origin any more: {reason}",
                    self.config.name,
                    dev.id
                );
                (
                    ExternalMergeState::Failed(reason.clone()),
                    Some(PoolEvent::ExternalMergeFailed { id: dev.id }),
                )
            }
        };
        *merging.state.borrow_mut() = state;
        if let Some(event) = event {
            self.emit(event);
        }
        merging.ended.ring();
        // First writes wait until here.
        drop(result);
    }

    /// Merges until nothing is left. Returns what keeps first writes away at that moment.
    async fn merge_passes(&self, work: &Work) -> Result<RangeGuard, Stopped> {
        let id = u64::from(work.dev.id);
        let mut before = u64::MAX;
        for pass in 1.. {
            let left = self.nr_mapped(work.dev.id).await?;
            let hardly_less = left / 7 * 8 >= before;
            if left <= self.batch_blocks() || hardly_less || pass > MOST_PASSES {
                break;
            }
            before = left;
            let mut from = 0;
            while let Some(range) = self.next_batch(work, from).await? {
                from = range.end;
                let guard = self.locks.lock_range(id, range.clone()).await;
                let merged = self.merge_batch(work, range).await?;
                drop(guard);
                self.throttle_merge(&work.merging, merged).await;
                // Others get their turn at the blocks of the next batch.
                yield_now().await;
            }
        }
        let guard = self.locks.lock_range(id, 0..u64::MAX).await;
        while let Some(range) = self.next_batch(work, 0).await? {
            self.merge_batch(work, range).await?;
        }
        let committed = self.commit().await;
        committed.map_err(|errno| Stopped::By(format!("committing the metadata: {errno}")))?;
        self.still_writable()?;
        Ok(guard)
    }

    /// A pool that went back to its last commit may have lost what was to be merged.
    fn still_writable(&self) -> Result<(), Stopped> {
        self.writable()
            .map_err(|error| Stopped::By(error.to_string()))
    }

    async fn nr_mapped(&self, id: u32) -> Result<u64, Stopped> {
        let details = self.metadata.lock().await.details(id).await;
        Ok(details
            .map_err(|error| Stopped::By(error.to_string()))?
            .mapped_blocks)
    }

    fn batch_blocks(&self) -> u64 {
        (BATCH_SECTORS / u64::from(self.config.data_block_size_sectors)).max(1)
    }

    /// The next blocks to be merged together.
    async fn next_batch(&self, work: &Work, from: u64) -> Result<Option<Range<u64>>, Stopped> {
        if work.merging.stop.get() {
            return Err(Stopped::OnDemand);
        }
        self.still_writable()?;
        let mut metadata = self.metadata.lock().await;
        let failed = |error: ThinError| Stopped::By(error.to_string());
        let next = metadata
            .next_mapped(work.dev.id, from)
            .await
            .map_err(failed)?;
        let Some(begin) = next else { return Ok(None) };
        if begin >= work.end {
            return Err(Stopped::By(format!(
                "block {begin} was written to, which is beyond the end of the external origin"
            )));
        }
        let widest = begin..work.end.min(begin.saturating_add(WIDEST_BLOCKS));
        let most = self.batch_blocks() as usize;
        let mapped = mapped_in(&mut metadata, work.dev.id, widest, most).await;
        let last = mapped.map_err(failed)?.last().map(|(block, _)| *block);
        Ok(last.map(|last| begin..last + 1))
    }

    /// Merges a batch, whose blocks the caller has locked. Returns how many were mapped.
    async fn merge_batch(&self, work: &Work, range: Range<u64>) -> Result<u64, Stopped> {
        let pages = &work.dev.pages;
        *work.merging.held.borrow_mut() = range.clone();
        pages.hold(range.start, range.end, true);
        // Writes that had passed are over.
        self.channels.barrier().await;
        let merged = self.merge_held(work, range.clone()).await;
        *work.merging.held.borrow_mut() = 0..0;
        pages.hold(range.start, range.end, false);
        let merged = merged?;
        let merging = &work.merging;
        merging
            .merged_blocks
            .set(merging.merged_blocks.get() + merged);
        Ok(merged)
    }

    async fn merge_held(&self, work: &Work, range: Range<u64>) -> Result<u64, Stopped> {
        let mapped = {
            let mut metadata = self.metadata.lock().await;
            // A new block that a failing flush of the data loses shows somebody else's data until its mapping is
            // gone: that must not get into the origin.
            if self.shared.has_new_blocks() {
                let flushed = self.flush_data(&mut metadata).await;
                flushed.map_err(|errno| Stopped::By(format!("flushing the data: {errno}")))?;
            }
            let mapped = mapped_in(&mut metadata, work.dev.id, range.clone(), usize::MAX).await;
            mapped.map_err(|error| Stopped::By(error.to_string()))?
        };
        self.copy_to_origin(work, &mapped)
            .await
            .map_err(|errno| Stopped::By(format!("copying to the external origin: {errno}")))?;
        let flushed = work.target.flush().await;
        flushed.map_err(|errno| Stopped::By(format!("flushing the external origin: {errno}")))?;
        let mut metadata = self.metadata.lock().await;
        self.remove_mappings(&mut metadata, &work.dev, range.start, range.end)
            .await
            .map_err(|errno| Stopped::By(format!("changing the metadata: {errno}")))
    }

    async fn copy_to_origin(&self, work: &Work, mapped: &[(u64, u64)]) -> Result<(), Errno> {
        let sectors = u64::from(self.config.data_block_size_sectors);
        let origin_end = work.dev.origin_sectors();
        let runs = mapped.chunk_by(|a, b| a.0 + 1 == b.0 && a.1 + 1 == b.1);
        let copies = runs.filter_map(|run| {
            let (block, data_block) = *run.first()?;
            let to = block * sectors;
            let len = (run.len() as u64 * sectors).min(origin_end.saturating_sub(to));
            Some(copy(
                &*self.data,
                data_block * sectors,
                &*work.target,
                to,
                len,
            ))
        });
        // All of them end before anybody may write to these blocks again, also when one fails.
        let results: Vec<_> = futures::stream::iter(copies)
            .buffer_unordered(COPIES)
            .collect()
            .await;
        results.into_iter().collect()
    }

    async fn throttle_merge(&self, merging: &Merging, nr_blocks: u64) {
        let bytes = nr_blocks * u64::from(self.config.data_block_size_sectors) * SECTOR_BYTES;
        let nanos = (u128::from(bytes) * 1_000_000_000)
            .checked_div(u128::from(merging.bytes_per_second))
            .unwrap_or(0);
        let mut left = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        while !left.is_zero() && !merging.stop.get() {
            let step = left.min(LONGEST_SLEEP);
            self.runtime.sleep(step).await;
            left -= step;
        }
    }
}

/// The first mapped blocks of a range with their data blocks, at most `most`.
async fn mapped_in(
    metadata: &mut ThinMetadata,
    id: u32,
    range: Range<u64>,
    most: usize,
) -> Result<Vec<(u64, u64)>, ThinError> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end && found.len() < most {
        let mut values = [UNMAPPED; PAGE_BLOCKS];
        metadata.lookup_range(id, at, &mut values).await?;
        let mapped = (at..range.end)
            .zip(values)
            .filter(|(_, value)| *value != UNMAPPED)
            .map(|(block, value)| (block, value >> TIME_BITS));
        found.extend(mapped.take(most - found.len()));
        at = at.saturating_add(PAGE_BLOCKS as u64);
    }
    Ok(found)
}
