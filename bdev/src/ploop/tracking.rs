//! Tracking: which clusters of the top image's file are written (ploop.md, Messages).
//!
//! A write notes its clusters before it is sent. Who takes notes away waits until what was sent before is
//! there: so a cluster that is read after it was told has been read with that write, or is told again.

use super::error::PloopError;
use super::map::TRACKING;
use super::owner::Ploop;
use crate::device::SECTOR_BYTES;
use crate::era::marks::Marks;
use crate::errno::Errno;
use std::cell::Cell;
use std::sync::Arc;

/// Clusters that are looked at in one go.
const PAGE_CLUSTERS: u64 = 1 << 16;

/// What is remembered of a tracking.
pub(super) struct Tracking {
    marks: Arc<Marks>,
    nr_clusters: u64,
    /// Where to look next.
    next: Cell<u64>,
}

impl Tracking {
    pub fn nr_clusters(&self) -> u64 {
        self.nr_clusters
    }
}

impl Ploop {
    /// Begins to track writes: every cluster of the top image's file that is in use, with header and BAT,
    /// counts as written. Errors: EEXIST; EBUSY during another message.
    pub fn tracking_start(&self) -> Result<(), PloopError> {
        let _message = self.begin_message()?;
        if self.tracking.borrow().is_some() {
            return Err(PloopError::Exists {
                name: self.name(),
                what: "tracking",
            });
        }
        let top = self.top();
        let nr_clusters = top
            .source
            .device
            .nr_sectors()
            .div_ceil(self.cluster_sectors);
        let marks = Arc::new(Marks::new(nr_clusters));
        marks.grow(nr_clusters);
        let data = top.header().map_or(0, |header| header.data());
        marks.mark(0..data.div_ceil(self.cluster_sectors));
        let space = top.space.borrow();
        for place in space.iter().flat_map(|space| space.used()) {
            // In a v1 image clusters need not begin at whole clusters of the file.
            let end = (place + self.cluster_sectors).div_ceil(self.cluster_sectors);
            marks.mark(place / self.cluster_sectors..end);
        }
        self.dev.dirty.store(Some(marks.clone()));
        self.dev.set_state(TRACKING, true);
        *self.tracking.borrow_mut() = Some(Tracking {
            marks,
            nr_clusters,
            next: Cell::new(0),
        });
        Ok(())
    }

    /// Takes up to `max` written clusters of the file, from behind the last one taken, around the end.
    /// Errors: EAGAIN if none is written, ENOENT if tracking has not begun.
    pub async fn tracking_get_next(&self, max: usize) -> Result<Vec<u64>, PloopError> {
        let found = {
            let tracking = self.tracking.borrow();
            let tracking = tracking.as_ref().ok_or_else(|| self.not_tracking())?;
            let mut found = Vec::new();
            let from = tracking.next.get();
            let parts = [from..tracking.nr_clusters, 0..from];
            for cluster in parts
                .into_iter()
                .flat_map(|part| pages(part, &tracking.marks))
            {
                if found.len() >= max.max(1) {
                    break;
                }
                tracking.marks.unmark(cluster..cluster + 1);
                tracking.next.set(cluster + 1);
                found.push(cluster);
            }
            found
        };
        if found.is_empty() {
            return Err(PloopError::Nothing(Errno::EAGAIN));
        }
        self.channels.barrier().await;
        Ok(found)
    }

    /// Ends tracking. Error: ENOENT if it has not begun.
    pub fn tracking_stop(&self) -> Result<(), PloopError> {
        match self.tracking.take() {
            None => Err(self.not_tracking()),
            Some(_) => {
                self.dev.set_state(TRACKING, false);
                self.dev.dirty.store(None);
                Ok(())
            }
        }
    }

    fn not_tracking(&self) -> PloopError {
        PloopError::NotStarted {
            name: self.name(),
            what: "tracking",
        }
    }

    /// Bytes of a cluster of the file, which is what [`Ploop::tracking_get_next`] counts in.
    pub fn cluster_bytes(&self) -> u64 {
        self.cluster_sectors * SECTOR_BYTES
    }
}

/// The marked ones of a range; whole pages without any are skipped.
fn pages(range: std::ops::Range<u64>, marks: &Marks) -> impl Iterator<Item = u64> + '_ {
    let step = PAGE_CLUSTERS as usize;
    let end = range.end;
    range.step_by(step).flat_map(move |first| {
        let page = first..end.min(first + PAGE_CLUSTERS);
        let is_any = marks.has_any(page.clone());
        page.filter(move |cluster| is_any && marks.is_marked(*cluster))
    })
}
