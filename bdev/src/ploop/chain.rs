//! Messages that change the chain of deltas (ploop.md, Messages).
//!
//! A device is opened before anything waits for it. Places are by device, so a chain that grows at the top
//! leaves what is published as it is; otherwise all of it is forgotten.

use super::delta::{Delta, Source};
use super::error::PloopError;
use super::image::InUse;
use super::merge::Direction;
use super::owner::{Lower, MAX_LOWER, Ploop, open_lower};
use std::rc::Rc;

impl Ploop {
    /// Puts a read-only delta directly below the top one; the device must be suspended. Errors: EBUSY,
    /// EMFILE, EPROTO for a raw one that is no whole number of clusters.
    pub async fn add_delta(&self, lower: Lower) -> Result<(), PloopError> {
        let _message = self.begin_change()?;
        if !self.is_suspended() {
            return Err(self.busy("a delta can be added while it is suspended only"));
        }
        let level = self.chain.borrow().lower.len();
        if level >= MAX_LOWER {
            return Err(PloopError::TooMany);
        }
        let top = self.top();
        let delta = open_lower(lower, level, &top).await?;
        self.check_base(&delta)?;
        self.chain.borrow_mut().lower.push(delta);
        self.note_all_changed();
        self.cache.forget(&self.dev, &self.channels).await;
        Ok(())
    }

    fn check_base(&self, delta: &Delta) -> Result<(), PloopError> {
        let chain = self.chain.borrow();
        let mut others = chain.lower.iter().chain(std::iter::once(&chain.top));
        match others.any(|other| other.base() == delta.base()) {
            false => Ok(()),
            true => Err(PloopError::Invalid(format!(
                "delta '{}' is in the chain already",
                delta.source.name
            ))),
        }
    }

    /// An image that can become the top delta. The caller says whether it must be empty.
    async fn open_top(&self, source: Source, must_be_empty: bool) -> Result<Rc<Delta>, PloopError> {
        let top = self.top();
        let name = source.name.clone();
        let delta = Delta::open(source, true, !must_be_empty).await?;
        let size = top.header().map(|header| header.nr_sectors);
        let fits = delta.cluster_sectors == top.cluster_sectors
            && delta.source.device.block_bytes() == top.source.device.block_bytes()
            && delta.header().map(|header| header.nr_sectors) == size;
        let is_empty = delta
            .space
            .borrow()
            .as_ref()
            .is_some_and(|space| space.nr_used() == 0);
        match (fits, is_empty || !must_be_empty) {
            (false, _) => Err(PloopError::Invalid(format!(
                "image '{name}' must have clusters of {} sectors, the size of the device and logical blocks of the same size to become the top delta",
                top.cluster_sectors
            ))),
            (true, false) => Err(PloopError::Invalid(format!(
                "image '{name}' is not empty; only an empty one can become the top delta"
            ))),
            (true, true) => Ok(delta),
        }
    }

    /// The present top delta becomes the newest read-only one, an empty image the top. The two hold, when
    /// this is answered, everything that was answered before; the old one is not written any more.
    pub async fn snapshot(&self, new_top: Source) -> Result<(), PloopError> {
        let _message = self.begin_change()?;
        if self.chain.borrow().lower.len() >= MAX_LOWER {
            return Err(PloopError::TooMany);
        }
        let new_top = self.open_top(new_top, true).await?;
        self.check_base(&new_top)?;
        let set = new_top.set_in_use(InUse::Open).await;
        set.map_err(self.device_error("marking the new image as in use"))?;
        let held = self.hold().await;
        let old = self.top();
        let closed = async {
            self.make_durable().await?;
            old.set_in_use(old.closed_mark()).await
        };
        let closed = closed.await;
        if let Err(errno) = closed {
            if old.is_sick() {
                self.note_sick();
            }
            self.serve_again(held);
            return Err(self.device_error("closing the image")(errno));
        }
        *old.space.borrow_mut() = None;
        {
            let mut chain = self.chain.borrow_mut();
            chain.lower.push(old.clone());
            chain.top = new_top.clone();
        }
        self.set_top(&old, &new_top);
        self.serve_again(held);
        Ok(())
    }

    /// The newest read-only delta becomes the top and the top becomes the newest read-only one. Errors:
    /// EBUSY unless suspended with noresume set; ENOENT without lower deltas.
    pub async fn flip_upper_deltas(&self) -> Result<(), PloopError> {
        let _message = self.begin_change()?;
        if !self.is_suspended() || !self.noresume.get() {
            return Err(
                self.busy("deltas are flipped while it is suspended and noresume is set only")
            );
        }
        let newest = self.newest()?;
        if newest.header().is_none() {
            return Err(PloopError::Invalid(format!(
                "delta '{}' is raw and cannot become the top one",
                newest.source.name
            )));
        }
        let new_top = self.open_top(newest.source.clone(), false).await?;
        let set = new_top.set_in_use(InUse::Open).await;
        set.map_err(self.device_error("marking the new image as in use"))?;
        let old = self.top();
        let closed = old.set_in_use(old.closed_mark()).await;
        if let Err(errno) = closed {
            if old.is_sick() {
                self.note_sick();
            }
            return Err(self.device_error("closing the image")(errno));
        }
        *old.space.borrow_mut() = None;
        {
            let mut chain = self.chain.borrow_mut();
            chain.lower.pop();
            chain.lower.push(old.clone());
            chain.top = new_top.clone();
        }
        self.set_top(&old, &new_top);
        self.note_all_changed();
        self.cache.forget(&self.dev, &self.channels).await;
        Ok(())
    }

