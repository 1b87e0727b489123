//! What the owner does with an origin's I/O: before a write, every snapshot gets what it needs
//! (snapshot.md 7); while a snapshot is being merged, its store is looked into first (snapshot.md 9).

use super::copying::Data;
use super::exceptions::Place;
use super::map::{OriginDev, SnapshotTarget, State};
use super::merge::Merge;
use super::owner::{Origin, Snapshot};
use crate::channel::Deferred;
use crate::device::DataDevice;
use crate::errno::Errno;
use crate::target::IoKind;
use futures::channel::oneshot;
use futures::future::join_all;
use std::ops::Range;
use std::rc::Rc;

/// Chunks of the smallest size that a long request is worked off in.
const WINDOW_CHUNKS: u64 = 64;

impl Origin {
    pub(super) async fn origin_io(self: Rc<Self>, deferred: Deferred<SnapshotTarget>) {
        if deferred.request.kind == IoKind::Reset {
            self.channels.barrier().await;
            return self.channels.complete(&deferred, Ok(()));
        }
        self.gate.pass().await;
        let merge = self.merge.borrow().clone();
        if let Some(merge) = merge.filter(|merge| merge.shown().is_some()) {
            match deferred.request.kind {
                IoKind::Flush => {
                    let result = self.flush_both(&merge).await;
                    return self.channels.complete(&deferred, result);
                }
                // Nothing is to be done for it (snapshot.md 9).
                IoKind::Discard => return self.channels.complete(&deferred, Ok(())),
                IoKind::Reset => {}
                _ => match self.merging_io(&merge, &deferred).await {
                    Ok(true) => {}
                    // It is queued or came too early: whoever has it goes on with it.
                    Ok(false) => return,
                    Err(errno) => return self.channels.complete(&deferred, Err(errno)),
                },
            }
        }
        if deferred.request.kind == IoKind::Flush
            && self.origin_dev().is_some_and(OriginDev::has_failed_flush)
        {
            let result = self.flush_origin().await;
            return self.channels.complete(&deferred, result);
        }
        if !matches!(deferred.request.kind, IoKind::Read | IoKind::Flush) {
            let first = deferred.request.offset_blocks;
            let blocks = first..first + deferred.request.nr_blocks;
            self.copy_before(blocks, true).await;
            // In the same breath as the last look: nobody can have come meanwhile.
            if let Some(dev) = self.origin_dev() {
                self.publish_copied(dev, dev.view().chunks(&deferred.request));
            }
        }
        self.channels.retry(&deferred);
    }

    /// Data of both devices may be what the user sees (snapshot.md 9).
    async fn flush_both(&self, merge: &Merge) -> Result<(), Errno> {
        let of_origin = match self.origin_flushes() {
            true => Some(self.guests.flush_device().await),
            false => None,
        };
        self.tell_guests();
        let of_cow = match merge.cow.flushes {
            true => Some(merge.cow.guests.flush_device().await),
            false => None,
        };
        let of_origin = of_origin.map_or(Ok(()), |begun| self.guests.conclude(begun));
        self.tell_guests();
        let of_cow = of_cow.map_or(Ok(()), |begun| merge.cow.guests.conclude(begun));
        of_origin.and(of_cow)
    }

    async fn flush_origin(&self) -> Result<(), Errno> {
        if !self.origin_flushes() {
            return Ok(());
        }
        let result = self.guests.flush().await;
        self.tell_guests();
        result
    }

    fn origin_flushes(&self) -> bool {
        self.origin_dev().is_some_and(|dev| dev.origin_flushes)
    }

    /// While a flush has failed that no guest was told of, those of guests come to the owner: the next one
    /// tells.
    pub(super) fn tell_guests(&self) {
        if let Some(dev) = self.origin_dev() {
            dev.set_failed_flush(self.guests.is_due());
        }
    }

    /// A read or write of a chunk that may not be merged yet. True: it is the origin's. False: taken care
    /// of.
    async fn merging_io(
        &self,
        merge: &Merge,
        deferred: &Deferred<SnapshotTarget>,
    ) -> Result<bool, Errno> {
        let exceptions = &merge.cow.exceptions;
        let request = &deferred.request;
        let chunk = exceptions.chunk(request.offset_blocks);
        let is_write = request.kind != IoKind::Read;
        if exceptions.left_in_chunk(request.offset_blocks) < request.nr_blocks {
            // From before the merge: it is split when it is mapped again.
            self.channels.retry(deferred);
            return Ok(false);
        }
        if is_write && exceptions.is_in_batch(chunk) {
            if merge.has_failed() {
                return Err(Errno::EIO);
            }
            merge.queue(Deferred {
                channel: deferred.channel,
                parked: deferred.parked,
                volume: deferred.volume.clone(),
                request: *request,
            });
            return Ok(false);
        }
        match exceptions.look(chunk) {
            Place::Origin => Ok(is_write),
            Place::Cow(_) => Ok(false),
            Place::Unknown => {
                self.count(|counters| counters.page_loads += 1);
                let loaded = merge
                    .cow
                    .load_page(chunk, &self.cache, &self.channels)
                    .await;
                loaded.map_err(|error| error.errno()).map(|()| false)
            }
        }
        .inspect(|is_origins| {
            if !is_origins {
                self.channels.retry(deferred);
            }
        })
    }

    /// Completes when every snapshot has its own copy of all chunks of a range of logical blocks, in the
    /// same breath as the look that found so. `through_gate`: snapshots may come meanwhile; they count.
    pub(super) async fn copy_before(&self, blocks: Range<u64>, through_gate: bool) {
        'again: loop {
            let generation = match through_gate {
                true => Some(self.gate.pass().await),
                false => None,
            };
            let holds = || generation.is_none() || self.gate.generation() == generation;
            let shift = self.origin_dev().map_or(0, |dev| dev.view().shift);
            let window = WINDOW_CHUNKS << shift;
            let mut from = blocks.start;
            while from < blocks.end {
                let to = blocks.end.min((from / window + 1) * window);
                let waits = self.needed(from..to);
                if waits.is_empty() {
                    from = to;
                    continue;
                }
                join_all(waits).await;
                if !holds() {
                    continue 'again;
                }
            }
            match holds() {
                true => return,
                false => continue 'again,
            }
        }
    }

    /// Begins the exceptions a range of logical blocks needs; what there is to wait for before looking
    /// again.
    fn needed(&self, blocks: Range<u64>) -> Vec<oneshot::Receiver<()>> {
        let snapshots: Vec<Rc<Snapshot>> = self.snapshots.borrow().clone();
        let mut waits = Vec::new();
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.counts()) {
            let exceptions = &snapshot.cow.exceptions;
            let last = exceptions.chunk(blocks.end.saturating_sub(1));
            let chunks = exceptions.chunk(blocks.start)..(last + 1).min(exceptions.nr_chunks());
            if chunks.is_empty() {
                continue;
            }
            for chunk in chunks {
                if snapshot.state() == State::Invalid {
                    break;
                }
                if let Some(pending) = snapshot.pending.borrow().get(&chunk) {
                    waits.push(pending.over.heard());
                    continue;
                }
                if exceptions.has(chunk) {
                    continue;
                }
                match self.start(snapshot, chunk, Data::Copy) {
                    Ok(pending) => waits.push(pending.over.heard()),
                    // Whatever the table says of overflow: the origin goes before.
                    Err((error, _)) => self.invalidate(snapshot, error.to_string()),
                }
            }
            if snapshot.draining.get() {
                waits.push(snapshot.drained.heard());
            }
        }
        waits
    }
}
