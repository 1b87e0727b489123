//! Counts per block for checks and rebuilds: a byte per block where anything is counted at all, so
//! that a device of billions of blocks costs what is used of it.

use persistent_data::space_map::ENTRIES_PER_BITMAP;
use rustc_hash::FxHashMap;

/// Blocks per page: those of a bitmap.
const PAGE: u64 = ENTRIES_PER_BITMAP;
/// Counts from here on are kept beside the pages.
const MANY: u8 = u8::MAX;

/// References per block.
#[derive(Debug, Default)]
pub struct Tally {
    pages: FxHashMap<u64, Box<[u8]>>,
    many: FxHashMap<u64, u32>,
}

impl Tally {
    /// Counts a reference; returns how many there are now.
    pub fn add(&mut self, block: u64) -> u32 {
        let page = self
            .pages
            .entry(block / PAGE)
            .or_insert_with(|| vec![0; PAGE as usize].into_boxed_slice());
        let Some(count) = page.get_mut((block % PAGE) as usize) else {
            return 0;
        };
        if *count < MANY - 1 {
            *count += 1;
            return u32::from(*count);
        }
        *count = MANY;
        let many = self.many.entry(block).or_insert(u32::from(MANY) - 1);
        *many = many.saturating_add(1);
        *many
    }

    /// Takes back a reference that was counted.
    pub fn remove(&mut self, block: u64) {
        let page = self.pages.get_mut(&(block / PAGE));
        let Some(count) = page.and_then(|page| page.get_mut((block % PAGE) as usize)) else {
            return;
        };
        match (*count, self.many.get_mut(&block)) {
            // Going on in `many` once there is right, too.
            (MANY, Some(many)) => *many = many.saturating_sub(1),
            _ => *count = count.saturating_sub(1),
        }
    }

    /// References counted.
    pub fn get(&self, block: u64) -> u32 {
        let page = self.pages.get(&(block / PAGE));
        match page.and_then(|page| page.get((block % PAGE) as usize)) {
            Some(&MANY) => self.many.get(&block).copied().unwrap_or_default(),
            Some(&count) => u32::from(count),
            None => 0,
        }
    }

    /// Whether any of the blocks of a bitmap have references.
    pub fn any_in_bitmap(&self, bitmap: u64) -> bool {
        self.pages.contains_key(&bitmap)
    }

    /// Blocks with references from `begin` on, ascending.
    pub fn counted_from(&self, begin: u64) -> impl Iterator<Item = (u64, u32)> + '_ {
        let mut pages: Vec<_> = self.pages.keys().copied().collect();
        pages.retain(|page| *page >= begin / PAGE);
        pages.sort_unstable();
        pages
            .into_iter()
            // The last page of all there can be is not a whole one.
            .flat_map(|page| (0..PAGE).filter_map(move |i| (page * PAGE).checked_add(i)))
            .filter(move |block| *block >= begin)
            .map(|block| (block, self.get(block)))
            .filter(|(_, count)| *count > 0)
    }

    /// How many blocks have references.
    pub fn nr_counted(&self) -> u64 {
        let pages = self.pages.values().flatten();
        pages.filter(|count| **count > 0).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts are exact on both sides of what a byte holds, and blocks do not disturb each other.
    #[test]
    fn counts_are_exact() {
        let mut tally = Tally::default();
        for n in 1..=1000 {
            assert_eq!(tally.add(PAGE - 1), n);
            assert_eq!(tally.get(PAGE - 1), n);
        }
        assert_eq!(tally.add(PAGE), 1);
        assert_eq!(tally.add(u64::MAX >> 24), 1);
        assert_eq!(tally.get(PAGE - 2), 0);
        let counted: Vec<_> = tally.counted_from(PAGE - 1).collect();
        assert_eq!(counted, [(PAGE - 1, 1000), (PAGE, 1), (u64::MAX >> 24, 1)]);
        assert_eq!(tally.counted_from(PAGE + 1).count(), 1);
        assert_eq!(tally.nr_counted(), 3);
        // A damaged disk may refer to any block.
        assert_eq!(tally.add(u64::MAX), 1);
        assert_eq!(
            tally.counted_from(u64::MAX).collect::<Vec<_>>(),
            [(u64::MAX, 1)]
        );
    }
}
