//! Merging of deltas: the newest read-only one up into the top, or any into a neighbour (ploop.md,
//! Messages).
//!
//! A merge copies first and takes the delta out of the chain when all of it is durable: until then the
//! chain without the merge holds the same.

use super::delta::{Delta, NotWritten};
use super::error::PloopError;
use super::events::PloopEvent;
use super::image::InUse;
use super::image::header::{HEADER_SLOTS, PAGE_SLOTS};
use super::map::Place;
use super::owner::Ploop;
use crate::device;
use crate::errno::Errno;
use futures::stream::{Stream, StreamExt, TryStreamExt, iter};
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

/// Into which neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The next newer one.
    Forward,
    /// The next older one.
    Backward,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
        })
    }
}

/// How far a merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeProgress {
    /// The delta that goes.
    pub level: usize,
    /// The one that takes it up; none: the top one.
    pub into: Option<usize>,
    /// Clusters looked at.
    pub looked_at: u64,
    /// Clusters to be looked at.
    pub total: u64,
    /// Clusters copied.
    pub copied: u64,
}

pub(super) struct Merge {
    level: usize,
    into: Option<usize>,
    looked_at: Cell<u64>,
    total: u64,
    copied: Cell<u64>,
    cancelled: Cell<bool>,
}

impl Merge {
    pub fn progress(&self) -> MergeProgress {
        MergeProgress {
            level: self.level,
            into: self.into,
            looked_at: self.looked_at.get(),
            total: self.total,
            copied: self.copied.get(),
        }
    }
}

/// The guest clusters a delta has in a page, and where.
fn mapped(page: u64, places: &[Option<u64>]) -> Vec<(u64, u64)> {
    let slots = page * PAGE_SLOTS..;
    let pairs = slots.zip(places).filter_map(|(slot, place)| {
        let cluster = slot.checked_sub(HEADER_SLOTS)?;
        Some((cluster, (*place)?))
    });
    pairs.collect()
}

impl Ploop {
    fn begin_merge(&self, level: usize, into: Option<usize>, from: &Delta) -> Rc<Merge> {
        let merge = Rc::new(Merge {
            level,
            into,
            looked_at: Cell::new(0),
            total: from.nr_clusters(),
            copied: Cell::new(0),
            cancelled: Cell::new(false),
        });
        *self.merge.borrow_mut() = Some(merge.clone());
        merge
    }

    /// Has a merge that is under way end with EINTR.
    pub fn cancel_merge(&self) -> bool {
        let merge = self.merge.borrow();
        let running = merge.as_ref();
        running.inspect(|merge| merge.cancelled.set(true)).is_some()
    }

    fn check_cancelled(&self, merge: &Merge) -> Result<(), PloopError> {
        match merge.cancelled.get() {
            false => Ok(()),
            true => Err(PloopError::Interrupted(self.name())),
        }
    }

    /// Merges the newest read-only delta up into the top; then it leaves the chain. Errors: ENOENT without
    /// lower deltas, EBUSY, EINTR when cancelled, ENOSPC.
    pub async fn merge(&self) -> Result<(), PloopError> {
        let _message = self.begin_change()?;
        if self.is_suspended() {
            return Err(self.busy("it is suspended; resume it first"));
        }
        let from = self.newest()?;
        let level = self.chain.borrow().lower.len() - 1;
        let merge = self.begin_merge(level, None, &from);
        let copied = async {
            self.copy_up(&from, &merge).await?;
            // Who has been told that the delta has left may delete it.
            let durable = self.make_durable().await;
            durable.map_err(self.device_error("flushing what was merged"))
        };
        self.end_merge(level, copied.await)?;
        let held = self.hold().await;
        self.chain.borrow_mut().lower.pop();
        self.cache.forget(&self.dev, &self.channels).await;
        self.serve_again(held);
        self.emit(PloopEvent::MergeFinished { level });
        Ok(())
    }

