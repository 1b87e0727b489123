//! A ploop target's owner: the one core on which its images change.
//!
//! I/O that comes here runs as tasks that hold `service` for reading; who changes the chain holds it for
//! writing, so that no task is in the middle of something. Messages run one at a time.

use super::backup::Backup;
use super::changes::Record;
use super::delta::{Delta, Source};
use super::error::PloopError;
use super::events::Watcher;
use super::image::{InUse, header};
use super::map::{HELD, PloopDev, PloopTarget, UNSETTLED};
use super::merge::Merge;
use super::places::Change;
use super::tracking::Tracking;
use crate::channel::{Deferred, ToOwner};
use crate::device::SECTOR_BYTES;
use crate::errno::Errno;
use crate::locks::BlockLocks;
use crate::owner::{self, Channels};
use crate::runtime::RuntimeRef;
use crate::target::{BaseId, IoKind};
use crate::thin::cache::MappingCache;
use crate::waits::{Permits, Tasks};
use futures::channel::mpsc;
use rustc_hash::FxHashSet;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard, OwnedRwLockWriteGuard, RwLock};

/// Most lower deltas of a chain.
pub const MAX_LOWER: usize = 254;

/// Clusters a device may grow to without being opened again, at least.
const MIN_CAPACITY: u64 = 1 << 24;

/// How many times its clusters a device may grow to without being opened again.
const GROWTH: u64 = 8;

/// What a target is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PloopConfig {
    /// The target's name, for messages to the user.
    pub name: String,
    /// Limit of the part of the BAT, of all deltas together, that is kept in memory.
    pub bat_cache_bytes: u64,
    /// Clusters that are copied or cleared at a time.
    pub max_copies: usize,
    /// An image that was not closed may be used, if nothing is wrong with it.
    pub may_be_in_use: bool,
}

impl PloopConfig {
    /// 64 MiB of cache, 64 copies; images that were not closed are refused.
    pub fn new(name: &str) -> Self {
        PloopConfig {
            name: name.to_owned(),
            bat_cache_bytes: 64 << 20,
            max_copies: 64,
            may_be_in_use: false,
        }
    }
}

/// A read-only delta.
#[derive(Clone)]
pub struct Lower {
    /// Its device.
    pub source: Source,
    /// It is a raw disk; only the oldest can be.
    pub raw: bool,
}

/// Counters of the slow paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PloopCounters {
    /// Clusters allocated for guest writes.
    pub allocated: u64,
    /// Of those, how many began as a copy of an older delta's.
    pub copied: u64,
    /// Clusters given back.
    pub freed: u64,
    /// Writes of pages of the BAT.
    pub bat_writes: u64,
    /// Entries changed; compared with the above: how many share a write.
    pub bat_changes: u64,
    /// Pages of places read from the deltas.
    pub page_loads: u64,
    /// Clusters moved to make room for a larger BAT.
    pub moved: u64,
    /// Clusters merged.
    pub merged: u64,
    /// Writes of the BAT that failed.
    pub bat_failures: u64,
}

pub(super) struct Chain {
    pub top: Rc<Delta>,
    /// The oldest first.
    pub lower: Vec<Rc<Delta>>,
}

