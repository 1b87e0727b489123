//! Making exceptions (snapshot.md 5): allocate, get the data there, commit in the order of allocation,
//! wait for reads that are under way to the origin, wake who waits.

use super::error::SnapshotError;
use super::events::SnapshotEvent;
use super::layout::Exception;
use super::map::{SnapshotTarget, State};
use super::owner::{Origin, Pending, Snapshot};
use crate::channel::Deferred;
use crate::errno::Errno;
use crate::waits::Bell;
use futures::future::{Either, select};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Most exceptions in one commit.
const MAX_COMMIT: usize = 4096;
/// How often a copy for which there is no memory is tried again, and after what time.
const MEMORY_TRIES: u32 = 100;
const MEMORY_WAIT: Duration = Duration::from_millis(20);
/// How often the header of an invalid snapshot is written before the origin goes on.
const HEADER_TRIES: u32 = 3;
/// How long the origin waits for that.
const HEADER_WAIT: Duration = Duration::from_secs(10);
/// Time between later tries.
const HEADER_LATER: Duration = Duration::from_secs(5);

/// Where the data of a new exception comes from.
pub(super) enum Data {
    /// The chunk of the origin.
    Copy,
    /// A write of the whole chunk.
    FullWrite(Deferred<SnapshotTarget>),
}

impl Origin {
    /// Begins an exception. None may be there or be made for this chunk. Error: no room.
    pub(super) fn start(
        &self,
        snapshot: &Rc<Snapshot>,
        old_chunk: u64,
        data: Data,
    ) -> Result<Rc<Pending>, (SnapshotError, Data)> {
        if snapshot.pending.borrow().is_empty() {
            // All that was copied is durable.
            snapshot.cow.device.catch_up();
        }
        let new_chunk = match snapshot.cow.store.allocate() {
            Ok(new_chunk) => new_chunk,
            Err(error) => return Err((error, data)),
        };
        let pending = Rc::new(Pending {
            exception: Exception {
                old_chunk,
                new_chunk,
            },
            ready: Cell::new(None),
            full_write: RefCell::default(),
            over: Bell::default(),
        });
        snapshot
            .pending
            .borrow_mut()
            .insert(old_chunk, pending.clone());
        snapshot.order.borrow_mut().push_back(pending.clone());
        if let Some(me) = self.me() {
            let task = me.fill(snapshot.clone(), pending.clone(), data);
            snapshot.tasks.run(&self.runtime, task);
        }
        Ok(pending)
    }

    async fn fill(self: Rc<Self>, snapshot: Rc<Snapshot>, pending: Rc<Pending>, data: Data) {
        let exception = pending.exception;
        let filled = match data {
            Data::Copy => self.copy_chunk(&snapshot, exception).await,
            Data::FullWrite(deferred) => {
                let exceptions = &snapshot.cow.exceptions;
                let block = exceptions.logical_on_cow(exception.new_chunk, 0);
                let written = self
                    .channels
                    .forward_to(&deferred, exceptions.base(), block)
                    .await;
                // An aborted or failed write leaves a chunk that is to look like the origin's.
                let filled = match written {
                    Ok(()) => Ok(()),
                    Err(_) => self.copy_chunk(&snapshot, exception).await,
                };
                self.count(|counters| counters.full_writes += 1);
                *pending.full_write.borrow_mut() = Some((deferred, written));
                filled
            }
        };
        pending.ready.set(Some(filled.is_ok()));
        if !snapshot.committing.replace(true) {
            let task = self.clone().commit_ready(snapshot.clone());
            snapshot.tasks.run(&self.runtime, task);
        }
    }

    async fn copy_chunk(&self, snapshot: &Snapshot, exception: Exception) -> Result<(), Errno> {
        let _permit = self.copies.take().await;
        self.count(|counters| counters.copies += 1);
        let mut tries = 0;
        let copied = loop {
            match snapshot.cow.copy_from(&self.device, exception).await {
                // A shortage may pass; an invalid snapshot does not.
                Err(Errno::ENOMEM) if tries < MEMORY_TRIES => {
                    tries += 1;
                    self.runtime.sleep(MEMORY_WAIT).await;
                }
                copied => break copied,
            }
        };
        copied.inspect_err(|errno| {
            log::error!(
                "snapshot '{}': copying chunk {}: {errno}",
                snapshot.config.name,
                exception.old_chunk
            );
        })
    }

    /// Commits all that can be, round by round: what gets ready meanwhile shares the next commit.
    async fn commit_ready(self: Rc<Self>, snapshot: Rc<Snapshot>) {
        loop {
            let batch = take_ready(&snapshot);
            if batch.is_empty() {
                snapshot.committing.set(false);
                return;
            }
            self.commit(&snapshot, &batch).await;
            let task = self.clone().settle(snapshot.clone(), batch);
            snapshot.tasks.run(&self.runtime, task);
        }
    }

