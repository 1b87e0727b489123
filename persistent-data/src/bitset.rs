//! Bitsets (persistent-data.md 6): arrays of u64, bit `i` in word `i / 64`, least significant first.
//!
//! Nothing is kept in core between calls, so there is nothing to flush before a commit.

use crate::array;
use crate::error::Result;
use crate::tm::TransactionManager;
use std::ops::Range;

/// Bits of a word.
const WORD_BITS: u64 = 64;

/// Bits an array block has room for: what one block of a bitset stands for.
pub const BITS_PER_BLOCK: u64 = array::capacity::<u64>() * WORD_BITS;

/// Words of a bitset.
pub const fn nr_words(nr_bits: u64) -> u64 {
    nr_bits.div_ceil(WORD_BITS)
}

/// A new bitset of zeroes; returns its root.
pub async fn create(tm: &TransactionManager, nr_bits: u64) -> Result<u64> {
    array::create(tm, nr_words(nr_bits), 0u64).await
}

/// The bits of `range` that are in word `word`.
fn mask(word: u64, range: &Range<u64>) -> u64 {
    let base = word * WORD_BITS;
    let low = range.start.saturating_sub(base).min(WORD_BITS);
    let high = range.end.saturating_sub(base).min(WORD_BITS);
    let below = |n: u64| 1u64.checked_shl(n as u32).map_or(u64::MAX, |bit| bit - 1);
    below(high) & !below(low)
}

/// Words are changed in portions of this many, which bounds memory for ranges of any size.
const PORTION_WORDS: usize = 4096;

/// Sets bits: ranges in ascending order that do not overlap. Returns the new root. Error: EILSEQ past
/// the end.
pub async fn set(tm: &TransactionManager, root: u64, ranges: &[Range<u64>]) -> Result<u64> {
    let mut root = root;
    let mut words: Vec<(u64, u64)> = Vec::new();
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        for word in range.start / WORD_BITS..=(range.end - 1) / WORD_BITS {
            let bits = mask(word, range);
            match words.last_mut() {
                Some((last, mask)) if *last == word => *mask |= bits,
                _ => {
                    if words.len() >= PORTION_WORDS {
                        root = set_words(tm, root, &words).await?;
                        words.clear();
                    }
                    words.push((word, bits));
                }
            }
        }
    }
    set_words(tm, root, &words).await
}

async fn set_words(tm: &TransactionManager, root: u64, words: &[(u64, u64)]) -> Result<u64> {
    let change = |old: u64, (_, bits): &(u64, u64)| old | bits;
    array::update(tm, root, words, |(word, _)| *word, change).await
}

/// Whether a bit is set. Error: EILSEQ past the end.
pub async fn get(tm: &TransactionManager, root: u64, bit: u64) -> Result<bool> {
    let word: u64 = array::get(tm, root, bit / WORD_BITS).await?;
    Ok(word >> (bit % WORD_BITS) & 1 == 1)
}

/// Calls `visit` with every bit of `range` that is set, ascending, until it says false.
pub async fn walk(
    tm: &TransactionManager,
    root: u64,
    range: Range<u64>,
    mut visit: impl FnMut(u64) -> bool,
) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let words = range.start / WORD_BITS..nr_words(range.end);
    array::walk(tm, root, words, |word, bits: u64| {
        let mut bits = bits & mask(word, &range);
        while bits != 0 {
            if !visit(word * WORD_BITS + u64::from(bits.trailing_zeros())) {
                return false;
            }
            bits &= bits - 1;
        }
        true
    })
    .await
}

/// Makes a bitset of `old` bits one of `new`; bits of new words are 0.
pub async fn resize(tm: &TransactionManager, root: u64, old: u64, new: u64) -> Result<u64> {
    array::resize(tm, root, nr_words(old), nr_words(new), 0u64).await
}
