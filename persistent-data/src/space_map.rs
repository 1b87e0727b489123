//! Reference counts of the blocks of one device (persistent-data.md 3).
//!
//! Changes of a transaction are collected in core, as a difference per block, and applied to the
//! bitmaps when the transaction commits. So counting costs no metadata I/O in between, every bitmap
//! is shadowed once per commit, and the map of the metadata device, which allocates from itself,
//! needs no nested operations: applying it may add differences, which are applied in turn.
//!
//! The committed bitmaps stay readable throughout the transaction, because they are only ever
//! shadowed, and so do those of a sealed transaction. A block is handed out only if it is free in all of them and
//! now.

mod format;

pub(crate) use format::put_entries;
pub use format::{
    BITMAP, ENTRIES_PER_BITMAP, INDEX, IndexEntry, MAX_METADATA_BITMAPS, MAX_METADATA_BLOCKS,
    SpaceMapRoot, entries_of, store, stored,
};

use crate::block_set::{BlockSet, Differences};
use crate::btree::{self, Plain};
use crate::error::{Error, Result};
use crate::tm::TransactionManager;
use crate::turn::yield_now;
use format::{LARGE, first_free};
use rustc_hash::FxHashSet;
use std::cell::{Cell, RefCell};

/// Differences are applied before the commit when there are this many, to bound memory, and to keep
/// what each allocation looks into in the core's caches.
const MAX_DIFFERENCES: u64 = 1 << 16;

/// Pieces that are left to the commit. Of fewer differences, too few share a bitmap.
const FEW_PIECES: usize = 6;

/// Counts that are applied before others have a turn at the core: about 200 us.
const COUNTS_PER_TURN: usize = 1024;

/// As many as take as long as making another bitmap writable.
const COUNTS_OF_A_BITMAP: usize = 16;

/// What a map was when its transaction was sealed.
struct SealedMap {
    nr_allocated: u64,
    index: Vec<IndexEntry>,
    net_allocated: i64,
    claimed: u64,
}

/// The counts of one device.
pub struct SpaceMap {
    nr_blocks: Cell<u64>,
    nr_allocated: Cell<u64>,
    committed_nr_allocated: Cell<u64>,
    ref_count_root: Cell<u64>,
    index: RefCell<Vec<IndexEntry>>,
    committed: RefCell<Vec<IndexEntry>>,
    sealed: RefCell<Option<SealedMap>>,
    changed_entries: RefCell<FxHashSet<usize>>,
    differences: RefCell<Differences>,
    /// Blocks gained less blocks lost since the last commit.
    net_allocated: Cell<i64>,
    /// Blocks gained since the last commit.
    claimed: Cell<u64>,
    /// Differences from which on some are applied, below what there is room for: a commit is near.
    ceiling: Cell<usize>,
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
            sealed: RefCell::default(),
            net_allocated: Cell::new(0),
            claimed: Cell::new(0),
            ceiling: Cell::new(usize::MAX),
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

