//! What snapshots and merges say of themselves (snapshot.md 4).

use super::cow::Cow;
use super::map::State;
use super::merge::MergeState;
use super::owner::{Origin, Snapshot, SnapshotCounters};
use super::table::StoreKind;
use crate::device::DataDevice;
use crate::thin::cache::MappingCacheStats;
use std::fmt;

/// The first word of a status line, where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// In order: the line has the figures.
    Good,
    /// See [`State::Invalid`].
    Invalid,
    /// See [`State::Overflow`].
    Overflow,
    /// For this reason.
    MergeFailed(String),
}

/// The state of a snapshot or a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// Its name.
    pub name: String,
    /// How it is.
    pub condition: Condition,
    /// Of a merge: how that is.
    pub merge: Option<MergeState>,
    /// Sectors of the COW device in use.
    pub allocated_sectors: u64,
    /// Sectors of the COW device.
    pub total_sectors: u64,
    /// Sectors of header and areas.
    pub metadata_sectors: u64,
    /// The chunk size in use.
    pub chunk_sectors: u64,
    /// The kind of store; for a merge persistent.
    pub store: StoreKind,
    /// It has given its store away, and is Invalid for that.
    pub handed_over: bool,
    /// The COW device may still say that an invalid snapshot is valid: its header could not be written.
    pub header_unsure: bool,
    /// Bytes of memory for what is known of the store.
    pub used_bytes: u64,
}

/// The kernel's line.
impl fmt::Display for SnapshotStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.condition {
            Condition::Invalid => f.write_str("Invalid"),
            Condition::MergeFailed(_) => f.write_str("Merge failed"),
            Condition::Overflow => f.write_str("Overflow"),
            Condition::Good => write!(
                f,
                "{}/{} {}",
                self.allocated_sectors, self.total_sectors, self.metadata_sectors
            ),
        }
    }
}

/// The state of an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginStatus {
    /// Its snapshots.
    pub snapshots: Vec<SnapshotStatus>,
    /// Its merge.
    pub merge: Option<SnapshotStatus>,
    /// Counters of the slow paths.
    pub counters: SnapshotCounters,
    /// The cache of places of exceptions.
    pub cache: MappingCacheStats,
}

fn figures(name: &str, cow: &Cow, condition: Condition, store: StoreKind) -> SnapshotStatus {
    SnapshotStatus {
        name: name.to_owned(),
        condition,
        merge: None,
        allocated_sectors: cow.store.allocated_sectors(),
        total_sectors: cow.device.nr_sectors(),
        metadata_sectors: cow.store.metadata_sectors(),
        chunk_sectors: cow.layout().chunk_sectors(),
        store,
        handed_over: false,
        header_unsure: false,
        used_bytes: cow.store.used_bytes() + cow.exceptions.used_bytes(),
    }
}

impl Snapshot {
    /// Its state.
    pub fn status(&self) -> SnapshotStatus {
        let condition = match self.state() {
            State::Active => Condition::Good,
            State::Overflow => Condition::Overflow,
            State::Invalid => Condition::Invalid,
        };
        SnapshotStatus {
            handed_over: self.gone.get(),
            header_unsure: self.header_unsure.get(),
            ..figures(&self.config.name, &self.cow, condition, self.config.store)
        }
    }
}

impl Origin {
    /// The state of the merge, if there was one.
    pub fn merge_status(&self) -> Option<SnapshotStatus> {
        let merge = self.merge()?;
        let condition = match merge.state() {
            MergeState::Invalid => Condition::Invalid,
            MergeState::Failed(reason) => Condition::MergeFailed(reason),
            _ => Condition::Good,
        };
        let store = StoreKind::Persistent { overflow: false };
        Some(SnapshotStatus {
            merge: Some(merge.state()),
            ..figures(merge.name(), &merge.cow, condition, store)
        })
    }

    /// The state of everything.
    pub fn status(&self) -> OriginStatus {
        let snapshots = self.snapshots.borrow();
        OriginStatus {
            snapshots: snapshots.iter().map(|s| s.status()).collect(),
            merge: self.merge_status(),
            counters: self.counters(),
            cache: self.cache.stats(),
        }
    }
}
