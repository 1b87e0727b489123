//! The published bitmap: which blocks are known, durably, to be written in the current era.
//!
//! The owner writes, every core reads. A set bit stands for a committed one, so a stale 0 costs a
//! detour and a stale 1 is what the owner's barrier rules out (see `messages`).

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD_BITS: u64 = 64;
/// Bits that are allocated at once, so that the bitmap can grow under its readers.
const SEGMENT_BITS: u64 = 1 << 18;
const SEGMENT_WORDS: usize = (SEGMENT_BITS / WORD_BITS) as usize;

type Segment = Box<[AtomicU64]>;

/// A bit per block: `nr_blocks / 8` bytes in portions of 32 KiB, and 192 KiB for the table of them.
pub struct Marks {
    /// As many as the format has blocks for.
    segments: Box<[OnceLock<Segment>]>,
}

impl Marks {
    /// A bitmap that can hold up to `max_blocks`, of which none is there yet.
    pub(crate) fn new(max_blocks: u64) -> Self {
        let count = max_blocks.div_ceil(SEGMENT_BITS);
        Marks {
            segments: (0..count).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Makes room for blocks up to `nr_blocks`, unmarked.
    pub(crate) fn grow(&self, nr_blocks: u64) {
        let count = nr_blocks.div_ceil(SEGMENT_BITS) as usize;
        for segment in self.segments.iter().take(count) {
            segment.get_or_init(|| (0..SEGMENT_WORDS).map(|_| AtomicU64::new(0)).collect());
        }
    }

    #[inline]
    fn word(&self, word: u64) -> Option<&AtomicU64> {
        let segment = self.segments.get(word as usize / SEGMENT_WORDS)?.get()?;
        segment.get(word as usize % SEGMENT_WORDS)
    }

    /// Whether a block is marked. The one test of the hot path.
    #[inline]
    pub fn is_marked(&self, block: u64) -> bool {
        match self.word(block / WORD_BITS) {
            Some(word) => word.load(Ordering::Acquire) >> (block % WORD_BITS) & 1 == 1,
            None => false,
        }
    }

    /// Whether every block of a range is marked.
    pub fn are_marked(&self, blocks: Range<u64>) -> bool {
        words(blocks).all(|(word, mask)| {
            let found = self.word(word).map(|word| word.load(Ordering::Acquire));
            found.is_some_and(|found| found & mask == mask)
        })
    }

    /// Whether some block of a range is marked.
    pub(crate) fn has_any(&self, blocks: Range<u64>) -> bool {
        words(blocks).any(|(word, mask)| {
            let found = self.word(word).map(|word| word.load(Ordering::Acquire));
            found.is_some_and(|found| found & mask != 0)
        })
    }

    /// Publishes that blocks are marked: only after the commit that says so. Returns how many were not before.
    pub(crate) fn mark(&self, blocks: Range<u64>) -> u64 {
        let mut nr_new = 0;
        for (word, mask) in words(blocks) {
            if let Some(word) = self.word(word) {
                let before = word.fetch_or(mask, Ordering::Release);
                nr_new += u64::from((mask & !before).count_ones());
            }
        }
        nr_new
    }

    /// Makes room for a range of blocks only.
    pub(crate) fn ensure(&self, blocks: Range<u64>) {
        let first = (blocks.start / SEGMENT_BITS) as usize;
        let end = blocks.end.div_ceil(SEGMENT_BITS) as usize;
        let there = self.segments.iter().take(end).skip(first);
        for segment in there {
            segment.get_or_init(|| (0..SEGMENT_WORDS).map(|_| AtomicU64::new(0)).collect());
        }
    }

    /// Publishes that blocks are not marked.
    pub(crate) fn unmark(&self, blocks: Range<u64>) {
        for (word, mask) in words(blocks) {
            if let Some(word) = self.word(word) {
                word.fetch_and(!mask, Ordering::Release);
            }
        }
    }

    /// Marks what is marked in another bitmap, where there is room for it.
    pub(crate) fn add(&self, other: &Marks) {
        let pairs = self.segments.iter().zip(other.segments.iter());
        for (mine, theirs) in pairs.filter_map(|(mine, theirs)| mine.get().zip(theirs.get())) {
            for (mine, theirs) in mine.iter().zip(theirs.iter()) {
                let found = theirs.load(Ordering::Acquire);
                if found != 0 {
                    mine.fetch_or(found, Ordering::Release);
                }
            }
        }
    }

    /// How many blocks are marked.
    pub(crate) fn count(&self) -> u64 {
        let there = self.segments.iter().filter_map(OnceLock::get);
        let words = there.flat_map(|segment| segment.iter());
        words
            .map(|word| u64::from(word.load(Ordering::Acquire).count_ones()))
            .sum()
    }

    /// No block is marked any more. Cores that have not noticed may still pass writes.
    pub(crate) fn clear(&self) {
        let there = self.segments.iter().filter_map(OnceLock::get);
        for word in there.flat_map(|segment| segment.iter()) {
            // Words that are clear already stay in the caches of who reads them.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Release);
            }
        }
    }

    /// Bytes taken.
    pub fn used_bytes(&self) -> u64 {
        let there = self.segments.iter().filter(|s| s.get().is_some()).count() as u64;
        let table = std::mem::size_of_val(&*self.segments) as u64;
        table + there * SEGMENT_BITS / 8
    }
}

/// The words a range is in, and which of their bits.
fn words(blocks: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let words = blocks.start / WORD_BITS..blocks.end.div_ceil(WORD_BITS);
    let words = if blocks.is_empty() { 0..0 } else { words };
    words.map(move |word| {
        let base = word * WORD_BITS;
        let low = blocks.start.saturating_sub(base);
        let high = (blocks.end - base).min(WORD_BITS);
        (word, (u64::MAX >> (WORD_BITS - high)) & (u64::MAX << low))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges over words and segments are marked exactly; what is not there is not marked.
    #[test]
    fn ranges() {
        let marks = Marks::new(3 * SEGMENT_BITS);
        marks.grow(2 * SEGMENT_BITS);
        let edge = SEGMENT_BITS;
        for range in [0..1, 5..64, 64..128, 63..65, edge - 3..edge + 70, 7..7] {
            assert_eq!(marks.mark(range.clone()), range.end - range.start);
            assert_eq!(marks.mark(range.clone()), 0);
            assert!(marks.are_marked(range.clone()));
            for block in 0..2 * SEGMENT_BITS {
                assert_eq!(
                    marks.is_marked(block),
                    range.contains(&block),
                    "{block} of {range:?}"
                );
            }
            assert!(range.is_empty() || !marks.are_marked(range.start..range.end + 1));
            marks.unmark(range.start..range.start + 1);
            assert!(range.is_empty() || !marks.is_marked(range.start));
            marks.clear();
            assert!(range.is_empty() || !marks.are_marked(range));
        }
        marks.mark(0..3 * SEGMENT_BITS);
        assert!(!marks.is_marked(2 * SEGMENT_BITS));
        assert!(!marks.are_marked(2 * SEGMENT_BITS - 1..2 * SEGMENT_BITS + 1));
    }
}
