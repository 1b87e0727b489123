//! The transaction manager: copy-on-write of metadata blocks and the two-phase commit
//! (persistent-data.md 4), with the space map of the metadata device (3.3).
//!
//! A block that is part of the committed state is never written. Callers serialise operations, and
//! after any error abandon the transaction by opening a new manager.
//!
//! A transaction ends when it is *sealed*: from then on its blocks are as untouchable as committed ones, so they
//! can be written while the next transaction is under way. What the last commit and a sealed transaction refer
//! to is not allocated before the sealed one is committed, too.

use crate::block::Kind;
use crate::btree;
use crate::cache::{Block, BlockCache, CacheStats, DirtyBlocks};
use crate::device::{BlockBytes, BlockDevice};
use crate::error::{Error, Result};
use crate::space_map::{
    self, INDEX, MAX_METADATA_BITMAPS, MAX_METADATA_BLOCKS, SpaceMap, SpaceMapRoot,
};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Where the superblock is.
pub(crate) const SUPERBLOCK: u64 = 0;

/// One open metadata device and its transaction.
pub struct TransactionManager {
    cache: BlockCache,
    map: SpaceMap,
    index_block: Cell<u64>,
    /// Blocks allocated in this transaction: they may be changed in place, unless they have got a second
    /// reference. The value tells whether they ever had.
    shadows: RefCell<FxHashMap<u64, bool>>,
}

impl TransactionManager {
    /// Starts empty metadata on a device: superblock, index, overflow tree, bitmaps, in that order.
    /// Nothing is valid before the first commit.
    pub async fn create(device: Rc<dyn BlockDevice>, cache_bytes: usize) -> Result<Self> {
        let nr_blocks = device.nr_blocks().min(MAX_METADATA_BLOCKS);
        let nr_bitmaps = SpaceMap::nr_bitmaps_for(nr_blocks);
        if nr_blocks < nr_bitmaps + 3 {
            return Err(Error::BadSize { nr_blocks });
        }
        let root = SpaceMapRoot {
            nr_blocks,
            ..SpaceMapRoot::default()
        };
        let tm = TransactionManager {
            cache: BlockCache::new(device, cache_bytes),
            map: SpaceMap::from_parts(&root, Vec::new()),
            index_block: Cell::new(1),
            shadows: RefCell::default(),
        };
        tm.map.claim(SUPERBLOCK);
        tm.claim(1, &INDEX).await;
        let overflow = tm.claim(2, &crate::node::NODE).await;
        crate::node::init(&mut overflow.bytes_mut(), true, 4);
        tm.map.set_ref_count_root(2);
        for blocknr in 3..3 + nr_bitmaps {
            tm.claim(blocknr, &space_map::BITMAP).await;
            tm.map.push_bitmap(blocknr);
        }
        Ok(tm)
    }

    /// Opens committed metadata whose superblock holds this root for the metadata device's map.
    pub async fn open(
        device: Rc<dyn BlockDevice>,
        cache_bytes: usize,
        root: &SpaceMapRoot,
    ) -> Result<Self> {
        let nr_bitmaps = SpaceMap::nr_bitmaps_for(root.nr_blocks);
        if nr_bitmaps > MAX_METADATA_BITMAPS || root.nr_blocks > device.nr_blocks() {
            return Err(Error::BadSize {
                nr_blocks: root.nr_blocks,
            });
        }
        root.check()?;
        let cache = BlockCache::new(device, cache_bytes);
        let index = cache.read(root.bitmap_root, &INDEX).await?;
        let entries = space_map::entries_of(&index.bytes(), nr_bitmaps);
        Ok(TransactionManager {
            cache,
            map: SpaceMap::from_parts(root, entries),
            index_block: Cell::new(root.bitmap_root),
            shadows: RefCell::default(),
        })
    }

    /// The counts of the metadata device.
    pub fn map(&self) -> &SpaceMap {
        &self.map
    }

    /// Where the index of the metadata device's map is.
    pub fn index_block(&self) -> u64 {
        self.index_block.get()
    }

    /// Most blocks that the cache keeps.
    pub fn max_cached_blocks(&self) -> usize {
        self.cache.max_blocks()
    }

    /// Counters of the block cache.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// The device below.
    pub fn device(&self) -> &Rc<dyn BlockDevice> {
        self.cache.device()
    }

    /// Whether the transaction has changed anything.
    pub fn is_changed(&self) -> bool {
        !self.shadows.borrow().is_empty() || self.map.is_changed()
    }

    /// A block, to be read.
    pub async fn read(&self, block: u64, kind: &'static Kind) -> Result<Rc<Block>> {
        self.cache.read(block, kind).await
    }

