//! The hot path of a ploop device: one look into the published places (ploop.md, Deltas).
//!
//! The page table has a cell per word of header and BAT, so that a page of it belongs to one page of every
//! delta's BAT. Only the owner writes; it takes a place back, and waits for the I/O that was sent there,
//! before anything else may be put there.

use super::image::header::{HEADER_SLOTS, slot};
use crate::era::marks::Marks;
use crate::target::{BaseId, IoKind, Map, Request, Target};
use crate::thin::cache::{PAGE_BLOCKS, PageTable, Paged, UNMAPPED};
use arc_swap::ArcSwapOption;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// All I/O waits at the owner.
pub(super) const HELD: u32 = 1 << 8;
/// The BAT on the disk is not known, or something beside what guests write in place is not durable: a flush
/// goes by the owner.
pub(super) const UNSETTLED: u32 = 1 << 9;
/// Writes are noted in [`PloopDev::dirty`].
pub(super) const TRACKING: u32 = 1 << 10;
/// Writes to what is in [`PloopDev::to_back_up`] wait at the owner.
pub(super) const BACKUP: u32 = 1 << 11;
/// Writes are noted in [`PloopDev::changed`].
pub(super) const RECORDING: u32 = 1 << 13;
/// The top delta's device knows flush.
pub(super) const FLUSHES: u32 = 1 << 12;
const TOP: u32 = 0xff;

/// A cell that says: nothing anywhere, the cluster reads as zeroes. That nothing is known is
/// [`UNMAPPED`], which the cache puts.
const HOLE: u64 = 1 << 63;
const SHADOWS: u64 = 1 << 56;
const BASE_SHIFT: u32 = 48;
const BLOCK_MASK: u64 = (1 << BASE_SHIFT) - 1;

/// Where a guest cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it reads as zeroes.
    Hole,
    /// On a device.
    At {
        /// Which.
        base: BaseId,
        /// First logical block there.
        block: u64,
        /// An older delta has it, too.
        shadows: bool,
    },
}

impl Place {
    #[inline]
    fn decode(cell: u64) -> Option<Place> {
        match cell {
            UNMAPPED => None,
            HOLE => Some(Place::Hole),
            _ => Some(Place::At {
                base: BaseId((cell >> BASE_SHIFT & 0xff) as u8),
                block: cell & BLOCK_MASK,
                shadows: cell & SHADOWS != 0,
            }),
        }
    }

    pub(super) fn encode(self) -> u64 {
        match self {
            Place::Hole => HOLE,
            Place::At {
                base,
                block,
                shadows,
            } => block | u64::from(base.0) << BASE_SHIFT | if shadows { SHADOWS } else { 0 },
        }
    }
}

/// A ploop device as every core sees it.
pub struct PloopDev {
    pages: PageTable,
    state: AtomicU32,
    nr_logical: AtomicU64,
    logical_per_cluster: u64,
    /// log2 of that where it is a power of two, else 255.
    shift: u8,
    /// Clusters of the top image's file that were written, while that is tracked.
    pub(super) dirty: ArcSwapOption<Marks>,
    /// Guest clusters that were written since the last backup that a record began with.
    pub(super) changed: ArcSwapOption<Marks>,
    /// Guest clusters that a push backup has yet to read.
    pub(super) to_back_up: ArcSwapOption<Marks>,
}

impl Paged for PloopDev {
    fn pages(&self) -> &PageTable {
        &self.pages
    }
}

impl PloopDev {
    pub(super) fn new(pages: PageTable, logical_per_cluster: u64, nr_logical: u64) -> Self {
        PloopDev {
            pages,
            state: AtomicU32::new(HELD),
            nr_logical: AtomicU64::new(nr_logical),
            logical_per_cluster,
            shift: match logical_per_cluster.is_power_of_two() {
                true => logical_per_cluster.trailing_zeros() as u8,
                false => u8::MAX,
            },
            dirty: ArcSwapOption::empty(),
            changed: ArcSwapOption::empty(),
            to_back_up: ArcSwapOption::empty(),
        }
    }

    /// Size in logical blocks; a resize makes it more.
    pub fn nr_logical_blocks(&self) -> u64 {
        self.nr_logical.load(Ordering::Acquire)
    }

    pub(super) fn set_nr_logical_blocks(&self, nr: u64) {
        self.nr_logical.store(nr, Ordering::Release);
    }

    /// Logical blocks of a cluster: reads and writes are split there.
    pub fn logical_per_cluster(&self) -> u64 {
        self.logical_per_cluster
    }

    /// The cluster a logical block is in.
    #[inline]
    pub fn cluster(&self, logical: u64) -> u64 {
        match self.shift {
            u8::MAX => logical / self.logical_per_cluster,
            shift => logical >> shift,
        }
    }

    /// Logical blocks from the beginning of its cluster to `logical`.
    #[inline]
    pub(super) fn within(&self, logical: u64) -> u64 {
        logical - self.cluster(logical) * self.logical_per_cluster
    }

    #[inline]
    pub(super) fn state(&self) -> u32 {
        self.state.load(Ordering::Acquire)
    }

    pub(super) fn set_state(&self, bits: u32, on: bool) {
        match on {
            true => self.state.fetch_or(bits, Ordering::AcqRel),
            false => self.state.fetch_and(!bits, Ordering::AcqRel),
        };
    }

    /// Writes go to this device from now on. No I/O may be under way.
    pub(super) fn set_top(&self, base: BaseId, flushes: bool) {
        self.set_state(TOP | FLUSHES, false);
        let flushes = if flushes { FLUSHES } else { 0 };
        self.set_state(u32::from(base.0) | flushes, true);
    }

