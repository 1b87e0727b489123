//! Builds trees from entries that come in order, and a space map from counts: every block is filled and
//! written once, leaves first (persistent-data.md 2 and 3).

use super::ThinError;
use super::tally::Tally;
use persistent_data::btree::{self, Value};
use persistent_data::node::{self, NODE};
use persistent_data::space_map::{
    BITMAP, ENTRIES_PER_BITMAP, IndexEntry, SpaceMap, SpaceMapRoot, store,
};
use persistent_data::tm::TransactionManager;

/// A node that is written, and its first key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Built {
    pub first: u64,
    pub block: u64,
}

/// Writes one node.
pub(super) async fn write_node<V: Value>(
    tm: &TransactionManager,
    leaf: bool,
    entries: &[(u64, V)],
) -> Result<Built, ThinError> {
    let block = tm.new_block(&NODE).await?;
    let mut bytes = block.bytes_mut();
    node::init(&mut bytes, leaf, V::SIZE);
    let mut value = [0; 32];
    for (i, (key, v)) in entries.iter().enumerate() {
        let value = value.get_mut(..V::SIZE).unwrap_or_default();
        v.put(value);
        node::insert(&mut bytes, i, *key, value);
    }
    Ok(Built {
        first: entries.first().map_or(0, |(key, _)| *key),
        block: block.nr(),
    })
}

/// How many of the entries left go into the next node, so that none but a root is less than a third
/// full.
pub(super) const fn share(left: usize, capacity: usize) -> usize {
    if left <= capacity {
        left
    } else if left < 2 * capacity {
        left / 2
    } else {
        capacity
    }
}

/// The levels above leaves; returns the root.
pub(super) async fn tree_over<V: Value>(
    tm: &TransactionManager,
    leaves: Vec<Built>,
) -> Result<u64, ThinError> {
    let mut level = leaves;
    while level.len() > 1 {
        let mut above = Vec::new();
        let mut left = level.as_slice();
        while !left.is_empty() {
            let (these, rest) = left.split_at(share(left.len(), node::capacity(8)));
            let entries: Vec<(u64, u64)> = these.iter().map(|b| (b.first, b.block)).collect();
            above.push(write_node(tm, false, &entries).await?);
            left = rest;
        }
        level = above;
    }
    match level.first() {
        Some(root) => Ok(root.block),
        None => Ok(btree::empty::<V>(tm).await?),
    }
}

/// A whole tree from entries in memory.
pub(super) async fn tree_of<V: Value>(
    tm: &TransactionManager,
    entries: &[(u64, V)],
) -> Result<u64, ThinError> {
    let mut leaves = Vec::new();
    let mut left = entries;
    while !left.is_empty() {
        let (these, rest) = left.split_at(share(left.len(), node::capacity(V::SIZE)));
        leaves.push(write_node(tm, true, these).await?);
        left = rest;
    }
    tree_over::<V>(tm, leaves).await
}

/// The space map of the data device, from what was counted: every bitmap, the index and the counts from
/// 3 up (persistent-data.md 3), each block written once.
pub(super) async fn data_map(
    tm: &TransactionManager,
    counts: &Tally,
    nr_blocks: u64,
) -> Result<SpaceMapRoot, ThinError> {
    let mut index = Vec::new();
    let mut large = Vec::new();
    let mut nr_allocated = 0;
    for i in 0..SpaceMap::nr_bitmaps_for(nr_blocks) {
        let bitmap = tm.new_block(&BITMAP).await?;
        let mut entry = IndexEntry {
            blocknr: bitmap.nr(),
            nr_free: ENTRIES_PER_BITMAP as u32,
            none_free_before: 0,
        };
        if counts.any_in_bitmap(i) {
            let mut bytes = bitmap.bytes_mut();
            for e in 0..ENTRIES_PER_BITMAP {
                let block = i * ENTRIES_PER_BITMAP + e;
                let count = counts.get(block);
                if count == 0 {
                    continue;
                }
                store(&mut bytes, e, count.min(3));
                entry.nr_free -= 1;
                entry.none_free_before += u32::from(u64::from(entry.none_free_before) == e);
                if count >= 3 {
                    large.push((block, count));
                }
            }
        }
        nr_allocated += ENTRIES_PER_BITMAP - u64::from(entry.nr_free);
        index.push((i, entry));
    }
    Ok(SpaceMapRoot {
        nr_blocks,
        nr_allocated,
        bitmap_root: tree_of(tm, &index).await?,
        ref_count_root: tree_of(tm, &large).await?,
    })
}
