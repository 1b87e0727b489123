//! Commits, and what a pool does when it runs out of space or its metadata fails (thin.md 5, 6, 9).

use super::events::PoolEvent;
use super::map::{PoolMode, Thin, ThinDev};
use super::metadata::{ThinError, ThinMetadata};
use super::pool::{NO_DEVICE, Pool};
use crate::channel::Deferred;
use crate::errno::Errno;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Lets all who ask for a commit while one is running share the next one.
#[derive(Default)]
pub(super) struct CommitRounds {
    started: Cell<u64>,
    last: Cell<Option<Errno>>,
}

/// A flush of the data device has failed: what was written to it may be lost. Nothing may be committed that
/// relies on it. Until the owner has gone back to the last commit.
#[derive(Default)]
pub(super) struct DataLoss(Cell<Option<Errno>>);

impl Pool {
    /// Does most of what a commit takes in many short turns at the metadata, so that nobody waits long for
    /// the one that ends it. Who comes meanwhile waits and finds little left to do.
    pub(super) async fn commit_ahead(&self) -> Result<(), Errno> {
        let _turn = self.ahead.lock().await;
        let mut turns = self.metadata.lock().await.turns_ahead();
        // Those who go on changing things are not raced for ever.
        while turns > 0 {
            let mut metadata = self.metadata.lock().await;
            if self.shared.mode().refuses_changes() {
                break;
            }
            match metadata.commit_ahead().await {
                Ok(true) => turns -= 1,
                Ok(false) => break,
                Err(error) => {
                    self.metadata_failed(&mut metadata, &error).await;
                    return Err(Errno::EIO);
                }
            }
        }
        Ok(())
    }

    /// Commits everything acknowledged before this call: flushes the data device, then commits the
    /// metadata. Calls that wait at the same time share one round.
    pub(super) async fn commit(&self) -> Result<(), Errno> {
        let wanted = self.rounds.started.get() + 1;
        self.commit_ahead().await?;
        let mut metadata = self.metadata.lock().await;
        if self.rounds.started.get() >= wanted {
            return self.rounds.last.get().map_or(Ok(()), Err);
        }
        self.commit_locked(&mut metadata).await
    }

    /// [`Pool::commit`] for who holds the metadata.
    pub(super) async fn commit_locked(&self, metadata: &mut ThinMetadata) -> Result<(), Errno> {
        self.rounds.started.set(self.rounds.started.get() + 1);
        let result = self.commit_round(metadata).await;
        self.rounds.last.set(result.err());
        result
    }

    async fn commit_round(&self, metadata: &mut ThinMetadata) -> Result<(), Errno> {
        if !metadata.changed() {
            return self.flush_data(metadata).await;
        }
        if self.shared.mode().refuses_changes() {
            return Err(Errno::EIO);
        }
        // Blocks that lost a mapping may become allocatable with this commit: I/O that was mapped to
        // them before must be over (thin.md 7.4-3, 7.4-4).
        if self.unmapped_some.replace(false) {
            self.channels.barrier().await;
        }
        self.flush_data(metadata).await?;
        if let Err(error) = metadata.commit().await {
            self.metadata_failed(metadata, &error).await;
            return Err(Errno::EIO);
        }
        self.count(|counters| counters.commits += 1);
        for dev in self.active.borrow().values() {
            dev.dirty.store(false, Ordering::Release);
        }
        let freed = self.freed.take();
        if self.passes_down() && !freed.is_empty() {
            self.start_pass_down(freed);
        } else {
            self.release(metadata, &freed);
        }
        // Those that are given out and not mapped yet are held.
        self.shared.set_new_blocks(metadata.nr_held_data() > 0);
        self.update_space_modes(metadata);
        Ok(())
    }

    /// Commits when metadata space is tight: that frees what the transaction has shadowed. If that does
    /// not help, the commit changes the mode.
    pub(super) async fn relieve(&self, metadata: &mut ThinMetadata) -> Result<(), Errno> {
        match metadata.is_metadata_tight() && metadata.changed() {
            true => self.commit_locked(metadata).await,
            false => Ok(()),
        }
    }

    /// Flushes the data device. If that fails, the transaction is given up, as after a failed flush of the
    /// metadata: blocks that were zeroed or copied may hold somebody else's data again. The next flush
    /// would not tell.
    pub(super) async fn flush_data(&self, metadata: &mut ThinMetadata) -> Result<(), Errno> {
        let result = self.try_flush_data().await;
        self.give_up_lost(metadata).await;
        result
    }

