//! The hot path of an era target: one bit tested per write (era.md 7).
//!
//! Relies on the owner to publish a mark only when it is durable, and to take marks back before an era
//! ends.

use super::marks::Marks;
use super::metadata::MAX_BLOCKS;
use crate::target::{BaseId, IoKind, Map, Passage, Request, Target};
use std::ops::Range;
use std::sync::Arc;

/// The origin device.
pub const ORIGIN: BaseId = BaseId(0);

/// An era device as every core sees it. Same size and addresses as its origin.
pub struct EraDev {
    /// Blocks written in this era.
    pub(super) marks: Marks,
    /// log2 of logical blocks per data block where that is a power of two, else 255.
    shift: u8,
    logical_per_block: u64,
    /// Whether the origin knows flush.
    origin_flushes: bool,
}

impl EraDev {
    /// For data blocks of `block_sectors`, of which a logical block of the origin has
    /// `sectors_per_logical`.
    pub(super) fn new(block_sectors: u64, sectors_per_logical: u64, origin_flushes: bool) -> Self {
        let logical_per_block = (block_sectors / sectors_per_logical).max(1);
        EraDev {
            marks: Marks::new(MAX_BLOCKS),
            shift: match logical_per_block.is_power_of_two() {
                true => logical_per_block.trailing_zeros() as u8,
                false => u8::MAX,
            },
            logical_per_block,
            origin_flushes,
        }
    }

    /// Logical blocks per data block.
    pub fn logical_per_block(&self) -> u64 {
        self.logical_per_block
    }

    /// The published marks.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    #[inline]
    fn block(&self, logical: u64) -> u64 {
        match self.shift {
            u8::MAX => logical / self.logical_per_block,
            shift => logical >> shift,
        }
    }

    /// The data blocks a request touches.
    #[inline]
    pub(super) fn blocks(&self, request: &Request) -> Range<u64> {
        let last = request
            .offset_blocks
            .saturating_add(request.nr_blocks.saturating_sub(1));
        self.block(request.offset_blocks)..self.block(last) + 1
    }

    /// Whether all that a request touches is marked.
    #[inline]
    pub(super) fn is_marked(&self, request: &Request) -> bool {
        let blocks = self.blocks(request);
        match blocks.end - blocks.start {
            1 => self.marks.is_marked(blocks.start),
            _ => self.marks.are_marked(blocks),
        }
    }
}

/// The era target.
pub struct EraTarget;

impl Target for EraTarget {
    type Volume = EraDev;
    type Local = ();

    fn passage(_: &EraDev) -> Option<Passage> {
        Some(Passage {
            passes: |kind| kind == IoKind::Read,
            base: ORIGIN,
            as_long_as: None,
        })
    }

    /// A write to what is marked; reads are not asked for.
    #[inline(always)]
    fn plain(volume: &EraDev, (): &(), request: &Request) -> Option<(BaseId, u64)> {
        let passes = request.kind == IoKind::Write && volume.is_marked(request);
        passes.then_some((ORIGIN, request.offset_blocks))
    }

    #[inline]
    fn map(volume: &Arc<EraDev>, (): &(), request: &Request) -> Map {
        let through = Map::Remap {
            base: ORIGIN,
            block: request.offset_blocks,
        };
        match request.kind {
            IoKind::Read => through,
            IoKind::Write | IoKind::Discard | IoKind::WriteZeroes => {
                match volume.is_marked(request) {
                    true => through,
                    false => Map::Defer,
                }
            }
            IoKind::Flush if volume.origin_flushes => through,
            IoKind::Flush => Map::Done,
            IoKind::Reset => Map::Defer,
        }
    }
}
