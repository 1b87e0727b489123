//! Commits, and what a pool does when its metadata or a flush of its data fails (thin.md 5, 9).
//!
//! A transaction is *sealed* by who holds the metadata, which is quick. Then it goes to the disk, while the next
//! one is under way: barrier, flush of the data, metadata blocks, superblock. Who holds the metadata again
//! afterwards *concludes*: what the transaction has freed can be had, devices without later changes are clean.

use super::map::{PoolMode, Thin, ThinDev};
use super::metadata::{Sealed, ThinError, ThinMetadata};
use super::pool::{NO_DEVICE, Pool};
use crate::channel::Deferred;
use crate::errno::Errno;
use crate::flushes::UnderWay;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{Mutex, MutexGuard};

/// The commits of a pool. They are in rounds: all who ask for one while one is running share the next.
#[derive(Default)]
pub(super) struct Commits {
    /// Held by who ends a transaction, until it is committed. To be had before the metadata.
    turn: Mutex<()>,
    /// Held while a sealed transaction is on its way to the disk. To be had after the metadata, which nobody
    /// waits for who holds this.
    landing: Mutex<()>,
    in_flight: RefCell<Option<InFlight>>,
    /// Transactions that were sealed, since the pool was opened.
    sealed: Cell<u64>,
    started: Cell<u64>,
    /// The last round that has ended, and how.
    last: Cell<(u64, Option<Errno>)>,
}

impl Commits {
    /// The number of the transaction under way, from 1 on.
    fn transaction(&self) -> u64 {
        self.sealed.get() + 1
    }

    /// With no transaction on its way to the disk. Error: the last one did not get there, because the data device
    /// is gone.
    fn not_stuck(&self) -> Result<(), Errno> {
        match self.in_flight.borrow().is_some() {
            true => Err(Errno::ENODEV),
            false => Ok(()),
        }
    }

    fn begin_round(&self) -> u64 {
        let round = self.started.get() + 1;
        self.started.set(round);
        round
    }

    fn end_round(&self, round: u64, result: Result<(), Errno>) -> Result<(), Errno> {
        if round >= self.last.get().0 {
            self.last.set((round, result.err()));
        }
        result
    }
}

/// A sealed transaction.
struct InFlight {
    transaction: u64,
    round: u64,
    /// Data blocks it has freed.
    freed: Vec<u64>,
    /// It is on the disk, or nobody knows whether it is.
    landed: Result<(), NotLanded>,
}

/// Why a transaction did not get to the disk.
enum NotLanded {
    /// Its data is not durable. Its blocks, which are in core only, stay there as long as this does.
    Data {
        errno: Errno,
        _blocks: Box<Sealed>,
    },
    Metadata(ThinError),
}

/// The metadata, and the right to end the transaction: nothing sealed is on its way to the disk.
pub(super) struct Change<'a> {
    _turn: MutexGuard<'a, ()>,
    pub metadata: MutexGuard<'a, ThinMetadata>,
}

/// A flush of the data device has failed: what was written to it may be lost. Nothing may be committed that
/// relies on it. Until the owner has gone back to the last commit.
#[derive(Default)]
pub(super) struct DataLoss {
    errno: Cell<Option<Errno>>,
    /// Flushes under way that may fail.
    nr_flushes: Cell<u64>,
}

