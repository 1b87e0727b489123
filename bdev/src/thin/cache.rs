//! The mapping cache: what the hot path reads of a pool's mapping trees, within a byte limit.
//!
//! A pool has one slab of *frames*, each holding the mappings of [`PAGE_BLOCKS`] consecutive virtual
//! blocks of some device in their on-disk form (thin.md 2), and each active device has a page table
//! that names a frame per page. Only the owner writes. A reader takes two loads and no lock. A frame
//! is given to another page only after every channel has passed a quiescent point, so a reader that
//! found its number before can still read it.

use super::map::ThinDev;
use crate::owner::Channels;
use crate::runtime::Runtime;
use bytemuck::allocation::try_zeroed_slice_box;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Virtual blocks per page.
pub const PAGE_BLOCKS: usize = 512;

/// Bytes of a frame.
const FRAME_BYTES: usize = PAGE_BLOCKS * 8;

/// Fewest frames a cache works with: enough for tasks to make progress beside each other.
const MIN_FRAMES: usize = 64;

/// A cached "nothing is mapped here". Cannot be a mapping: its data block would be 2^40 - 1.
pub const UNMAPPED: u64 = u64::MAX;

pub(super) const TIME_BITS: u32 = 24;

/// In a published mapping: writes come to the owner, reads go on. No mapping has this bit: a pool of 2^39
/// data blocks has space maps beyond the largest metadata device.
const HELD: u64 = 1 << 63;

/// Packs a mapping as on disk: data block in the top 40 bits, time in the low 24.
pub fn pack(data_block: u64, time: u32) -> u64 {
    data_block << TIME_BITS | u64::from(time)
}

/// A value as it is published while writes to its block have to come to the owner.
pub(crate) fn held(value: u64) -> u64 {
    match value {
        UNMAPPED => UNMAPPED,
        value => value | HELD,
    }
}

/// What the cache knows of a virtual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Ask the owner.
    NotCached,
    /// A hole.
    Unmapped,
    /// Mapped, and the owner is at work on it: writes wait there.
    Held {
        /// Block of the data device.
        data_block: u64,
    },
    /// Mapped.
    Mapped {
        /// Block of the data device.
        data_block: u64,
        /// The pool's snapshot counter when it was mapped.
        time: u32,
    },
}

/// The slab of frames.
pub struct Frames {
    cells: Box<[AtomicU64]>,
    /// So many are in use that a core's own caches do not hold them.
    are_far: AtomicBool,
}

impl Frames {
    #[inline]
    fn cell(&self, frame: u32, block: u64) -> Option<&AtomicU64> {
        self.cells
            .get(frame as usize * PAGE_BLOCKS + block as usize % PAGE_BLOCKS)
    }
}

/// Which frame holds which page of a device; 0 = none, else frame number + 1.
pub struct PageTable {
    pages: Box<[AtomicU32]>,
    frames: Arc<Frames>,
}

impl PageTable {
    /// What is known of a virtual block.
    #[inline]
    pub fn get(&self, block: u64) -> Entry {
        match self.cell(block) {
            None => Entry::NotCached,
            Some(cell) => match cell.load(Ordering::Acquire) {
                UNMAPPED => Entry::Unmapped,
                value if value & HELD != 0 => Entry::Held {
                    data_block: (value & !HELD) >> TIME_BITS,
                },
                value => Entry::Mapped {
                    data_block: value >> TIME_BITS,
                    time: (value & ((1 << TIME_BITS) - 1)) as u32,
                },
            },
        }
    }

    /// The memory [`PageTable::get`] reads for a block.
    #[inline]
    pub fn cell(&self, block: u64) -> Option<&AtomicU64> {
        let page = self.pages.get(block as usize / PAGE_BLOCKS)?;
        let frame = page.load(Ordering::Acquire).checked_sub(1)?;
        self.frames.cell(frame, block)
    }

    /// Whether a look is likely to find its memory in no cache of the core's.
    #[inline]
    pub fn is_far(&self) -> bool {
        self.frames.are_far.load(Ordering::Relaxed)
    }

    /// The same, where it is likely in no cache of the core's.
    #[inline]
    pub fn far_cell(&self, block: u64) -> Option<&AtomicU64> {
        match self.is_far() {
            true => self.cell(block),
            false => None,
        }
    }

    fn page(&self, page: u64) -> Option<&AtomicU32> {
        self.pages.get(page as usize)
    }

    fn nr_pages(&self) -> u64 {
        self.pages.len() as u64
    }

    fn frame_of(&self, page: u64) -> Option<u32> {
        match self.page(page)?.load(Ordering::Relaxed) {
            0 => None,
            frame => Some(frame - 1),
        }
    }

