//! What is told of a ploop target.

use super::backup::Uuid;
use super::changes::RecordStatus;
use super::image::{InUse, Version};
use super::merge::MergeProgress;
use super::owner::{Ploop, PloopCounters};
use crate::device::SECTOR_BYTES;
use crate::target::BaseId;
use crate::thin::cache::MappingCacheStats;
use std::time::Duration;

/// A delta of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaStatus {
    /// Its name.
    pub name: String,
    /// Its number on every core.
    pub base: BaseId,
    /// None: raw.
    pub version: Option<Version>,
    /// Size of its device.
    pub device_bytes: u64,
    /// It has bitmaps or the like; they are kept as they are.
    pub has_extension: bool,
    /// What its header says.
    pub in_use: Option<InUse>,
}

/// How a push backup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStatus {
    /// Its name.
    pub uuid: Uuid,
    /// A write has waited too long.
    pub expired: bool,
    /// Clusters that have yet to be read.
    pub remaining_clusters: u64,
    /// Writes that wait.
    pub held_writes: usize,
    /// Until it expires, while writes wait.
    pub left: Option<Duration>,
}

/// The state of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PloopStatus {
    /// Its name.
    pub name: String,
    /// Size.
    pub nr_sectors: u64,
    /// Cluster size.
    pub cluster_sectors: u64,
    /// Guest clusters.
    pub nr_clusters: u64,
    /// Clusters of the top image's file in use.
    pub used_clusters: u64,
    /// Clusters the file has room for on its device.
    pub room_clusters: u64,
    /// The delta that is written.
    pub top: DeltaStatus,
    /// The others, the oldest first: by level.
    pub lower: Vec<DeltaStatus>,
    /// All I/O waits.
    pub suspended: bool,
    /// Resuming is refused.
    pub noresume: bool,
    /// Writes are tracked, of so many clusters of the file.
    pub tracking_clusters: Option<u64>,
    /// A merge is under way.
    pub merge: Option<MergeProgress>,
    /// A push backup.
    pub backup: Option<BackupStatus>,
    /// Since which backups changes are recorded, the oldest first.
    pub records: Vec<RecordStatus>,
    /// A write of the BAT has failed: flushes write it again first.
    pub bat_unsure: bool,
    /// The cache of places.
    pub cache: MappingCacheStats,
    /// Of the slow paths.
    pub counters: PloopCounters,
}

impl PloopStatus {
    /// One line: sectors per cluster, deltas, clusters of the top image in use of those there is room for, and
    /// what goes on: suspended, noresume, tracking, merge, backup, BAT unsure.
    pub fn line(&self) -> String {
        let mut flags = String::new();
        for (letter, on) in [
            ('s', self.suspended),
            ('n', self.noresume),
            ('t', self.tracking_clusters.is_some()),
            ('m', self.merge.is_some()),
            ('b', self.backup.is_some()),
            ('!', self.bat_unsure),
        ] {
            if on {
                flags.push(letter);
            }
        }
        if flags.is_empty() {
            flags.push('-');
        }
        format!(
            "{} {} {}/{} {flags}",
            self.cluster_sectors,
            self.lower.len() + 1,
            self.used_clusters,
            self.room_clusters
        )
    }
}

impl super::delta::Delta {
    fn status(&self) -> DeltaStatus {
        let header = self.header();
        DeltaStatus {
            name: self.source.name.clone(),
            base: self.base(),
            version: header.map(|header| header.version),
            device_bytes: self.source.device.nr_sectors() * SECTOR_BYTES,
            has_extension: self.has_extension(),
            in_use: header.map(|header| header.in_use),
        }
    }
}

impl Ploop {
    /// The target's state.
    pub fn status(&self) -> PloopStatus {
        let chain = self.chain.borrow();
        let (used, room) = match &*chain.top.space.borrow() {
            Some(space) => (space.nr_used(), space.nr_clusters()),
            None => (0, 0),
        };
        let backup = self.backup.borrow();
        let now = self.runtime.now();
        PloopStatus {
            name: self.name(),
            nr_sectors: self.dev.nr_logical_blocks() * self.block_sectors(),
            cluster_sectors: self.cluster_sectors,
            nr_clusters: self.nr_clusters(),
            used_clusters: used,
            room_clusters: room,
            top: chain.top.status(),
            lower: chain.lower.iter().map(|delta| delta.status()).collect(),
            suspended: self.is_suspended(),
            noresume: self.noresume.get(),
            tracking_clusters: self.tracking.borrow().as_ref().map(|t| t.nr_clusters()),
            merge: self.merge.borrow().as_ref().map(|merge| merge.progress()),
            backup: backup.as_ref().map(|backup| BackupStatus {
                uuid: backup.uuid.clone(),
                expired: backup.expired.get(),
                remaining_clusters: backup.remaining.get(),
                held_writes: backup.held.borrow().len(),
                left: backup.deadline.get().map(|at| at.saturating_sub(now)),
            }),
            records: self.record_status(),
            bat_unsure: self.top().is_sick(),
            cache: self.cache.stats(),
            counters: self.counters(),
        }
    }
}