    /// Blocks that can be had before the next commit, at least.
    pub fn nr_available(&self) -> u64 {
        let taken = self.committed_nr_allocated.get() + self.claimed.get();
        self.nr_blocks.get().saturating_sub(taken)
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

    /// The transaction ends, with everything applied.
    pub(crate) fn seal(&self) {
        self.ceiling.set(usize::MAX);
        self.sealed.replace(Some(SealedMap {
            nr_allocated: self.nr_allocated.get(),
            index: self.index(),
            net_allocated: self.net_allocated.get(),
            claimed: self.claimed.get(),
        }));
    }

    /// What was sealed is the committed state.
    pub(crate) fn committed(&self) {
        let Some(sealed) = self.sealed.take() else {
            return;
        };
        self.committed.replace(sealed.index);
        self.committed_nr_allocated.set(sealed.nr_allocated);
        let net = self.net_allocated.get() - sealed.net_allocated;
        self.net_allocated.set(net);
        self.claimed.set(self.claimed.get() - sealed.claimed);
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
        if count == LARGE {
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
        self.claimed.set(self.claimed.get() + 1);
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
            let states = self.states_of(block)?;
            let full = trust_hints && states.iter().any(|entry| entry.nr_free == 0);
            if !full {
                let mut bitmaps = Vec::with_capacity(states.len());
                for state in &states {
                    bitmaps.push(tm.read(state.blocknr, &BITMAP).await?);
                }
                let bitmaps: Vec<_> = bitmaps.iter().map(|bitmap| bitmap.bytes()).collect();
                let mut entry = block - base;
                while let Some(found) = first_free(&bitmaps, entry, end - base) {
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

    /// The entries of a block's bitmaps, each bitmap once: as it is now, as it was sealed, as it was committed.
    fn states_of(&self, block: u64) -> Result<Vec<IndexEntry>> {
        let mut states = Vec::with_capacity(3);
        states.push(self.entry_of(block)?);
        let i = (block / ENTRIES_PER_BITMAP) as usize;
        let sealed = self.sealed.borrow();
        let sealed = sealed.as_ref().and_then(|sealed| sealed.index.get(i));
        for entry in sealed.into_iter().chain(self.committed.borrow().get(i)) {
            if states.iter().all(|state| state.blocknr != entry.blocknr) {
                states.push(*entry);
            }
        }
        Ok(states)
    }

    /// Changed counts that are kept in core: of a small device few, so that tests get to the limit, too.
    fn max_differences(&self) -> usize {
        (self.nr_blocks.get() / 4).clamp(8, MAX_DIFFERENCES) as usize
    }

    /// Applies some of what has been counted, if that is much.
    pub(crate) async fn relieve(&self, tm: &TransactionManager) -> Result<()> {
        let most = self.max_differences().min(self.ceiling.get());
        while self.differences.borrow().len() >= most {
            self.apply_some(tm).await?;
        }
        Ok(())
    }

    /// Differences applied at a time.
    fn piece(&self) -> usize {
        (self.max_differences() / 32).max(2)
    }

    /// Pieces that a commit would have to apply. 0: few.
    pub(crate) fn pieces_to_apply(&self) -> usize {
        match self.differences.borrow().len() / self.piece() {
            0..=FEW_PIECES => 0,
            pieces => pieces,
        }
    }

    /// Applies a piece ahead of a commit. From now on no more differences gather than there are then: those who
    /// add to them have to apply as many.
    pub(crate) async fn apply_ahead(&self, tm: &TransactionManager) -> Result<()> {
        self.apply_some(tm).await?;
        let left = self.differences.borrow().len();
        self.ceiling.set(left.max(FEW_PIECES * self.piece()));
        Ok(())
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
        let mut turn = 0;
        for group in blocks.chunk_by(|a, b| a / ENTRIES_PER_BITMAP == b / ENTRIES_PER_BITMAP) {
            self.apply_group(tm, group).await?;
            turn += group.len() + COUNTS_OF_A_BITMAP;
            if turn >= COUNTS_PER_TURN {
                turn = 0;
                yield_now().await;
            }
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
        let changes: Vec<_> = group
            .iter()
            .filter_map(|&block| match self.differences.borrow_mut().take(block) {
                0 => None,
                by => Some((
                    block,
                    by,
                    stored(&bitmap.bytes(), block % ENTRIES_PER_BITMAP),
                )),
            })
            .collect();
        // Many blocks that share a bitmap share leaves of the tree, too.
        let large = changes.iter().filter(|(_, _, pair)| *pair == LARGE);
        let large: Vec<_> = large.map(|(block, ..)| *block).collect();
        let root = self.ref_count_root.get();
        let counts = btree::lookup_sorted::<u32>(tm, root, &large).await?;
        let mut counts = counts.into_iter();
        let (mut larger, mut smaller) = (Vec::new(), Vec::new());
        for (block, by, pair) in changes {
            let old = match pair {
                LARGE => counts.next().flatten().ok_or(Error::BadCount { block })?,
                pair => pair,
            };
            let new = u32::try_from(i64::from(old) + by).map_err(|_| Error::BadCount { block })?;
            let e = block % ENTRIES_PER_BITMAP;
            store(&mut bitmap.bytes_mut(), e, new.min(LARGE));
            self.note_change(i, e as u32, old, new)?;
            if new >= LARGE {
                larger.push((block, new));
            } else if pair == LARGE {
                smaller.push(block);
            }
        }
        let root = btree::insert_sorted(tm, root, &larger, &Plain).await?;
        self.ref_count_root.set(root);
        for block in smaller {
            let root = self.ref_count_root.get();
            let (root, _) = btree::remove::<u32, _>(tm, root, block, &Plain).await?;
            self.ref_count_root.set(root);
        }
        Ok(())
    }

    /// The count of entry `e` of bitmap `i` has changed.
    fn note_change(&self, i: usize, e: u32, old: u32, new: u32) -> Result<()> {
        let mut entry = self.entry_of(i as u64 * ENTRIES_PER_BITMAP)?;
        if old == 0 && new > 0 {
            self.nr_allocated.set(self.nr_allocated.get() + 1);
            entry.nr_free = entry.nr_free.saturating_sub(1);
            if entry.none_free_before == e {
                entry.none_free_before += 1;
            }
        } else if old > 0 && new == 0 {
            self.nr_allocated
                .set(self.nr_allocated.get().saturating_sub(1));
            entry.nr_free = entry.nr_free.saturating_add(1);
            entry.none_free_before = entry.none_free_before.min(e);
        }
        self.set_entry(i, entry);
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
