//! What an era target says of itself (era.md 4).

use super::metadata::{EraError, EraMetadata};
use super::worker::{Era, EraCounters};
use persistent_data::device::BLOCK_BYTES;
use std::fmt;

/// An era target's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EraStatus {
    /// Metadata blocks that are not free.
    pub used_metadata_blocks: u64,
    /// Metadata blocks in all.
    pub total_metadata_blocks: u64,
    /// The era now.
    pub current_era: u32,
    /// Block of the metadata snapshot.
    pub metadata_snap: Option<u64>,
    /// Data blocks.
    pub nr_blocks: u64,
    /// Size of a data block.
    pub block_size_sectors: u32,
    /// Counters of the slow paths.
    pub counters: EraCounters,
    /// Bytes of the bitmap all cores read.
    pub marks_used_bytes: u64,
    /// Bytes the metadata cache takes.
    pub metadata_cache_used_bytes: u64,
    /// Limit of the metadata cache.
    pub metadata_cache_limit_bytes: u64,
    /// The metadata cannot be used, for this reason: first writes fail until it can.
    pub error: Option<EraError>,
}

impl EraStatus {
    pub(super) fn gather(era: &Era, metadata: &EraMetadata, error: Option<EraError>) -> Self {
        EraStatus {
            used_metadata_blocks: metadata.nr_used_metadata(),
            total_metadata_blocks: metadata.nr_metadata_blocks(),
            current_era: metadata.current_era(),
            metadata_snap: metadata.metadata_snap(),
            nr_blocks: metadata.nr_blocks(),
            block_size_sectors: era.config.block_size_sectors,
            counters: era.counters(),
            marks_used_bytes: era.dev.marks.used_bytes(),
            metadata_cache_used_bytes: metadata.cache_used_bytes(),
            metadata_cache_limit_bytes: era.config.metadata_cache_bytes,
            error,
        }
    }
}

/// The kernel's status line.
impl fmt::Display for EraStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.error.is_some() {
            return f.write_str("Error");
        }
        write!(
            f,
            "{} {}/{} {} ",
            BLOCK_BYTES / 512,
            self.used_metadata_blocks,
            self.total_metadata_blocks,
            self.current_era
        )?;
        match self.metadata_snap {
            Some(block) => write!(f, "{block}"),
            None => f.write_str("-"),
        }
    }
}
