//! What a pool and a thin device say of themselves (thin.md 11.5, 11.6).

use super::cache::MappingCacheStats;
use super::deletion::Deletion;
use super::map::PoolMode;
use super::metadata::ThinMetadata;
use super::pool::{Pool, PoolCounters};

/// A pool's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStatus {
    /// Mode.
    pub mode: PoolMode,
    /// Userspace transaction id.
    pub transaction_id: u64,
    /// Metadata blocks in use; the reserve counts as used.
    pub used_metadata_blocks: u64,
    /// Metadata blocks in all.
    pub total_metadata_blocks: u64,
    /// Data blocks in use.
    pub used_data_blocks: u64,
    /// Data blocks in all.
    pub total_data_blocks: u64,
    /// Block of the metadata snapshot.
    pub held_root: Option<u64>,
    /// Whether discards are taken, and passed to the data bdev.
    pub ignore_discard: bool,
    /// See `ignore_discard`.
    pub discard_passdown: bool,
    /// Writes without space fail at once.
    pub error_if_no_space: bool,
    /// The metadata must be checked offline.
    pub needs_check: bool,
    /// Free metadata at which an event is due.
    pub metadata_low_water_blocks: u64,
    /// Free data blocks have reached the low water mark.
    pub low_data: bool,
    /// Free metadata blocks have reached their threshold.
    pub low_metadata: bool,
    /// Size of a data block.
    pub data_block_size_sectors: u32,
    /// Active devices.
    pub active_devices: usize,
    /// Deletions under way.
    pub deletions: Vec<Deletion>,
    /// Counters of the slow paths.
    pub counters: PoolCounters,
    /// The mapping cache.
    pub mapping_cache: MappingCacheStats,
    /// Bytes the metadata cache takes.
    pub metadata_cache_used_bytes: u64,
    /// Limit of the metadata cache.
    pub metadata_cache_limit_bytes: u64,
}

impl PoolStatus {
    pub(super) fn gather(pool: &Pool, metadata: &ThinMetadata) -> Self {
        let total = metadata.nr_metadata_blocks();
        let free = metadata
            .nr_free_metadata()
            .saturating_sub(metadata.metadata_reserve());
        let total_data = metadata.nr_data_blocks();
        PoolStatus {
            mode: pool.shared.mode(),
            transaction_id: metadata.transaction_id(),
            used_metadata_blocks: total - free.min(total),
            total_metadata_blocks: total,
            used_data_blocks: total_data - metadata.nr_free_data().min(total_data),
            total_data_blocks: total_data,
            held_root: metadata.held_root(),
            ignore_discard: pool.config.ignore_discard,
            discard_passdown: pool.passes_down(),
            error_if_no_space: pool.config.error_if_no_space || pool.no_space_errors.get(),
            needs_check: metadata.needs_check(),
            metadata_low_water_blocks: metadata.metadata_low_water(),
            low_data: pool.low_water_triggered.get(),
            low_metadata: pool.low_metadata.get(),
            data_block_size_sectors: pool.config.data_block_size_sectors,
            active_devices: pool.active.borrow().len(),
            deletions: pool.deletions.borrow().values().copied().collect(),
            counters: pool.counters.get(),
            mapping_cache: pool.cache.stats(),
            metadata_cache_used_bytes: metadata.cache_used_bytes(),
            metadata_cache_limit_bytes: pool.config.metadata_cache_bytes,
        }
    }
}

/// An active thin device's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinStatus {
    /// Data blocks mapped.
    pub mapped_blocks: u64,
    /// Highest virtual block that is mapped.
    pub highest_mapped_block: Option<u64>,
    /// Size of a data block.
    pub block_sectors: u32,
}
