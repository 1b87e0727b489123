//! What is known in memory of an area's entries, so that areas without an entry of interest are not read.

use std::ops::Range;

/// Chunks of the origin that are told apart only together.
const GROUP_CHUNKS: u64 = 512;
const BITS: u64 = 256;

/// A superset of the chunks of an area: bounds, and a bit per hashed group of chunks. 48 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Summary {
    first: u64,
    last: u64,
    groups: [u64; (BITS / 64) as usize],
}

impl Default for Summary {
    fn default() -> Self {
        Summary {
            first: u64::MAX,
            last: 0,
            groups: [0; (BITS / 64) as usize],
        }
    }
}

fn bit_of(group: u64) -> (usize, u64) {
    let bit = group.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - BITS.trailing_zeros());
    ((bit / 64) as usize, 1 << (bit % 64))
}

impl Summary {
    pub(super) fn add(&mut self, old_chunk: u64) {
        self.first = self.first.min(old_chunk);
        self.last = self.last.max(old_chunk);
        let (word, bit) = bit_of(old_chunk / GROUP_CHUNKS);
        if let Some(word) = self.groups.get_mut(word) {
            *word |= bit;
        }
    }

    /// False only if none of these chunks was added.
    pub(super) fn may_have(&self, chunks: &Range<u64>) -> bool {
        if chunks.is_empty() || chunks.start > self.last || chunks.end <= self.first {
            return false;
        }
        let groups = chunks.start / GROUP_CHUNKS..chunks.end.div_ceil(GROUP_CHUNKS);
        groups.end - groups.start >= BITS
            || groups.into_iter().any(|group| {
                let (word, bit) = bit_of(group);
                self.groups.get(word).is_some_and(|word| word & bit != 0)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Nothing that was added is denied; far from everything added, most is.
        #[test]
        fn no_false_negatives(
            added in prop::collection::vec(0..1u64 << 40, 1..300),
            start in 0..1u64 << 40,
            len in 0..2000u64,
        ) {
            let mut summary = Summary::default();
            for chunk in &added {
                summary.add(*chunk);
            }
            for chunk in &added {
                prop_assert!(summary.may_have(&(*chunk..chunk + 1)));
            }
            let range = start..start + len;
            if added.iter().any(|chunk| range.contains(chunk)) {
                prop_assert!(summary.may_have(&range));
            }
        }
    }

    /// An area of neighbours is not read for others.
    #[test]
    fn tells_apart() {
        let mut summary = Summary::default();
        summary.add(5);
        summary.add(5000 * GROUP_CHUNKS);
        let denied =
            (1..5000).filter(|g| !summary.may_have(&(g * GROUP_CHUNKS..g * GROUP_CHUNKS + 1)));
        assert!(denied.count() > 4900);
    }
}