    async fn claim(&self, block: u64, kind: &'static Kind) -> Rc<Block> {
        self.map.claim(block);
        self.shadows.borrow_mut().insert(block, false);
        self.cache.zeroed(block, kind).await
    }

    /// A new block of zeroes with one reference.
    pub async fn new_block(&self, kind: &'static Kind) -> Result<Rc<Block>> {
        let block = self.map.allocate(self).await?;
        self.shadows.borrow_mut().insert(block, false);
        Ok(self.cache.zeroed(block, kind).await)
    }

    /// A writable version of a block, perhaps elsewhere. True when the old one was shared: then
    /// what it points to has gained a referrer, which the caller counts.
    pub async fn shadow(&self, block: u64, kind: &'static Kind) -> Result<(Rc<Block>, bool)> {
        let old = self.cache.read(block, kind).await?;
        let known = self.shadows.borrow().get(&block).copied();
        if known == Some(false) {
            return Ok((old, false));
        }
        let shared = self.map.count(self, block).await? > 1;
        if !shared && known.is_some() {
            return Ok((old, false));
        }
        let new = self.new_block(kind).await?;
        new.bytes_mut().copy_from_slice(&old.bytes()[..]);
        self.dec(block).await?;
        Ok((new, shared))
    }

    /// Adds a reference.
    pub fn inc(&self, block: u64) -> Result<()> {
        if let Some(shared) = self.shadows.borrow_mut().get_mut(&block) {
            *shared = true;
        }
        self.map.inc(block)
    }

    /// Takes a reference away; without any the block is free. True when it was the last.
    pub async fn dec(&self, block: u64) -> Result<bool> {
        let last = self.map.dec(self, block).await?;
        if last && self.shadows.borrow_mut().remove(&block).is_some() {
            self.cache.forget(block);
        }
        Ok(last)
    }

    /// The count of a metadata block.
    pub async fn count(&self, block: u64) -> Result<u32> {
        self.map.count(self, block).await
    }

    /// Enlarges the map to the device, as far as the format goes. New bitmaps lie in the new area.
    pub async fn extend(&self) -> Result<()> {
        let old = self.map.nr_blocks();
        let new = self.device().nr_blocks().min(MAX_METADATA_BLOCKS);
        if new <= old {
            return Ok(());
        }
        let more = SpaceMap::nr_bitmaps_for(new) - self.map.nr_bitmaps();
        self.map.set_nr_blocks(new);
        for blocknr in old..old + more {
            self.claim(blocknr, &space_map::BITMAP).await;
            self.map.push_bitmap(blocknr);
        }
        Ok(())
    }

    /// Calls of [`TransactionManager::apply_ahead`] after which a commit has little left to count. 0: it has
    /// not much now.
    pub fn pieces_to_apply(&self) -> usize {
        self.map.pieces_to_apply()
    }

    /// Counts a piece of what a commit would have to, and sees to it that not so much gathers any more.
    pub async fn apply_ahead(&self) -> Result<()> {
        self.map.apply_ahead(self).await
    }

    /// Counts some of what has been changed, if it has become much.
    pub async fn relieve(&self) -> Result<()> {
        self.map.relieve(self).await
    }

    /// Ends the transaction; the next one begins. The one before must have been committed.
    pub async fn seal(&self) -> Result<Sealed> {
        let (index, _) = self.shadow(self.index_block.get(), &INDEX).await?;
        self.index_block.set(index.nr());
        self.map.apply(self).await?;
        self.map.take_changed_entries();
        space_map::put_entries(&mut index.bytes_mut(), &self.map.index());
        drop(index);
        self.shadows.borrow_mut().clear();
        self.map.seal();
        Ok(Sealed {
            blocks: self.cache.take_dirty(),
            device: self.device().clone(),
            root: self.map.root(self.index_block.get()),
        })
    }

    /// The sealed transaction is durable now.
    pub fn committed(&self) {
        self.map.committed();
    }

    /// First phase of a commit without anything beside it: everything but the superblock is made durable. Returns
    /// the root of the metadata device's map for the superblock.
    pub async fn pre_commit(&self) -> Result<SpaceMapRoot> {
        let Sealed { blocks, root, .. } = self.seal().await?;
        blocks.write().await?;
        Ok(root)
    }

    /// Second phase: the superblock goes out and is made durable.
    pub async fn commit(&self, kind: &'static Kind, superblock: &mut BlockBytes) -> Result<()> {
        write_superblock(self.device().as_ref(), kind, superblock).await?;
        self.committed();
        Ok(())
    }
}

