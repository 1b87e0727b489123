//! The cache of metadata blocks, with a byte limit, beyond which it goes by no more than what a sealed transaction
//! has to write.
//!
//! Callers serialise their operations, and one that reads many blocks at once reads each once: so no two reads of a
//! block are under way at once. Clean
//! blocks nobody holds are dropped when the limit is reached; if that does not suffice, dirty ones
//! are written early. That is always allowed: only blocks that are free in the committed state, and in that
//! of a transaction that is on its way to the disk, are ever dirty here (persistent-data.md 4); superblocks
//! do not live in the cache.

use crate::block::Kind;
use crate::device::{BLOCK_BYTES, BlockBytes, BlockDevice};
use crate::error::{Error, Result};
use futures::StreamExt;
use rustc_hash::FxHashMap;
use std::cell::{Cell, Ref, RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;

/// Writes under way at once in a commit.
const WRITE_DEPTH: usize = 64;

/// Candidates for eviction looked at for each block that comes. Several times as many as are needed, unless most
/// cannot go now because they are being written: then more come than go, for a while.
const MOST_LOOKED_AT: usize = 64;

/// Part of the cache that is written at once where dirty blocks have to go.
const EARLY_PART: usize = 4;

/// Fewest blocks a cache keeps: a path through the trees with siblings, and then some.
const MIN_BLOCKS: usize = 16;

/// A cached block.
pub struct Block {
    nr: u64,
    kind: &'static Kind,
    bytes: RefCell<Box<BlockBytes>>,
    dirty: Cell<bool>,
    used: Cell<bool>,
    /// Its cache's list of dirty blocks.
    dirtied: Rc<RefCell<Vec<u64>>>,
}

impl Block {
    /// Its location.
    pub fn nr(&self) -> u64 {
        self.nr
    }

    /// Its contents. Not to be held across an await.
    pub fn bytes(&self) -> Ref<'_, Box<BlockBytes>> {
        self.bytes.borrow()
    }

    /// Its contents, to be changed. Only for blocks that the transaction manager made writable.
    pub fn bytes_mut(&self) -> RefMut<'_, Box<BlockBytes>> {
        self.set_dirty();
        self.bytes.borrow_mut()
    }

    async fn write_to(&self, device: &dyn BlockDevice) -> Result<()> {
        // A copy, so that no borrow is held while the device works.
        let bytes = {
            let mut bytes = self.bytes.borrow_mut();
            self.kind.seal(&mut bytes, self.nr);
            bytes.clone()
        };
        let written = device.write(self.nr, &bytes).await;
        written.map_err(|source| Error::Device {
            block: self.nr,
            source,
        })
    }

    fn set_dirty(&self) {
        if !self.dirty.replace(true) {
            self.dirtied.borrow_mut().push(self.nr);
        }
    }
}

/// Blocks that were dirty when a transaction ended.
pub struct DirtyBlocks {
    device: Rc<dyn BlockDevice>,
    blocks: Vec<Rc<Block>>,
}

impl DirtyBlocks {
    /// Writes them, many at a time, and makes them durable.
    pub async fn write(self) -> Result<()> {
        let device = &*self.device;
        let mut writes = futures::stream::iter(self.blocks)
            .map(|block| async move { block.write_to(device).await })
            .buffer_unordered(WRITE_DEPTH);
        // Also after an error all are waited for: a write that landed later could overwrite a block that
        // the next transaction has put to other use.
        let mut result = Ok(());
        while let Some(written) = writes.next().await {
            result = result.and(written);
        }
        result?;
        device.flush().await.map_err(Error::Flush)
    }
}

/// Counters of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes of cached blocks.
    pub used_bytes: u64,
    /// Look-ups answered from the cache.
    pub hits: u64,
    /// Blocks read from the device.
    pub misses: u64,
}

/// The cache.
pub struct BlockCache {
    device: Rc<dyn BlockDevice>,
    blocks: RefCell<FxHashMap<u64, Rc<Block>>>,
    /// Candidates for eviction, each cached block once.
    clock: RefCell<VecDeque<u64>>,
    /// Every dirty block is here, and with it some that no longer are, so that a commit need not look at
    /// all that is cached.
    dirtied: Rc<RefCell<Vec<u64>>>,
    max_blocks: usize,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

impl BlockCache {
    /// A cache of at most `limit_bytes` (at least 16 blocks).
    pub fn new(device: Rc<dyn BlockDevice>, limit_bytes: usize) -> Self {
        BlockCache {
            device,
            blocks: RefCell::default(),
            clock: RefCell::default(),
            dirtied: Rc::default(),
            max_blocks: (limit_bytes / BLOCK_BYTES).max(MIN_BLOCKS),
            hits: Cell::new(0),
            misses: Cell::new(0),
        }
    }

    /// The device below.
    pub fn device(&self) -> &Rc<dyn BlockDevice> {
        &self.device
    }

    /// Most blocks that are kept.
    pub fn max_blocks(&self) -> usize {
        self.max_blocks
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            used_bytes: (self.blocks.borrow().len() * BLOCK_BYTES) as u64,
            hits: self.hits.get(),
            misses: self.misses.get(),
        }
    }