    /// Nothing more is copied.
    fn end_merge(&self, level: usize, copied: Result<(), PloopError>) -> Result<(), PloopError> {
        self.merge.take();
        copied.inspect_err(|error| {
            let reason = error.to_string();
            self.emit(PloopEvent::MergeFailed { level, reason });
        })
    }

    async fn copy_up(&self, from: &Rc<Delta>, merge: &Merge) -> Result<(), PloopError> {
        for page in 0..from.nr_pages() {
            self.check_cancelled(merge)?;
            let places = from.places(page).await;
            let places = places.map_err(self.device_error("reading the BAT of the delta"))?;
            let copies = iter(mapped(page, &places)).map(async |(cluster, _)| {
                self.check_cancelled(merge)?;
                let copied = self.copy_cluster_up(from, cluster).await;
                match copied {
                    Ok(copied) => merge.copied.set(merge.copied.get() + u64::from(copied)),
                    Err(Errno::ENOSPC) => {
                        return Err(PloopError::NoSpace(self.top().source.name.clone()));
                    }
                    Err(errno) => return Err(self.device_error("copying a cluster")(errno)),
                }
                Ok(())
            });
            self.all_to_the_end(copies).await?;
            merge
                .looked_at
                .set((merge.looked_at.get() + PAGE_SLOTS).min(merge.total));
        }
        Ok(())
    }

    /// Runs copies, some at a time. After an error no more are begun, but those that are under way end: one
    /// that was dropped could still have its entry of the BAT changed.
    async fn all_to_the_end<T, F: Future<Output = Result<T, PloopError>>>(
        &self,
        copies: impl Stream<Item = F>,
    ) -> Result<Vec<T>, PloopError> {
        let failed = Cell::new(false);
        let copies = copies
            .take_while(|_| std::future::ready(!failed.get()))
            .buffer_unordered(self.config.max_copies.max(1))
            .inspect_err(|_| failed.set(true));
        let results: Vec<_> = copies.collect().await;
        results.into_iter().collect()
    }

    /// Copies a cluster into the top delta, if it is this one's. False: it is another's.
    async fn copy_cluster_up(&self, from: &Delta, cluster: u64) -> Result<bool, Errno> {
        let _locked = self.clusters.lock_block(0, cluster).await;
        let old = self.resolve(cluster).await?;
        if !matches!(old, Place::At { base, .. } if base == from.base()) {
            return Ok(false);
        }
        let _permit = self.copies.take().await;
        let top = self.top();
        let sector = self.allocate(&top)?;
        let filled = self.fill(&top, sector, old, 0..0).await;
        self.link(&top, cluster, sector, old, filled).await?;
        self.count(|counters| counters.merged += 1);
        Ok(true)
    }

    /// Merges a lower delta into the next newer or older one, which is written for this, by ourselves; then
    /// it leaves the chain. Errors: ENOENT, EINVAL, EBUSY, EINTR when cancelled, ENOSPC.
    pub async fn merge_lower(&self, level: usize, direction: Direction) -> Result<(), PloopError> {
        let _message = self.begin_change()?;
        let into_level = self.neighbour(level, direction)?;
        let from = self.level(level)?;
        let before = self.level(into_level)?;
        let into = match before.header() {
            Some(_) => Delta::open(before.source.clone(), true, true).await?,
            None => Delta::raw(before.source.clone(), self.cluster_sectors)?,
        };
        let merge = self.begin_merge(level, Some(into_level), &from);
        let copied = self.copy_aside(&from, &into, direction, &merge).await;
        if copied.is_err() {
            // What was copied stays. The delta in the chain must know of it: when the merged one has left by
            // another way, clusters that the top one gives back would show what was copied here.
            before.forget_pages();
            self.close_aside(&into).await;
        }
        self.end_merge(level, copied)?;
        *into.space.borrow_mut() = None;
        self.replace_level(into_level, into, level).await;
        self.emit(PloopEvent::MergeFinished { level });
        Ok(())
    }