    /// Publishes a value for a block whose page is cached; otherwise there is nothing to do.
    pub(crate) fn set(&self, block: u64, value: u64) {
        if let Some(frame) = self.frame_of(block / PAGE_BLOCKS as u64)
            && let Some(cell) = self.frames.cell(frame, block)
        {
            cell.store(value, Ordering::Release);
        }
    }

    /// Publishes "unmapped" for a range of blocks.
    pub(crate) fn unmap(&self, begin: u64, end: u64) {
        let mut block = begin;
        while block < end {
            let page = block / PAGE_BLOCKS as u64;
            let page_end = ((page + 1) * PAGE_BLOCKS as u64).min(end);
            if self.frame_of(page).is_some() {
                (block..page_end).for_each(|block| self.set(block, UNMAPPED));
            }
            block = page_end;
        }
    }

    /// Has writes to mapped blocks of a range come to the owner, or lets them pass again. What is published
    /// later has to be held by who publishes it ([`held`]).
    pub(crate) fn hold(&self, begin: u64, end: u64, hold: bool) {
        for block in begin..end {
            let Some(cell) = self.cell(block) else {
                continue;
            };
            match cell.load(Ordering::Relaxed) {
                UNMAPPED => {}
                value if hold => cell.store(value | HELD, Ordering::SeqCst),
                value => cell.store(value & !HELD, Ordering::SeqCst),
            }
        }
    }

    pub(crate) fn is_cached(&self, page: u64) -> bool {
        self.frame_of(page).is_some()
    }
}

/// Counters for status and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MappingCacheStats {
    /// Bytes that frames in use take.
    pub used_bytes: u64,
    /// Most bytes frames may take.
    pub limit_bytes: u64,
    /// Pages read from the metadata.
    pub loads: u64,
    /// Pages dropped to make room.
    pub evictions: u64,
}

/// A frame taken from the cache and not yet published; goes back when dropped.
pub struct FreeFrame<'a> {
    free: &'a RefCell<Vec<u32>>,
    frame: u32,
}

impl Drop for FreeFrame<'_> {
    fn drop(&mut self) {
        self.free.borrow_mut().push(self.frame);
    }
}

/// What has a page table in a cache.
pub trait Paged {
    /// Its page table.
    fn pages(&self) -> &PageTable;
}

impl Paged for ThinDev {
    fn pages(&self) -> &PageTable {
        &self.pages
    }
}

/// The owner's side of the cache.
pub struct MappingCache<D: Paged = ThinDev> {
    frames: Arc<Frames>,
    free: RefCell<Vec<u32>>,
    /// Frames from this number on were never in use.
    nr_touched: Cell<usize>,
    /// Published pages, in the order they were loaded.
    used: RefCell<VecDeque<(Weak<D>, u64)>>,
    nr_frames: usize,
    /// So many frames in use stay in a core's own caches.
    nr_near: usize,
    loads: Cell<u64>,
    evictions: Cell<u64>,
}

impl<D: Paged> MappingCache<D> {
    /// A cache of at most `limit_bytes` (at least 64 frames of 4 KiB). Memory is touched as it is
    /// used. None where there is not the memory for it.
    pub fn new(limit_bytes: u64, runtime: &dyn Runtime) -> Option<Self> {
        let nr_frames = usize::try_from(limit_bytes)
            .unwrap_or(usize::MAX)
            .div_euclid(FRAME_BYTES)
            .clamp(MIN_FRAMES, u32::MAX as usize - 1);
        let frames: Box<[AtomicU64]> = try_zeroed_slice_box(nr_frames * PAGE_BLOCKS).ok()?;
        runtime.prefer_large_pages(&frames);
        Some(MappingCache {
            frames: Arc::new(Frames {
                cells: frames,
                are_far: AtomicBool::new(false),
            }),
            free: RefCell::default(),
            nr_touched: Cell::new(0),
            used: RefCell::new(VecDeque::new()),
            nr_frames,
            nr_near: runtime.near_bytes() / FRAME_BYTES,
            loads: Cell::new(0),
            evictions: Cell::new(0),
        })
    }

    /// An empty page table for a device of `nr_blocks` data blocks. None where there is not the
    /// memory for it.
    pub fn page_table(&self, nr_blocks: u64) -> Option<PageTable> {
        let nr_pages = usize::try_from(nr_blocks.div_ceil(PAGE_BLOCKS as u64)).ok()?;
        Some(PageTable {
            pages: try_zeroed_slice_box(nr_pages).ok()?,
            frames: self.frames.clone(),
        })
    }

