//! Images without a service: a chain is read cluster by cluster, a new image is filled.

use super::delta::{Delta, NotWritten, Source};
use super::error::PloopError;
use super::image::InUse;
use super::image::header::{HEADER_SLOTS, PAGE_SLOTS};
use super::owner::{Lower, MAX_LOWER, open_lower};
use crate::device::SECTOR_BYTES;
use crate::errno::Errno;
use std::rc::Rc;

/// Where a guest cluster of a chain is: in which delta, oldest first, and from which sector on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    delta: usize,
    sector: u64,
}

/// A chain that nobody writes.
pub struct ChainReader {
    /// The oldest first, the top last.
    deltas: Vec<Rc<Delta>>,
    cluster_sectors: u64,
    nr_sectors: u64,
}

/// Guest clusters that are looked up at a time.
pub const GROUP_CLUSTERS: u64 = PAGE_SLOTS;

impl ChainReader {
    /// Opens a chain, the lower deltas oldest first. Images that were not closed can be read, too, if nothing
    /// is wrong with them.
    pub async fn open(top: Source, lower: Vec<Lower>) -> Result<Self, PloopError> {
        if lower.len() > MAX_LOWER {
            return Err(PloopError::TooMany);
        }
        let top = Delta::open(top, false, true).await?;
        let nr_sectors = top.header().map_or(0, |header| header.nr_sectors);
        let mut deltas = Vec::with_capacity(lower.len() + 1);
        for (level, delta) in lower.into_iter().enumerate() {
            deltas.push(open_lower(delta, level, &top).await?);
        }
        let cluster_sectors = top.cluster_sectors;
        deltas.push(top);
        Ok(ChainReader {
            deltas,
            cluster_sectors,
            nr_sectors,
        })
    }

    /// A raw disk, which is a whole number of clusters long, of which `nr_sectors` count.
    pub fn of_raw(
        source: Source,
        cluster_sectors: u64,
        nr_sectors: u64,
    ) -> Result<Self, PloopError> {
        Ok(ChainReader {
            deltas: vec![Delta::raw(source, cluster_sectors)?],
            cluster_sectors,
            nr_sectors,
        })
    }

    /// Size of the disk.
    pub fn nr_sectors(&self) -> u64 {
        self.nr_sectors
    }

    /// Size of a cluster.
    pub fn cluster_sectors(&self) -> u64 {
        self.cluster_sectors
    }

    /// Guest clusters.
    pub fn nr_clusters(&self) -> u64 {
        self.nr_sectors.div_ceil(self.cluster_sectors)
    }

    /// Groups of clusters there are.
    pub fn nr_groups(&self) -> u64 {
        (self.nr_clusters() + HEADER_SLOTS).div_ceil(GROUP_CLUSTERS)
    }

    /// The clusters of a group that are not holes.
    pub async fn group(&self, group: u64) -> Result<Vec<(u64, Found)>, PloopError> {
        let mut found: Vec<Option<Found>> = vec![None; GROUP_CLUSTERS as usize];
        for (number, delta) in self.deltas.iter().enumerate() {
            let places = delta.places(group).await;
            let places = places.map_err(|errno| failed(delta, "reading the BAT", errno))?;
            for (slot, place) in found.iter_mut().zip(places) {
                if let Some(sector) = place {
                    *slot = Some(Found {
                        delta: number,
                        sector,
                    });
                }
            }
        }
        let slots = (group * GROUP_CLUSTERS..).zip(found);
        let clusters = slots.filter_map(|(slot, found)| {
            let cluster = slot.checked_sub(HEADER_SLOTS)?;
            Some((cluster, found?)).filter(|_| cluster < self.nr_clusters())
        });
        Ok(clusters.collect())
    }

    /// Reads a cluster, of which `buf` takes as much as it is long.
    pub async fn read(&self, found: Found, buf: &mut [u8]) -> Result<(), PloopError> {
        let Some(delta) = self.deltas.get(found.delta) else {
            return Err(PloopError::Invalid("no such delta".to_owned()));
        };
        let read = delta.source.device.read_bytes(found.sector, buf).await;
        read.map_err(|errno| failed(delta, "reading a cluster", errno))
    }
}

fn failed(delta: &Delta, what: &'static str, errno: Errno) -> PloopError {
    PloopError::Device {
        name: delta.source.name.clone(),
        what,
        errno,
    }
}

/// Fills a new image with the content of a chain of the same cluster size; clusters of zeroes become holes.
/// `progress` is told of each group of clusters. Returns the clusters written.
pub async fn copy(
    from: &ChainReader,
    into: Source,
    mut progress: impl FnMut(u64),
) -> Result<u64, PloopError> {
    let into = Delta::open(into, true, false).await?;
    let open = into.set_in_use(InUse::Open).await;
    open.map_err(|errno| failed(&into, "marking the image as in use", errno))?;
    let mut nr_written = 0;
    let mut cluster_bytes = vec![0; (from.cluster_sectors * SECTOR_BYTES) as usize];
    for group in 0..from.nr_groups() {
        let mut changes = Vec::new();
        for (cluster, found) in from.group(group).await? {
            from.read(found, &mut cluster_bytes).await?;
            if cluster_bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let full = || PloopError::NoSpace(into.source.name.clone());
            let place = into.allocate().ok_or_else(full)?;
            let written = into.source.device.write_bytes(place, &cluster_bytes).await;
            written.map_err(|errno| failed(&into, "writing a cluster", errno))?;
            changes.push((cluster, Some(place)));
        }
        if !changes.is_empty() {
            let flushed = into.flush().await;
            flushed.map_err(|errno| failed(&into, "flushing", errno))?;
            nr_written += changes.len() as u64;
            let _locked = into.lock_page(group).await;
            let written = into.write_entries(group, &changes).await;
            written
                .map_err(NotWritten::errno)
                .map_err(|errno| failed(&into, "writing the BAT", errno))?;
        }
        progress(group);
    }
    close(&into).await?;
    Ok(nr_written)
}

/// Says of an image that nothing is wrong with and that nobody has open that it is closed.
pub async fn mark_closed(source: Source) -> Result<(), PloopError> {
    let delta = Delta::open(source, true, true).await?;
    close(&delta).await
}

async fn close(delta: &Delta) -> Result<(), PloopError> {
    let closed = delta.set_in_use(delta.closed_mark()).await;
    closed.map_err(|errno| failed(delta, "closing the image", errno))
}