    async fn copy_aside(
        &self,
        from: &Rc<Delta>,
        into: &Rc<Delta>,
        direction: Direction,
        merge: &Merge,
    ) -> Result<(), PloopError> {
        let failed = |what| self.device_error(what);
        if from.nr_clusters() > into.nr_clusters() {
            self.check_fits(from, into).await?;
        }
        let is_image = into.header().is_some();
        if is_image {
            let set = into.set_in_use(InUse::Open).await;
            set.map_err(failed("marking the delta as in use"))?;
        }
        for page in 0..from.nr_pages() {
            self.check_cancelled(merge)?;
            let of_from = from.places(page).await.map_err(failed("reading a BAT"))?;
            let of_into = into.places(page).await.map_err(failed("reading a BAT"))?;
            let there = |cluster: u64| {
                let at = cluster + HEADER_SLOTS - page * PAGE_SLOTS;
                of_into.get(at as usize).copied().flatten()
            };
            let wanted = mapped(page, &of_from).into_iter().filter(|(cluster, _)| {
                direction == Direction::Backward || there(*cluster).is_none()
            });
            let copies = iter(wanted).map(async |(cluster, sector)| {
                self.check_cancelled(merge)?;
                // One at a time of what memory there is for copies.
                let _permit = self.copies.take().await;
                let known = there(cluster);
                let full = || PloopError::NoSpace(into.source.name.clone());
                let place = match known {
                    Some(place) => place,
                    None => into.allocate().ok_or_else(full)?,
                };
                let (source, target) = (&*from.source.device, &*into.source.device);
                device::copy(source, sector, target, place, self.cluster_sectors)
                    .await
                    .map_err(failed("copying a cluster"))?;
                merge.copied.set(merge.copied.get() + 1);
                Ok((cluster, known.is_none().then_some(place)))
            });
            let copied = self.all_to_the_end(copies).await?;
            let new: Vec<_> = copied
                .into_iter()
                .filter(|(_, place)| place.is_some())
                .collect();
            if is_image && !new.is_empty() {
                self.flush_delta(into)
                    .await
                    .map_err(failed("flushing what was merged"))?;
                let _locked = into.lock_page(page).await;
                let written = into.write_entries(page, &new).await;
                written
                    .map_err(NotWritten::errno)
                    .map_err(failed("writing the BAT of a delta"))?;
            }
            merge
                .looked_at
                .set((merge.looked_at.get() + PAGE_SLOTS).min(merge.total));
        }
        self.flush_delta(into)
            .await
            .map_err(failed("flushing what was merged"))?;
        if is_image {
            let closed = into.set_in_use(into.closed_mark()).await;
            closed.map_err(failed("closing the delta"))?;
        }
        Ok(())
    }

    /// Has a delta that was merged into in part say that it was closed, if it can still be written.
    async fn close_aside(&self, into: &Delta) {
        if into.header().is_none() {
            return;
        }
        let mut closed = self.flush_delta(into).await;
        if closed.is_ok() {
            closed = into.set_in_use(into.closed_mark()).await;
        }
        if let Err(errno) = closed {
            log::warn!(
                "image '{}' stays marked as in use: {errno}; check it",
                into.source.name
            );
        }
    }

    /// Whether a smaller delta has room for what a larger one has.
    async fn check_fits(&self, from: &Delta, into: &Delta) -> Result<(), PloopError> {
        for page in 0..from.nr_pages() {
            let places = from.places(page).await;
            let places = places.map_err(self.device_error("reading a BAT"))?;
            let beyond = mapped(page, &places)
                .into_iter()
                .find(|(cluster, _)| *cluster >= into.nr_clusters());
            if let Some((cluster, _)) = beyond {
                return Err(PloopError::Invalid(format!(
                    "delta '{}' is too small to take up cluster {cluster} of '{}'",
                    into.source.name, from.source.name
                )));
            }
        }
        Ok(())
    }
}
