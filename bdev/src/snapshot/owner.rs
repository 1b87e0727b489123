//! An origin's owner: the one core on which the origin's and all its snapshots' exceptions are made.

use super::cow::{Cache, Cow};
use super::error::SnapshotError;
use super::events::SnapshotEvent;
use super::layout::Exception;
use super::map::{Discards, OriginDev, SnapDev, SnapshotTarget, State, View, Volume};
use super::merge::Merge;
use super::table::StoreKind;
use crate::channel::{Deferred, ToOwner};
use crate::device::{DataDevice, DataDeviceRef, SECTOR_BYTES};
use crate::era::marks::Marks;
use crate::errno::Errno;
use crate::flushes::{FlushErrors, Listening};
use crate::owner::{self, Channels};
use crate::runtime::RuntimeRef;
use crate::waits::{Bell, Gate, Permits, Tasks};
use futures::channel::mpsc;
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use tokio::sync::Mutex;

/// What an origin is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginConfig {
    /// The target's name, for messages to the user.
    pub name: String,
    /// Limit of the places of exceptions that all cores look into, of all snapshots together.
    pub exceptions_cache_bytes: u64,
    /// Chunks that are copied at a time; each takes up to 1 MiB of memory.
    pub max_copies: usize,
    /// Most bytes merged per second; 0: as many as can be. See [`Origin::set_merge_rate`].
    pub merge_bytes_per_second: u64,
}

impl OriginConfig {
    /// 64 MiB of cache, 64 copies, no throttle.
    pub fn new(name: &str) -> Self {
        OriginConfig {
            name: name.to_owned(),
            exceptions_cache_bytes: 64 << 20,
            max_copies: 64,
            merge_bytes_per_second: 0,
        }
    }
}

/// What a snapshot is made with (snapshot.md 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// Its name, unique among the snapshots of the origin.
    pub name: String,
    /// The kind of store.
    pub store: StoreKind,
    /// In sectors; 0: the default, for persistent stores. A store that is there has its own.
    pub chunk_sectors: u64,
    /// How discards are treated.
    pub discards: Discards,
    /// Length of the part of the origin that is snapshotted; none: all of it.
    pub nr_sectors: Option<u64>,
}

/// Counters of the slow paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotCounters {
    /// Chunks copied from the origin.
    pub copies: u64,
    /// Whole chunks written to snapshots without a copy.
    pub full_writes: u64,
    /// Commits of exceptions.
    pub commits: u64,
    /// Exceptions committed; compared with the above: how many share one.
    pub exceptions: u64,
    /// Chunks merged.
    pub merged: u64,
    /// Pages of exceptions read again from a store.
    pub page_loads: u64,
}

/// A write to a place that no exception names yet, and how it ended there.
pub(super) type FullWrite = (Deferred<SnapshotTarget>, Result<(), Errno>);

/// An exception that is being made.
pub(super) struct Pending {
    pub exception: Exception,
    /// Whether its data is there; none: not yet known.
    pub ready: Cell<Option<bool>>,
    /// The write of a whole chunk that is its data, to be answered when it can be found.
    pub full_write: RefCell<Option<FullWrite>>,
    /// Rings when it is over, well or not.
    pub over: Bell,
}

/// A snapshot, on its owner's core.
pub struct Snapshot {
    pub(super) config: SnapshotConfig,
    pub(super) volume: Arc<Volume>,
    pub(super) cow: Rc<Cow>,
    /// By chunk of the origin. An exception stays until no read of the chunk is under way to the origin.
    pub(super) pending: RefCell<FxHashMap<u64, Rc<Pending>>>,
    /// In the order of allocation, which is that of committing.
    pub(super) order: RefCell<VecDeque<Rc<Pending>>>,
    pub(super) committing: Cell<bool>,
    /// Invalid, but its header or reads under way still hold up the origin's writes.
    pub(super) draining: Cell<bool>,
    pub(super) drained: Bell,
    /// It takes no part any more: removed, or handed over.
    pub(super) gone: Cell<bool>,
    /// The header could not be made to say that the snapshot is invalid.
    pub(super) header_unsure: Cell<bool>,
    pub(super) tasks: Rc<Tasks>,
}

impl Snapshot {
    /// The device as every core sees it.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// What it was made with.
    pub fn config(&self) -> &SnapshotConfig {
        &self.config
    }

