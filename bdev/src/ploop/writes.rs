//! First writes of clusters: to holes, and to what an older delta has (ploop.md, Deltas).
//!
//! The guest's write goes to the new cluster by itself; what it does not cover is copied or cleared beside
//! it. Then the BAT may name the cluster.

use super::delta::{Delta, NotWritten};
use super::map::{Place, PloopTarget};
use super::owner::Ploop;
use crate::channel::Deferred;
use crate::device;
use crate::errno::Errno;
use futures::future::join;
use std::ops::Range;
use std::rc::Rc;

impl Ploop {
    /// A write that could not be mapped. True: it is done; false: it is to be mapped again.
    pub(super) async fn write(&self, deferred: &Deferred<PloopTarget>) -> Result<bool, Errno> {
        let request = &deferred.request;
        let cluster = self.dev.cluster(request.offset_blocks);
        let within = self.dev.within(request.offset_blocks);
        if within + request.nr_blocks > self.dev.logical_per_cluster() {
            // From before its channel could map: it is split when it is mapped again.
            return Ok(false);
        }
        let _locked = self.clusters.lock_block(0, cluster).await;
        let old = self.resolve(cluster).await?;
        let top = self.top();
        if self.is_in(&top, old) {
            return Ok(false);
        }
        let _permit = self.copies.take().await;
        let sector = self.allocate(&top)?;
        let block = self.block_sectors();
        let written = within * block..(within + request.nr_blocks) * block;
        let forward = self
            .channels
            .forward_to(deferred, top.base(), sector / block + within);
        let (forwarded, filled) = join(forward, self.fill(&top, sector, old, written)).await;
        self.link(&top, cluster, sector, old, forwarded.and(filled))
            .await?;
        Ok(true)
    }

    /// Whether a place is in the top delta.
    pub(super) fn is_in(&self, top: &Delta, place: Place) -> bool {
        matches!(place, Place::At { base, .. } if base == top.base())
    }

    /// Takes a free cluster of the top delta. Error: ENOSPC.
    pub(super) fn allocate(&self, top: &Delta) -> Result<u64, Errno> {
        self.note_unsettled();
        top.allocate().ok_or_else(|| {
            log::warn!("image '{}' is full", top.source.name);
            Errno::ENOSPC
        })
    }

    /// The delta that a place is in, and its first sector.
    pub(super) fn origin_of(&self, place: Place) -> Option<(Rc<Delta>, u64)> {
        let Place::At { base, block, .. } = place else {
            return None;
        };
        let chain = self.chain.borrow();
        let mut deltas = chain.lower.iter().chain(std::iter::once(&chain.top));
        let delta = deltas.find(|delta| delta.base() == base)?;
        Some((delta.clone(), block * self.block_sectors()))
    }

    /// Gives a new cluster the content of the old place, except for these sectors.
    pub(super) async fn fill(
        &self,
        top: &Delta,
        sector: u64,
        old: Place,
        except: Range<u64>,
    ) -> Result<(), Errno> {
        let parts = [0..except.start, except.end..self.cluster_sectors];
        let origin = self.origin_of(old);
        for part in parts {
            let len = part.end - part.start;
            if len == 0 {
                continue;
            }
            let device = &*top.source.device;
            match &origin {
                Some((delta, from)) => {
                    let source = &*delta.source.device;
                    device::copy(source, from + part.start, device, sector + part.start, len)
                        .await?;
                }
                None => device.zero(sector + part.start, len).await?,
            }
        }
        Ok(())
    }

    /// Has the BAT name a new cluster, if its content is there; else gives the cluster back.
    pub(super) async fn link(
        &self,
        top: &Delta,
        cluster: u64,
        sector: u64,
        old: Place,
        prepared: Result<(), Errno>,
    ) -> Result<(), Errno> {
        let linked = match prepared {
            Ok(()) => {
                let place = self.place_in(top, sector, old != Place::Hole);
                self.commit(cluster, Some(sector), place).await
            }
            Err(errno) => Err(NotWritten::Untouched(errno)),
        };
        // Also where it has failed: in a v1 image a cluster of the file has parts of two.
        let first = sector / self.block_sectors();
        self.dev.note_dirty(first, self.dev.logical_per_cluster());
        match linked {
            Ok(()) => {
                self.count(|counters| {
                    counters.allocated += 1;
                    counters.copied += u64::from(old != Place::Hole);
                });
            }
            Err(NotWritten::Untouched(_)) => top.free(sector),
            Err(NotWritten::Unsure(_)) => top.note_unsure(sector),
        }
        linked.map_err(NotWritten::errno)
    }
}
