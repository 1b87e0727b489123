//! The hot path of a thin device: one look into the published mappings (thin.md 6 and 7), one for each block of
//! an I/O that is larger. As far as blocks follow each other on the data device it goes there as one; it is
//! split where they do not.
//!
//! Relies on [`super::cache`] for the mappings and on the pool's owner to publish every change
//! before it acknowledges it.

use super::cache::{Entry, PageTable};
use crate::errno::Errno;
use crate::target::{BaseId, IoKind, Map, Request, Target};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The data device of a pool.
pub const DATA: BaseId = BaseId(0);

/// A thin device's external origin.
pub const ORIGIN: BaseId = BaseId(1);

/// A pool's mode, ordered by degradation (thin.md 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum PoolMode {
    /// Everything works.
    Write = 0,
    /// No free data block: writes that need one are queued, or fail with ENOSPC.
    OutOfDataSpace = 1,
    /// No free metadata: nothing that changes a mapping works. Reported as `ro`.
    OutOfMetadataSpace = 2,
    /// Asked for, or after a failed metadata operation.
    ReadOnly = 3,
    /// All I/O fails.
    Fail = 4,
}

impl PoolMode {
    fn from_raw(raw: u8) -> Self {
        match raw {
            0 => PoolMode::Write,
            1 => PoolMode::OutOfDataSpace,
            2 => PoolMode::OutOfMetadataSpace,
            3 => PoolMode::ReadOnly,
            _ => PoolMode::Fail,
        }
    }

    /// Whether mappings may not be changed.
    pub fn refuses_changes(self) -> bool {
        self >= PoolMode::OutOfMetadataSpace
    }
}

/// What every core sees of a pool. Written by the owner only, and seldom.
pub struct PoolShared {
    mode: AtomicU8,
    /// log2 of logical blocks per data block where that is a power of two, else 255.
    shift: u8,
    /// Logical blocks per data block.
    logical_per_block: u64,
    sectors_per_logical: u64,
    /// Whether the data device knows flush.
    data_flushes: bool,
    /// Blocks were given out whose data, or mapping, may not be durable yet: the owner must know when a flush
    /// of the data device fails.
    has_new_blocks: AtomicBool,
    /// A flush of the owner's own is under way, or has failed and devices do not know yet. If it fails, what guests
    /// wrote may be lost with it, and it is the only one that says so: guests' flushes come to the owner.
    flushing: AtomicBool,
}

impl PoolShared {
    /// For data blocks of `block_sectors`, of which a logical block of the data device has
    /// `sectors_per_logical`.
    pub fn new(block_sectors: u64, sectors_per_logical: u64, data_flushes: bool) -> Self {
        let logical_per_block = block_sectors / sectors_per_logical;
        PoolShared {
            mode: AtomicU8::new(PoolMode::Write as u8),
            shift: match logical_per_block.is_power_of_two() {
                true => logical_per_block.trailing_zeros() as u8,
                false => u8::MAX,
            },
            logical_per_block,
            sectors_per_logical,
            data_flushes,
            has_new_blocks: AtomicBool::new(false),
            flushing: AtomicBool::new(false),
        }
    }

    /// The mode now.
    #[inline]
    pub fn mode(&self) -> PoolMode {
        PoolMode::from_raw(self.mode.load(Ordering::Acquire))
    }

