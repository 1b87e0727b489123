//! The hot path of the snapshot targets: where an I/O to an origin or a snapshot goes
//! (snapshot.md 6, 7, 9).
//!
//! An origin and all its snapshots are one target with one owner, so that a barrier over its channels is
//! over everybody's I/O. It relies on the owner to publish an exception when it is durable, and to let an
//! origin's write pass only when every read of a snapshot that was sent to the origin before is over.

use super::exceptions::{Exceptions, Place};
use crate::era::marks::Marks;
use crate::errno::Errno;
use crate::target::{BaseId, IoKind, Map, Passage, Request, Target};
use arc_swap::ArcSwap;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// The origin device. COW devices have the numbers from 1 on.
pub const ORIGIN: BaseId = BaseId(0);

/// How a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// In order.
    Active = 0,
    /// A write found no room: reads go on, writes fail (snapshot.md 6).
    Overflow = 1,
    /// For ever of no use, or handed over to a merge.
    Invalid = 2,
}

/// What a discard does to a snapshot (snapshot.md 3, features).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discards {
    /// Chunks that have an exception are zeroed; without this discards are refused.
    pub zeroes_cow: bool,
    /// The origin is discarded, too.
    pub passdown_origin: bool,
}

/// A snapshot as every core sees it.
pub struct SnapDev {
    pub(super) id: u64,
    pub(super) exceptions: Arc<Exceptions>,
    state: AtomicU8,
    pub(super) discards: Discards,
    pub(super) cow_flushes: bool,
    /// Size in logical blocks.
    pub(super) nr_logical: u64,
}

impl SnapDev {
    pub(super) fn new(
        id: u64,
        exceptions: Arc<Exceptions>,
        state: State,
        discards: Discards,
        cow_flushes: bool,
        nr_logical: u64,
    ) -> Self {
        SnapDev {
            id,
            exceptions,
            state: AtomicU8::new(state as u8),
            discards,
            cow_flushes,
            nr_logical,
        }
    }

    /// How it is.
    #[inline]
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Active,
            1 => State::Overflow,
            _ => State::Invalid,
        }
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    #[inline]
    fn plain(&self, request: &Request) -> Option<(BaseId, u64)> {
        let exceptions = &*self.exceptions;
        let first = request.offset_blocks;
        let is_near = exceptions.left_in_chunk(first) >= request.nr_blocks;
        if self.state() != State::Active || !is_near {
            return None;
        }
        match (request.kind, exceptions.look(exceptions.chunk(first))) {
            (IoKind::Read | IoKind::Write, Place::Cow(new_chunk)) => Some((
                exceptions.base(),
                exceptions.logical_on_cow(new_chunk, first),
            )),
            (IoKind::Read, Place::Origin) => Some((ORIGIN, first)),
            _ => None,
        }
    }

    #[inline]
    fn map(&self, request: &Request) -> Map {
        let state = self.state();
        match request.kind {
            // The owner must know when it fails: copies may be lost.
            IoKind::Flush if !self.cow_flushes => return Map::Done,
            IoKind::Flush => return Map::Defer,
            IoKind::Reset => return Map::Defer,
            _ if state == State::Invalid => return Map::Fail(Errno::EIO),
            IoKind::Read => {}
            IoKind::Discard if !self.discards.zeroes_cow => {
                return Map::Fail(Errno::EOPNOTSUPP);
            }
            _ if state == State::Overflow => return Map::Fail(Errno::EIO),
            IoKind::Discard => return Map::Defer,
            IoKind::Write | IoKind::WriteZeroes => {}
        }
        let exceptions = &*self.exceptions;
        let first = request.offset_blocks;
        let left = exceptions.left_in_chunk(first);
        if left < request.nr_blocks {
            return Map::Split {
                nr_blocks: left,
                goes: None,
            };
        }
        match exceptions.look(exceptions.chunk(first)) {
            Place::Cow(new_chunk) => Map::Remap {
                base: exceptions.base(),
                block: exceptions.logical_on_cow(new_chunk, first),
            },
            Place::Origin if request.kind == IoKind::Read => Map::Remap {
                base: ORIGIN,
                block: first,
            },
            Place::Origin | Place::Unknown => Map::Defer,
        }
    }
}

