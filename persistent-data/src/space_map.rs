//! Reference counts of the blocks of one device (persistent-data.md 3).
//!
//! Changes of a transaction are collected in core, as a difference per block, and applied to the
//! bitmaps when the transaction commits. So counting costs no metadata I/O in between, every bitmap
//! is shadowed once per commit, and the map of the metadata device, which allocates from itself,
//! needs no nested operations: applying it may add differences, which are applied in turn.
//!
//! The committed bitmaps stay readable throughout the transaction, because they are only ever
//! shadowed. A block is handed out only if it is free both in them and now.

use crate::block::{Kind, get_u32, get_u64, no_rules, put_u32, put_u64};
use crate::block_set::{BlockSet, Differences};
use crate::btree::{self, Plain, Value};
use crate::device::{BLOCK_BYTES, BlockBytes};
use crate::error::{Error, Result};
use crate::tm::{SUPERBLOCK, TransactionManager};
use rustc_hash::FxHashSet;
use std::cell::{Cell, RefCell};

/// Counts per bitmap block.
pub const ENTRIES_PER_BITMAP: u64 = (BLOCK_BYTES as u64 - BITMAP_HEADER_BYTES as u64) * 4;

/// Bitmaps a metadata device's map can have.
pub const MAX_METADATA_BITMAPS: u64 = 255;

/// Metadata blocks that can be used; the rest of a larger device is ignored.
pub const MAX_METADATA_BLOCKS: u64 = MAX_METADATA_BITMAPS * ENTRIES_PER_BITMAP;

const BITMAP_HEADER_BYTES: usize = 16;
const INDEX_HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

/// Differences are applied before the commit when there are this many, to bound memory, and to keep
/// what each allocation looks into in the core's caches.
const MAX_DIFFERENCES: u64 = 1 << 16;

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