    pub(super) fn set_mode(&self, mode: PoolMode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    pub(super) fn has_new_blocks(&self) -> bool {
        self.has_new_blocks.load(Ordering::Acquire)
    }

    pub(super) fn set_new_blocks(&self, some: bool) {
        self.has_new_blocks.store(some, Ordering::SeqCst);
    }

    pub(super) fn set_flushing(&self, flushing: bool) {
        self.flushing.store(flushing, Ordering::SeqCst);
    }

    /// Whether a guest's flush is the owner's business, whatever the device.
    fn owner_flushes(&self) -> bool {
        self.has_new_blocks() || self.flushing.load(Ordering::Acquire)
    }

    /// Logical blocks per data block.
    pub fn logical_per_block(&self) -> u64 {
        self.logical_per_block
    }

    /// Sectors per logical block.
    pub fn sectors_per_logical(&self) -> u64 {
        self.sectors_per_logical
    }

    /// Whether a deferred write, which crosses no data block's boundary, covers its block.
    pub fn is_whole_block(&self, request: &Request) -> bool {
        request.nr_blocks == self.logical_per_block
    }

    /// Splits a logical block number into data block and logical block within it.
    #[inline]
    pub fn split(&self, logical: u64) -> (u64, u64) {
        if self.shift != u8::MAX {
            (
                logical >> self.shift,
                logical & (self.logical_per_block - 1),
            )
        } else {
            (
                logical / self.logical_per_block,
                logical % self.logical_per_block,
            )
        }
    }
}

/// An active thin device as every core sees it.
pub struct ThinDev {
    /// Device id in the pool, 0..2^24.
    pub id: u32,
    /// Size in logical blocks.
    pub nr_logical_blocks: u64,
    /// Size of its external origin in logical blocks; 0: it has none.
    pub origin_logical_blocks: u64,
    /// The pool it belongs to.
    pub pool: Arc<PoolShared>,
    pub(super) pages: PageTable,
    /// Mappings older than this may be shared with a snapshot (thin.md 3, lookup).
    pub(super) snapshotted_time: AtomicU32,
    /// The last transaction with an acknowledged change that is not committed: a flush commits it. 0: there is
    /// none.
    pub(super) dirty: AtomicU64,
    /// Acknowledged changes were lost by an aborted transaction, or writes by a failed flush: flushes fail.
    pub(super) aborted: AtomicBool,
    /// Its bdev is being unregistered: no write waits for data space any more.
    pub(super) leaving: AtomicBool,
    /// No longer active; whatever still comes fails.
    pub(super) closed: AtomicBool,
}

impl ThinDev {
    /// Whether a mapping made at `time` may be shared. May be true when it no longer is, never
    /// false when it is.
    #[inline]
    pub fn is_shared(&self, time: u32) -> bool {
        self.snapshotted_time.load(Ordering::Acquire) > time
    }

    /// Size of the external origin in sectors; 0: there is none.
    pub(super) fn origin_sectors(&self) -> u64 {
        self.origin_logical_blocks * self.pool.sectors_per_logical()
    }

    #[inline(never)]
    fn map_any(&self, request: &Request) -> Map {
        let mode = self.pool.mode();
        if mode == PoolMode::Fail && request.kind != IoKind::Reset {
            return Map::Fail(Errno::EIO);
        }
        match request.kind {
            IoKind::Read => self.map_read(request),
            IoKind::Write => self.map_write(mode, request),
            IoKind::Flush => self.map_flush(),
            IoKind::Discard | IoKind::WriteZeroes | IoKind::Reset => Map::Defer,
        }
    }

    fn map_read(&self, request: &Request) -> Map {
        if let Some(fate) = self.map_run(request) {
            return fate;
        }
        let is_hole = |block, _| self.pages.get(block) == Entry::Unmapped;
        match self.while_so(request.offset_blocks, request.nr_blocks, is_hole) {
            0 => self.defer(request),
            nr_blocks if nr_blocks < request.nr_blocks => Map::Split {
                nr_blocks,
                goes: None,
            },
            _ => self.map_hole(request),
        }
    }

    /// A hole shows the external origin as far as that goes (thin.md 10), else zeroes.
    fn map_hole(&self, request: &Request) -> Map {
        let block = request.offset_blocks;
        match self.origin_logical_blocks.checked_sub(block) {
            None | Some(0) => Map::Zeroes,
            Some(left) if left >= request.nr_blocks => Map::Remap {
                base: ORIGIN,
                block,
            },
            Some(nr_blocks) => Map::RemapHead {
                base: ORIGIN,
                block,
                nr_blocks,
            },
        }
    }

    fn map_write(&self, mode: PoolMode, request: &Request) -> Map {
        if let Some(fate) = self.map_run(request) {
            return fate;
        }
        let (block, _) = self.pool.split(request.offset_blocks);
        match self.pages.get(block) {
            Entry::NotCached | Entry::Held { .. } => self.defer(request),
            _ if mode.refuses_changes() => Map::Fail(Errno::EIO),
            _ => self.defer(request),
        }
    }

    /// The owner knows blocks, not runs of them.
    fn defer(&self, request: &Request) -> Map {
        let (_, offset) = self.pool.split(request.offset_blocks);
        let nr_blocks = self.pool.logical_per_block - offset;
        match nr_blocks < request.nr_blocks {
            true => Map::Split {
                nr_blocks,
                goes: None,
            },
            false => Map::Defer,
        }
    }