/// A ploop target, on its owner's core.
pub struct Ploop {
    pub(super) me: Weak<Ploop>,
    pub(super) config: PloopConfig,
    pub(super) runtime: RuntimeRef,
    pub(super) dev: Arc<PloopDev>,
    pub(super) channels: Channels,
    pub(super) cache: MappingCache<PloopDev>,
    pub(super) chain: RefCell<Chain>,
    /// Size of a cluster, of all deltas.
    pub(super) cluster_sectors: u64,
    /// Clusters there can be without being opened again.
    pub(super) capacity: u64,
    /// Messages one at a time.
    reconfigure: Mutex<()>,
    pub(super) service: Arc<RwLock<()>>,
    pub(super) suspended: RefCell<Option<OwnedRwLockWriteGuard<()>>>,
    pub(super) noresume: Cell<bool>,
    /// Guest clusters that are being changed.
    pub(super) clusters: BlockLocks,
    /// Guest clusters whose place is not published, whoever reads it.
    pub(super) frozen: RefCell<FxHashSet<u64>>,
    pub(super) changes: RefCell<Vec<Change>>,
    pub(super) committing: Cell<bool>,
    pub(super) copies: Permits,
    pub(super) merge: RefCell<Option<Rc<Merge>>>,
    pub(super) tracking: RefCell<Option<Tracking>>,
    pub(super) backup: RefCell<Option<Rc<Backup>>>,
    pub(super) next_backup: Cell<u64>,
    /// Failed flushes of the top delta that guests have been told of.
    pub(super) told_errors: Cell<u64>,
    /// What was written since earlier ones, the oldest first.
    pub(super) records: RefCell<Vec<Record>>,
    counters: Cell<PloopCounters>,
    pub(super) tasks: Rc<Tasks>,
    pub(super) closed: Cell<bool>,
    /// About to be closed: no message is taken any more.
    pub(super) ending: Cell<bool>,
    pub(super) watcher: RefCell<Option<Watcher>>,
    to_owner: mpsc::UnboundedSender<ToOwner<PloopTarget>>,
}

impl Ploop {
    /// Opens an image with its lower deltas, oldest first; marks it as in use, and starts serving.
    pub async fn open(
        config: PloopConfig,
        runtime: RuntimeRef,
        top: Source,
        lower: Vec<Lower>,
    ) -> Result<Rc<Ploop>, PloopError> {
        if lower.len() > MAX_LOWER {
            return Err(PloopError::TooMany);
        }
        let top = Delta::open(top, true, config.may_be_in_use).await?;
        let image = top
            .header()
            .ok_or(PloopError::NoLower(config.name.clone()))?;
        let mut chain = Chain {
            top: top.clone(),
            lower: Vec::new(),
        };
        for delta in lower {
            let level = chain.lower.len();
            let delta = open_lower(delta, level, &top).await?;
            chain.lower.push(delta);
        }
        let cache = MappingCache::new(config.bat_cache_bytes, &*runtime);
        let no_memory = || PloopError::NoMemory(config.bat_cache_bytes);
        let cache = cache.ok_or_else(no_memory)?;
        let nr_clusters = u64::from(image.nr_entries);
        let capacity = (nr_clusters * GROWTH).clamp(MIN_CAPACITY, u64::from(u32::MAX));
        let pages = cache
            .page_table(header::slot(capacity))
            .ok_or_else(no_memory)?;
        let block_sectors = u64::from(top.source.device.block_bytes()) / SECTOR_BYTES;
        let dev = PloopDev::new(
            pages,
            image.cluster() / block_sectors,
            image.nr_sectors / block_sectors,
        );
        dev.set_top(top.base(), top.source.flushes);
        let set = top.set_in_use(InUse::Open).await;
        set.map_err(|errno| PloopError::Device {
            name: config.name.clone(),
            what: "marking the image as in use",
            errno,
        })?;
        dev.set_state(HELD, false);
        let told_errors = top.nr_flush_errors();
        let (to_owner, requests) = mpsc::unbounded();
        let ploop = Rc::new_cyclic(|me| Ploop {
            me: me.clone(),
            copies: Permits::new(config.max_copies),
            config,
            runtime: runtime.clone(),
            dev: Arc::new(dev),
            channels: Channels::default(),
            cache,
            chain: RefCell::new(chain),
            cluster_sectors: image.cluster(),
            capacity,
            reconfigure: Mutex::new(()),
            service: Arc::default(),
            suspended: RefCell::default(),
            noresume: Cell::new(false),
            clusters: BlockLocks::default(),
            frozen: RefCell::default(),
            changes: RefCell::default(),
            committing: Cell::new(false),
            merge: RefCell::default(),
            tracking: RefCell::default(),
            backup: RefCell::default(),
            next_backup: Cell::new(1),
            told_errors: Cell::new(told_errors),
            records: RefCell::default(),
            counters: Cell::default(),
            tasks: Rc::default(),
            closed: Cell::new(false),
            ending: Cell::new(false),
            watcher: RefCell::default(),
            to_owner,
        });
        runtime.spawn(Box::pin(ploop.clone().serve(requests)));
        Ok(ploop)
    }