    async fn try_flush_data(&self) -> Result<(), Errno> {
        let flushed = self.data.flush().await;
        if let Err(errno) = flushed {
            log::error!(
                "pool '{}': flush of the data bdev failed: {errno}",
                self.config.name
            );
            // A device that is gone is flushed no more: nothing will be committed.
            if errno != Errno::ENODEV {
                self.data_loss.0.set(Some(errno));
            }
        }
        // Another's flush may have failed meanwhile.
        self.data_loss.0.get().map_or(flushed, Err)
    }

    async fn give_up_lost(&self, metadata: &mut ThinMetadata) {
        let Some(errno) = self.data_loss.0.take() else {
            return;
        };
        for dev in self.active.borrow().values() {
            dev.aborted.store(true, Ordering::Release);
        }
        if self.shared.mode().refuses_changes() {
            return;
        }
        log::error!(
            "pool '{}': writes may be lost ({errno}); going back to the last commit, read-only until the pool is \
             loaded again",
            self.config.name
        );
        // The metadata is as it was committed: there is nothing to check.
        if let Err(error) = self.roll_back(metadata).await {
            self.fail(&error);
        }
        self.fail_no_space(Errno::EIO, |_| true);
    }

    /// A flush of a device, while it or another has uncommitted changes.
    pub(super) async fn flush(&self, deferred: Deferred<Thin>) {
        let flushed = match deferred.volume.dirty.load(Ordering::Acquire) {
            true => self.commit().await,
            false => self.flush_beside_others().await,
        };
        let result = match flushed {
            Ok(()) if deferred.volume.aborted.load(Ordering::Acquire) => Err(Errno::EIO),
            result => result,
        };
        self.channels.complete(&deferred, result);
    }

    /// Flushes the data for a device that has nothing to commit.
    async fn flush_beside_others(&self) -> Result<(), Errno> {
        let result = self.try_flush_data().await;
        if result.is_err() {
            self.give_up_lost(&mut *self.metadata.lock().await).await;
        } else if let Ok(metadata) = self.metadata.try_lock()
            && !metadata.changed()
        {
            self.shared.set_new_blocks(metadata.nr_held_data() > 0);
        }
        result
    }

    fn release(&self, metadata: &mut ThinMetadata, blocks: &[u64]) {
        for block in blocks {
            metadata.unhold_data_block(*block);
        }
    }

    /// Discards committed-free blocks on the data device. They stay held, so not allocated, until
    /// that is done (thin.md 7.4-5 and 8).
    fn start_pass_down(&self, mut freed: Vec<u64>) {
        let Some(pool) = self.me.upgrade() else {
            return;
        };
        self.run_task(NO_DEVICE, async move {
            let sectors = u64::from(pool.config.data_block_size_sectors);
            freed.sort_unstable();
            freed.dedup();
            let runs = runs_of(&freed)
                .map(|(first, count)| pool.data.discard(first * sectors, count * sectors));
            // Errors are ignored: a discard is advice.
            futures::future::join_all(runs).await;
            let mut metadata = pool.metadata.lock().await;
            pool.release(&mut metadata, &freed);
            pool.update_space_modes(&metadata);
        });
    }

    /// Whether discards reach the data device.
    pub(super) fn passes_down(&self) -> bool {
        !self.config.no_discard_passdown
            && !self.config.ignore_discard
            && self.data.supports_discard()
    }

    fn update_space_modes(&self, metadata: &ThinMetadata) {
        self.check_low_metadata(metadata);
        if metadata.nr_free_metadata() <= metadata.metadata_reserve() {
            if !self.shared.mode().refuses_changes() {
                log::error!(
                    "pool '{}': out of metadata space, now read-only; grow the metadata bdev and reload the pool",
                    self.config.name
                );
                self.change_mode(PoolMode::OutOfMetadataSpace);
                self.fail_no_space(Errno::EIO, |_| true);
            }
        } else if self.shared.mode() == PoolMode::OutOfDataSpace && metadata.nr_free_data() > 0 {
            log::info!("pool '{}': data space is available again", self.config.name);
            self.change_mode(PoolMode::Write);
            self.no_space_errors.set(false);
            for waiting in self.no_space.take() {
                self.channels.retry(&waiting);
            }
        }
    }