impl Pool {
    /// Waits for the right to change what is not mappings.
    pub(super) async fn begin_change(&self) -> Change<'_> {
        Change {
            _turn: self.commits.turn.lock().await,
            metadata: self.metadata.lock().await,
        }
    }

    /// Does most of what it takes to end a transaction in many short turns at the metadata, so that nobody waits
    /// long for the one that ends it. Who comes meanwhile waits and finds little left to do.
    pub(super) async fn seal_ahead(&self) -> Result<(), Errno> {
        let _turn = self.ahead.lock().await;
        loop {
            let mut metadata = self.metadata.lock().await;
            if self.shared.mode().refuses_changes() {
                return Ok(());
            }
            match metadata.seal_ahead().await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    self.metadata_failed(&mut metadata, &error).await;
                    return Err(Errno::EIO);
                }
            }
        }
    }

    /// Commits everything acknowledged before this call: flushes the data device, then commits the
    /// metadata. Calls that wait at the same time share one round.
    pub(super) async fn commit(&self) -> Result<(), Errno> {
        let wanted = self.commits.started.get() + 1;
        self.seal_ahead().await?;
        let change = self.begin_change().await;
        // With both in hand, no round is running.
        if self.commits.started.get() >= wanted {
            return self.commits.last.get().1.map_or(Ok(()), Err);
        }
        self.commit_change(change).await
    }

    /// [`Pool::commit`] for who ends a transaction: others get at the metadata while it goes to the disk, so
    /// this begins the next transaction.
    pub(super) async fn commit_change(&self, change: Change<'_>) -> Result<(), Errno> {
        let Change {
            _turn,
            mut metadata,
        } = change;
        let round = self.commits.begin_round();
        if let Err(errno) = self.commits.not_stuck() {
            return self.commits.end_round(round, Err(errno));
        }
        if !metadata.changed() {
            drop(metadata);
            let flushed = self.flush_data_aside().await;
            return self.commits.end_round(round, flushed);
        }
        let sealed = match self.seal(&mut metadata, round).await {
            Ok(sealed) => sealed,
            Err(errno) => return self.commits.end_round(round, Err(errno)),
        };
        // Nobody else has sealed, so this does not wait. Not before: who cannot seal goes back, and waits for it.
        let landing = self.commits.landing.lock().await;
        drop(metadata);
        let landed = self.land(sealed).await;
        drop(landing);
        let mut metadata = self.metadata.lock().await;
        // Somebody who could not wait may have done this meanwhile.
        self.conclude(&mut metadata).await.unwrap_or(landed)
    }

    /// [`Pool::commit`] for who cannot let go of the metadata. Everybody else waits.
    pub(super) async fn commit_locked(&self, metadata: &mut ThinMetadata) -> Result<(), Errno> {
        drop(self.commits.landing.lock().await);
        self.conclude(metadata).await;
        let round = self.commits.begin_round();
        if let Err(errno) = self.commits.not_stuck() {
            return self.commits.end_round(round, Err(errno));
        }
        if !metadata.changed() {
            let flushed = self.flush_data(metadata).await;
            return self.commits.end_round(round, flushed);
        }
        let sealed = match self.seal(metadata, round).await {
            Ok(sealed) => sealed,
            Err(errno) => return self.commits.end_round(round, Err(errno)),
        };
        let landed = self.land(sealed).await;
        self.conclude(metadata).await.unwrap_or(landed)
    }

    /// Ends the transaction. What is committed must have been concluded.
    async fn seal(&self, metadata: &mut ThinMetadata, round: u64) -> Result<Sealed, Errno> {
        if self.shared.mode().refuses_changes() {
            return Err(Errno::EIO);
        }
        let sealed = match metadata.seal().await {
            Ok(sealed) => sealed,
            Err(error) => {
                self.metadata_failed(metadata, &error).await;
                return Err(Errno::EIO);
            }
        };
        let transaction = self.commits.transaction();
        self.commits.sealed.set(transaction);
        self.commits.in_flight.replace(Some(InFlight {
            transaction,
            round,
            freed: self.freed.take(),
            // Until it has, for whoever goes back to the last commit.
            landed: Err(NotLanded::Metadata(ThinError::Unusable)),
        }));
        Ok(sealed)
    }

    /// Makes a sealed transaction durable. Nobody may need the metadata for that.
    async fn land(&self, sealed: Sealed) -> Result<(), Errno> {
        // Blocks that lost a mapping may become allocatable with this commit: I/O that was mapped to
        // them before must be over (thin.md 7.4-3, 7.4-4).
        if self.unmapped_some.replace(false) {
            self.channels.barrier().await;
        }
        let landed = match self.try_flush_data().await {
            Ok(()) => sealed.commit().await.map_err(NotLanded::Metadata),
            Err(errno) => Err(NotLanded::Data {
                errno,
                _blocks: Box::new(sealed),
            }),
        };
        let result = match &landed {
            Ok(()) => Ok(()),
            Err(NotLanded::Data { errno, .. }) => Err(*errno),
            Err(NotLanded::Metadata(_)) => Err(Errno::EIO),
        };
        if let Some(in_flight) = &mut *self.commits.in_flight.borrow_mut() {
            in_flight.landed = landed;
        }
        result
    }

    /// Draws the conclusions from a transaction that has landed, or has not; once. None: there is none.
    async fn conclude(&self, metadata: &mut ThinMetadata) -> Option<Result<(), Errno>> {
        let in_flight = self.commits.in_flight.take()?;
        let round = in_flight.round;
        let result = match in_flight.landed {
            // Nothing will be committed any more. What is not stays so: all who ask for it are told.
            Err(NotLanded::Data {
                errno: Errno::ENODEV,
                ..
            }) => {
                self.commits.in_flight.replace(Some(in_flight));
                Err(Errno::ENODEV)
            }
            Ok(()) => {
                self.committed(metadata, in_flight.transaction, in_flight.freed);
                Ok(())
            }
            Err(NotLanded::Metadata(error)) => {
                self.metadata_failed(metadata, &error).await;
                Err(Errno::EIO)
            }
            Err(NotLanded::Data { errno, .. }) => {
                self.give_up(metadata, errno).await;
                Err(errno)
            }
        };
        Some(self.commits.end_round(round, result))
    }

    /// A transaction has become the committed state.
    fn committed(&self, metadata: &mut ThinMetadata, transaction: u64, freed: Vec<u64>) {
        metadata.committed();
        self.count(|counters| counters.commits += 1);
        for dev in self.active.borrow().values() {
            // Only the owner writes to it.
            if dev.dirty.load(Ordering::Relaxed) <= transaction {
                dev.dirty.store(0, Ordering::Release);
            }
        }
        if self.passes_down() && !freed.is_empty() {
            self.start_pass_down(freed);
        } else {
            self.release(metadata, &freed);
        }
        self.look_for_new_blocks(metadata);
        self.update_space_modes(metadata);
    }

    /// A device has changed, in the transaction under way.
    pub(super) fn set_dirty(&self, dev: &ThinDev) {
        dev.dirty
            .store(self.commits.transaction(), Ordering::Release);
    }

    /// The last transaction with changes that are not committed; 0: there are none.
    pub(super) fn last_changes(&self, metadata: &ThinMetadata) -> u64 {
        let in_flight = self.commits.in_flight.borrow();
        match metadata.changed() {
            true => self.commits.transaction(),
            false => in_flight.as_ref().map_or(0, |sealed| sealed.transaction),
        }
    }

    /// Blocks that are given out and not mapped yet are held.
    fn look_for_new_blocks(&self, metadata: &ThinMetadata) {
        let some = metadata.nr_held_data() > 0 || self.last_changes(metadata) > 0;
        self.shared.set_new_blocks(some);
    }

    /// Commits when metadata space is tight: that frees what the transaction has shadowed. If that does
    /// not help, the commit changes the mode.
    pub(super) async fn relieve(&self, metadata: &mut ThinMetadata) -> Result<(), Errno> {
        match metadata.is_metadata_tight() && self.last_changes(metadata) > 0 {
            true => self.commit_locked(metadata).await,
            false => Ok(()),
        }
    }

    /// Flushes the data device. If that fails, what is not committed is given up, as after a failed flush of
    /// the metadata: blocks that were zeroed or copied may hold somebody else's data again. The next flush
    /// would not tell.
    pub(super) async fn flush_data(&self, metadata: &mut ThinMetadata) -> Result<(), Errno> {
        let result = self.try_flush_data().await;
        self.give_up_lost(metadata).await;
        result
    }

    /// [`Pool::flush_data`] for who does not hold the metadata.
    pub(super) async fn flush_data_aside(&self) -> Result<(), Errno> {
        let result = self.try_flush_data().await;
        if result.is_err() {
            self.give_up_lost(&mut *self.metadata.lock().await).await;
        }
        result
    }

    async fn try_flush_data(&self) -> Result<(), Errno> {
        let under_way = UnderWay::new(&self.data_loss.nr_flushes);
        self.shared.set_flushing(true);
        let flushed = self.data.flush().await;
        drop(under_way);
        if let Err(errno) = flushed {
            log::error!(
                "pool '{}': flush of the data bdev failed: {errno}",
                self.config.name
            );
            // A device that is gone is flushed no more: nothing will be committed.
            if errno != Errno::ENODEV {
                self.data_loss.errno.set(Some(errno));
            }
        }
        self.look_for_flushes();
        // Another's flush may have failed meanwhile.
        self.data_loss.errno.get().map_or(flushed, Err)
    }

    /// Guests' flushes need not come here any more when nothing is to be told of ours.
    fn look_for_flushes(&self) {
        let loss = &self.data_loss;
        if loss.nr_flushes.get() == 0 && loss.errno.get().is_none() {
            self.shared.set_flushing(false);
        }
    }

    async fn give_up_lost(&self, metadata: &mut ThinMetadata) {
        if let Some(errno) = self.data_loss.errno.get() {
            self.give_up(metadata, errno).await;
        }
    }

    /// Goes back to the last commit, because what is not committed cannot be relied on.
    async fn give_up(&self, metadata: &mut ThinMetadata, errno: Errno) {
        for dev in self.active.borrow().values() {
            dev.aborted.store(true, Ordering::Release);
        }
        if !self.shared.mode().refuses_changes() {
            log::error!(
                "pool '{}': writes may be lost ({errno}); going back to the last commit, read-only until the pool \
                 is loaded again",
                self.config.name
            );
            // The metadata is as it was committed: there is nothing to check.
            if let Err(error) = self.roll_back(metadata).await {
                self.fail(&error);
            }
            self.fail_no_space(Errno::EIO, |_| true);
        }
        // Until here a transaction on its way to the disk, whose own flush succeeds, must know.
        self.data_loss.errno.take();
        self.look_for_flushes();
    }

    /// A flush of a device, while it or another has uncommitted changes.
    pub(super) async fn flush(&self, deferred: Deferred<Thin>) {
        let flushed = match deferred.volume.dirty.load(Ordering::Acquire) {
            1.. => self.commit().await,
            0 => self.flush_beside_others().await,
        };
        let result = match flushed {
            Ok(()) if deferred.volume.aborted.load(Ordering::Acquire) => Err(Errno::EIO),
            result => result,
        };
        self.channels.complete(&deferred, result);
    }

    /// Flushes the data for a device that has nothing to commit.
    async fn flush_beside_others(&self) -> Result<(), Errno> {
        let result = self.flush_data_aside().await;
        if result.is_ok()
            && let Ok(metadata) = self.metadata.try_lock()
        {
            self.look_for_new_blocks(&metadata);
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
        // What was published may be uncommitted, or lost; it is read afresh. At once: the disk may take its time
        // for what follows.
        for dev in &devices {
            self.cache.forget(dev, &self.channels).await;
        }
        // What is on its way to the disk gets there, or not, first.
        drop(self.commits.landing.lock().await);
        if let Some(in_flight) = self.commits.in_flight.take()
            && in_flight.landed.is_ok()
        {
            self.committed(metadata, in_flight.transaction, in_flight.freed);
            let _ = self.commits.end_round(in_flight.round, Ok(()));
        }
        for dev in &devices {
            if dev.dirty.load(Ordering::Acquire) > 0 {
                dev.aborted.store(true, Ordering::Release);
            }
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