/// What an origin's I/O has to heed just now.
#[derive(Clone)]
pub(super) struct View {
    /// No snapshot has to be thought of.
    pub passes: bool,
    /// All I/O waits at the owner.
    pub held: bool,
    /// Chunks of the smallest size, of which every snapshot has a complete exception.
    pub copied: Arc<Marks>,
    /// These are all there are.
    pub all_copied: bool,
    /// log2 of logical blocks of such a chunk.
    pub shift: u32,
    /// The origin shows the content of this store, which is being merged into it.
    pub merging: Option<Arc<Exceptions>>,
}

impl View {
    /// The chunks of the smallest size that a request touches.
    pub fn chunks(&self, request: &Request) -> Range<u64> {
        let last = request.offset_blocks + request.nr_blocks.saturating_sub(1);
        request.offset_blocks >> self.shift..(last >> self.shift) + 1
    }

    #[inline]
    fn may_pass(&self, request: &Request) -> bool {
        self.passes || self.all_copied || {
            let chunks = self.chunks(request);
            match chunks.end - chunks.start {
                1 => self.copied.is_marked(chunks.start),
                _ => self.copied.are_marked(chunks),
            }
        }
    }
}

/// An origin as every core sees it.
pub struct OriginDev {
    view: ArcSwap<View>,
    /// Counts the views there have been, from 1 on; written after the view.
    nr_views: Arc<AtomicU64>,
    pub(super) origin_flushes: bool,
    /// A flush that no guest has asked for has failed: the next one of a guest goes by the owner.
    flush_failed: AtomicBool,
    /// Grows with the origin.
    nr_logical: AtomicU64,
}

/// The view a core saw last. Looking whether there is another one takes a load of memory that hardly ever
/// changes; getting at it takes two atomic exchanges.
#[derive(Default)]
pub struct SeenView {
    number: Cell<u64>,
    view: RefCell<Option<Arc<View>>>,
}

impl SeenView {
    #[inline]
    fn plain(&self, dev: &OriginDev, request: &Request) -> Option<(BaseId, u64)> {
        if dev.nr_views.load(Ordering::Acquire) != self.number.get() {
            return None;
        }
        let view = self.view.borrow();
        let view = view.as_ref()?;
        let is_write = request.kind == IoKind::Write;
        let passes = is_write && !view.held && view.merging.is_none() && view.may_pass(request);
        passes.then_some((ORIGIN, request.offset_blocks))
    }

    #[inline]
    fn map(&self, dev: &OriginDev, request: &Request) -> Map {
        let number = dev.nr_views.load(Ordering::Acquire);
        if number != self.number.get() {
            self.look_again(dev, number);
        }
        match &*self.view.borrow() {
            Some(view) => dev.map(view, request),
            None => Map::Defer,
        }
    }

    #[cold]
    fn look_again(&self, dev: &OriginDev, number: u64) {
        // This view or a later one.
        self.view.replace(Some(dev.view()));
        self.number.set(number);
    }
}

impl OriginDev {
    pub(super) fn new(view: View, origin_flushes: bool, nr_logical: u64) -> Self {
        OriginDev {
            view: ArcSwap::from_pointee(view),
            nr_views: Arc::new(AtomicU64::new(1)),
            origin_flushes,
            flush_failed: AtomicBool::new(false),
            nr_logical: AtomicU64::new(nr_logical),
        }
    }

    /// What needs no look at more than the view.
    fn passage(&self) -> Passage {
        let seen = self.nr_views.load(Ordering::Acquire);
        // This view or a later one.
        let view = self.view();
        let passes = match view.held || view.merging.is_some() {
            true => |_| false,
            false if view.passes || view.all_copied => {
                |kind| !matches!(kind, IoKind::Flush | IoKind::Reset)
            }
            false => |kind| kind == IoKind::Read,
        };
        Passage {
            passes,
            base: ORIGIN,
            as_long_as: Some((self.nr_views.clone(), seen)),
        }
    }