    pub(super) fn dev(&self) -> Option<&SnapDev> {
        match &*self.volume {
            Volume::Snapshot(dev) => Some(dev),
            Volume::Origin(_) => None,
        }
    }

    /// How it is.
    pub fn state(&self) -> State {
        self.dev().map_or(State::Invalid, SnapDev::state)
    }

    pub(super) fn set_state(&self, state: State) {
        if let Some(dev) = self.dev() {
            dev.set_state(state);
        }
    }

    /// Whether the origin's writes have to think of it.
    pub(super) fn counts(&self) -> bool {
        !self.gone.get() && (self.state() != State::Invalid || self.draining.get())
    }
}

type Watcher = Box<dyn Fn(&SnapshotEvent)>;

/// An origin with its snapshots and its merge, on their owner's core.
pub struct Origin {
    me: Weak<Origin>,
    pub(super) config: OriginConfig,
    pub(super) runtime: RuntimeRef,
    /// For merges.
    pub(super) device: Listening<dyn DataDevice>,
    /// For the origin's guests, where their flushes come to the owner.
    pub(super) guests: Listening<dyn DataDevice>,
    pub(super) errors: Rc<FlushErrors>,
    pub(super) volume: Arc<Volume>,
    pub(super) channels: Channels,
    pub(super) cache: Cache,
    pub(super) merge_bytes_per_second: Cell<u64>,
    /// The largest chunks first.
    pub(super) snapshots: RefCell<Vec<Rc<Snapshot>>>,
    pub(super) merge: RefCell<Option<Rc<Merge>>>,
    /// Snapshots come and go one at a time, and not while a batch is merged.
    pub(super) reconfigure: Mutex<()>,
    pub(super) gate: Gate,
    pub(super) copies: Permits,
    /// Chunks that are marked as copied in the origin's view.
    nr_copied: Cell<u64>,
    pub(super) counters: Cell<SnapshotCounters>,
    pub(super) tasks: Rc<Tasks>,
    pub(super) next_id: Cell<u64>,
    pub(super) watcher: RefCell<Option<Watcher>>,
    pub(super) closed: Cell<bool>,
    to_owner: mpsc::UnboundedSender<ToOwner<SnapshotTarget>>,
}

impl Origin {
    /// Takes an origin device into service, without snapshots.
    pub fn open(
        config: OriginConfig,
        runtime: RuntimeRef,
        device: DataDeviceRef,
        origin_flushes: bool,
    ) -> Result<Rc<Origin>, SnapshotError> {
        let cache = Cache::new(config.exceptions_cache_bytes, &*runtime)
            .ok_or(SnapshotError::NoMemory(config.exceptions_cache_bytes / 8))?;
        let nr_logical = device.nr_sectors() * SECTOR_BYTES / u64::from(device.block_bytes());
        let view = View {
            passes: true,
            held: false,
            copied: Arc::new(Marks::new(0)),
            all_copied: false,
            shift: 0,
            merging: None,
        };
        let volume = Volume::Origin(OriginDev::new(view, origin_flushes, nr_logical));
        let (to_owner, requests) = mpsc::unbounded();
        let errors = Rc::default();
        let origin = Rc::new_cyclic(|me| Origin {
            me: me.clone(),
            copies: Permits::new(config.max_copies),
            merge_bytes_per_second: Cell::new(config.merge_bytes_per_second),
            config,
            runtime: runtime.clone(),
            device: Listening::new(device.clone(), &errors),
            guests: Listening::new(device, &errors),
            errors,
            volume: Arc::new(volume),
            channels: Channels::default(),
            cache,
            snapshots: RefCell::default(),
            merge: RefCell::default(),
            reconfigure: Mutex::new(()),
            gate: Gate::default(),
            nr_copied: Cell::default(),
            counters: Cell::default(),
            tasks: Rc::default(),
            next_id: Cell::new(1),
            watcher: RefCell::default(),
            closed: Cell::new(false),
            to_owner,
        });
        runtime.spawn(Box::pin(origin.clone().serve(requests)));
        Ok(origin)
    }

    /// Where channels send what they cannot map.
    pub fn owner_queue(&self) -> mpsc::UnboundedSender<ToOwner<SnapshotTarget>> {
        self.to_owner.clone()
    }

    /// What it was opened with.
    pub fn config(&self) -> &OriginConfig {
        &self.config
    }

