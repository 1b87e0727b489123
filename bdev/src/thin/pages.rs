//! What a core reads of a mapping cache: one or two loads and no lock.
//!
//! A page table has an entry per *page* of [`PAGE_BLOCKS`] virtual blocks. It says that nothing of the page is
//! cached; or names a *frame*, memory with a value per block; or, where the values of all blocks follow from that of
//! the first, has that value: a *run*. So what was written in order, and what was never written, takes
//! eight bytes per page, which stay in a core's own caches. Only the owner writes ([`super::cache`]).

use bytemuck::allocation::try_zeroed_slice_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Virtual blocks per entry of a page table.
pub const PAGE_BLOCKS: usize = 512;

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

/// What an entry of a page table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// Nothing: ask the owner.
    NotCached,
    /// No block is mapped.
    Hole,
    /// The first block's value; each of the others is a step more than the one before.
    Run(u64),
    /// The values are in this frame.
    Frame(u32),
}

impl Page {
    /// No value of a run has this bit: it is [`HELD`]'s. With all others it is a hole.
    const RUN: u64 = 1 << 63;

    #[inline(always)]
    fn decode(entry: u64) -> Page {
        match entry {
            0 => Page::NotCached,
            UNMAPPED => Page::Hole,
            run if run & Self::RUN != 0 => Page::Run(run & !Self::RUN),
            frame => Page::Frame((frame - 1) as u32),
        }
    }

    fn encode(self) -> u64 {
        match self {
            Page::NotCached => 0,
            Page::Hole => UNMAPPED,
            Page::Run(first) => first | Self::RUN,
            Page::Frame(frame) => u64::from(frame) + 1,
        }
    }

    /// The page of these values, if that takes no frame.
    pub fn without_frame(values: &[u64], step: u64) -> Option<Page> {
        let first = *values.first()?;
        if first == UNMAPPED {
            let is_hole = values.iter().all(|value| *value == UNMAPPED);
            return is_hole.then_some(Page::Hole);
        }
        // Beyond the last value, so that no run is taken for a hole.
        let end = step.checked_mul(PAGE_BLOCKS as u64)?.checked_add(first)?;
        let mut expected = first;
        let follows = |value: &u64| {
            let follows = *value == expected;
            expected = expected.wrapping_add(step);
            follows
        };
        let is_run = end & Self::RUN == 0 && first < end && values.iter().all(follows);
        is_run.then_some(Page::Run(first))
    }
}

/// The slab of frames.
pub(super) struct Frames {
    pub cells: Box<[AtomicU64]>,
    /// So many are in use that a core's own caches do not hold them.
    pub are_far: AtomicBool,
}

impl Frames {
    #[inline(always)]
    pub fn cell(&self, frame: u32, block: u64) -> Option<&AtomicU64> {
        self.cells
            .get(frame as usize * PAGE_BLOCKS + block as usize % PAGE_BLOCKS)
    }
}

/// What is cached of a device's mappings.
pub struct PageTable {
    pages: Box<[AtomicU64]>,
    frames: Arc<Frames>,
    /// From a value of a run to the next.
    step: u64,
    nr_blocks: u64,
    /// A core's own caches do not hold the table.
    is_far: bool,
}

impl PageTable {
    /// An empty one of a device of `nr_blocks`. None where there is not the memory for it.
    pub(super) fn new(
        nr_blocks: u64,
        frames: Arc<Frames>,
        step: u64,
        near_bytes: usize,
    ) -> Option<Self> {
        let nr_pages = usize::try_from(nr_blocks.div_ceil(PAGE_BLOCKS as u64)).ok()?;
        let pages: Box<[AtomicU64]> = try_zeroed_slice_box(nr_pages).ok()?;
        Some(PageTable {
            is_far: size_of_val(&*pages) > near_bytes,
            pages,
            frames,
            step,
            nr_blocks,
        })
    }

    #[inline(always)]
    fn entry(&self, block: u64) -> Option<&AtomicU64> {
        self.pages.get(block as usize / PAGE_BLOCKS)
    }

    #[inline(always)]
    pub(super) fn page(&self, block: u64) -> Page {
        self.entry(block).map_or(Page::NotCached, |entry| {
            Page::decode(entry.load(Ordering::Acquire))
        })
    }

    /// Shows the page of a block so, and returns as what it was shown before.
    pub(super) fn set_page(&self, block: u64, page: Page) -> Page {
        let Some(entry) = self.entry(block) else {
            return Page::NotCached;
        };
        Page::decode(entry.swap(page.encode(), Ordering::SeqCst))
    }