    /// The view now.
    pub(super) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// From now on everything is mapped by this view.
    pub(super) fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
        self.nr_views.fetch_add(1, Ordering::Release);
    }

    pub(super) fn nr_logical(&self) -> u64 {
        self.nr_logical.load(Ordering::Acquire)
    }

    pub(super) fn set_nr_logical(&self, nr_logical: u64) {
        self.nr_logical.store(nr_logical, Ordering::Release);
    }

    pub(super) fn has_failed_flush(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    pub(super) fn set_failed_flush(&self, failed: bool) {
        self.flush_failed.store(failed, Ordering::Release);
    }

    #[inline]
    fn flush(&self) -> Map {
        if !self.origin_flushes {
            Map::Done
        } else if self.has_failed_flush() {
            Map::Defer
        } else {
            Map::Remap {
                base: ORIGIN,
                block: 0,
            }
        }
    }

    #[inline]
    fn map(&self, view: &View, request: &Request) -> Map {
        let through = Map::Remap {
            base: ORIGIN,
            block: request.offset_blocks,
        };
        if view.held || request.kind == IoKind::Reset {
            return Map::Defer;
        }
        let Some(merging) = &view.merging else {
            return match request.kind {
                IoKind::Read => through,
                IoKind::Flush => self.flush(),
                _ if view.may_pass(request) => through,
                _ => Map::Defer,
            };
        };
        match request.kind {
            IoKind::Flush => return Map::Defer,
            IoKind::Discard => return Map::Done,
            _ => {}
        }
        let first = request.offset_blocks;
        let left = merging.left_in_chunk(first);
        if left < request.nr_blocks {
            return Map::Split {
                nr_blocks: left,
                goes: None,
            };
        }
        let chunk = merging.chunk(first);
        let is_read = request.kind == IoKind::Read;
        if !is_read && merging.is_in_batch(chunk) {
            return Map::Defer;
        }
        match merging.look(chunk) {
            Place::Cow(new_chunk) => Map::Remap {
                base: merging.base(),
                block: merging.logical_on_cow(new_chunk, first),
            },
            Place::Unknown => Map::Defer,
            Place::Origin if is_read || view.may_pass(request) => through,
            Place::Origin => Map::Defer,
        }
    }
}

/// A bdev of the target.
pub enum Volume {
    /// The origin, whether or not something is being merged into it.
    Origin(OriginDev),
    /// A snapshot.
    Snapshot(SnapDev),
}

impl Volume {
    /// Size in logical blocks.
    pub fn nr_logical_blocks(&self) -> u64 {
        match self {
            Volume::Origin(dev) => dev.nr_logical(),
            Volume::Snapshot(dev) => dev.nr_logical,
        }
    }
}

/// The snapshot target: an origin and its snapshots.
pub struct SnapshotTarget;

impl Target for SnapshotTarget {
    type Volume = Volume;
    type Local = SeenView;

    /// Of an origin.
    fn passage(volume: &Volume) -> Option<Passage> {
        match volume {
            Volume::Origin(dev) => Some(dev.passage()),
            Volume::Snapshot(_) => None,
        }
    }

    /// A write of an origin to what every snapshot has; what passes is not asked for. Within a chunk of a
    /// snapshot, of which is known where it is.
    #[inline(always)]
    fn plain(volume: &Volume, seen: &SeenView, request: &Request) -> Option<(BaseId, u64)> {
        match volume {
            Volume::Origin(dev) => seen.plain(dev, request),
            Volume::Snapshot(dev) => dev.plain(request),
        }
    }

    #[inline]
    fn is_far(volume: &Volume) -> bool {
        match volume {
            Volume::Origin(_) => false,
            Volume::Snapshot(dev) => dev.exceptions.is_far(),
        }
    }

    #[inline]
    fn map(volume: &Arc<Volume>, seen: &SeenView, request: &Request) -> Map {
        match &**volume {
            Volume::Origin(dev) => seen.map(dev, request),
            Volume::Snapshot(dev) => dev.map(request),
        }
    }

    /// Of a snapshot; what an origin looks at is a bit per chunk.
    #[inline]
    fn looks_at<'a>(volume: &'a Volume, request: &Request) -> Option<&'a AtomicU64> {
        match (volume, request.kind) {
            (Volume::Snapshot(dev), IoKind::Read | IoKind::Write) => {
                dev.exceptions.far_cell(request.offset_blocks)
            }
            _ => None,
        }
    }
}