    /// The origin as every core sees it: also the one into which a snapshot is merged.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Counters of the slow paths.
    pub fn counters(&self) -> SnapshotCounters {
        self.counters.get()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut SnapshotCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    pub(super) fn check_open(&self) -> Result<(), SnapshotError> {
        match self.closed.get() {
            false => Ok(()),
            true => Err(SnapshotError::Closed(self.config.name.clone())),
        }
    }

    /// A snapshot by its name.
    pub fn snapshot(&self, name: &str) -> Option<Rc<Snapshot>> {
        let snapshots = self.snapshots.borrow();
        snapshots.iter().find(|s| s.config.name == name).cloned()
    }

    pub(super) fn origin_dev(&self) -> Option<&OriginDev> {
        match &*self.volume {
            Volume::Origin(dev) => Some(dev),
            Volume::Snapshot(_) => None,
        }
    }

    pub(super) fn sectors_per_logical(&self) -> u64 {
        u64::from(self.device.block_bytes()) / SECTOR_BYTES
    }

    /// Publishes what the origin's I/O has to heed. `coming`: log2 of the logical blocks of a chunk of a
    /// snapshot that is about to be added; then nothing counts as copied.
    pub(super) fn publish_view(&self, held: bool, coming: Option<u32>) {
        let Some(dev) = self.origin_dev() else { return };
        let before = dev.view();
        let snapshots = self.snapshots.borrow();
        let there = snapshots.iter().filter(|snapshot| snapshot.counts());
        let shifts = there.map(|snapshot| snapshot.cow.exceptions.chunk_shift());
        let shift = shifts.chain(coming).min();
        let keep = coming.is_none() && shift.is_none_or(|shift| shift == before.shift);
        let shift_now = shift.unwrap_or(before.shift);
        let merge = self.merge.borrow();
        if !keep {
            self.nr_copied.set(0);
        }
        dev.publish(View {
            passes: shift.is_none(),
            held,
            copied: match keep {
                true => before.copied.clone(),
                false => Arc::new(Marks::new((dev.nr_logical() >> shift_now) + 1)),
            },
            all_copied: keep && before.all_copied,
            shift: shift_now,
            merging: merge.as_ref().and_then(|merge| merge.shown()),
        });
    }

    /// Publishes that every snapshot has complete exceptions of these chunks of a view.
    pub(super) fn publish_copied(&self, dev: &OriginDev, chunks: Range<u64>) {
        let view = dev.view();
        if view.passes || view.all_copied {
            return;
        }
        view.copied.ensure(chunks.clone());
        let nr_copied = self.nr_copied.get() + view.copied.mark(chunks);
        self.nr_copied.set(nr_copied);
        if nr_copied == dev.nr_logical().div_ceil(1 << view.shift) {
            // From now on there is nothing to look at.
            dev.publish(View {
                all_copied: true,
                ..View::clone(&view)
            });
        }
    }

    async fn serve(self: Rc<Self>, requests: mpsc::UnboundedReceiver<ToOwner<SnapshotTarget>>) {
        let accept = |deferred| self.accept(deferred);
        self.channels.serve(requests, &self.closed, accept).await;
    }

    /// Ends the message loop, once no channel is left.
    pub(super) fn end_service(&self) {
        owner::look_again(&self.to_owner);
    }

    fn accept(&self, deferred: Deferred<SnapshotTarget>) {
        let Some(me) = self.me.upgrade() else { return };
        if self.closed.get() {
            return self.channels.complete(&deferred, Err(Errno::ENODEV));
        }
        let id = match &*deferred.volume {
            Volume::Origin(_) => {
                return self
                    .tasks
                    .run(&self.runtime, me.clone().origin_io(deferred));
            }
            Volume::Snapshot(dev) => dev.id,
        };
        let snapshots = self.snapshots.borrow();
        let found = snapshots
            .iter()
            .find(|snapshot| snapshot.dev().is_some_and(|dev| dev.id == id));
        match found {
            Some(snapshot) => {
                let task = me.clone().snapshot_io(snapshot.clone(), deferred);
                snapshot.tasks.run(&self.runtime, task);
            }
            None => self.channels.complete(&deferred, Err(Errno::ENODEV)),
        }
    }

    pub(super) fn me(&self) -> Option<Rc<Origin>> {
        self.me.upgrade()
    }
}