    /// Where channels send what they cannot map.
    pub fn owner_queue(&self) -> mpsc::UnboundedSender<ToOwner<PloopTarget>> {
        self.to_owner.clone()
    }

    /// What it was opened with.
    pub fn config(&self) -> &PloopConfig {
        &self.config
    }

    /// The device as every core sees it.
    pub fn dev(&self) -> &Arc<PloopDev> {
        &self.dev
    }

    /// Counters of the slow paths.
    pub fn counters(&self) -> PloopCounters {
        self.counters.get()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut PloopCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    pub(super) fn top(&self) -> Rc<Delta> {
        self.chain.borrow().top.clone()
    }

    pub(super) fn name(&self) -> String {
        self.config.name.clone()
    }

    pub(super) fn device_error(&self, what: &'static str) -> impl Fn(Errno) -> PloopError {
        let name = self.name();
        move |errno| PloopError::Device {
            name: name.clone(),
            what,
            errno,
        }
    }

    /// Sectors of a logical block.
    pub(super) fn block_sectors(&self) -> u64 {
        self.cluster_sectors / self.dev.logical_per_cluster().max(1)
    }

    /// Guest clusters there are.
    pub fn nr_clusters(&self) -> u64 {
        let nr_logical = self.dev.nr_logical_blocks();
        nr_logical.div_ceil(self.dev.logical_per_cluster())
    }

    /// The number of a device that is to come; the host needs it on every core before any I/O.
    pub fn free_base(&self) -> Result<BaseId, PloopError> {
        let chain = self.chain.borrow();
        let used = |base: BaseId| {
            chain.top.base() == base || chain.lower.iter().any(|delta| delta.base() == base)
        };
        let free = (0..=u8::MAX).map(BaseId).find(|base| !used(*base));
        free.ok_or(PloopError::TooMany)
    }

    fn check_open(&self) -> Result<(), PloopError> {
        match self.closed.get() {
            false => Ok(()),
            true => Err(PloopError::Closed(self.name())),
        }
    }

    pub(super) fn busy(&self, why: &'static str) -> PloopError {
        PloopError::Busy {
            name: self.name(),
            why,
        }
    }

    /// Begins a message; the next one can begin when the guard is gone. Error: EBUSY during another one, or
    /// when closed.
    pub(super) fn begin_message(&self) -> Result<MutexGuard<'_, ()>, PloopError> {
        self.check_open()?;
        if self.ending.get() {
            return Err(PloopError::Closed(self.name()));
        }
        self.reconfigure
            .try_lock()
            .map_err(|_| self.busy("another message is being carried out; try again later"))
    }