    async fn commit(&self, snapshot: &Rc<Snapshot>, batch: &[Rc<Pending>]) {
        if snapshot.state() == State::Invalid {
            return;
        }
        if batch
            .iter()
            .any(|pending| pending.ready.get() == Some(false))
        {
            return self.invalidate(snapshot, "a chunk could not be copied".to_owned());
        }
        let exceptions: Vec<Exception> = batch.iter().map(|pending| pending.exception).collect();
        let committed = snapshot
            .cow
            .commit(&exceptions, &self.cache, &self.channels)
            .await;
        match committed {
            Ok(()) => self.count(|counters| {
                counters.commits += 1;
                counters.exceptions += exceptions.len() as u64;
            }),
            Err(error) => self.invalidate(snapshot, error.to_string()),
        }
    }

    /// Lets who waits go on, when no read that was sent to the origin before is under way.
    async fn settle(self: Rc<Self>, snapshot: Rc<Snapshot>, batch: Vec<Rc<Pending>>) {
        self.channels.barrier().await;
        while snapshot.draining.get() {
            let _ = snapshot.drained.heard().await;
        }
        for pending in batch {
            let chunk = pending.exception.old_chunk;
            snapshot.pending.borrow_mut().remove(&chunk);
            if let Some((deferred, written)) = pending.full_write.take() {
                let result = match snapshot.cow.exceptions.has(chunk) {
                    true => written,
                    false => Err(Errno::EIO),
                };
                self.channels.complete(&deferred, result);
            }
            pending.over.ring();
        }
    }

    /// A snapshot is of no use any more. The origin's writes that need it wait until its header says so,
    /// and until reads that were sent to the origin are over.
    pub(super) fn invalidate(&self, snapshot: &Rc<Snapshot>, reason: String) {
        if snapshot.state() == State::Invalid {
            return;
        }
        snapshot.set_state(State::Invalid);
        snapshot.draining.set(true);
        self.emit(SnapshotEvent::Invalidated {
            snapshot: snapshot.config.name.clone(),
            reason,
        });
        if let Some(me) = self.me() {
            self.tasks
                .run(&self.runtime, me.clone().drain_invalid(snapshot.clone()));
        }
    }

    async fn drain_invalid(self: Rc<Self>, snapshot: Rc<Snapshot>) {
        let written = Rc::new(Cell::new(false));
        let writing = {
            let (snapshot, written) = (snapshot.clone(), written.clone());
            Box::pin(async move {
                for _ in 0..HEADER_TRIES {
                    match snapshot.cow.store.invalidate().await {
                        Ok(()) => return written.set(true),
                        Err(error) => log::error!("snapshot '{}': {error}", snapshot.config.name),
                    }
                }
            })
        };
        if let Either::Right(_) = select(writing, self.runtime.sleep(HEADER_WAIT)).await {
            log::error!(
                "snapshot '{}': the COW device does not answer",
                snapshot.config.name
            );
        }
        self.channels.barrier().await;
        snapshot.draining.set(false);
        self.publish_view_now();
        snapshot.drained.ring();
        if !written.get() {
            self.invalidate_header_later(&snapshot);
        }
    }

    pub(super) fn invalidate_header_later(&self, snapshot: &Rc<Snapshot>) {
        snapshot.header_unsure.set(true);
        if let Some(me) = self.me() {
            // Nothing waits for this: no task to be drained.
            let later = me.invalidate_later(snapshot.clone());
            self.runtime.spawn(Box::pin(later));
        }
    }

    /// Goes on trying while the origin is served: a header that says valid must not be found later.
    async fn invalidate_later(self: Rc<Self>, snapshot: Rc<Snapshot>) {
        while !self.closed.get() && !snapshot.gone.get() {
            self.runtime.sleep(HEADER_LATER).await;
            if snapshot.cow.store.invalidate().await.is_ok() {
                snapshot.header_unsure.set(false);
                return;
            }
        }
    }

    /// Publishes the view again after a snapshot has dropped out.
    pub(super) fn publish_view_now(&self) {
        let held = self
            .origin_dev()
            .is_some_and(|dev| dev.view().held || self.gate.generation().is_none());
        self.publish_view(held, None);
    }
}

/// Takes from the front what has its data, or never will.
fn take_ready(snapshot: &Snapshot) -> Vec<Rc<Pending>> {
    let mut order = snapshot.order.borrow_mut();
    let ready = order
        .iter()
        .take(MAX_COMMIT)
        .take_while(|pending| pending.ready.get().is_some())
        .count();
    order.drain(..ready).collect()
}