    /// A block, checked when it comes from the device.
    pub async fn read(&self, nr: u64, kind: &'static Kind) -> Result<Rc<Block>> {
        let cached = self.blocks.borrow().get(&nr).cloned();
        if let Some(block) = cached {
            if !std::ptr::eq(block.kind, kind) {
                return Err(Error::WrongType {
                    block: nr,
                    wanted: kind.name,
                });
            }
            block.used.set(true);
            self.hits.set(self.hits.get() + 1);
            return Ok(block);
        }
        if nr >= self.device.nr_blocks() {
            return Err(Error::OutOfRange {
                block: nr,
                nr_blocks: self.device.nr_blocks(),
            });
        }
        self.misses.set(self.misses.get() + 1);
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        self.device
            .read(nr, &mut bytes)
            .await
            .map_err(|source| Error::Device { block: nr, source })?;
        kind.verify(&bytes, nr)?;
        Ok(self.insert(nr, kind, bytes, false).await)
    }

    /// A block of zeroes that is not read from the device. Whatever was cached there is forgotten:
    /// the block was free.
    pub async fn zeroed(&self, nr: u64, kind: &'static Kind) -> Rc<Block> {
        self.insert(nr, kind, Box::new([0; BLOCK_BYTES]), true)
            .await
    }

    async fn insert(
        &self,
        nr: u64,
        kind: &'static Kind,
        bytes: Box<BlockBytes>,
        dirty: bool,
    ) -> Rc<Block> {
        self.make_room().await;
        let block = Rc::new(Block {
            nr,
            kind,
            bytes: RefCell::new(bytes),
            dirty: Cell::new(false),
            used: Cell::new(true),
            dirtied: self.dirtied.clone(),
        });
        if dirty {
            block.set_dirty();
        }
        let old = self.blocks.borrow_mut().insert(nr, block.clone());
        if old.is_none() {
            self.clock.borrow_mut().push_back(nr);
        }
        block
    }

    async fn make_room(&self) {
        for _ in 0..MOST_LOOKED_AT {
            if self.blocks.borrow().len() < self.max_blocks {
                return;
            }
            let Some(nr) = self.clock.borrow_mut().pop_front() else {
                return;
            };
            let Some(block) = self.blocks.borrow().get(&nr).cloned() else {
                continue;
            };
            // Two references: the map's and this one.
            if Rc::strong_count(&block) > 2 || block.used.replace(false) {
                self.clock.borrow_mut().push_back(nr);
                continue;
            }
            if block.dirty.get() {
                self.write_early(&block).await;
                if block.dirty.get() {
                    // Whoever only looks something up cannot give the transaction up. It stays dirty, so the
                    // commit finds out.
                    self.clock.borrow_mut().push_back(nr);
                    return;
                }
            }
            self.blocks.borrow_mut().remove(&nr);
        }
    }

    /// Writes a dirty block that is to go, and with it some of those that would be next. What could not be written stays
    /// dirty.
    async fn write_early(&self, first: &Rc<Block>) {
        let most = WRITE_DEPTH.min(self.max_blocks / EARLY_PART);
        let (mut batch, mut clean) = (vec![first.clone()], Vec::new());
        for _ in 0..MOST_LOOKED_AT {
            if batch.len() >= most {
                break;
            }
            let Some(nr) = self.clock.borrow_mut().pop_front() else {
                break;
            };
            let Some(block) = self.blocks.borrow().get(&nr).cloned() else {
                continue;
            };
            if Rc::strong_count(&block) > 2 || block.used.replace(false) {
                self.clock.borrow_mut().push_back(nr);
            } else if block.dirty.get() {
                batch.push(block);
            } else {
                clean.push(nr);
            }
        }
        let writes = batch.iter().map(|block| async move {
            if block.write_to(&*self.device).await.is_ok() {
                block.dirty.set(false);
            }
        });
        futures::future::join_all(writes).await;
        let mut clock = self.clock.borrow_mut();
        let written = batch.iter().skip(1).map(|block| block.nr);
        for nr in clean.into_iter().chain(written) {
            clock.push_front(nr);
        }
    }

    /// Takes all dirty blocks, which are to be written and must not change until they are. They stay cached
    /// meanwhile.
    pub fn take_dirty(&self) -> DirtyBlocks {
        let mut numbers = self.dirtied.take();
        numbers.sort_unstable();
        numbers.dedup();
        let blocks = self.blocks.borrow();
        let dirty = numbers.into_iter().filter_map(|nr| {
            let block = blocks.get(&nr)?;
            block.dirty.replace(false).then(|| block.clone())
        });
        DirtyBlocks {
            device: self.device.clone(),
            blocks: dirty.collect(),
        }
    }

    /// Forgets a block that is free now, so that it is not written for nothing.
    pub fn forget(&self, nr: u64) {
        if let Some(block) = self.blocks.borrow().get(&nr) {
            block.dirty.set(false);
        }
    }
}