    /// What is known of a cluster without a look at the disk.
    #[inline]
    pub(super) fn look(&self, cluster: u64) -> Option<Place> {
        Place::decode(self.pages.value(slot(cluster))?)
    }

    /// Publishes where a cluster is; none: ask the owner.
    pub(super) fn publish(&self, cluster: u64, place: Option<Place>) {
        let cell = place.map_or(UNMAPPED, Place::encode);
        self.pages.set(slot(cluster), cell);
    }

    /// The page of the table a cluster is in.
    pub(super) fn table_page(cluster: u64) -> u64 {
        slot(cluster) / PAGE_BLOCKS as u64
    }

    /// The clusters of a page of the table; the first page begins with words of the header.
    pub(super) fn clusters_of(table_page: u64) -> impl Iterator<Item = Option<u64>> {
        let first = table_page * PAGE_BLOCKS as u64;
        (first..first + PAGE_BLOCKS as u64).map(|slot| slot.checked_sub(HEADER_SLOTS))
    }

    /// Notes that a part of the top image's file is written, by logical blocks there.
    #[inline]
    pub(super) fn note_dirty(&self, block: u64, nr_blocks: u64) {
        if let Some(dirty) = &*self.dirty.load() {
            let clusters = self.cluster(block)..self.cluster(block + nr_blocks.max(1) - 1) + 1;
            // What is marked already stays in the caches of all cores.
            if !dirty.are_marked(clusters.clone()) {
                dirty.mark(clusters);
            }
        }
    }

    /// Notes that guest clusters are written.
    #[inline]
    pub(super) fn note_changed(&self, clusters: Range<u64>) {
        if let Some(changed) = &*self.changed.load()
            && !changed.are_marked(clusters.clone())
        {
            changed.mark(clusters);
        }
    }

    #[inline]
    pub(super) fn is_to_be_backed_up(&self, cluster: u64) -> bool {
        let marks = self.to_back_up.load();
        marks.as_ref().is_some_and(|marks| marks.is_marked(cluster))
    }

    #[inline(never)]
    fn map_any(&self, request: &Request) -> Map {
        let state = self.state();
        let top = BaseId((state & TOP) as u8);
        match request.kind {
            IoKind::Reset | IoKind::Discard => return Map::Defer,
            IoKind::Flush => {
                return match state {
                    _ if state & (HELD | UNSETTLED) != 0 => Map::Defer,
                    _ if state & FLUSHES == 0 => Map::Done,
                    _ => Map::Remap {
                        base: top,
                        block: 0,
                    },
                };
            }
            _ if state & HELD != 0 => return Map::Defer,
            IoKind::Read | IoKind::Write | IoKind::WriteZeroes => {}
        }
        let first = request.offset_blocks;
        let cluster = self.cluster(first);
        let within = self.within(first);
        let left = self.logical_per_cluster - within;
        if left < request.nr_blocks {
            return Map::Split {
                nr_blocks: left,
                goes: None,
            };
        }
        let is_read = request.kind == IoKind::Read;
        if !is_read && state & BACKUP != 0 && self.is_to_be_backed_up(cluster) {
            return Map::Defer;
        }
        let is_whole = request.nr_blocks == self.logical_per_cluster;
        match self.look(cluster) {
            None => Map::Defer,
            Some(Place::Hole) => match request.kind {
                IoKind::Read => Map::Zeroes,
                IoKind::WriteZeroes => Map::Done,
                _ => Map::Defer,
            },
            // The cluster can be given back.
            Some(_) if request.kind == IoKind::WriteZeroes && is_whole => Map::Defer,
            Some(Place::At { base, block, .. }) => {
                if !is_read && base != top {
                    return Map::Defer;
                }
                let block = block + within;
                if !is_read && state & (TRACKING | RECORDING) != 0 {
                    self.note_dirty(block, request.nr_blocks);
                    self.note_changed(cluster..cluster + 1);
                }
                Map::Remap { base, block }
            }
        }
    }
}

/// The ploop target.
pub struct PloopTarget;

impl Target for PloopTarget {
    type Volume = PloopDev;
    type Local = ();

    #[inline(always)]
    fn map(volume: &Arc<PloopDev>, (): &(), request: &Request) -> Map {
        match Self::plain(volume, &(), request) {
            Some((base, block)) => Map::Remap { base, block },
            None => volume.map_any(request),
        }
    }

    /// Within a cluster that is somewhere; a write, where writes go, and nothing is to be noted of it.
    #[inline(always)]
    fn plain(volume: &PloopDev, (): &(), request: &Request) -> Option<(BaseId, u64)> {
        let state = volume.state();
        let first = request.offset_blocks;
        if volume.shift == u8::MAX || state & HELD != 0 {
            return None;
        }
        let within = first & (volume.logical_per_cluster - 1);
        if within + request.nr_blocks > volume.logical_per_cluster {
            return None;
        }
        match volume.look(first >> volume.shift) {
            Some(Place::At { base, block, .. }) => {
                let goes = match request.kind {
                    IoKind::Read => true,
                    // What is noted of writes is noted by `map`.
                    IoKind::Write => {
                        u32::from(base.0) == state & (TOP | TRACKING | RECORDING | BACKUP)
                    }
                    _ => false,
                };
                goes.then_some((base, block + within))
            }
            _ => None,
        }
    }

    #[inline]
    fn is_far(volume: &PloopDev) -> bool {
        volume.pages.is_far()
    }

    #[inline]
    fn looks_at<'a>(volume: &'a PloopDev, request: &Request) -> Option<&'a AtomicU64> {
        match request.kind {
            IoKind::Read | IoKind::Write => volume
                .pages
                .far_cell(slot(volume.cluster(request.offset_blocks))),
            _ => None,
        }
    }
}