    /// Counters.
    pub fn stats(&self) -> MappingCacheStats {
        let used = self.nr_touched.get() - self.free.borrow().len();
        MappingCacheStats {
            used_bytes: (used * FRAME_BYTES) as u64,
            limit_bytes: (self.nr_frames * FRAME_BYTES) as u64,
            loads: self.loads.get(),
            evictions: self.evictions.get(),
        }
    }

    /// Takes a frame, dropping the oldest pages when there is none. None only while other tasks
    /// hold them all: then try again later.
    pub async fn take_frame(&self, channels: &Channels) -> Option<FreeFrame<'_>> {
        if let Some(frame) = self.pop() {
            return Some(FreeFrame {
                free: &self.free,
                frame,
            });
        }
        self.evict(self.nr_frames / 16 + 1, channels).await;
        self.pop().map(|frame| FreeFrame {
            free: &self.free,
            frame,
        })
    }

    /// A frame that is free, those that were in use before first.
    fn pop(&self) -> Option<u32> {
        let freed = self.free.borrow_mut().pop();
        freed.or_else(|| {
            let touched = self.nr_touched.get();
            (touched < self.nr_frames).then(|| {
                self.nr_touched.set(touched + 1);
                let are_far = touched >= self.nr_near;
                self.frames.are_far.store(are_far, Ordering::Relaxed);
                touched as u32
            })
        })
    }

    async fn evict(&self, nr_pages: usize, channels: &Channels) {
        let mut dropped = Vec::with_capacity(nr_pages);
        {
            let mut used = self.used.borrow_mut();
            while dropped.len() < nr_pages
                && let Some((dev, page)) = used.pop_front()
            {
                dropped.extend(dev.upgrade().and_then(|dev| unpublish(dev.pages(), page)));
            }
        }
        self.retire(dropped, channels).await;
    }

    /// Frames come back only when no channel can be in the middle of reading them.
    async fn retire(&self, frames: Vec<u32>, channels: &Channels) {
        if frames.is_empty() {
            return;
        }
        channels.quiesce().await;
        self.evictions
            .set(self.evictions.get() + frames.len() as u64);
        self.free.borrow_mut().extend(frames);
    }

    /// Fills a frame with a page's values and publishes it. The caller holds the metadata, so that
    /// no mapping changes between reading the values and this.
    pub fn publish(&self, dev: &Arc<D>, page: u64, frame: FreeFrame<'_>, values: &[u64]) {
        let Some(slot) = dev.pages().page(page) else {
            return;
        };
        let first = page * PAGE_BLOCKS as u64;
        for (block, value) in (first..).zip(values.iter().take(PAGE_BLOCKS)) {
            if let Some(cell) = self.frames.cell(frame.frame, block) {
                cell.store(*value, Ordering::Relaxed);
            }
        }
        slot.store(frame.frame + 1, Ordering::Release);
        std::mem::forget(frame);
        self.used
            .borrow_mut()
            .push_back((Arc::downgrade(dev), page));
        self.loads.set(self.loads.get() + 1);
    }

    /// Forgets everything about a device: it is being closed, or a transaction was aborted.
    pub async fn forget(&self, dev: &Arc<D>, channels: &Channels) {
        let frames = (0..dev.pages().nr_pages())
            .filter_map(|page| unpublish(dev.pages(), page))
            .collect();
        let gone = Arc::downgrade(dev);
        self.used
            .borrow_mut()
            .retain(|(dev, _)| !Weak::ptr_eq(dev, &gone));
        self.retire(frames, channels).await;
    }
}

fn unpublish(pages: &PageTable, page: u64) -> Option<u32> {
    match pages.page(page)?.swap(0, Ordering::SeqCst) {
        0 => None,
        frame => Some(frame - 1),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use futures::future::LocalBoxFuture;
    use std::time::Duration;

    struct NoRuntime;

    impl Runtime for NoRuntime {
        fn spawn(&self, _: LocalBoxFuture<'static, ()>) {}

        fn sleep(&self, _: Duration) -> LocalBoxFuture<'static, ()> {
            Box::pin(std::future::ready(()))
        }

        fn now(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// A size nobody has the memory for is refused; it comes from whoever activates a device.
    #[test]
    fn absurd_sizes_are_refused() {
        assert!(MappingCache::<ThinDev>::new(u64::MAX, &NoRuntime).is_none());
        let cache = MappingCache::<ThinDev>::new(0, &NoRuntime).unwrap();
        assert!(cache.page_table(u64::MAX).is_none());
        assert!(cache.page_table(1000).is_some());
    }
}