    /// What is cached for a block: its value, perhaps [`UNMAPPED`].
    #[inline(always)]
    pub fn value(&self, block: u64) -> Option<u64> {
        match self.page(block) {
            Page::NotCached => None,
            Page::Hole => Some(UNMAPPED),
            Page::Run(first) => Some(first + block % PAGE_BLOCKS as u64 * self.step),
            Page::Frame(frame) => {
                let cell = self.frames.cell(frame, block)?;
                Some(cell.load(Ordering::Acquire))
            }
        }
    }

    /// The same, of a thin device.
    #[inline(always)]
    pub fn get(&self, block: u64) -> Entry {
        match self.value(block) {
            None => Entry::NotCached,
            Some(UNMAPPED) => Entry::Unmapped,
            Some(value) if value & HELD != 0 => Entry::Held {
                data_block: (value & !HELD) >> TIME_BITS,
            },
            Some(value) => Entry::Mapped {
                data_block: value >> TIME_BITS,
                time: (value & ((1 << TIME_BITS) - 1)) as u32,
            },
        }
    }

    /// Whether a look is likely to find its memory in no cache of the core's.
    #[inline]
    pub fn is_far(&self) -> bool {
        self.is_far || self.frames.are_far.load(Ordering::Relaxed)
    }

    /// The memory a look at a block goes to, where it is likely in no cache of the core's.
    #[inline]
    pub fn far_cell(&self, block: u64) -> Option<&AtomicU64> {
        if !self.frames.are_far.load(Ordering::Relaxed) {
            return match self.is_far {
                true => self.entry(block),
                false => None,
            };
        }
        match self.page(block) {
            Page::Frame(frame) => self.frames.cell(frame, block),
            _ => None,
        }
    }

    /// Blocks of the device from the first of a block's page to the end of that.
    pub(super) fn blocks_of_page(&self, block: u64) -> std::ops::Range<u64> {
        let begin = block - block % PAGE_BLOCKS as u64;
        begin..(begin + PAGE_BLOCKS as u64).min(self.nr_blocks)
    }

    pub(super) fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    /// Whether anything is known of a block.
    pub(crate) fn is_cached(&self, block: u64) -> bool {
        self.page(block) != Page::NotCached
    }

    /// Publishes a value for a block whose page is cached; otherwise there is nothing to do. Where it takes a frame
    /// that the page does not have, the page is forgotten.
    pub(crate) fn set(&self, block: u64, value: u64) {
        match self.page(block) {
            Page::Frame(frame) => {
                if let Some(cell) = self.frames.cell(frame, block) {
                    cell.store(value, Ordering::Release);
                }
            }
            Page::NotCached => {}
            Page::Hole | Page::Run(_) => {
                if self.value(block) != Some(value) {
                    self.set_page(block, Page::NotCached);
                }
            }
        }
    }

    /// Publishes "unmapped" for a range of blocks.
    pub(crate) fn unmap(&self, begin: u64, end: u64) {
        let mut block = begin;
        while block < end.min(self.nr_blocks) {
            let of_page = self.blocks_of_page(block);
            let part = block..of_page.end.min(end);
            match self.page(block) {
                Page::Run(_) if part == of_page => {
                    self.set_page(block, Page::Hole);
                }
                Page::NotCached | Page::Hole => {}
                _ => part.clone().for_each(|block| self.set(block, UNMAPPED)),
            }
            block = part.end;
        }
    }

    /// Has writes to mapped blocks of a range come to the owner, or lets them pass again. What is published
    /// later has to be held by who publishes it ([`held`]).
    pub(crate) fn hold(&self, begin: u64, end: u64, hold: bool) {
        for block in begin..end {
            match self.page(block) {
                Page::Frame(frame) => {
                    let Some(cell) = self.frames.cell(frame, block) else {
                        continue;
                    };
                    match cell.load(Ordering::Relaxed) {
                        UNMAPPED => {}
                        value if hold => cell.store(value | HELD, Ordering::SeqCst),
                        value => cell.store(value & !HELD, Ordering::SeqCst),
                    }
                }
                // Nothing of it is held yet, and there is no place to say so.
                Page::Run(_) if hold => {
                    self.set_page(block, Page::NotCached);
                }
                _ => {}
            }
        }
    }
}
