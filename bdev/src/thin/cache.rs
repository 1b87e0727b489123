//! The mapping cache: what the hot path reads of a pool's mapping trees, within a byte limit.
//!
//! A pool has one slab of *frames*, each holding the mappings of [`PAGE_BLOCKS`] consecutive virtual
//! blocks of some device in their on-disk form (thin.md 2), and each active device has a page table
//! that names a frame per page, or has what stands for one (module `pages`). A frame is given to another
//! page only after every channel has passed a quiescent point, so a reader that found its number before can
//! still read it.

use super::map::ThinDev;
pub(crate) use super::pages::held;
pub use super::pages::{Entry, PAGE_BLOCKS, PageTable, UNMAPPED, pack};
use super::pages::{Frames, Page, TIME_BITS};
use crate::owner::Channels;
use crate::runtime::Runtime;
use bytemuck::allocation::try_zeroed_slice_box;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Bytes of a frame.
const FRAME_BYTES: usize = PAGE_BLOCKS * 8;

/// Fewest frames a cache works with: enough for tasks to make progress beside each other.
const MIN_FRAMES: usize = 64;

/// First writes that come in order are done in an order that is off by not more than this.
const DISORDER_BLOCKS: u64 = 64;

/// Counters for status and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MappingCacheStats {
    /// Bytes that frames in use take.
    pub used_bytes: u64,
    /// Most bytes frames may take.
    pub limit_bytes: u64,
    /// Pages read from the metadata.
    pub loads: u64,
    /// Frames taken from what was cached to make room.
    pub evictions: u64,
}

/// A frame taken from the cache and not yet published; goes back when dropped.
pub struct FreeFrame<'a> {
    free: &'a RefCell<Vec<u32>>,
    frame: Option<u32>,
}

impl Drop for FreeFrame<'_> {
    fn drop(&mut self) {
        self.free.borrow_mut().extend(self.frame.take());
    }
}

/// What has a page table in a cache.
pub trait Paged {
    /// From the value of a block to that of the next where they follow each other. None: every page has a frame,
    /// because what was forgotten is not to be had again soon.
    const STEP: Option<u64> = None;

    /// Its page table.
    fn pages(&self) -> &PageTable;
}

impl Paged for ThinDev {
    /// The next data block, of the same time.
    const STEP: Option<u64> = Some(1 << TIME_BITS);

    fn pages(&self) -> &PageTable {
        &self.pages
    }
}

