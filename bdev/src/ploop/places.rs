//! Where guest clusters are, as read from the deltas, and how that is changed: the data first, then the
//! BAT, the changes of a page in one write (ploop.md, Deltas).

use super::delta::{Delta, NotWritten};
use super::image::header::{HEADER_SLOTS, PAGE_SLOTS};
use super::map::{Place, PloopDev, UNSETTLED};
use super::owner::Ploop;
use crate::device::SECTOR_BYTES;
use crate::errno::Errno;
use crate::target::Request;
use crate::thin::cache::{PAGE_BLOCKS, UNMAPPED};
use futures::channel::oneshot;
use futures::future::{join_all, try_join_all};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The page of the BAT a cluster's entry is in.
pub(super) fn bat_page(cluster: u64) -> u64 {
    (cluster + HEADER_SLOTS) / PAGE_SLOTS
}

/// An entry of the top delta that is to be changed, when the data there is written.
pub(super) struct Change {
    pub cluster: u64,
    /// First sector; none: a hole.
    pub place: Option<u64>,
    /// What every core is told then.
    pub publish: Place,
    pub done: oneshot::Sender<Result<(), NotWritten>>,
}

/// Guest clusters whose I/O comes to the owner, until dropped or thawed.
pub(super) struct Frozen<'a> {
    ploop: &'a Ploop,
    clusters: Vec<u64>,
}

impl Frozen<'_> {
    /// Their I/O goes on, to these places: what the BAT says now.
    pub fn thaw(self, places: &[(u64, Place)]) {
        let ploop = self.ploop;
        drop(self);
        for (cluster, place) in places {
            ploop.dev.publish(*cluster, Some(*place));
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let mut frozen = self.ploop.frozen.borrow_mut();
        for cluster in &self.clusters {
            frozen.remove(cluster);
        }
    }
}

impl Ploop {
    /// The first logical block of a delta's cluster, as a place.
    pub(super) fn place_in(&self, delta: &Delta, sector: u64, shadows: bool) -> Place {
        Place::At {
            base: delta.base(),
            block: sector / self.block_sectors(),
            shadows,
        }
    }

    /// Makes the place of what a read asks for known, unless it is being changed: then waits for that.
    pub(super) async fn find(&self, request: &Request) -> Result<(), Errno> {
        let cluster = self.dev.cluster(request.offset_blocks);
        if self.frozen.borrow().contains(&cluster) {
            drop(self.clusters.lock_block(0, cluster).await);
        }
        self.resolve(cluster).await.map(|_| ())
    }

    /// Where a cluster is. True until it is changed, which who holds its lock prevents.
    pub(super) async fn resolve(&self, cluster: u64) -> Result<Place, Errno> {
        if cluster >= self.nr_clusters() {
            return Ok(Place::Hole);
        }
        if let Some(place) = self.dev.look(cluster) {
            return Ok(place);
        }
        let table_page = PloopDev::table_page(cluster);
        let top = self.top();
        let _locked = top.lock_page(bat_page(cluster)).await;
        if let Some(place) = self.dev.look(cluster) {
            return Ok(place);
        }
        let places = self.load(&top, table_page).await?;
        // None: other pages are just being loaded into all frames; whoever asked tries again.
        if let Some(frame) = self.cache.take_frame(&self.channels).await {
            let frozen = self.frozen.borrow();
            let cells: Vec<u64> = PloopDev::clusters_of(table_page)
                .zip(&places)
                .map(|(cluster, place)| match cluster {
                    Some(cluster) if frozen.contains(&cluster) => UNMAPPED,
                    _ => place.encode(),
                })
                .collect();
            self.cache.publish(&self.dev, table_page, frame, &cells);
        }
        let at = (cluster + HEADER_SLOTS) % PAGE_BLOCKS as u64;
        places.get(at as usize).copied().ok_or(Errno::EIO)
    }

    /// Reads a page of places from all deltas. The top delta's page is locked.
    async fn load(&self, top: &Delta, table_page: u64) -> Result<Vec<Place>, Errno> {
        self.count(|counters| counters.page_loads += 1);
        let page = table_page * PAGE_BLOCKS as u64 / PAGE_SLOTS;
        let skip = (table_page * PAGE_BLOCKS as u64 % PAGE_SLOTS) as usize;
        let lower = self.chain.borrow().lower.clone();
        let mut places = vec![Place::Hole; PAGE_BLOCKS];
        let of_lower = try_join_all(lower.iter().map(|delta| delta.places(page))).await?;
        for (delta, found) in lower.iter().zip(of_lower) {
            for (place, found) in places.iter_mut().zip(found.iter().skip(skip)) {
                if let Some(sector) = found {
                    *place = self.place_in(delta, *sector, false);
                }
            }
        }
        let found = top.places(page).await?;
        for (place, found) in places.iter_mut().zip(found.iter().skip(skip)) {
            if let Some(sector) = found {
                *place = self.place_in(top, *sector, *place != Place::Hole);
            }
        }
        Ok(places)
    }

