//! Discards and write-zeroes: requests over ranges of blocks (thin.md 8).

use super::cache::Entry;
use super::map::{PoolMode, Thin, ThinDev};
use super::metadata::ThinMetadata;
use super::pool::Pool;
use super::worker::NotWritable;
use crate::channel::Deferred;
use crate::errno::Errno;
use std::ops::Range;
use std::sync::Arc;

/// Blocks unmapped in one go; between goes other tasks get at the metadata.
const UNMAP_BATCH_BLOCKS: u64 = 4096;

impl Pool {
    /// Unmaps the whole blocks inside the range; head and tail are left alone.
    pub(super) async fn discard(&self, deferred: Deferred<Thin>) {
        let request = deferred.request;
        let (whole, _, _) = self.split_range(request.offset_blocks, request.nr_blocks);
        let result = match self.shared.mode() {
            PoolMode::Fail => Err(Errno::EIO),
            mode if mode.refuses_changes() => Ok(()),
            _ if self.config.ignore_discard => Ok(()),
            _ => self.unmap(&deferred.volume, whole).await,
        };
        self.channels.complete(&deferred, result);
    }

    /// Unmaps the whole blocks inside the range, so that they read as zeroes and take no space, and
    /// writes zeroes to what is mapped of head and tail.
    pub(super) async fn write_zeroes(&self, deferred: Deferred<Thin>) {
        let request = deferred.request;
        let dev = &deferred.volume;
        if self.shared.mode().refuses_changes() {
            return self.channels.complete(&deferred, Err(Errno::EIO));
        }
        let (whole, head, tail) = self.split_range(request.offset_blocks, request.nr_blocks);
        // Holes over an external origin do not read as zeroes: those blocks are written.
        let per_block = self.shared.logical_per_block();
        let behind = dev.origin_logical_blocks.div_ceil(per_block);
        let written = whole.start..whole.end.min(behind).max(whole.start);
        let unmapped = written.end..whole.end;
        let mut result = self.unmap(dev, unmapped).await.map_err(NotWritable::Failed);
        let written = written.map(|block| block * per_block..(block + 1) * per_block);
        for part in [head, tail].into_iter().flatten().chain(written) {
            if result.is_ok() {
                result = self.zero_part(dev, part).await;
            }
        }
        match result {
            Ok(()) => self.channels.complete(&deferred, Ok(())),
            Err(NotWritable::Failed(errno)) => self.channels.complete(&deferred, Err(errno)),
            Err(NotWritable::NoSpace) => self.wait_for_space(deferred),
        }
    }

    /// Splits a range of logical blocks into its whole data blocks and the partial ones at its ends
    /// (as logical ranges).
    fn split_range(
        &self,
        offset: u64,
        nr_blocks: u64,
    ) -> (Range<u64>, Option<Range<u64>>, Option<Range<u64>>) {
        let per_block = self.shared.logical_per_block();
        let end = offset.saturating_add(nr_blocks);
        let first = offset.div_ceil(per_block);
        let last = end / per_block;
        if first > last {
            return (0..0, Some(offset..end), None);
        }
        let head = offset..first * per_block;
        let tail = last * per_block..end;
        let some = |range: Range<u64>| (!range.is_empty()).then_some(range);
        (first..last, some(head), some(tail))
    }

    async fn unmap(&self, dev: &Arc<ThinDev>, blocks: Range<u64>) -> Result<(), Errno> {
        let mut begin = blocks.start;
        while begin < blocks.end {
            let end = blocks.end.min(begin.saturating_add(UNMAP_BATCH_BLOCKS));
            let _guard = self.locks.lock_range(u64::from(dev.id), begin..end).await;
            let mut metadata = self.metadata.lock().await;
            if self.shared.mode().refuses_changes() {
                return Err(Errno::EIO);
            }
            begin = self
                .unmap_batch(&mut metadata, dev, begin, end, blocks.end)
                .await?;
        }
        Ok(())
    }

    /// Unmaps `begin..end` and returns where to go on: past the hole that follows, if any.
    async fn unmap_batch(
        &self,
        metadata: &mut ThinMetadata,
        dev: &Arc<ThinDev>,
        begin: u64,
        end: u64,
        limit: u64,
    ) -> Result<u64, Errno> {
        let count = self.remove_mappings(metadata, dev, begin, end).await?;
        self.count(|counters| counters.discarded += count);
        match metadata.next_mapped(dev.id, end).await {
            Ok(next) => Ok(next.unwrap_or(limit).min(limit)),
            Err(error) => {
                log::error!("pool '{}': {error}", self.config.name);
                Err(Errno::EIO)
            }
        }
    }

    /// Takes the mappings of `begin..end` away, whose lock the caller holds. Returns how many there were.
    pub(super) async fn remove_mappings(
        &self,
        metadata: &mut ThinMetadata,
        dev: &Arc<ThinDev>,
        begin: u64,
        end: u64,
    ) -> Result<u64, Errno> {
        self.relieve(metadata).await?;
        if self.shared.mode().refuses_changes() {
            return Err(Errno::EIO);
        }
        let removed = match metadata.remove_range(dev.id, begin, end).await {
            Ok(removed) => removed,
            Err(error) => {
                self.metadata_failed(metadata, &error).await;
                return Err(Errno::EIO);
            }
        };
        if removed.count > 0 {
            self.set_dirty(dev);
            dev.pages.unmap(begin, end);
            self.hold_freed(metadata, removed.freed);
        }
        Ok(removed.count)
    }

    /// What to do with data blocks that have lost their last mapping: they may still have I/O in flight,
    /// so nobody gets them before the next commit's barrier, not even those that were allocated in this
    /// transaction.
    pub(super) fn hold_freed(&self, metadata: &mut ThinMetadata, blocks: Vec<u64>) {
        self.unmapped_some.set(true);
        for block in &blocks {
            metadata.hold_data_block(*block);
        }
        self.freed.borrow_mut().extend(blocks);
    }

    /// Zeroes part of a block. A hole needs nothing, unless it shows an external origin.
    async fn zero_part(&self, dev: &Arc<ThinDev>, part: Range<u64>) -> Result<(), NotWritable> {
        let (block, offset) = self.shared.split(part.start);
        let guard = self.locks.lock_block(u64::from(dev.id), block).await;
        loop {
            let entry = self.entry(dev, block).await.map_err(NotWritable::Failed)?;
            match entry {
                Entry::NotCached => continue,
                Entry::Unmapped if part.start < dev.origin_logical_blocks => {
                    self.make_writable(dev, block, None).await?;
                }
                Entry::Unmapped => return Ok(()),
                Entry::Mapped { data_block, time } if dev.is_shared(time) => {
                    self.make_writable(dev, block, Some(data_block)).await?;
                }
                Entry::Mapped { .. } | Entry::Held { .. } => {}
            }
            // A snapshot taken now would share the block that is being zeroed; holding the metadata
            // keeps it away.
            let metadata = self.metadata.lock().await;
            if let Entry::Mapped { data_block, time } = dev.pages.get(block)
                && !dev.is_shared(time)
            {
                let per_block = u64::from(self.config.data_block_size_sectors);
                let per_logical = per_block / self.shared.logical_per_block();
                let result = self
                    .data
                    .zero(
                        data_block * per_block + offset * per_logical,
                        (part.end - part.start) * per_logical,
                    )
                    .await;
                drop(metadata);
                drop(guard);
                return result.map_err(NotWritable::Failed);
            }
        }
    }
}