/// The owner's side of the cache.
pub struct MappingCache<D: Paged = ThinDev> {
    frames: Arc<Frames>,
    free: RefCell<Vec<u32>>,
    /// Frames that pages no longer need, which a core may still be reading.
    replaced: RefCell<Vec<u32>>,
    /// Frames from this number on were never in use.
    nr_touched: Cell<usize>,
    /// Pages with a frame, by their first blocks, in the order they got it; some have lost it.
    used: RefCell<VecDeque<(Weak<D>, u64)>>,
    nr_frames: usize,
    /// So many bytes stay in a core's own caches.
    near_bytes: usize,
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
            replaced: RefCell::default(),
            nr_touched: Cell::new(0),
            used: RefCell::new(VecDeque::new()),
            nr_frames,
            near_bytes: runtime.near_bytes(),
            loads: Cell::new(0),
            evictions: Cell::new(0),
        })
    }

    /// An empty page table for a device of `nr_blocks` data blocks. None where there is not the
    /// memory for it.
    pub fn page_table(&self, nr_blocks: u64) -> Option<PageTable> {
        let step = D::STEP.unwrap_or(0);
        PageTable::new(nr_blocks, self.frames.clone(), step, self.near_bytes)
    }

    /// Counters.
    pub fn stats(&self) -> MappingCacheStats {
        MappingCacheStats {
            used_bytes: (self.nr_used() * FRAME_BYTES) as u64,
            limit_bytes: (self.nr_frames * FRAME_BYTES) as u64,
            loads: self.loads.get(),
            evictions: self.evictions.get(),
        }
    }

    fn nr_used(&self) -> usize {
        self.nr_touched.get() - self.free.borrow().len()
    }

    /// Takes a frame, dropping the oldest pages when there is none. None only while other tasks
    /// hold them all: then try again later.
    pub async fn take_frame(&self, channels: &Channels) -> Option<FreeFrame<'_>> {
        if let Some(frame) = self.free_frame() {
            return Some(frame);
        }
        self.evict(self.nr_frames / 16 + 1, channels).await;
        self.free_frame()
    }

    fn free_frame(&self) -> Option<FreeFrame<'_>> {
        let frame = self.pop()?;
        Some(FreeFrame {
            free: &self.free,
            frame: Some(frame),
        })
    }

    /// A frame that is free, those that were in use before first.
    fn pop(&self) -> Option<u32> {
        let freed = self.free.borrow_mut().pop();
        freed.or_else(|| {
            let touched = self.nr_touched.get();
            (touched < self.nr_frames).then(|| {
                self.nr_touched.set(touched + 1);
                touched as u32
            })
        })
    }

    fn note_how_far(&self) {
        let are_far = self.nr_used() * FRAME_BYTES > self.near_bytes;
        if self.frames.are_far.load(Ordering::Relaxed) != are_far {
            self.frames.are_far.store(are_far, Ordering::Relaxed);
        }
    }

    async fn evict(&self, nr_frames: usize, channels: &Channels) {
        let mut dropped = self.replaced.take();
        {
            let mut used = self.used.borrow_mut();
            let has_frame = |(dev, block): &(Weak<D>, u64)| {
                let dev = dev.upgrade();
                dev.is_some_and(|dev| matches!(dev.pages().page(*block), Page::Frame(_)))
            };
            if used.len() > 2 * self.nr_frames {
                used.retain(has_frame);
            }
            while dropped.len() < nr_frames
                && let Some(oldest) = used.pop_front()
            {
                if has_frame(&oldest) {
                    let (dev, block) = oldest;
                    dropped.extend(dev.upgrade().and_then(|dev| unpublish(dev.pages(), block)));
                }
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
        self.note_how_far();
    }

    /// Publishes a page's values, in a frame where it takes one; nothing where the page is cached. The caller
    /// holds the metadata, so that no mapping changes between reading the values and this.
    pub fn publish(&self, dev: &Arc<D>, page: u64, mut frame: FreeFrame<'_>, values: &[u64]) {
        let pages = dev.pages();
        let blocks = pages.blocks_of_page(page * PAGE_BLOCKS as u64);
        let nr_blocks = blocks.end.saturating_sub(blocks.start) as usize;
        let values = values.get(..nr_blocks).unwrap_or(values);
        if values.is_empty() || pages.is_cached(blocks.start) {
            return;
        }
        self.loads.set(self.loads.get() + 1);
        if let Some(page) = D::STEP.and_then(|step| Page::without_frame(values, step)) {
            pages.set_page(blocks.start, page);
        } else if let Some(frame) = frame.frame.take() {
            self.fill(dev, blocks.start, frame, values);
        }
    }

    /// Shows a page with these values in a frame.
    fn fill(&self, dev: &Arc<D>, first: u64, frame: u32, values: &[u64]) {
        for (block, value) in (first..).zip(values) {
            if let Some(cell) = self.frames.cell(frame, block) {
                cell.store(*value, Ordering::Relaxed);
            }
        }
        self.note_how_far();
        dev.pages().set_page(first, Page::Frame(frame));
        self.used
            .borrow_mut()
            .push_back((Arc::downgrade(dev), first));
    }

    /// Publishes a value for a block whose page is cached; otherwise there is nothing to do.
    pub fn set(&self, dev: &Arc<D>, block: u64, value: u64) {
        let pages = dev.pages();
        let blocks = pages.blocks_of_page(block);
        if let Page::Hole | Page::Run(_) = pages.page(block)
            && pages.value(block) != Some(value)
            && let Some(frame) = self.pop()
        {
            let mut values = [UNMAPPED; PAGE_BLOCKS];
            for (value, block) in values.iter_mut().zip(blocks.clone()) {
                *value = pages.value(block).unwrap_or(UNMAPPED);
            }
            self.fill(dev, blocks.start, frame, &values);
        }
        pages.set(block, value);
        // Of what is written in order, a page is complete with its last block or soon after.
        if block + 1 == blocks.end {
            self.shrink(dev, blocks);
        } else if block == blocks.start + DISORDER_BLOCKS
            && let Some(before) = blocks.start.checked_sub(1)
        {
            self.shrink(dev, pages.blocks_of_page(before));
        }
    }

    /// Takes the frame from a page that can do without.
    fn shrink(&self, dev: &Arc<D>, blocks: std::ops::Range<u64>) {
        let pages = dev.pages();
        let (Some(step), Page::Frame(frame)) = (D::STEP, pages.page(blocks.start)) else {
            return;
        };
        // By its ends a page is known that cannot do without.
        let value = |block| pages.value(block).unwrap_or(UNMAPPED);
        let nr_steps = blocks.end - 1 - blocks.start;
        let expected = value(blocks.start).checked_add(step * nr_steps);
        if expected != Some(value(blocks.end - 1)) {
            return;
        }
        let first = blocks.start;
        let values: Vec<u64> = blocks.filter_map(|block| pages.value(block)).collect();
        if let Some(page) = Page::without_frame(&values, step) {
            pages.set_page(first, page);
            self.replaced.borrow_mut().push(frame);
        }
    }

    /// Forgets everything about a device: it is being closed, or a transaction was aborted.
    pub async fn forget(&self, dev: &Arc<D>, channels: &Channels) {
        let pages = dev.pages();
        let frames = (0..pages.nr_blocks())
            .step_by(PAGE_BLOCKS)
            .filter_map(|block| unpublish(pages, block))
            .collect();
        let gone = Arc::downgrade(dev);
        self.used
            .borrow_mut()
            .retain(|(dev, _)| !Weak::ptr_eq(dev, &gone));
        self.retire(frames, channels).await;
    }
}

/// Forgets the page of a block. Returns the frame it had.
fn unpublish(pages: &PageTable, block: u64) -> Option<u32> {
    // What is in no use is not touched: a table is as large as its device.
    if !pages.is_cached(block) {
        return None;
    }
    match pages.set_page(block, Page::NotCached) {
        Page::Frame(frame) => Some(frame),
        _ => None,
    }
}
