//! Metadata with damage in it: blocks zeroed, bits flipped, and fields changed under right checksums.

use persistent_data::block::{Kind, get_u64};
use persistent_data::device::BlockBytes;
use persistent_data::space_map::stored;
use proptest::prelude::*;

/// The first bitmap of the map of the metadata device, whose root lies at this byte of the superblock.
pub fn bitmap(blocks: &[BlockBytes], map_root: usize) -> usize {
    let index = get_u64(&blocks[0], map_root + 16);
    get_u64(&blocks[index as usize], 16) as usize
}

/// Blocks that this bitmap says are referred to.
pub fn used(blocks: &[BlockBytes], bitmap: usize) -> Vec<u64> {
    (0..blocks.len() as u64)
        .filter(|block| stored(&blocks[bitmap], *block) > 0)
        .collect()
}

/// What a block is, of these kinds.
pub fn kind(kinds: &[&'static Kind], bytes: &BlockBytes, block: u64) -> Option<&'static Kind> {
    kinds
        .iter()
        .copied()
        .find(|kind| kind.verify(bytes, block).is_ok())
}

/// One block is damaged.
pub struct Damaged {
    /// Which.
    pub block: u64,
    /// It is all zeroes; else one of its bits is flipped.
    pub zero: bool,
    /// Nobody refers to it.
    pub is_free: bool,
    /// The whole device.
    pub blocks: Vec<BlockBytes>,
}

/// Every block in use, and one that is not, is zeroed, and has a bit flipped.
pub fn one_by_one(good: &[BlockBytes], used: &[u64]) -> impl Iterator<Item = Damaged> {
    let free = (0..good.len() as u64)
        .find(|block| !used.contains(block))
        .unwrap();
    let blocks: Vec<u64> = used.iter().copied().chain([free]).collect();
    let cases = blocks
        .into_iter()
        .flat_map(|block| [(block, true), (block, false)]);
    cases.map(move |(block, zero)| {
        let mut blocks = good.to_vec();
        let bytes = &mut blocks[block as usize];
        match zero {
            true => *bytes = [0; 4096],
            false => bytes[(block as usize * 97 + 20) % 4096] ^= 0x10,
        }
        Damaged {
            block,
            zero,
            is_free: block == free,
            blocks,
        }
    })
}

/// A change of a block in use: which, where, what to, and how these are read.
type Change = (prop::sample::Index, usize, u64, u8);

/// Some changes.
pub fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = (
        any::<prop::sample::Index>(),
        0..4088usize,
        any::<u64>(),
        0..4u8,
    );
    prop::collection::vec(change, 1..6)
}

/// Makes the changes, under right checksums. Most hit fields that are in use, with numbers that mean
/// something: of node headers, of the first entries, and of `fields`, 8 bytes apart or less.
pub fn change(
    blocks: &mut [BlockBytes],
    changes: Vec<Change>,
    used: &[u64],
    kinds: &[&'static Kind],
    fields: fn(usize) -> usize,
) {
    for (block, at, value, how) in changes {
        let nr = *block.get(used);
        let bytes = &mut blocks[nr as usize];
        let Some(kind) = kind(kinds, bytes, nr) else {
            continue;
        };
        let at = match how {
            0 => at,
            1 => at % 64 / 4 * 4,
            2 => 32 + at % 400 / 8 * 8,
            _ => fields(at),
        };
        let value = match value % 3 {
            0 => used[value as usize % used.len()],
            1 => get_u64(bytes, at).wrapping_add(value % 7).wrapping_sub(3),
            _ => value,
        };
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        kind.seal(bytes, nr);
    }
}