    pub(super) fn newest(&self) -> Result<Rc<Delta>, PloopError> {
        let newest = self.chain.borrow().lower.last().cloned();
        newest.ok_or_else(|| PloopError::NoLower(self.name()))
    }

    /// A lower delta. Error: ENOENT.
    pub(super) fn level(&self, level: usize) -> Result<Rc<Delta>, PloopError> {
        let delta = self.chain.borrow().lower.get(level).cloned();
        delta.ok_or_else(|| PloopError::NoLevel {
            name: self.name(),
            level,
        })
    }

    /// Where a merge of a lower delta goes. Errors: ENOENT, EINVAL where there is nothing.
    pub(super) fn neighbour(
        &self,
        level: usize,
        direction: Direction,
    ) -> Result<usize, PloopError> {
        self.level(level)?;
        let into = match direction {
            Direction::Forward => level.checked_add(1),
            Direction::Backward => level.checked_sub(1),
        };
        let into = into.filter(|into| self.level(*into).is_ok());
        into.ok_or_else(|| {
            PloopError::Invalid(format!(
                "ploop '{}': there is no lower delta to merge level {level} {direction} into",
                self.config.name
            ))
        })
    }

    /// Userspace has merged a lower delta into the next one or the one before: that is read again, the
    /// delta leaves. Errors: ENOENT, EINVAL.
    pub async fn notify_merged(
        &self,
        level: usize,
        direction: Direction,
    ) -> Result<(), PloopError> {
        let _message = self.begin_change()?;
        let into = self.neighbour(level, direction)?;
        let before = self.level(into)?;
        let again = Lower {
            source: before.source.clone(),
            raw: before.header().is_none(),
        };
        let merged = open_lower(again, into, &self.top()).await?;
        self.replace_level(into, merged, level).await;
        Ok(())
    }

    /// A lower delta is replaced by another one, and another leaves the chain.
    pub(super) async fn replace_level(&self, level: usize, delta: Rc<Delta>, leaves: usize) {
        let held = self.hold().await;
        {
            let mut chain = self.chain.borrow_mut();
            if let Some(slot) = chain.lower.get_mut(level) {
                *slot = delta;
            }
            if leaves < chain.lower.len() {
                chain.lower.remove(leaves);
            }
        }
        self.cache.forget(&self.dev, &self.channels).await;
        self.serve_again(held);
    }

    /// Userspace has moved clusters inside a read-only delta: pairs of a guest cluster and the entry its BAT
    /// has now. All are checked before any is applied. Errors: ENOENT, EINVAL.
    pub async fn update_delta_index(
        &self,
        level: usize,
        moved: &[(u64, u32)],
    ) -> Result<(), PloopError> {
        let _message = self.begin_change()?;
        let delta = self.level(level)?;
        let invalid =
            |what: String| PloopError::Invalid(format!("delta '{}': {what}", delta.source.name));
        let header = delta
            .header()
            .ok_or_else(|| invalid("it is raw, its clusters cannot move".to_owned()))?;
        let nr_sectors = delta.source.device.nr_sectors();
        let mut places = Vec::with_capacity(moved.len());
        for (cluster, entry) in moved {
            let place = header.place(*cluster, *entry, nr_sectors);
            let place = place.map_err(|problem| invalid(problem.to_string()))?;
            let is_mapped = *cluster < delta.nr_clusters() && delta.has(*cluster).await?;
            match place {
                Some(place) if is_mapped => places.push((*cluster, place)),
                _ => return Err(invalid(format!("cluster {cluster} is not mapped"))),
            }
        }
        let held = self.hold().await;
        delta.note_moved(&places);
        // They are read again; what comes from other deltas is as before.
        for (cluster, _) in &places {
            self.dev.publish(*cluster, None);
        }
        self.cache.forget(&self.dev, &self.channels).await;
        self.serve_again(held);
        Ok(())
    }

    /// Whether [`Ploop::resume`] is refused. Error: EBUSY if it is so already.
    pub fn set_noresume(&self, noresume: bool) -> Result<(), PloopError> {
        let _message = self.begin_message()?;
        match self.noresume.replace(noresume) == noresume {
            true => Err(self.busy("noresume has this value already")),
            false => Ok(()),
        }
    }

    /// The top delta's device has grown: there is more room.
    pub fn grow(&self) -> Result<(), PloopError> {
        let top = self.top();
        let grown = match &mut *top.space.borrow_mut() {
            Some(space) => space.grow(top.source.device.nr_sectors()),
            None => Ok(()),
        };
        grown.map_err(|problem| PloopError::Image {
            image: top.source.name.clone(),
            problem,
        })
    }
}
