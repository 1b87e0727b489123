//! The exceptions of one COW device as every core sees them.
//!
//! A bit per chunk of the origin tells whether there is a complete exception: exact, so "none" is answered
//! without a look elsewhere. Where the chunk is comes from pages in a [`crate::thin::cache::MappingCache`] with a byte limit;
//! a page that is not there is read again from the store by the owner. Only the owner writes, the place
//! before the bit.

use crate::era::marks::Marks;
use crate::target::BaseId;
use crate::thin::cache::{PAGE_BLOCKS, PageTable, Paged, UNMAPPED};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// No chunk is being merged.
const NO_BATCH: u64 = u64::MAX;

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the origin.
    Origin,
    /// This chunk of the COW device.
    Cow(u64),
    /// On the COW device; the owner knows where.
    Unknown,
}

/// The complete exceptions of a store.
pub struct Exceptions {
    marks: Marks,
    pages: PageTable,
    base: BaseId,
    nr_chunks: u64,
    /// log2 of logical blocks per chunk.
    chunk_shift: u32,
    /// Chunks of the origin that are just being merged; the first is [`NO_BATCH`] when there are none.
    batch_first: AtomicU64,
    batch_end: AtomicU64,
}

impl Paged for Exceptions {
    fn pages(&self) -> &PageTable {
        &self.pages
    }
}

impl Exceptions {
    /// None, of an origin of `nr_chunks`; the COW device is `base`.
    pub(super) fn new(pages: PageTable, base: BaseId, nr_chunks: u64, chunk_shift: u32) -> Self {
        Exceptions {
            marks: Marks::new(nr_chunks),
            pages,
            base,
            nr_chunks,
            chunk_shift,
            batch_first: AtomicU64::new(NO_BATCH),
            batch_end: AtomicU64::new(0),
        }
    }

    /// The COW device.
    #[inline]
    pub fn base(&self) -> BaseId {
        self.base
    }

    /// Chunks of the part of the origin that counts.
    pub fn nr_chunks(&self) -> u64 {
        self.nr_chunks
    }

    /// log2 of logical blocks per chunk.
    #[inline]
    pub fn chunk_shift(&self) -> u32 {
        self.chunk_shift
    }

    /// The chunk of a logical block.
    #[inline]
    pub fn chunk(&self, logical: u64) -> u64 {
        logical >> self.chunk_shift
    }

    /// Logical blocks from `logical` to the end of its chunk.
    #[inline]
    pub fn left_in_chunk(&self, logical: u64) -> u64 {
        let size = 1 << self.chunk_shift;
        size - (logical & (size - 1))
    }

    /// Where on the COW device a logical block is whose chunk is there.
    #[inline]
    pub fn logical_on_cow(&self, new_chunk: u64, logical: u64) -> u64 {
        (new_chunk << self.chunk_shift) | (logical & ((1 << self.chunk_shift) - 1))
    }

    /// Whether a chunk has a complete exception.
    #[inline]
    pub fn has(&self, chunk: u64) -> bool {
        self.marks.is_marked(chunk)
    }

    /// Whether no chunk of a page has a complete exception.
    pub(super) fn is_page_empty(&self, page: u64) -> bool {
        let first = page * PAGE_BLOCKS as u64;
        !self.marks.has_any(first..first + PAGE_BLOCKS as u64)
    }

    /// Where a chunk is.
    #[inline]
    pub fn look(&self, chunk: u64) -> Place {
        match self.marks.is_marked(chunk) {
            false => Place::Origin,
            true => match self.pages.value(chunk) {
                None | Some(UNMAPPED) => Place::Unknown,
                Some(new_chunk) => Place::Cow(new_chunk),
            },
        }
    }

    /// Whether that memory is likely in no cache of the core's.
    #[inline]
    pub fn is_far(&self) -> bool {
        self.pages.is_far()
    }

    /// The memory that says where the chunk of a logical block is, where it is likely in no cache of the core's.
    #[inline]
    pub fn far_cell(&self, logical: u64) -> Option<&AtomicU64> {
        self.pages.far_cell(self.chunk(logical))
    }

    /// Whether a chunk is just being merged. To be asked before [`Exceptions::look`].
    #[inline]
    pub fn is_in_batch(&self, chunk: u64) -> bool {
        let first = self.batch_first.load(Ordering::Acquire);
        // The end is stored before the first and so belongs to it, or to a later batch: then the chunks
        // of this one have no exception any more.
        chunk >= first && chunk < self.batch_end.load(Ordering::Acquire)
    }

    pub(super) fn begin_batch(&self, chunks: Range<u64>) {
        self.batch_end.store(chunks.end, Ordering::Release);
        self.batch_first.store(chunks.start, Ordering::Release);
    }

    pub(super) fn end_batch(&self) {
        self.batch_first.store(NO_BATCH, Ordering::Release);
    }

    /// Notes an exception while the store is being loaded. False: there is one for this chunk.
    pub(super) fn note(&self, old_chunk: u64) -> bool {
        if old_chunk >= self.nr_chunks {
            return true;
        }
        let is_first = !self.marks.is_marked(old_chunk);
        self.mark(old_chunk);
        is_first
    }

    fn mark(&self, chunk: u64) {
        self.marks.ensure(chunk..chunk + 1);
        self.marks.mark(chunk..chunk + 1);
    }

    /// Publishes a complete exception.
    pub(super) fn publish(&self, old_chunk: u64, new_chunk: u64) {
        if old_chunk < self.nr_chunks {
            self.pages.set(old_chunk, new_chunk);
            self.mark(old_chunk);
        }
    }

    /// Publishes that exceptions are gone.
    pub(super) fn remove(&self, chunks: Range<u64>) {
        let end = chunks.end.min(self.nr_chunks);
        if chunks.start < end {
            self.marks.unmark(chunks.start..end);
            self.pages.unmap(chunks.start, end);
        }
    }

    /// Bytes of the bits.
    pub fn used_bytes(&self) -> u64 {
        self.marks.used_bytes()
    }
}