    pub(super) fn out_of_data_space(&self) {
        if self.shared.mode() != PoolMode::Write {
            return;
        }
        log::error!(
            "pool '{}': out of data space; discard, delete devices, or grow the data bdev",
            self.config.name
        );
        self.change_mode(PoolMode::OutOfDataSpace);
        self.no_space_round.set(self.no_space_round.get() + 1);
    }

    /// Parks a write until there is space, or fails it where that is the pool's rule.
    pub(super) fn wait_for_space(&self, deferred: Deferred<Thin>) {
        self.count(|counters| counters.no_space += 1);
        match self.shared.mode() {
            PoolMode::Write => self.channels.retry(&deferred),
            PoolMode::OutOfDataSpace
                if self.config.error_if_no_space
                    || self.no_space_errors.get()
                    || deferred.volume.leaving.load(Ordering::Acquire) =>
            {
                self.channels.complete(&deferred, Err(Errno::ENOSPC));
            }
            PoolMode::OutOfDataSpace => {
                self.no_space.borrow_mut().push(deferred);
            }
            _ => self.channels.complete(&deferred, Err(Errno::EIO)),
        }
    }

    /// Fails those of the writes waiting for space that `which` picks.
    pub(super) fn fail_no_space(&self, errno: Errno, which: impl Fn(&Deferred<Thin>) -> bool) {
        let (failing, waiting) = self.no_space.take().into_iter().partition(&which);
        self.no_space.replace(waiting);
        let failing: Vec<Deferred<Thin>> = failing;
        for deferred in failing {
            self.channels.complete(&deferred, Err(errno));
        }
    }

    /// Fails the writes that wait for space when they have waited long enough (thin.md 6).
    pub(super) async fn watch_no_space(self: Rc<Self>) {
        let tick = self.config.no_space_timeout / 60;
        let mut seen = (0, 0);
        while !self.closed.get() && !tick.is_zero() {
            self.runtime.sleep(tick).await;
            let round = self.no_space_round.get();
            if self.shared.mode() != PoolMode::OutOfDataSpace || seen.0 != round {
                seen = (round, 0);
            } else if seen.1 < 60 {
                seen.1 += 1;
            } else if !self.no_space_errors.replace(true) {
                log::error!(
                    "pool '{}': no data space for {} s, failing queued writes",
                    self.config.name,
                    self.config.no_space_timeout.as_secs()
                );
                self.emit(PoolEvent::NoSpaceTimeout);
                self.fail_no_space(Errno::ENOSPC, |_| true);
            }
        }
    }

    /// A metadata operation failed: go back to the last commit, say so on disk, change nothing more
    /// (thin.md 9).
    pub(super) async fn metadata_failed(&self, metadata: &mut ThinMetadata, error: &ThinError) {
        log::error!(
            "pool '{}': {error}; going back to the last commit, read-only from now on",
            self.config.name
        );
        let recovered = match self.roll_back(metadata).await {
            Ok(()) => metadata.set_needs_check().await,
            Err(error) => Err(error),
        };
        if let Err(error) = recovered {
            self.fail(&error);
        }
        self.fail_no_space(Errno::EIO, |_| true);
    }

    fn fail(&self, error: &ThinError) {
        log::error!(
            "pool '{}': {error}; the last commit cannot be gone back to, or marked, all I/O fails",
            self.config.name
        );
        self.change_mode(PoolMode::Fail);
    }

    /// Gives the transaction up, and changes nothing from now on.
    async fn roll_back(&self, metadata: &mut ThinMetadata) -> Result<(), ThinError> {
        self.change_mode(PoolMode::ReadOnly);
        let devices: Vec<Arc<ThinDev>> = self.active.borrow().values().cloned().collect();
        for dev in &devices {
            if dev.dirty.load(Ordering::Acquire) {
                dev.aborted.store(true, Ordering::Release);
            }
            // What was published may be uncommitted; it is read afresh.
            self.cache.forget(dev, &self.channels).await;
        }
        self.freed.take();
        metadata.abort().await
    }
}

/// Runs of consecutive numbers in an ascending list: first and count.
fn runs_of(blocks: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    blocks
        .chunk_by(|a, b| a + 1 == *b)
        .filter_map(|run| run.first().map(|first| (*first, run.len() as u64)))
}

#[cfg(test)]
mod tests {
    /// Passed-down discards cover each freed block once, in as few requests as possible.
    #[test]
    fn runs_cover_each_block_once() {
        let runs: Vec<_> = super::runs_of(&[1, 2, 3, 7, 9, 10]).collect();
        assert_eq!(runs, [(1, 3), (7, 1), (9, 2)]);
    }
}
