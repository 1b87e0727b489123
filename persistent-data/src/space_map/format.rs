//! Bitmaps, index entries and roots of space maps as they are on the disk (persistent-data.md 3).

use crate::block::{Kind, get_u32, get_u64, no_rules, put_u32, put_u64};
use crate::btree::Value;
use crate::device::{BLOCK_BYTES, BlockBytes};
use crate::error::{Error, Result};
use crate::tm::SUPERBLOCK;
use std::cell::Ref;

/// Counts per bitmap block.
pub const ENTRIES_PER_BITMAP: u64 = (BLOCK_BYTES as u64 - BITMAP_HEADER_BYTES as u64) * 4;

/// In a bitmap: the tree of counts has it.
pub(super) const LARGE: u32 = 3;

/// Bitmaps a metadata device's map can have.
pub const MAX_METADATA_BITMAPS: u64 = 255;

/// Metadata blocks that can be used; the rest of a larger device is ignored.
pub const MAX_METADATA_BLOCKS: u64 = MAX_METADATA_BITMAPS * ENTRIES_PER_BITMAP;

const BITMAP_HEADER_BYTES: usize = 16;
const INDEX_HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

/// A bitmap block.
pub static BITMAP: Kind = Kind {
    name: "space map bitmap",
    xor: 240_779,
    blocknr_offset: 8,
    validate: no_rules,
};

/// The index block of the metadata device's map.
pub static INDEX: Kind = Kind {
    name: "metadata space map index",
    xor: 160_478,
    blocknr_offset: 8,
    validate: no_rules,
};

/// Where a bitmap is, with two hints for searching.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexEntry {
    /// The bitmap block.
    pub blocknr: u64,
    /// Entries with count 0; those past the end of the device count.
    pub nr_free: u32,
    /// No free entry lies before this one.
    pub none_free_before: u32,
}

impl Value for IndexEntry {
    const SIZE: usize = ENTRY_BYTES;

    fn get(bytes: &[u8]) -> Self {
        IndexEntry {
            blocknr: get_u64(bytes, 0),
            nr_free: get_u32(bytes, 8),
            none_free_before: get_u32(bytes, 12),
        }
    }

    fn put(&self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self.blocknr);
        put_u32(bytes, 8, self.nr_free);
        put_u32(bytes, 12, self.none_free_before);
    }
}

/// The root of a space map as a superblock stores it, 32 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpaceMapRoot {
    /// Blocks of the device.
    pub nr_blocks: u64,
    /// Blocks with a count above 0.
    pub nr_allocated: u64,
    /// Index block, or root of the index tree.
    pub bitmap_root: u64,
    /// Root of the tree of counts from 3 up.
    pub ref_count_root: u64,
}

impl SpaceMapRoot {
    /// Bytes used of a superblock's field.
    pub const BYTES: usize = 32;

    /// Reads a root.
    pub fn get(bytes: &[u8]) -> Self {
        SpaceMapRoot {
            nr_blocks: get_u64(bytes, 0),
            nr_allocated: get_u64(bytes, 8),
            bitmap_root: get_u64(bytes, 16),
            ref_count_root: get_u64(bytes, 24),
        }
    }

    /// Refuses counts that cannot be.
    pub(crate) fn check(&self) -> Result<()> {
        match self.nr_allocated <= self.nr_blocks {
            true => Ok(()),
            false => Err(Error::Corrupt {
                block: SUPERBLOCK,
                what: "a space map has more blocks allocated than it has blocks",
            }),
        }
    }

    /// Writes a root.
    pub fn put(&self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self.nr_blocks);
        put_u64(bytes, 8, self.nr_allocated);
        put_u64(bytes, 16, self.bitmap_root);
        put_u64(bytes, 24, self.ref_count_root);
    }
}

/// The count of entry `entry` (below [`ENTRIES_PER_BITMAP`]) in a bitmap block: 0 to 2, or 3 for what the
/// tree of counts knows.
pub fn stored(bytes: &BlockBytes, entry: u64) -> u32 {
    let pair = bytes[BITMAP_HEADER_BYTES + entry as usize / 4] >> (2 * (entry % 4)) & 3;
    // The low bit of the pair is worth 2, the high bit 1.
    u32::from(pair & 1) << 1 | u32::from(pair >> 1)
}

/// Sets the count of an entry in a bitmap block, as [`stored`] reads it.
pub fn store(bytes: &mut BlockBytes, entry: u64, count: u32) {
    let byte = &mut bytes[BITMAP_HEADER_BYTES + entry as usize / 4];
    let shift = 2 * (entry % 4);
    let pair = (count & 1) << 1 | count >> 1;
    *byte = *byte & !(3 << shift) | (pair as u8) << shift;
}

/// The first entry in `begin..end` that is free in all bitmaps.
pub(super) fn first_free(
    bitmaps: &[Ref<'_, Box<BlockBytes>>],
    begin: u64,
    end: u64,
) -> Option<u64> {
    let mut entry = begin;
    while entry < end {
        let at = BITMAP_HEADER_BYTES + entry as usize / 32 * 8;
        let words = bitmaps.iter().map(|bitmap| get_u64(&bitmap[..], at));
        let word = words.fold(0, |all, word| all | word);
        let used = (word | word >> 1) & 0x5555_5555_5555_5555;
        let free = (!used & 0x5555_5555_5555_5555) >> (2 * (entry % 32));
        if free != 0 {
            let found = entry + u64::from(free.trailing_zeros() / 2);
            return (found < end).then_some(found);
        }
        entry = (entry / 32 + 1) * 32;
    }
    None
}

/// Reads the entries of an index block.
pub fn entries_of(bytes: &BlockBytes, count: u64) -> Vec<IndexEntry> {
    bytes[INDEX_HEADER_BYTES..]
        .chunks_exact(ENTRY_BYTES)
        .take(count as usize)
        .map(IndexEntry::get)
        .collect()
}

/// Writes the entries of an index block.
pub(crate) fn put_entries(bytes: &mut BlockBytes, entries: &[IndexEntry]) {
    for (slot, entry) in bytes[INDEX_HEADER_BYTES..]
        .chunks_exact_mut(ENTRY_BYTES)
        .zip(entries)
    {
        entry.put(slot);
    }
}