    /// The same for messages that are refused during maintenance: EBUSY then.
    pub(super) fn begin_change(&self) -> Result<MutexGuard<'_, ()>, PloopError> {
        let guard = self.begin_message()?;
        if self.tracking.borrow().is_some() {
            return Err(self.busy("writes are being tracked; stop tracking first"));
        }
        if self.backup.borrow().is_some() {
            return Err(self.busy("a push backup is running; stop it first"));
        }
        Ok(guard)
    }

    /// What has been acknowledged is on the disk, also where a write of the BAT had failed.
    pub(super) async fn make_durable(&self) -> Result<(), Errno> {
        if self.dev.state() & UNSETTLED != 0 {
            return self.mend().await;
        }
        // Guests are told by their next flush if it fails.
        self.flush_delta(&self.top()).await
    }

    async fn serve(self: Rc<Self>, requests: mpsc::UnboundedReceiver<ToOwner<PloopTarget>>) {
        let accept = |deferred| self.accept(deferred);
        self.channels.serve(requests, &self.closed, accept).await;
    }

    fn accept(&self, deferred: Deferred<PloopTarget>) {
        let Some(me) = self.me.upgrade() else { return };
        if self.closed.get() {
            return self.channels.complete(&deferred, Err(Errno::ENODEV));
        }
        self.tasks.run(&self.runtime, me.io(deferred));
    }

    /// I/O that a channel could not map.
    async fn io(self: Rc<Self>, deferred: Deferred<PloopTarget>) {
        if deferred.request.kind == IoKind::Reset {
            self.channels.barrier().await;
            return self.channels.complete(&deferred, Ok(()));
        }
        let _in_service = self.service.read().await;
        if self.closed.get() {
            return self.channels.complete(&deferred, Err(Errno::ENODEV));
        }
        if !matches!(deferred.request.kind, IoKind::Read | IoKind::Flush)
            && let Some(backup) = self.backup_of(&deferred.request)
        {
            return self.hold_for_backup(&backup, deferred);
        }
        if !matches!(deferred.request.kind, IoKind::Read | IoKind::Flush) {
            self.dev.note_changed(self.clusters_of(&deferred.request));
        }
        let result = match deferred.request.kind {
            IoKind::Flush => {
                let result = self.flush().await;
                return self.channels.complete(&deferred, result);
            }
            IoKind::Read => self.find(&deferred.request).await,
            IoKind::Write => match self.write(&deferred).await {
                Ok(is_done) if is_done => return self.channels.complete(&deferred, Ok(())),
                other => other.map(|_| ()),
            },
            IoKind::Discard | IoKind::WriteZeroes => {
                let result = self.discard(&deferred.request).await;
                return self.channels.complete(&deferred, result);
            }
            IoKind::Reset => Ok(()),
        };
        match result {
            Ok(()) => self.channels.retry(&deferred),
            Err(errno) => self.channels.complete(&deferred, Err(errno)),
        }
    }

    /// Gives the memory for places back; they are read again as they are asked for.
    pub async fn drop_cache(&self) {
        self.cache.forget(&self.dev, &self.channels).await;
    }

    /// Ends the service, and closes the image: it is marked so when everything is durable. No I/O may be
    /// under way or come. The target is closed also when this fails; the image is then as after a crash.
    pub async fn close(&self) -> Result<(), PloopError> {
        self.check_open()?;
        self.cancel_merge();
        let _message = self.reconfigure.lock().await;
        self.check_open()?;
        self.closed.set(true);
        self.release_all();
        self.tasks.drained().await;
        self.channels.barrier().await;
        let closed = async {
            self.flush().await?;
            let top = self.top();
            top.set_in_use(top.closed_mark()).await
        };
        let closed = closed.await;
        owner::look_again(&self.to_owner);
        closed.map_err(self.device_error("closing the image"))
    }
}

/// Opens a delta that is to lie at a level under a top one.
pub(super) async fn open_lower(
    lower: Lower,
    level: usize,
    top: &Delta,
) -> Result<Rc<Delta>, PloopError> {
    let Lower { source, raw } = lower;
    if source.device.block_bytes() != top.source.device.block_bytes() {
        return Err(PloopError::Invalid(format!(
            "delta '{}' has logical blocks of {} bytes, the top delta of {}; all must have the same",
            source.name,
            source.device.block_bytes(),
            top.source.device.block_bytes()
        )));
    }
    if raw {
        return match level {
            0 => Delta::raw(source, top.cluster_sectors),
            _ => Err(PloopError::Invalid(format!(
                "delta '{}' is raw: only the oldest one can be",
                source.name
            ))),
        };
    }
    // Nobody writes it; what was not closed is looked at like everything else.
    let delta = Delta::open(source, false, true).await?;
    match delta.cluster_sectors == top.cluster_sectors {
        true => Ok(delta),
        false => Err(PloopError::Invalid(format!(
            "delta '{}' has clusters of {} sectors, the top delta of {}; all must have the same",
            delta.source.name, delta.cluster_sectors, top.cluster_sectors
        ))),
    }
}