/// A transaction that has ended and is not on the disk yet.
pub struct Sealed {
    blocks: DirtyBlocks,
    device: Rc<dyn BlockDevice>,
    root: SpaceMapRoot,
}

impl Sealed {
    /// The root of the metadata device's map for the superblock.
    pub fn root(&self) -> SpaceMapRoot {
        self.root
    }

    /// Makes everything else durable, then the superblock. After an error nobody knows whether that is on the
    /// disk.
    pub async fn commit(self, kind: &'static Kind, superblock: &mut BlockBytes) -> Result<()> {
        self.blocks.write().await?;
        write_superblock(self.device.as_ref(), kind, superblock).await
    }
}

/// Seals and writes block 0, between which and its durability there is only a flush.
pub async fn write_superblock(
    device: &dyn BlockDevice,
    kind: &'static Kind,
    superblock: &mut BlockBytes,
) -> Result<()> {
    kind.seal(superblock, SUPERBLOCK);
    device
        .write(SUPERBLOCK, superblock)
        .await
        .map_err(|source| Error::Device {
            block: SUPERBLOCK,
            source,
        })?;
    device.flush().await.map_err(Error::Flush)
}

/// The space map of the data device: the same counts, with its index in a B-tree.
pub struct DiskSpaceMap {
    map: SpaceMap,
    index_root: Cell<u64>,
}

impl DiskSpaceMap {
    /// An empty map of 0 blocks.
    pub async fn create(tm: &TransactionManager) -> Result<Self> {
        let index_root = btree::empty::<space_map::IndexEntry>(tm).await?;
        let map = SpaceMap::from_parts(&SpaceMapRoot::default(), Vec::new());
        map.set_ref_count_root(btree::empty::<u32>(tm).await?);
        Ok(DiskSpaceMap {
            map,
            index_root: Cell::new(index_root),
        })
    }

    /// Opens a committed map.
    pub async fn open(tm: &TransactionManager, root: &SpaceMapRoot) -> Result<Self> {
        root.check()?;
        let nr_bitmaps = SpaceMap::nr_bitmaps_for(root.nr_blocks);
        let mut index = Vec::new();
        let mut missing = false;
        btree::walk(tm, root.bitmap_root, 0, nr_bitmaps, |i, entry| {
            missing |= i != index.len() as u64;
            index.push(entry);
        })
        .await?;
        if missing || index.len() as u64 != nr_bitmaps {
            return Err(Error::Corrupt {
                block: root.bitmap_root,
                what: "the index of the data space map has gaps",
            });
        }
        Ok(DiskSpaceMap {
            map: SpaceMap::from_parts(root, index),
            index_root: Cell::new(root.bitmap_root),
        })
    }

    /// The counts.
    pub fn map(&self) -> &SpaceMap {
        &self.map
    }

    /// Enlarges the map.
    pub async fn extend(&self, tm: &TransactionManager, nr_blocks: u64) -> Result<()> {
        if nr_blocks < self.map.nr_blocks() {
            return Err(Error::BadSize { nr_blocks });
        }
        for _ in self.map.nr_bitmaps()..SpaceMap::nr_bitmaps_for(nr_blocks) {
            let bitmap = tm.new_block(&space_map::BITMAP).await?;
            self.map.push_bitmap(bitmap.nr());
        }
        self.map.set_nr_blocks(nr_blocks);
        Ok(())
    }

    /// Applies some of what has been counted, if it has become much.
    pub async fn relieve(&self, tm: &TransactionManager) -> Result<()> {
        self.map.relieve(tm).await
    }

    /// Calls of [`DiskSpaceMap::apply_ahead`] after which a commit has little left to apply. 0: it has not
    /// much now.
    pub fn pieces_to_apply(&self) -> usize {
        self.map.pieces_to_apply()
    }

    /// Applies a piece of what a commit would have to, and sees to it that not so much gathers any more.
    pub async fn apply_ahead(&self, tm: &TransactionManager) -> Result<()> {
        self.map.apply_ahead(tm).await
    }

    /// Brings everything into metadata blocks; before [`TransactionManager::seal`], with nothing counted in
    /// between.
    pub async fn pre_commit(&self, tm: &TransactionManager) -> Result<SpaceMapRoot> {
        self.map.apply(tm).await?;
        let entries = self.map.take_changed_entries();
        let root = btree::insert_sorted(tm, self.index_root.get(), &entries, &btree::Plain).await?;
        self.index_root.set(root);
        self.map.seal();
        Ok(self.map.root(self.index_root.get()))
    }

    /// The sealed transaction is durable now.
    pub fn committed(&self) {
        self.map.committed();
    }
}
