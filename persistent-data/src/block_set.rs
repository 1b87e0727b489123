//! Sets of blocks, and changes of blocks' counts, as a space map keeps them in core: mostly of blocks side
//! by side, which share a word. So what an allocation looks into is small enough for the core's caches.

use rustc_hash::FxHashMap;

const WORD: u64 = u64::BITS as u64;

/// A set of blocks.
#[derive(Debug, Default)]
pub(crate) struct BlockSet {
    /// By block / 64; no word is 0.
    words: FxHashMap<u64, u64>,
    len: usize,
}

impl BlockSet {
    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether a block is in it.
    pub fn contains(&self, block: u64) -> bool {
        let word = self.words.get(&(block / WORD));
        word.is_some_and(|word| word >> (block % WORD) & 1 != 0)
    }

    /// Adds a block. False: it was there.
    pub fn insert(&mut self, block: u64) -> bool {
        let word = self.words.entry(block / WORD).or_default();
        let bit = 1 << (block % WORD);
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.len += 1;
        true
    }

    /// Takes a block out. False: it was not there.
    pub fn remove(&mut self, block: u64) -> bool {
        let Some(word) = self.words.get_mut(&(block / WORD)) else {
            return false;
        };
        let bit = 1 << (block % WORD);
        if *word & bit == 0 {
            return false;
        }
        *word &= !bit;
        if *word == 0 {
            self.words.remove(&(block / WORD));
        }
        self.len -= 1;
        true
    }

    /// The blocks, in no order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.words.iter().flat_map(|(at, word)| {
            let bits = (0..WORD).filter(move |bit| word >> bit & 1 != 0);
            bits.map(move |bit| at * WORD + bit)
        })
    }
}

/// By how much blocks' counts have changed: 1 for most of those that have.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    ones: BlockSet,
    /// No difference here is 0 or 1.
    others: FxHashMap<u64, i64>,
}

impl Differences {
    /// Blocks whose count has changed.
    pub fn len(&self) -> usize {
        self.ones.len() + self.others.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A block's difference.
    pub fn get(&self, block: u64) -> i64 {
        if self.ones.contains(block) {
            return 1;
        }
        match self.others.is_empty() {
            true => 0,
            false => self.others.get(&block).copied().unwrap_or_default(),
        }
    }

    /// Adds to a block's difference.
    pub fn add(&mut self, block: u64, by: i64) {
        // The most frequent: one more reference.
        if by == 1 {
            let other = match self.others.is_empty() {
                true => None,
                false => self.others.get_mut(&block),
            };
            match other {
                None if self.ones.insert(block) => return,
                Some(difference) if !(-1..=0).contains(difference) => {
                    *difference += 1;
                    return;
                }
                _ => {}
            }
        }
        let difference = self.take(block) + by;
        match difference {
            0 => {}
            1 => {
                self.ones.insert(block);
            }
            _ => {
                self.others.insert(block, difference);
            }
        }
    }

    /// A block's difference, which is 0 from now on.
    pub fn take(&mut self, block: u64) -> i64 {
        match self.ones.remove(block) {
            true => 1,
            false => self.others.remove(&block).unwrap_or_default(),
        }
    }

    /// The blocks whose count has changed, in order.
    pub fn blocks(&self) -> Vec<u64> {
        let mut blocks: Vec<u64> = self.ones.iter().collect();
        blocks.extend(self.others.keys());
        blocks.sort_unstable();
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// As a map of differences that forgets those that are 0.
        #[test]
        fn differences_are_a_map(
            changes in prop::collection::vec((0u64..200, prop::sample::select(vec![-2i64, -1, 1, 1, 1, 2])), 0..300),
            taken in prop::collection::vec(0u64..200, 0..20),
        ) {
            let (mut differences, mut model) = (Differences::default(), BTreeMap::new());
            for (block, by) in changes {
                differences.add(block, by);
                let difference = model.entry(block).or_insert(0);
                *difference += by;
                if *difference == 0 {
                    model.remove(&block);
                }
                prop_assert_eq!(differences.len(), model.len());
            }
            for block in taken {
                prop_assert_eq!(differences.take(block), model.remove(&block).unwrap_or(0));
            }
            prop_assert_eq!(differences.blocks(), model.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(differences.is_empty(), model.is_empty());
            for block in 0..200 {
                prop_assert_eq!(differences.get(block), model.get(&block).copied().unwrap_or(0));
            }
        }
    }
}
