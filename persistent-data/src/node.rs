//! B-tree nodes as bytes (persistent-data.md 2).
//!
//! Functions here take a node whose header has passed [`NODE`]'s rules, so that every index below
//! `nr_entries` lies inside the block.

use crate::block::{Kind, get_u32, get_u64, put_u32, put_u64};
use crate::device::{BLOCK_BYTES, BlockBytes};

const HEADER_BYTES: usize = 32;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;

/// A node.
pub static NODE: Kind = Kind {
    name: "B-tree node",
    xor: 121_107,
    blocknr_offset: 8,
    validate,
};

fn validate(bytes: &BlockBytes) -> Result<(), &'static str> {
    let (nr, max, size) = (nr_entries(bytes), max_entries(bytes), value_size(bytes));
    if !matches!(get_u32(bytes, 4), INTERNAL | LEAF) {
        return Err("node is neither internal nor leaf");
    }
    let room = size
        .checked_add(8)
        .and_then(|entry| entry.checked_mul(max))
        .and_then(|all| all.checked_add(HEADER_BYTES));
    if room.is_none_or(|room| room > BLOCK_BYTES) {
        return Err("node's capacity is larger than a block");
    }
    // Such a node cannot be split in two that are not empty.
    if max < 3 {
        return Err("node's capacity is below 3");
    }
    if nr > max {
        return Err("node has more entries than capacity");
    }
    if !is_leaf(bytes) && (size != 8 || nr == 0) {
        return Err("internal node with bad entries");
    }
    Ok(())
}

/// Entries a node has room for, always a multiple of 3.
pub const fn capacity(value_size: usize) -> usize {
    (BLOCK_BYTES - HEADER_BYTES) / (8 + value_size) / 3 * 3
}

/// Makes an empty node.
pub fn init(bytes: &mut BlockBytes, leaf: bool, value_size: usize) {
    put_u32(bytes, 4, if leaf { LEAF } else { INTERNAL });
    put_u32(bytes, 16, 0);
    put_u32(bytes, 20, capacity(value_size) as u32);
    put_u32(bytes, 24, value_size as u32);
    put_u32(bytes, 28, 0);
}

/// Whether values are the tree's, not children.
pub fn is_leaf(bytes: &BlockBytes) -> bool {
    get_u32(bytes, 4) == LEAF
}

/// Entries in use.
pub fn nr_entries(bytes: &BlockBytes) -> usize {
    get_u32(bytes, 16) as usize
}

/// Capacity.
pub fn max_entries(bytes: &BlockBytes) -> usize {
    get_u32(bytes, 20) as usize
}

/// Bytes per value.
pub fn value_size(bytes: &BlockBytes) -> usize {
    get_u32(bytes, 24) as usize
}

fn set_nr_entries(bytes: &mut BlockBytes, nr: usize) {
    put_u32(bytes, 16, nr as u32);
}

/// Key of entry `i`.
pub fn key(bytes: &BlockBytes, i: usize) -> u64 {
    get_u64(bytes, HEADER_BYTES + 8 * i)
}

/// Changes the key of entry `i`.
pub fn set_key(bytes: &mut BlockBytes, i: usize, key: u64) {
    put_u64(bytes, HEADER_BYTES + 8 * i, key);
}

fn value_at(bytes: &BlockBytes, i: usize) -> usize {
    HEADER_BYTES + 8 * max_entries(bytes) + value_size(bytes) * i
}

/// Bytes of value `i`.
pub fn value(bytes: &BlockBytes, i: usize) -> &[u8] {
    let at = value_at(bytes, i);
    &bytes[at..at + value_size(bytes)]
}

/// Bytes of value `i`, to be changed.
pub fn value_mut(bytes: &mut BlockBytes, i: usize) -> &mut [u8] {
    let at = value_at(bytes, i);
    let size = value_size(bytes);
    &mut bytes[at..at + size]
}

/// Child `i` of an internal node.
pub fn child(bytes: &BlockBytes, i: usize) -> u64 {
    get_u64(value(bytes, i), 0)
}

/// Changes child `i` of an internal node.
pub fn set_child(bytes: &mut BlockBytes, i: usize, block: u64) {
    put_u64(value_mut(bytes, i), 0, block);
}

/// Number of entries with a key `<= wanted`.
pub fn upper_bound(bytes: &BlockBytes, wanted: u64) -> usize {
    let (mut low, mut high) = (0, nr_entries(bytes));
    while low < high {
        let middle = (low + high) / 2;
        if key(bytes, middle) <= wanted {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// The last entry with a key `<= wanted`.
pub fn lower_bound(bytes: &BlockBytes, wanted: u64) -> Option<usize> {
    upper_bound(bytes, wanted).checked_sub(1)
}

/// The entry with exactly this key.
pub fn find(bytes: &BlockBytes, wanted: u64) -> Option<usize> {
    lower_bound(bytes, wanted).filter(|i| key(bytes, *i) == wanted)
}

/// Inserts an entry before entry `i`; there is room, and the value has the node's size.
pub fn insert(bytes: &mut BlockBytes, i: usize, new_key: u64, new_value: &[u8]) {
    open_gap(bytes, i, new_key).copy_from_slice(new_value);
}

/// Makes an entry at `i`. The caller fills its value.
pub fn open_gap(bytes: &mut BlockBytes, i: usize, new_key: u64) -> &mut [u8] {
    let nr = nr_entries(bytes);
    shift(bytes, i, nr, i + 1);
    set_nr_entries(bytes, nr + 1);
    set_key(bytes, i, new_key);
    value_mut(bytes, i)
}

/// Removes entries `begin..end`.
pub fn remove(bytes: &mut BlockBytes, begin: usize, end: usize) {
    let nr = nr_entries(bytes);
    shift(bytes, end, nr, begin);
    set_nr_entries(bytes, nr - (end - begin));
}

/// Moves entries `begin..end` to start at `to`, within the node.
fn shift(bytes: &mut BlockBytes, begin: usize, end: usize, to: usize) {
    let keys = HEADER_BYTES + 8 * begin..HEADER_BYTES + 8 * end;
    bytes.copy_within(keys, HEADER_BYTES + 8 * to);
    let values = value_at(bytes, begin)..value_at(bytes, end);
    let to = value_at(bytes, to);
    bytes.copy_within(values, to);
}

/// Appends entries `begin..end` of `from` to the end of `to`; there is room.
pub fn append(to: &mut BlockBytes, from: &BlockBytes, begin: usize, end: usize) {
    let nr = nr_entries(to);
    for i in begin..end {
        set_key(to, nr + i - begin, key(from, i));
    }
    let at = value_at(to, nr);
    let values = &from[value_at(from, begin)..value_at(from, end)];
    to[at..at + values.len()].copy_from_slice(values);
    set_nr_entries(to, nr + end - begin);
}

/// Puts entries `begin..end` of `from` before the first of `to`; there is room.
pub fn prepend(to: &mut BlockBytes, from: &BlockBytes, begin: usize, end: usize) {
    let nr = nr_entries(to);
    let count = end - begin;
    shift(to, 0, nr, count);
    for i in 0..count {
        set_key(to, i, key(from, begin + i));
    }
    let at = value_at(to, 0);
    let values = &from[value_at(from, begin)..value_at(from, end)];
    to[at..at + values.len()].copy_from_slice(values);
    set_nr_entries(to, nr + count);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of capacities in persistent-data.md 2.
    #[test]
    fn capacities() {
        for (size, entries) in [(4, 336), (8, 252), (12, 201), (16, 168), (24, 126)] {
            assert_eq!(capacity(size), entries);
        }
    }
}
