//! Discards and write-zeroes: whole clusters of the top delta are given back, unless an older delta would
//! show through (ploop.md, Deltas).

use super::delta::Delta;
use super::map::Place;
use super::owner::Ploop;
use crate::errno::Errno;
use crate::target::{IoKind, Request};
use futures::future::join_all;
use persistent_data::turn::yield_now;
use std::ops::Range;

/// Clusters that are given back together.
const WINDOW: u64 = 256;

impl Ploop {
    /// A discard or write-zeroes. Of a discard, parts of clusters and what older deltas have stay as they
    /// are.
    pub(super) async fn discard(&self, request: &Request) -> Result<(), Errno> {
        let zeroes = request.kind == IoKind::WriteZeroes;
        let per = self.dev.logical_per_cluster();
        let size = self.dev.nr_logical_blocks();
        let end = request
            .offset_blocks
            .saturating_add(request.nr_blocks)
            .min(size);
        // The last cluster may be larger than what the guest has of it.
        let whole_end = if end == size {
            self.nr_clusters()
        } else {
            end / per
        };
        let mut at = request.offset_blocks;
        while at < end {
            let cluster = self.dev.cluster(at);
            let within = self.dev.within(at);
            if within == 0 && cluster < whole_end {
                let until = whole_end.min(cluster + WINDOW);
                self.discard_clusters(cluster..until, zeroes).await?;
                at = until * per;
                yield_now().await;
                continue;
            }
            let next = end.min(at - within + per);
            if zeroes {
                let block = self.block_sectors();
                self.zero_part(cluster, within * block..(within + next - at) * block)
                    .await?;
            }
            at = next;
        }
        Ok(())
    }

    async fn discard_clusters(&self, clusters: Range<u64>, zeroes: bool) -> Result<(), Errno> {
        let _locked = self.clusters.lock_range(0, clusters.clone()).await;
        let top = self.top();
        let block = self.block_sectors();
        let mut to_free = Vec::new();
        let mut to_clear = Vec::new();
        let mut to_shadow = Vec::new();
        for cluster in clusters {
            let old = self.resolve(cluster).await?;
            match old {
                Place::At {
                    block: at, shadows, ..
                } if self.is_in(&top, old) => match shadows {
                    true => to_clear.push(at * block),
                    false => to_free.push((cluster, old, at * block)),
                },
                Place::At { .. } if zeroes => to_shadow.push((cluster, old)),
                Place::At { .. } | Place::Hole => {}
            }
        }
        self.free_clusters(to_free).await?;
        for sector in to_clear {
            self.clear(sector, 0..self.cluster_sectors).await?;
        }
        let shadows = to_shadow.into_iter().map(async |(cluster, old)| {
            let _permit = self.copies.take().await;
            let sector = self.allocate(&top)?;
            let cleared = top.source.device.zero(sector, self.cluster_sectors).await;
            self.link(&top, cluster, sector, old, cleared).await
        });
        // All to the end: one that was dropped could still have its entry of the BAT changed.
        join_all(shadows).await.into_iter().collect()
    }

    /// Gives clusters of the top delta back, whose locks are held. They can be used for something else when
    /// no I/O is on its way there and the BAT on the disk does not name them any more.
    async fn free_clusters(&self, to_free: Vec<(u64, Place, u64)>) -> Result<(), Errno> {
        if to_free.is_empty() {
            return Ok(());
        }
        let top = self.top();
        let frozen = to_free.iter().map(|(cluster, _, _)| *cluster).collect();
        let frozen = self.freeze(frozen).await;
        let commits = to_free
            .iter()
            .map(|(cluster, _, _)| self.commit(*cluster, None, Place::Hole));
        let results = join_all(commits).await;
        let flushed = self.flush_delta(&top).await;
        if flushed.is_err() {
            // Not before another one.
            self.note_sick();
        }
        if flushed.is_ok() {
            let freed = to_free.iter().zip(&results);
            let freed = freed.filter(|(_, committed)| committed.is_ok());
            self.pass_down(&top, freed.map(|((_, _, sector), _)| *sector))
                .await;
        }
        let mut result = flushed;
        let mut places = Vec::with_capacity(to_free.len());
        for ((cluster, old, sector), committed) in to_free.into_iter().zip(results) {
            match committed {
                Ok(()) => {
                    self.count(|counters| counters.freed += 1);
                    match flushed {
                        Ok(()) => top.free(sector),
                        Err(_) => top.note_unsure(sector),
                    }
                    places.push((cluster, Place::Hole));
                }
                Err(error) => {
                    result = result.and(Err(error.errno()));
                    places.push((cluster, old));
                }
            }
        }
        frozen.thaw(&places);
        result
    }

    /// Tells the top delta's device that it need not keep clusters that no BAT names, durably, and that are
    /// not allocated yet.
    async fn pass_down(&self, top: &Delta, sectors: impl Iterator<Item = u64>) {
        let device = &top.source.device;
        if !device.supports_discard() {
            return;
        }
        let block = self.block_sectors();
        let discards = sectors.map(async |sector| {
            let discarded = device.discard(sector, self.cluster_sectors).await;
            // In a v1 image a cluster of the file has parts of two.
            self.dev
                .note_dirty(sector / block, self.dev.logical_per_cluster());
            discarded
        });
        for result in join_all(discards).await {
            if let Err(errno) = result {
                // Nobody depends on it.
                log::warn!("image '{}': a discard failed: {errno}", top.source.name);
            }
        }
    }

    /// Clears a part of a cluster of the top delta where it is.
    async fn clear(&self, sector: u64, part: Range<u64>) -> Result<(), Errno> {
        let top = self.top();
        let len = part.end - part.start;
        let cleared = top.source.device.zero(sector + part.start, len).await;
        let block = self.block_sectors();
        // Also where it has failed a part of it may have been written.
        self.dev
            .note_dirty((sector + part.start) / block, len / block);
        cleared
    }

    /// Has a part of a cluster, in sectors of it, read as zeroes.
    async fn zero_part(&self, cluster: u64, part: Range<u64>) -> Result<(), Errno> {
        let _locked = self.clusters.lock_block(0, cluster).await;
        let top = self.top();
        let old = self.resolve(cluster).await?;
        match old {
            Place::Hole => Ok(()),
            Place::At { block, .. } if self.is_in(&top, old) => {
                self.clear(block * self.block_sectors(), part).await
            }
            Place::At { .. } => {
                let _permit = self.copies.take().await;
                let sector = self.allocate(&top)?;
                let len = part.end - part.start;
                let prepared = async {
                    top.source.device.zero(sector + part.start, len).await?;
                    self.fill(&top, sector, old, part).await
                };
                let prepared = prepared.await;
                self.link(&top, cluster, sector, old, prepared).await
            }
        }
    }
}