    /// Where a read or write may go to a data block: which one.
    #[inline(always)]
    fn goes_to(&self, is_read: bool, block: u64) -> Option<u64> {
        match self.pages.get(block) {
            Entry::Mapped { data_block, time } if is_read || !self.is_shared(time) => {
                Some(data_block)
            }
            Entry::Held { data_block } if is_read => Some(data_block),
            _ => None,
        }
    }

    /// How many logical blocks of an I/O, from its first on, are in blocks for which something holds; it is asked
    /// with each of these and its number within the I/O.
    fn while_so(
        &self,
        offset_blocks: u64,
        nr_blocks: u64,
        mut holds: impl FnMut(u64, u64) -> bool,
    ) -> u64 {
        let (first, offset) = self.pool.split(offset_blocks);
        let mut found = 0;
        for at in 0.. {
            if found >= nr_blocks || !holds(first + at, at) {
                break;
            }
            found += match at {
                0 => self.pool.logical_per_block - offset,
                _ => self.pool.logical_per_block,
            };
        }
        found.min(nr_blocks)
    }

    /// The data block to which the first of a read or write may go, and how many logical blocks may go there and to
    /// those that follow it. Not told by a reference: the request would have to be in memory for the hot path.
    #[inline(never)]
    fn run(&self, is_read: bool, offset_blocks: u64, nr_blocks: u64) -> Option<(u64, u64)> {
        let (first, _) = self.pool.split(offset_blocks);
        let data_block = self.goes_to(is_read, first)?;
        let follows = |block, at| self.goes_to(is_read, block) == Some(data_block + at);
        Some((data_block, self.while_so(offset_blocks, nr_blocks, follows)))
    }

    fn map_flush(&self) -> Map {
        if self.aborted.load(Ordering::Acquire) {
            Map::Fail(Errno::EIO)
        } else if self.dirty.load(Ordering::Acquire) > 0 || self.pool.owner_flushes() {
            Map::Defer
        } else if self.pool.data_flushes {
            Map::Remap {
                base: DATA,
                block: 0,
            }
        } else {
            Map::Done
        }
    }

    #[inline]
    fn place(&self, data_block: u64, offset: u64) -> (BaseId, u64) {
        (DATA, data_block * self.pool.logical_per_block + offset)
    }

    /// The fate of an I/O of which at least the first block may go to a data block.
    fn map_run(&self, request: &Request) -> Option<Map> {
        let is_read = request.kind == IoKind::Read;
        let (data_block, nr_blocks) =
            self.run(is_read, request.offset_blocks, request.nr_blocks)?;
        let (_, offset) = self.pool.split(request.offset_blocks);
        let (base, block) = self.place(data_block, offset);
        Some(match nr_blocks < request.nr_blocks {
            true => Map::Split {
                nr_blocks,
                goes: Some((base, block)),
            },
            false => Map::Remap { base, block },
        })
    }
}

/// The thin target.
pub struct Thin;

impl Target for Thin {
    type Volume = ThinDev;
    type Local = ();

    #[inline(always)]
    fn map(volume: &Arc<ThinDev>, (): &(), request: &Request) -> Map {
        match Self::plain(volume, &(), request) {
            Some((base, block)) => Map::Remap { base, block },
            None => volume.map_any(request),
        }
    }

    /// A mapped block, which a write shares with nobody, or blocks that follow each other on the data device.
    #[inline(always)]
    fn plain(volume: &ThinDev, (): &(), request: &Request) -> Option<(BaseId, u64)> {
        let is_read = match request.kind {
            IoKind::Read => true,
            IoKind::Write => false,
            _ => return None,
        };
        if volume.pool.mode() == PoolMode::Fail {
            return None;
        }
        let (block, offset) = volume.pool.split(request.offset_blocks);
        let data_block = volume.goes_to(is_read, block)?;
        if request.nr_blocks > volume.pool.logical_per_block - offset {
            let (_, nr_blocks) = volume.run(is_read, request.offset_blocks, request.nr_blocks)?;
            if nr_blocks < request.nr_blocks {
                return None;
            }
        }
        Some(volume.place(data_block, offset))
    }

    #[inline]
    fn is_far(volume: &ThinDev) -> bool {
        volume.pages.is_far()
    }

    #[inline]
    fn looks_at<'a>(volume: &'a ThinDev, request: &Request) -> Option<&'a AtomicU64> {
        match request.kind {
            IoKind::Read | IoKind::Write => {
                let (block, _) = volume.pool.split(request.offset_blocks);
                volume.pages.far_cell(block)
            }
            _ => None,
        }
    }
}
