//! What the owner does with a snapshot's I/O: first writes of a chunk, discards, and places that are not
//! in the cache (snapshot.md 6).

use super::copying::Data;
use super::error::SnapshotError;
use super::events::SnapshotEvent;
use super::exceptions::Place;
use super::map::{SnapshotTarget, State};
use super::owner::{Origin, Snapshot};
use super::table::StoreKind;
use crate::channel::Deferred;
use crate::device::DataDevice;
use crate::errno::Errno;
use crate::target::IoKind;
use persistent_data::turn::yield_now;
use std::rc::Rc;

/// Chunks of a long discard that are looked at in one go.
const PAGE_CHUNKS: u64 = 4096;

impl Origin {
    pub(super) async fn snapshot_io(
        self: Rc<Self>,
        snapshot: Rc<Snapshot>,
        deferred: Deferred<SnapshotTarget>,
    ) {
        if snapshot.gone.get() && deferred.request.kind != IoKind::Reset {
            return self.channels.complete(&deferred, Err(Errno::EIO));
        }
        match deferred.request.kind {
            IoKind::Reset => {
                self.channels.barrier().await;
                self.channels.complete(&deferred, Ok(()));
            }
            IoKind::Flush => {
                let result = snapshot.cow.flush().await;
                // Copies that nobody else flushes may be lost.
                if result.is_err() && snapshot.config.store == StoreKind::Transient {
                    self.invalidate(&snapshot, "a flush of the COW device failed".to_owned());
                }
                self.channels.complete(&deferred, result);
            }
            IoKind::Read => self.snapshot_read(&snapshot, deferred).await,
            IoKind::Write | IoKind::WriteZeroes => self.snapshot_write(&snapshot, deferred).await,
            IoKind::Discard => {
                let result = self.snapshot_discard(&snapshot, &deferred).await;
                self.channels.complete(&deferred, result);
            }
        }
    }

    async fn load(&self, snapshot: &Snapshot, chunk: u64) -> Result<(), Errno> {
        self.count(|counters| counters.page_loads += 1);
        let cow = &snapshot.cow;
        let loaded = cow.load_page(chunk, &self.cache, &self.channels).await;
        loaded.map_err(|error| {
            log::error!("snapshot '{}': {error}", snapshot.config.name);
            error.errno()
        })
    }

    async fn snapshot_read(&self, snapshot: &Snapshot, deferred: Deferred<SnapshotTarget>) {
        let exceptions = &snapshot.cow.exceptions;
        let chunk = exceptions.chunk(deferred.request.offset_blocks);
        if exceptions.look(chunk) == Place::Unknown
            && let Err(errno) = self.load(snapshot, chunk).await
        {
            return self.channels.complete(&deferred, Err(errno));
        }
        self.channels.retry(&deferred);
    }

    async fn snapshot_write(&self, snapshot: &Rc<Snapshot>, deferred: Deferred<SnapshotTarget>) {
        let exceptions = &snapshot.cow.exceptions;
        let request = deferred.request;
        let chunk = exceptions.chunk(request.offset_blocks);
        let over = snapshot
            .pending
            .borrow()
            .get(&chunk)
            .map(|p| p.over.heard());
        if let Some(over) = over {
            let _ = over.await;
            return self.channels.retry(&deferred);
        }
        match exceptions.look(chunk) {
            _ if snapshot.state() != State::Active => {}
            Place::Cow(_) => {}
            Place::Unknown => {
                if let Err(errno) = self.load(snapshot, chunk).await {
                    return self.channels.complete(&deferred, Err(errno));
                }
            }
            Place::Origin => {
                let whole = request.nr_blocks == 1 << exceptions.chunk_shift();
                let is_full = whole && request.kind == IoKind::Write;
                let mut waiting = None;
                let data = match is_full {
                    true => Data::FullWrite(deferred),
                    false => {
                        waiting = Some(deferred);
                        Data::Copy
                    }
                };
                return match self.start(snapshot, chunk, data) {
                    Ok(pending) => {
                        if let Some(deferred) = waiting {
                            let _ = pending.over.heard().await;
                            self.channels.retry(&deferred);
                        }
                    }
                    Err((error, data)) => {
                        self.no_room(snapshot, error);
                        let refused = match data {
                            Data::FullWrite(deferred) => Some(deferred),
                            Data::Copy => waiting,
                        };
                        if let Some(deferred) = refused {
                            self.channels.complete(&deferred, Err(Errno::EIO));
                        }
                    }
                };
            }
        }
        self.channels.retry(&deferred);
    }

    /// A write to a snapshot found no room (snapshot.md 6).
    fn no_room(&self, snapshot: &Rc<Snapshot>, error: SnapshotError) {
        let overflows = snapshot.config.store == StoreKind::Persistent { overflow: true };
        if !overflows || error != SnapshotError::NoSpace {
            return self.invalidate(snapshot, error.to_string());
        }
        if snapshot.state() == State::Active {
            snapshot.set_state(State::Overflow);
            self.emit(SnapshotEvent::Overflow {
                snapshot: snapshot.config.name.clone(),
            });
        }
    }

    /// Zeroes chunks that have an exception, passes on parts of them; what has none stays as it is.
    async fn snapshot_discard(
        &self,
        snapshot: &Rc<Snapshot>,
        deferred: &Deferred<SnapshotTarget>,
    ) -> Result<(), Errno> {
        let Some(dev) = snapshot.dev() else {
            return Err(Errno::EIO);
        };
        let exceptions = &snapshot.cow.exceptions;
        let request = &deferred.request;
        let end = (request.offset_blocks + request.nr_blocks).min(dev.nr_logical);
        let mut at = request.offset_blocks;
        let mut looked_at = 0;
        while at < end {
            let chunk = exceptions.chunk(at);
            let next = end.min(at + exceptions.left_in_chunk(at));
            let over = snapshot
                .pending
                .borrow()
                .get(&chunk)
                .map(|p| p.over.heard());
            if let Some(over) = over {
                let _ = over.await;
            }
            if snapshot.state() != State::Active {
                return Err(Errno::EIO);
            }
            match exceptions.look(chunk) {
                Place::Origin => {}
                Place::Unknown => {
                    self.load(snapshot, chunk).await?;
                    continue;
                }
                Place::Cow(new_chunk) => {
                    let chunk_first = chunk << exceptions.chunk_shift();
                    let chunk_end = chunk_first + (1 << exceptions.chunk_shift());
                    let is_whole = at == chunk_first && next == chunk_end.min(dev.nr_logical);
                    let sectors = self.sectors_per_logical();
                    let first = exceptions.logical_on_cow(new_chunk, at) * sectors;
                    let len = (next - at) * sectors;
                    let device = &snapshot.cow.device;
                    if is_whole {
                        device.zero(first, len).await?;
                    } else if device.supports_discard() {
                        device.discard(first, len).await?;
                    }
                }
            }
            at = next;
            looked_at += 1;
            if looked_at % PAGE_CHUNKS == 0 {
                yield_now().await;
            }
        }
        if dev.discards.passdown_origin && self.device.supports_discard() {
            let sectors = self.sectors_per_logical();
            let first = request.offset_blocks * sectors;
            let len = (end.saturating_sub(request.offset_blocks)) * sectors;
            self.device.discard(first, len).await?;
        }
        Ok(())
    }
}