    /// Has the I/O of clusters, whose locks are held, come to the owner, and waits for what is under way.
    pub(super) async fn freeze(&self, clusters: Vec<u64>) -> Frozen<'_> {
        self.frozen.borrow_mut().extend(clusters.iter().copied());
        for cluster in &clusters {
            self.dev.publish(*cluster, None);
        }
        let frozen = Frozen {
            ploop: self,
            clusters,
        };
        self.channels.barrier().await;
        frozen
    }

    /// Changes an entry of the top delta, when the data there is written.
    pub(super) async fn commit(
        &self,
        cluster: u64,
        place: Option<u64>,
        publish: Place,
    ) -> Result<(), NotWritten> {
        self.note_unsettled();
        let (done, answer) = oneshot::channel();
        self.changes.borrow_mut().push(Change {
            cluster,
            place,
            publish,
            done,
        });
        if !self.committing.replace(true)
            && let Some(me) = self.me.upgrade()
        {
            self.tasks.run(&self.runtime, me.commit_rounds());
        }
        answer
            .await
            .unwrap_or(Err(NotWritten::Untouched(Errno::EIO)))
    }

    /// What has gathered while a round was under way shares the next one.
    async fn commit_rounds(self: Rc<Self>) {
        loop {
            let batch = self.changes.take();
            if batch.is_empty() {
                self.committing.set(false);
                return;
            }
            let top = self.top();
            // The data is on the disk before anything refers to it.
            let stable = match batch.iter().any(|change| change.place.is_some()) {
                true => self.flush_delta(&top).await,
                false => Ok(()),
            };
            if let Err(errno) = stable {
                for change in batch {
                    let _ = change.done.send(Err(NotWritten::Untouched(errno)));
                }
                continue;
            }
            let mut pages: BTreeMap<u64, Vec<Change>> = BTreeMap::new();
            for change in batch {
                pages
                    .entry(bat_page(change.cluster))
                    .or_default()
                    .push(change);
            }
            let writes = pages
                .into_iter()
                .map(|(page, changes)| self.commit_page(&top, page, changes));
            join_all(writes).await;
        }
    }

    async fn commit_page(&self, top: &Delta, page: u64, changes: Vec<Change>) {
        let _locked = top.lock_page(page).await;
        let entries: Vec<_> = changes.iter().map(|c| (c.cluster, c.place)).collect();
        let written = top.write_entries(page, &entries).await;
        self.count(|counters| {
            counters.bat_writes += 1;
            counters.bat_changes += entries.len() as u64;
        });
        if let Err(NotWritten::Unsure(_)) = written {
            self.note_sick();
        }
        self.note_bat_dirty(page);
        for change in changes {
            if written.is_ok() && !self.frozen.borrow().contains(&change.cluster) {
                self.dev.publish(change.cluster, Some(change.publish));
            }
            let _ = change.done.send(written);
        }
    }

    /// A page of the BAT is of the top image's file, too.
    fn note_bat_dirty(&self, page: u64) {
        let sectors = page * PAGE_SLOTS * 4 / SECTOR_BYTES;
        let block = self.block_sectors();
        let nr_blocks = (PAGE_SLOTS * 4 / SECTOR_BYTES).div_ceil(block);
        self.dev.note_dirty(sectors / block, nr_blocks);
    }

    /// What the BAT on the disk says is not known until [`Ploop::mend`] has succeeded.
    pub(super) fn note_sick(&self) {
        self.count(|counters| counters.bat_failures += 1);
        self.note_unsettled();
    }

    /// Flushes come to the owner, until [`Ploop::mend`] finds nothing left to do.
    pub(super) fn note_unsettled(&self) {
        self.dev.set_state(UNSETTLED, true);
    }

    /// Flushes a delta for the target's own purposes. Guests' flushes come to the owner from before it begins: if
    /// it fails, what guests wrote may be lost with it, and it is the only one that says so.
    pub(super) async fn flush_delta(&self, delta: &Delta) -> Result<(), Errno> {
        self.note_unsettled();
        delta.flush().await
    }

    /// Makes the BAT on the disk what it ought to be, durably. Until then a flush cannot be answered.
    pub(super) async fn mend(&self) -> Result<(), Errno> {
        if self.dev.state() & UNSETTLED == 0 {
            return Ok(());
        }
        let failures = self.counters().bat_failures;
        let top = self.top();
        top.mend(|page| self.note_bat_dirty(page)).await?;
        let told = self.told_errors.get() == top.nr_flush_errors();
        if failures == self.counters().bat_failures && top.is_settled() && told {
            self.dev.set_state(UNSETTLED, false);
        }
        // Otherwise it has failed again: the flush that is tried next finds out.
        Ok(())
    }

    /// A flush of a guest, or for all of them. Error also if another has failed since the last one: what guests had
    /// written in place may be lost with it.
    pub(super) async fn flush(&self) -> Result<(), Errno> {
        let top = self.top();
        let told = self.told_errors.get();
        let flushed = self.make_durable().await;
        self.told_errors.set(top.nr_flush_errors());
        match told == top.nr_flush_errors() {
            true => flushed,
            false => Err(flushed.err().unwrap_or(Errno::EIO)),
        }
    }

    /// Another delta is the top one, and guests write there. No I/O is under way.
    pub(super) fn set_top(&self, old: &Delta, new: &Delta) {
        let untold = old.nr_flush_errors().wrapping_sub(self.told_errors.get());
        self.told_errors
            .set(new.nr_flush_errors().wrapping_sub(untold));
        self.dev.set_top(new.base(), new.source.flushes);
        self.note_unsettled();
    }
}
