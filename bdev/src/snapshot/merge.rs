//! Merging a snapshot into its origin (snapshot.md 9): from the end of the store, batch by batch, each
//! durable on the origin before its exceptions are taken away.
//!
//! Until a chunk is merged the origin shows it from the COW device, and writes to it go there. So a batch
//! that is repeated after a crash is harmless.

use super::cow::Cow;
use super::error::SnapshotError;
use super::events::SnapshotEvent;
use super::exceptions::Exceptions;
use super::map::SnapshotTarget;
use super::owner::Origin;
use super::store::{PersistentStore, Run, Store};
use crate::channel::Deferred;
use crate::device::{DataDevice, SECTOR_BYTES};
use crate::errno::Errno;
use crate::waits::Bell;
use persistent_data::turn::yield_now;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Most sectors of a batch, or one chunk: writes to them wait.
const BATCH_SECTORS: u64 = 8192;

/// How a merge is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeState {
    /// At work.
    Running,
    /// Stopped on demand; what is left is still shown from the COW device.
    Stopped,
    /// Stopped by an error; the same.
    Failed(String),
    /// Nothing is left.
    Finished,
    /// The store was invalid: there is nothing to merge.
    Invalid,
}

/// A merge, on its owner's core.
pub struct Merge {
    pub(super) name: String,
    pub(super) cow: Rc<Cow>,
    pub(super) state: RefCell<MergeState>,
    pub(super) stop: Cell<bool>,
    /// A task is merging.
    pub(super) running: Cell<bool>,
    pub(super) ended: Bell,
    /// The device may have forgotten the exceptions of the batch, which still count here: writes to them
    /// could be lost on the COW device, and fail until the batch has been merged.
    unsure: Cell<bool>,
    /// Writes to chunks of the batch.
    queued: RefCell<Vec<Deferred<SnapshotTarget>>>,
}

impl Merge {
    pub(super) fn new(name: &str, cow: Rc<Cow>, state: MergeState) -> Rc<Self> {
        Rc::new(Merge {
            name: name.to_owned(),
            cow,
            state: RefCell::new(state),
            stop: Cell::new(false),
            running: Cell::new(false),
            ended: Bell::default(),
            unsure: Cell::new(false),
            queued: RefCell::default(),
        })
    }

    /// What the origin shows before its own data, if anything is left.
    pub(super) fn shown(&self) -> Option<Arc<Exceptions>> {
        match *self.state.borrow() {
            MergeState::Finished | MergeState::Invalid => None,
            _ => Some(self.cow.exceptions.clone()),
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.state.borrow(), MergeState::Failed(_))
    }

    pub(super) fn queue(&self, deferred: Deferred<SnapshotTarget>) {
        self.queued.borrow_mut().push(deferred);
    }

    /// The snapshot's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is.
    pub fn state(&self) -> MergeState {
        self.state.borrow().clone()
    }
}

/// Whether the device may have taken exceptions away although the step failed.
struct Failure {
    error: SnapshotError,
    unsure: bool,
}

impl Origin {
    /// Merges until there is nothing left, or it fails or is stopped.
    pub(super) fn run_merge(&self, merge: &Rc<Merge>) {
        if let Some(me) = self.me()
            && !merge.running.replace(true)
        {
            merge.stop.set(false);
            *merge.state.borrow_mut() = MergeState::Running;
            let task = me.clone().merge_all(merge.clone());
            self.tasks.run(&self.runtime, task);
        }
    }

    async fn merge_all(self: Rc<Self>, merge: Rc<Merge>) {
        loop {
            // Whoever waits for snapshots to come and go is let in between.
            yield_now().await;
            yield_now().await;
            let _alone = self.reconfigure.lock().await;
            if merge.stop.get() || self.closed.get() {
                *merge.state.borrow_mut() = MergeState::Stopped;
                break;
            }
            match self.merge_batch(&merge).await {
                Ok(Some(nr_chunks)) => {
                    self.count(|counters| counters.merged += nr_chunks);
                    drop(_alone);
                    self.throttle(nr_chunks * merge.cow.layout().chunk_sectors())
                        .await;
                }
                Ok(None) => {
                    *merge.state.borrow_mut() = MergeState::Finished;
                    if merge.cow.guests.is_due() {
                        // From now on only the origin is flushed.
                        self.errors.note(Errno::EIO);
                        self.tell_guests();
                    }
                    self.publish_view_now();
                    let exceptions = &merge.cow.exceptions;
                    self.cache.forget(exceptions, &self.channels).await;
                    self.emit(SnapshotEvent::MergeFinished {
                        snapshot: merge.name.clone(),
                    });
                    break;
                }
                Err(failure) => {
                    self.merge_failed(&merge, failure);
                    break;
                }
            }
        }
        merge.running.set(false);
        merge.ended.ring();
    }