/// The first entry in `begin..end` that is free in both bitmaps.
fn first_free(now: &BlockBytes, committed: &BlockBytes, begin: u64, end: u64) -> Option<u64> {
    let mut entry = begin;
    while entry < end {
        let at = BITMAP_HEADER_BYTES + entry as usize / 32 * 8;
        let word = get_u64(&now[..], at) | get_u64(&committed[..], at);
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

/// The counts of one device.
pub struct SpaceMap {
    nr_blocks: Cell<u64>,
    nr_allocated: Cell<u64>,
    committed_nr_allocated: Cell<u64>,
    ref_count_root: Cell<u64>,
    index: RefCell<Vec<IndexEntry>>,
    committed: RefCell<Vec<IndexEntry>>,
    changed_entries: RefCell<FxHashSet<usize>>,
    differences: RefCell<Differences>,
    /// Blocks gained less blocks lost in this transaction.
    net_allocated: Cell<i64>,
    cursor: Cell<u64>,
    /// What [`SpaceMap::apply_some`] is to apply next, the last block first. Some may have no difference
    /// any more.
    sorted: RefCell<Vec<u64>>,
    /// Blocks the owner keeps from being allocated, whatever their count.
    held: RefCell<BlockSet>,
}

impl SpaceMap {
    /// A map whose index entries have been read.
    pub fn from_parts(root: &SpaceMapRoot, index: Vec<IndexEntry>) -> Self {
        SpaceMap {
            nr_blocks: Cell::new(root.nr_blocks),
            nr_allocated: Cell::new(root.nr_allocated),
            committed_nr_allocated: Cell::new(root.nr_allocated),
            ref_count_root: Cell::new(root.ref_count_root),
            committed: RefCell::new(index.clone()),
            index: RefCell::new(index),
            changed_entries: RefCell::default(),
            differences: RefCell::default(),
            net_allocated: Cell::new(0),
            cursor: Cell::new(0),
            sorted: RefCell::default(),
            held: RefCell::default(),
        }
    }

    /// Blocks of the device.
    pub fn nr_blocks(&self) -> u64 {
        self.nr_blocks.get()
    }

    /// Free blocks as they are reported: blocks freed since the last commit count, although they
    /// cannot be had before it.
    pub fn nr_free(&self) -> u64 {
        let allocated = self.committed_nr_allocated.get() as i64 + self.net_allocated.get();
        self.nr_blocks.get().saturating_sub(allocated.max(0) as u64)
    }

    /// Blocks that are held.
    pub fn nr_held(&self) -> u64 {
        self.held.borrow().len() as u64
    }

    /// Keeps a block from being allocated.
    pub fn hold(&self, block: u64) {
        self.held.borrow_mut().insert(block);
    }

    /// The opposite of [`SpaceMap::hold`].
    pub fn unhold(&self, block: u64) {
        self.held.borrow_mut().remove(block);
    }

    /// Whether anything was counted since the last commit.
    pub fn is_changed(&self) -> bool {
        !self.differences.borrow().is_empty() || !self.changed_entries.borrow().is_empty()
    }

    pub(crate) fn root(&self, bitmap_root: u64) -> SpaceMapRoot {
        SpaceMapRoot {
            nr_blocks: self.nr_blocks.get(),
            nr_allocated: self.nr_allocated.get(),
            bitmap_root,
            ref_count_root: self.ref_count_root.get(),
        }
    }

    pub(crate) fn index(&self) -> Vec<IndexEntry> {
        self.index.borrow().clone()
    }

    pub(crate) fn take_changed_entries(&self) -> Vec<(u64, IndexEntry)> {
        let index = self.index.borrow();
        let mut changed: Vec<_> = self
            .changed_entries
            .take()
            .into_iter()
            .filter_map(|i| index.get(i).map(|entry| (i as u64, *entry)))
            .collect();
        changed.sort_unstable_by_key(|(i, _)| *i);
        changed
    }

    pub(crate) fn set_ref_count_root(&self, root: u64) {
        self.ref_count_root.set(root);
    }

    /// What is on disk now is the committed state.
    pub(crate) fn committed(&self) {
        self.committed.borrow_mut().clone_from(&self.index.borrow());
        self.committed_nr_allocated.set(self.nr_allocated.get());
        self.net_allocated.set(0);
    }

    fn entry_of(&self, block: u64) -> Result<IndexEntry> {
        let index = self.index.borrow();
        let entry = index.get((block / ENTRIES_PER_BITMAP) as usize).copied();
        entry
            .filter(|_| block < self.nr_blocks.get())
            .ok_or(Error::OutOfRange {
                block,
                nr_blocks: self.nr_blocks.get(),
            })
    }

    fn add_difference(&self, block: u64, by: i64) {
        self.differences.borrow_mut().add(block, by);
    }

    /// The count of a block.
    pub async fn count(&self, tm: &TransactionManager, block: u64) -> Result<u32> {
        let entry = self.entry_of(block)?;
        let bitmap = tm.read(entry.blocknr, &BITMAP).await?;
        let mut count = stored(&bitmap.bytes(), block % ENTRIES_PER_BITMAP);
        if count == 3 {
            count = btree::lookup(tm, self.ref_count_root.get(), block)
                .await?
                .ok_or(Error::BadCount { block })?;
        }
        u32::try_from(i64::from(count) + self.differences.borrow().get(block))
            .map_err(|_| Error::BadCount { block })
    }

    /// Adds a reference to a block that has one.
    pub fn inc(&self, block: u64) -> Result<()> {
        self.entry_of(block)?;
        self.add_difference(block, 1);
        Ok(())
    }

    /// Takes a reference away. True when it was the last one.
    pub async fn dec(&self, tm: &TransactionManager, block: u64) -> Result<bool> {
        match self.count(tm, block).await? {
            0 => Err(Error::BadCount { block }),
            count => {
                self.add_difference(block, -1);
                if count == 1 {
                    self.net_allocated.set(self.net_allocated.get() - 1);
                }
                Ok(count == 1)
            }
        }
    }

    /// Gives a block its first reference, without looking for one: it is known to be free.
    pub(crate) fn claim(&self, block: u64) {
        self.add_difference(block, 1);
        self.net_allocated.set(self.net_allocated.get() + 1);
    }

    /// Hands out a free block with count 1.
    pub async fn allocate(&self, tm: &TransactionManager) -> Result<u64> {
        let block = self.find_free(tm).await?;
        self.claim(block);
        Ok(block)
    }

    /// Hands out a free block that is only held: on disk it stays free until
    /// [`SpaceMap::claim_reserved`], so a crash before that leaks nothing.
    pub async fn reserve(&self, tm: &TransactionManager) -> Result<u64> {
        let block = self.find_free(tm).await?;
        self.hold(block);
        Ok(block)
    }

    /// Hands out so many free blocks, as [`SpaceMap::reserve`] does; fewer, perhaps none, when that fails.
    pub async fn reserve_some(&self, tm: &TransactionManager, wanted: usize) -> Vec<u64> {
        let mut blocks = Vec::with_capacity(wanted);
        while blocks.len() < wanted {
            // The first is looked for everywhere; the others where it was found.
            let Ok(first) = self.reserve(tm).await else {
                break;
            };
            blocks.push(first);
            let end = (first / ENTRIES_PER_BITMAP + 1) * ENTRIES_PER_BITMAP;
            let range = first + 1..end.min(self.nr_blocks.get());
            let more = wanted - blocks.len();
            let Ok(found) = self.search(tm, range, true, more).await else {
                break;
            };
            if let Some(last) = found.last() {
                self.cursor.set(last + 1);
            }
            for block in found {
                self.hold(block);
                blocks.push(block);
            }
        }
        blocks
    }

    /// Gives a reserved block its first reference.
    pub fn claim_reserved(&self, block: u64) {
        self.unhold(block);
        self.claim(block);
    }

    async fn find_free(&self, tm: &TransactionManager) -> Result<u64> {
        let cursor = self.cursor.get().min(self.nr_blocks.get());
        for trust_hints in [true, false] {
            for range in [cursor..self.nr_blocks.get(), 0..cursor] {
                if let Some(block) = self.search(tm, range, trust_hints, 1).await?.first() {
                    self.cursor.set(block + 1);
                    return Ok(*block);
                }
            }
        }
        Err(Error::NoSpace)
    }

    /// Free blocks of a range in order, as many as are wanted or there are.
    async fn search(
        &self,
        tm: &TransactionManager,
        range: std::ops::Range<u64>,
        trust_hints: bool,
        wanted: usize,
    ) -> Result<Vec<u64>> {
        let mut free = Vec::new();
        let mut block = if wanted == 0 { range.end } else { range.start };
        while block < range.end {
            let i = block / ENTRIES_PER_BITMAP;
            let base = i * ENTRIES_PER_BITMAP;
            let end = range.end.min(base + ENTRIES_PER_BITMAP);
            let now = self.entry_of(block)?;
            let committed = self.committed.borrow().get(i as usize).copied();
            let committed = committed.unwrap_or(now);
            let full = trust_hints && (now.nr_free == 0 || committed.nr_free == 0);
            if !full {
                let now = tm.read(now.blocknr, &BITMAP).await?;
                let committed = tm.read(committed.blocknr, &BITMAP).await?;
                let (now, committed) = (now.bytes(), committed.bytes());
                let mut entry = block - base;
                while let Some(found) = first_free(&now, &committed, entry, end - base) {
                    let candidate = base + found;
                    if self.differences.borrow().get(candidate) == 0
                        && !self.held.borrow().contains(candidate)
                    {
                        free.push(candidate);
                        if free.len() >= wanted {
                            return Ok(free);
                        }
                    }
                    entry = found + 1;
                }
            }
            block = end;
        }
        Ok(free)
    }

    /// Changed counts that are kept in core: of a small device few, so that tests get to the limit, too.
    fn max_differences(&self) -> usize {
        (self.nr_blocks.get() / 4).clamp(8, MAX_DIFFERENCES) as usize
    }

    /// Whether so much has been counted that some should be applied before the commit.
    pub(crate) fn wants_applying(&self) -> bool {
        self.differences.borrow().len() >= self.max_differences()
    }

    /// Differences applied at a time.
    fn piece(&self) -> usize {
        (self.max_differences() / 32).max(2)
    }

    /// Pieces that a commit would have to apply. 0: one or two.
    pub(crate) fn pieces_to_apply(&self) -> usize {
        match self.differences.borrow().len() / self.piece() {
            0..=2 => 0,
            pieces => pieces,
        }
    }

    /// Brings some of the differences into the bitmaps. All at once would keep everybody waiting; in the
    /// order of blocks, those that share a bitmap come together.
    pub(crate) async fn apply_some(&self, tm: &TransactionManager) -> Result<()> {
        if self.sorted.borrow().is_empty() {
            let mut blocks = self.differences.borrow().blocks();
            blocks.reverse();
            self.sorted.replace(blocks);
        }
        let piece: Vec<u64> = {
            let mut sorted = self.sorted.borrow_mut();
            let rest = sorted.len().saturating_sub(self.piece());
            sorted.drain(rest..).rev().collect()
        };
        self.apply_blocks(tm, &piece).await
    }

    /// Brings the differences into the bitmaps, until there are none.
    pub(crate) async fn apply(&self, tm: &TransactionManager) -> Result<()> {
        self.sorted.take();
        loop {
            let blocks = self.differences.borrow().blocks();
            if blocks.is_empty() {
                return Ok(());
            }
            self.apply_blocks(tm, &blocks).await?;
        }
    }

    /// Applies the differences of blocks in ascending order.
    async fn apply_blocks(&self, tm: &TransactionManager, blocks: &[u64]) -> Result<()> {
        for group in blocks.chunk_by(|a, b| a / ENTRIES_PER_BITMAP == b / ENTRIES_PER_BITMAP) {
            self.apply_group(tm, group).await?;
        }
        Ok(())
    }

    /// Applies the differences of blocks that share a bitmap.
    async fn apply_group(&self, tm: &TransactionManager, group: &[u64]) -> Result<()> {
        let Some(first) = group.first() else {
            return Ok(());
        };
        let i = (first / ENTRIES_PER_BITMAP) as usize;
        let mut entry = self.entry_of(*first)?;
        let (bitmap, _) = tm.shadow(entry.blocknr, &BITMAP).await?;
        entry.blocknr = bitmap.nr();
        // In place before anything else may look: shadowing counts, too.
        self.set_entry(i, entry);
        for &block in group {
            let e = block % ENTRIES_PER_BITMAP;
            let old_pair = stored(&bitmap.bytes(), e);
            let old = match old_pair {
                3 => btree::lookup(tm, self.ref_count_root.get(), block)
                    .await?
                    .ok_or(Error::BadCount { block })?,
                pair => pair,
            };
            let difference = self.differences.borrow_mut().take(block);
            if difference == 0 {
                continue;
            }
            let new = u32::try_from(i64::from(old) + difference)
                .map_err(|_| Error::BadCount { block })?;
            store(&mut bitmap.bytes_mut(), e, new.min(3));
            let mut entry = self.entry_of(block)?;
            if old == 0 && new > 0 {
                self.nr_allocated.set(self.nr_allocated.get() + 1);
                entry.nr_free = entry.nr_free.saturating_sub(1);
                if u64::from(entry.none_free_before) == e {
                    entry.none_free_before += 1;
                }
            } else if old > 0 && new == 0 {
                self.nr_allocated
                    .set(self.nr_allocated.get().saturating_sub(1));
                entry.nr_free = entry.nr_free.saturating_add(1);
                entry.none_free_before = entry.none_free_before.min(e as u32);
            }
            self.set_entry(i, entry);
            let root = self.ref_count_root.get();
            if new >= 3 {
                let (root, _) = btree::insert(tm, root, block, new, &Plain).await?;
                self.ref_count_root.set(root);
            } else if old_pair == 3 {
                let (root, _) = btree::remove::<u32, _>(tm, root, block, &Plain).await?;
                self.ref_count_root.set(root);
            }
        }
        Ok(())
    }

    fn set_entry(&self, i: usize, entry: IndexEntry) {
        if let Some(slot) = self.index.borrow_mut().get_mut(i) {
            *slot = entry;
        }
        self.changed_entries.borrow_mut().insert(i);
    }

    /// Bitmaps that the counts of so many blocks take.
    pub fn nr_bitmaps_for(nr_blocks: u64) -> u64 {
        nr_blocks.div_ceil(ENTRIES_PER_BITMAP)
    }

    pub(crate) fn nr_bitmaps(&self) -> u64 {
        self.index.borrow().len() as u64
    }

    pub(crate) fn push_bitmap(&self, blocknr: u64) {
        let mut index = self.index.borrow_mut();
        index.push(IndexEntry {
            blocknr,
            nr_free: ENTRIES_PER_BITMAP as u32,
            none_free_before: 0,
        });
        self.changed_entries.borrow_mut().insert(index.len() - 1);
    }

    pub(crate) fn set_nr_blocks(&self, nr_blocks: u64) {
        self.nr_blocks.set(nr_blocks);
    }
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
