//! Metadata images with mutated blocks that are sealed again, so that the damage lies behind the
//! checksums.

use arbitrary::Arbitrary;
use bdev::era::metadata::SUPERBLOCK as ERA_SUPERBLOCK;
use persistent_data::array::ARRAY;
use persistent_data::block::{Kind, get_u32, get_u64, no_rules, put_u32, put_u64};
use persistent_data::device::BlockBytes;
use persistent_data::node::NODE;
use persistent_data::space_map::{BITMAP, INDEX};

/// The superblock of a thin pool (thin.md 1).
pub static THIN_SUPERBLOCK: Kind = Kind {
    name: "thin superblock",
    xor: 160_774,
    blocknr_offset: 8,
    validate: no_rules,
};

/// The kinds of blocks of a format, in an order that committed inputs rely on.
pub type Kinds = &'static [&'static Kind];

/// Thin pools.
pub static THIN: Kinds = &[&THIN_SUPERBLOCK, &NODE, &BITMAP, &INDEX];

/// Era targets.
pub static ERA: Kinds = &[&ERA_SUPERBLOCK, &NODE, &BITMAP, &INDEX, &ARRAY];

/// A valid image, and where what lies in it.
pub struct Image {
    /// The whole device.
    pub blocks: Vec<BlockBytes>,
    /// The blocks in use, with their kinds.
    used: Vec<(u64, &'static Kind)>,
    kinds: Kinds,
}

/// Which block.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum At {
    /// One in use.
    Used(u8),
    /// One of the trees' nodes.
    Node(u8),
    /// The superblock.
    Super,
}

/// What a field becomes.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum To {
    /// The location of a block in use.
    Block(u8),
    /// A small number.
    Small(u8),
    /// Anything.
    Any(u64),
    /// A little more or less.
    Add(i8),
    /// Some bits are turned over.
    Flip(u8),
}

/// Damage done to an image.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Mutation {
    /// A node's header field (flags, entries, capacity, size of values).
    Header(At, u8, To),
    /// Key of an entry.
    Key(At, u8, To),
    /// Part of the value of an entry, in steps of 4 bytes.
    Value(At, u8, u8, To),
    /// Any byte.
    Byte(At, u16, u8),
    /// Any aligned u64.
    Word(At, u16, To),
    /// Any aligned u32.
    Half(At, u16, To),
    /// A block gets another's contents and kind.
    Copy(At, At),
    /// A block keeps its contents and is sealed as another kind.
    Kind(At, u8),
    /// Bytes are filled.
    Fill(At, u16, u16, u8),
    /// A byte is changed and not sealed.
    Break(At, u16),
}

impl Image {
    /// Finds out what the blocks are.
    pub fn new(blocks: Vec<BlockBytes>, kinds: Kinds) -> Self {
        let used = (0..)
            .zip(&blocks)
            .filter_map(|(nr, bytes)| {
                let kind = kinds.iter().find(|k| k.verify(bytes, nr).is_ok())?;
                Some((nr, *kind))
            })
            .collect();
        Image {
            blocks,
            used,
            kinds,
        }
    }

    fn find(&self, at: At) -> usize {
        let nth = |wanted: u8, filter: &dyn Fn(&Kind) -> bool| {
            let found: Vec<_> = (0..self.used.len())
                .filter(|i| filter(self.used[*i].1))
                .collect();
            found[usize::from(wanted) % found.len()]
        };
        match at {
            At::Used(i) => nth(i, &|_| true),
            At::Node(i) => nth(i, &|kind| kind.name == NODE.name),
            At::Super => 0,
        }
    }

    fn resolve(&self, to: To, old: u64) -> u64 {
        match to {
            To::Block(i) => self.used[usize::from(i) % self.used.len()].0,
            To::Small(value) => u64::from(value),
            To::Any(value) => value,
            To::Add(by) => old.wrapping_add_signed(i64::from(by)),
            To::Flip(bits) => old ^ u64::from(bits) << (bits % 57),
        }
    }

    /// The image with this damage. Blocks are sealed as they end up, but for the last `Break`s.
    pub fn mutated(&self, mutations: &[Mutation]) -> Vec<BlockBytes> {
        let mut blocks = self.blocks.clone();
        let mut used = self.used.clone();
        let mut touched = Vec::new();
        for mutation in mutations {
            touched.push(self.apply(mutation, &mut blocks, &mut used));
        }
        for i in touched {
            let (nr, kind) = used[i];
            kind.seal(&mut blocks[nr as usize], nr);
        }
        for mutation in mutations {
            if let Mutation::Break(at, byte) = *mutation {
                let nr = self.used[self.find(at)].0 as usize;
                blocks[nr][usize::from(byte) % 4096] ^= 0x10;
            }
        }
        blocks
    }

    fn apply(
        &self,
        mutation: &Mutation,
        blocks: &mut [BlockBytes],
        used: &mut [(u64, &'static Kind)],
    ) -> usize {
        let (Mutation::Header(at, ..)
        | Mutation::Key(at, ..)
        | Mutation::Value(at, ..)
        | Mutation::Byte(at, ..)
        | Mutation::Word(at, ..)
        | Mutation::Half(at, ..)
        | Mutation::Copy(at, ..)
        | Mutation::Kind(at, ..)
        | Mutation::Fill(at, ..)
        | Mutation::Break(at, ..)) = *mutation;
        let i = self.find(at);
        let nr = used[i].0 as usize;
        let mut half = |offset: usize, to: To| {
            let offset = offset % 4093;
            let old = u64::from(get_u32(&blocks[nr], offset));
            put_u32(&mut blocks[nr], offset, self.resolve(to, old) as u32);
        };
        match *mutation {
            Mutation::Header(_, 0, to) => half(4, to),
            Mutation::Header(_, field, to) => half(16 + 4 * usize::from(field % 4), to),
            Mutation::Half(_, word, to) => half(4 * (usize::from(word) % 1024), to),
            Mutation::Value(_, entry, part, to) => {
                let max = get_u32(&blocks[nr], 20) as usize % 512;
                let size = get_u32(&blocks[nr], 24) as usize % 512;
                let start = 32 + 8 * max + size * usize::from(entry);
                let start = (start + 4 * usize::from(part % 8)) % 4089;
                let value = self.resolve(to, get_u64(&blocks[nr], start));
                put_u64(&mut blocks[nr], start, value);
            }
            Mutation::Key(_, entry, to) => {
                let start = 32 + 8 * usize::from(entry);
                let value = self.resolve(to, get_u64(&blocks[nr], start));
                put_u64(&mut blocks[nr], start, value);
            }
            Mutation::Word(_, word, to) => {
                let start = 8 * (usize::from(word) % 512);
                let value = self.resolve(to, get_u64(&blocks[nr], start));
                put_u64(&mut blocks[nr], start, value);
            }
            Mutation::Byte(_, byte, value) => blocks[nr][usize::from(byte) % 4096] = value,
            Mutation::Copy(_, from) => {
                let from = self.find(from);
                used[i].1 = used[from].1;
                blocks[nr] = blocks[used[from].0 as usize];
            }
            Mutation::Kind(_, kind) => used[i].1 = self.kinds[usize::from(kind) % self.kinds.len()],
            Mutation::Fill(_, from, length, value) => {
                let from = usize::from(from) % 4096;
                let end = (from + usize::from(length)).min(4096);
                blocks[nr][from..end].fill(value);
            }
            Mutation::Break(..) => {}
        }
        i
    }
}