    fn merge_failed(&self, merge: &Merge, failure: Failure) {
        self.tell_guests();
        let reason = failure.error.to_string();
        *merge.state.borrow_mut() = MergeState::Failed(reason.clone());
        if failure.unsure {
            merge.unsure.set(true);
        }
        if !merge.unsure.get() {
            merge.cow.exceptions.end_batch();
        }
        for deferred in merge.queued.take() {
            self.channels.complete(&deferred, Err(Errno::EIO));
        }
        self.emit(SnapshotEvent::MergeFailed {
            snapshot: merge.name.clone(),
            reason,
        });
    }

    async fn throttle(&self, sectors: u64) {
        let per_second = self.merge_bytes_per_second.get();
        if per_second > 0 {
            let nanos = u128::from(sectors * SECTOR_BYTES) * 1_000_000_000 / u128::from(per_second);
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            self.runtime.sleep(Duration::from_nanos(nanos)).await;
        }
    }

    /// Merges the last run of exceptions: how many chunks; none: there are no exceptions.
    async fn merge_batch(&self, merge: &Merge) -> Result<Option<u64>, Failure> {
        let cow = &merge.cow;
        let Store::Persistent(store) = &cow.store else {
            return Ok(None);
        };
        let sure = |error| Failure {
            error,
            unsure: false,
        };
        // Between batches nothing of the merge is unflushed.
        self.device.catch_up();
        cow.device.catch_up();
        let most = (BATCH_SECTORS / cow.layout().chunk_sectors()).max(1);
        let run = {
            let _locked = cow.lock.lock().await;
            store.last_run(most).await.map_err(sure)?
        };
        let Some(run) = run else { return Ok(None) };
        self.merge_data(merge, run)
            .await
            .map_err(|errno| SnapshotError::Device {
                what: "merging a chunk into the origin",
                errno,
            })
            .map_err(sure)?;
        self.take_away(merge, store, run)
            .await
            .map_err(|error| Failure {
                error,
                unsure: true,
            })?;
        merge.unsure.set(false);
        cow.exceptions.end_batch();
        for deferred in merge.queued.take() {
            self.channels.retry(&deferred);
        }
        Ok(Some(run.nr_chunks))
    }

    /// Has a run's data copied to the origin, durably.
    async fn merge_data(&self, merge: &Merge, run: Run) -> Result<(), Errno> {
        let (cow, layout) = (&merge.cow, merge.cow.layout());
        let end = run.old_chunk.saturating_add(run.nr_chunks);
        let nr_sectors = self.nr_sectors();
        let first = layout.sector(run.old_chunk).min(nr_sectors);
        let last = layout.sector(end).min(nr_sectors);
        let per = self.sectors_per_logical();
        // The other snapshots keep what the origin's device holds.
        self.copy_before(first / per..last / per, false).await;
        cow.exceptions.begin_batch(run.old_chunk..end);
        // Writes that went to the COW device before are over.
        self.channels.barrier().await;
        if first < last {
            let from = layout.sector(run.new_chunk);
            crate::device::copy(&*cow.device, from, &self.device, first, last - first).await?;
            self.device.flush().await?;
        }
        Ok(())
    }

    async fn take_away(
        &self,
        merge: &Merge,
        store: &PersistentStore,
        run: Run,
    ) -> Result<(), SnapshotError> {
        let cow = &merge.cow;
        let _locked = cow.lock.lock().await;
        store.clear_last(run.nr_chunks).await?;
        let end = run.old_chunk.saturating_add(run.nr_chunks);
        cow.exceptions.remove(run.old_chunk..end);
        Ok(())
    }
}
