//! Sets of blocks, as runs that join.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint runs of blocks that do not touch: first, end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a run, unless a part of it is there. An empty one is not there.
    pub fn insert(&mut self, run: Range<u64>) -> bool {
        let before = self
            .0
            .range(..run.end)
            .next_back()
            .map(|(first, end)| (*first, *end));
        if run.is_empty() || before.is_some_and(|(_, end)| end > run.start) {
            return false;
        }
        let first = match before {
            Some((first, end)) if end == run.start => first,
            _ => run.start,
        };
        let end = self.0.remove(&run.end).unwrap_or(run.end);
        self.0.insert(first, end);
        true
    }

    /// Adds runs, whatever of them is there. They come in ascending order.
    pub fn of(runs: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut ranges = Ranges::default();
        for run in runs {
            let start = ranges.0.last_key_value().map_or(0, |(_, end)| *end);
            ranges.insert(run.start.max(start)..run.end);
        }
        ranges
    }

    /// The runs, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(first, end)| *first..*end)
    }

    /// What of the set is in a run.
    pub fn within(&self, run: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let before = self.0.range(..run.start).next_back();
        let inside = self.0.range(run.start..run.end.max(run.start));
        let parts = before.into_iter().chain(inside);
        parts
            .map(move |(first, end)| (*first).max(run.start)..(*end).min(run.end))
            .filter(|part| !part.is_empty())
    }

    /// Whether all of a run is there.
    pub fn contains(&self, run: Range<u64>) -> bool {
        let found = self.0.range(..=run.start).next_back();
        run.is_empty() || found.is_some_and(|(_, end)| *end >= run.end)
    }

    /// How many blocks.
    pub fn count(&self) -> u64 {
        self.iter().map(|run| run.end - run.start).sum()
    }

    /// The `at`-th block of the set.
    pub fn nth(&self, mut at: u64) -> Option<u64> {
        for run in self.iter() {
            let count = run.end - run.start;
            if at < count {
                return Some(run.start + at);
            }
            at -= count;
        }
        None
    }

    /// Takes blocks from the beginning, at most `most` and all in one run.
    pub fn pop(&mut self, most: u64) -> Option<Range<u64>> {
        let (first, end) = self.0.pop_first()?;
        let taken = first..end.min(first.saturating_add(most));
        if taken.end < end {
            self.0.insert(taken.end, end);
        }
        Some(taken)
    }

    /// Takes a block. False: it was not there.
    pub fn remove(&mut self, block: u64) -> bool {
        let found = self.0.range(..=block).next_back();
        let Some((first, end)) = found.map(|(first, end)| (*first, *end)) else {
            return false;
        };
        if end <= block {
            return false;
        }
        self.0.remove(&first);
        for (first, end) in [(first, block), (block + 1, end)] {
            if first < end {
                self.0.insert(first, end);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// It is the set that a set is.
        #[test]
        fn is_a_set(steps in prop::collection::vec((0..4, 0..60u64, 0..9u64), 0..60)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (what, at, count) in steps {
                match what {
                    0 | 1 => {
                        let free = count > 0 && (at..at + count).all(|block| !set.contains(&block));
                        prop_assert_eq!(ranges.insert(at..at + count), free);
                        if free {
                            set.extend(at..at + count);
                        }
                    }
                    2 => prop_assert_eq!(ranges.remove(at), set.remove(&at)),
                    _ => {
                        let taken: Vec<u64> = ranges.pop(count + 1).into_iter().flatten().collect();
                        let first: Vec<u64> = set.iter().copied().take(taken.len()).collect();
                        prop_assert_eq!(&taken, &first);
                        prop_assert_eq!(taken.is_empty(), set.is_empty());
                        set.retain(|block| !taken.contains(block));
                    }
                }
                let all: Vec<u64> = ranges.iter().flatten().collect();
                prop_assert_eq!(&all, &set.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(ranges.count(), set.len() as u64);
                prop_assert_eq!(ranges.nth(at), all.get(at as usize).copied());
                let whole = (at..at + count).all(|block| set.contains(&block));
                prop_assert_eq!(ranges.contains(at..at + count), whole);
                let part: Vec<u64> = ranges.within(at..at + count).flatten().collect();
                prop_assert_eq!(part, set.range(at..at + count).copied().collect::<Vec<_>>());
                let joined: Vec<Range<u64>> = ranges.iter().collect();
                prop_assert!(joined.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}
