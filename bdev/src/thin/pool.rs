//! A thin pool's owner: the one core on which its mappings change.
//!
//! Channels send what they cannot map; each such I/O becomes a task here. Metadata is behind one
//! asynchronous lock. A commit holds it while it seals the transaction, and flushes the data device after that,
//! so that no mapping of the transaction is inserted after the flush (thin.md 5.1).

use super::cache::{MappingCache, MappingCacheStats};
use super::commit::{Commits, DataLoss};
use super::deletion::Deletion;
use super::error::PoolError;
use super::events::PoolEvent;
use super::external_merge::Merging;
use super::map::{PoolMode, PoolShared, Thin, ThinDev};
use super::metadata::{OpenOptions, ThinMetadata};
use super::provision::{self, FirstWrite};
use crate::channel::{Deferred, ToOwner};
use crate::device::{DataDeviceRef, SECTOR_BYTES};
use crate::errno::Errno;
use crate::locks::BlockLocks;
use crate::owner::{self, Channels};
use crate::runtime::RuntimeRef;
use crate::target::IoKind;
use futures::StreamExt;
use futures::channel::{mpsc, oneshot};
use persistent_data::device::BlockDevice;
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::Mutex;

/// Longest time an uncommitted change waits for a commit nobody asked for (thin.md 5).
const COMMIT_PERIOD: Duration = Duration::from_secs(1);

/// Stands for the pool itself where tasks are counted by device.
pub(super) const NO_DEVICE: u32 = u32::MAX;

/// A virtual block of a device.
pub(super) type DeviceBlock = (u32, u64);

/// What a pool is opened with (thin.md 11.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// The pool's name, for messages to the user.
    pub name: String,
    /// Data block size in sectors: 128..=2097152, a multiple of 128.
    pub data_block_size_sectors: u32,
    /// An event is due when this few data blocks are free.
    pub low_water_mark_blocks: u64,
    /// Do not zero new blocks: the part of a block not yet written shows old data.
    pub skip_block_zeroing: bool,
    /// Discards are not offered.
    pub ignore_discard: bool,
    /// Discards free blocks of the pool but are not passed to the data device.
    pub no_discard_passdown: bool,
    /// Nothing may change.
    pub read_only: bool,
    /// A write that finds no space fails at once instead of waiting for it.
    pub error_if_no_space: bool,
    /// How long writes wait for space before they fail; zero: for ever.
    pub no_space_timeout: Duration,
    /// Limit of the metadata block cache.
    pub metadata_cache_bytes: u64,
    /// Limit of the mapping cache.
    pub mapping_cache_bytes: u64,
    /// Leaves of a device's tree that a deletion takes at a time, at least 1.
    pub deletion_step_leaves: usize,
}

impl PoolConfig {
    /// The kernel's defaults.
    pub fn new(name: &str) -> Self {
        PoolConfig {
            name: name.to_owned(),
            data_block_size_sectors: 128,
            low_water_mark_blocks: 0,
            skip_block_zeroing: false,
            ignore_discard: false,
            no_discard_passdown: false,
            read_only: false,
            error_if_no_space: false,
            no_space_timeout: Duration::from_secs(60),
            metadata_cache_bytes: 64 << 20,
            mapping_cache_bytes: 256 << 20,
            deletion_step_leaves: 16,
        }
    }
}

/// Counters of a pool's slow paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// Metadata transactions committed.
    pub commits: u64,
    /// Data blocks provisioned for holes.
    pub provisioned: u64,
    /// Data blocks copied to break sharing.
    pub shares_broken: u64,
    /// I/O that found no data space.
    pub no_space: u64,
    /// Virtual blocks unmapped by discards and write-zeroes.
    pub discarded: u64,
}

/// Told of events.
pub(super) type Watcher = Box<dyn Fn(&PoolEvent)>;

/// A thin pool, on its owner's core.
pub struct Pool {
    pub(super) me: Weak<Pool>,
    pub(super) config: PoolConfig,
    pub(super) runtime: RuntimeRef,
    pub(super) data: DataDeviceRef,
    pub(super) shared: Arc<PoolShared>,
    pub(super) metadata: Mutex<ThinMetadata>,
    /// Held by who does the work of sealing a transaction ahead of it.
    pub(super) ahead: Mutex<()>,
    pub(super) channels: Channels,
    pub(super) cache: MappingCache,
    /// What those who wait for the metadata need of it: blocks of devices.
    pub(super) wanted: RefCell<Vec<(u32, Range<u64>)>>,
    pub(super) locks: BlockLocks,
    pub(super) active: RefCell<BTreeMap<u32, Arc<ThinDev>>>,
    /// External origins of active devices.
    pub(super) origins: RefCell<BTreeMap<u32, DataDeviceRef>>,
    /// I/O on a block for which a task is running; that task answers it.
    pub(super) pending: RefCell<FxHashMap<DeviceBlock, Vec<Deferred<Thin>>>>,
    /// I/O waiting for data space.
    pub(super) no_space: RefCell<Vec<Deferred<Thin>>>,
    /// Which entry into out-of-data-space mode a timer belongs to.
    pub(super) no_space_round: Cell<u64>,
    /// The timer has fired: writes fail instead of waiting until there is space again.
    pub(super) no_space_errors: Cell<bool>,
    pub(super) commits: Commits,
    pub(super) data_loss: DataLoss,
    /// Data blocks freed since the last commit, which may have I/O in flight.
    pub(super) freed: RefCell<Vec<u64>>,
    /// Since the last commit a mapping was taken away, so a block may have become free.
    pub(super) unmapped_some: Cell<bool>,
    pub(super) low_water_triggered: Cell<bool>,
    /// Free metadata is at its threshold or below.
    pub(super) low_metadata: Cell<bool>,
    pub(super) watcher: RefCell<Option<Watcher>>,
    pub(super) counters: Cell<PoolCounters>,
    pub(super) deletions: RefCell<BTreeMap<u32, Deletion>>,
    /// Merges into external origins, by device: under way, or how the last one ended.
    pub(super) merging: RefCell<BTreeMap<u32, Rc<Merging>>>,
    /// Tasks working on I/O, per device.
    pub(super) tasks: RefCell<FxHashMap<u32, u64>>,
    pub(super) idle: RefCell<Vec<oneshot::Sender<()>>>,
    pub(super) closed: Cell<bool>,
    timers: RefCell<Vec<futures::future::AbortHandle>>,
    to_owner: mpsc::UnboundedSender<ToOwner<Thin>>,
}

impl Pool {
    /// Opens a pool, formatting the metadata device if its first block is all zeroes, and starts
    /// serving. The device's data size is taken from `data` (grown if larger than recorded).
    pub async fn open(
        config: PoolConfig,
        runtime: RuntimeRef,
        metadata_device: Rc<dyn BlockDevice>,
        data: DataDeviceRef,
        data_flushes: bool,
    ) -> Result<Rc<Pool>, PoolError> {
        let block_sectors = u64::from(config.data_block_size_sectors);
        let invalid = |reason: String| PoolError::Invalid {
            pool: config.name.clone(),
            reason,
        };
        if !(128..=2_097_152).contains(&block_sectors) || !block_sectors.is_multiple_of(128) {
            return Err(invalid(format!(
                "data block size {block_sectors} is not a multiple of 128 sectors between 128 and 2097152"
            )));
        }
        let nr_data_blocks = data.nr_sectors() / block_sectors;
        if nr_data_blocks == 0 {
            return Err(invalid(format!(
                "the data bdev is too small: {} sectors, and one data block is {block_sectors}",
                data.nr_sectors()
            )));
        }
        let options = OpenOptions {
            data_block_size_sectors: config.data_block_size_sectors,
            cache_bytes: config.metadata_cache_bytes as usize,
            may_format: !config.read_only,
            read_only: config.read_only,
        };
        let mut metadata = ThinMetadata::open(metadata_device, options).await?;
        let needs_check = metadata.needs_check();
        if nr_data_blocks < metadata.nr_data_blocks() {
            return Err(invalid(format!(
                "the data bdev holds {nr_data_blocks} blocks, the metadata records {}; use the original or a larger bdev",
                metadata.nr_data_blocks()
            )));
        }
        if config.read_only || needs_check {
            if needs_check {
                log::warn!(
                    "pool '{}': the metadata needs a check (thin_check --clear-needs-check-flag, or thin_repair); opened read-only",
                    config.name
                );
            }
        } else {
            metadata.resize_metadata().await?;
            if nr_data_blocks > metadata.nr_data_blocks() {
                metadata.resize_data(nr_data_blocks).await?;
            }
            if metadata.changed() {
                metadata.commit().await?;
            }
        }
        let sectors_per_logical = u64::from(data.block_bytes()) / SECTOR_BYTES;
        let shared = Arc::new(PoolShared::new(
            block_sectors,
            sectors_per_logical,
            data_flushes,
        ));
        if config.read_only || needs_check {
            shared.set_mode(PoolMode::ReadOnly);
        }
        let cache = MappingCache::new(config.mapping_cache_bytes, &*runtime).ok_or_else(|| {
            invalid(format!(
                "there is not the memory for a mapping cache of {} bytes",
                config.mapping_cache_bytes
            ))
        })?;
        let (to_owner, requests) = mpsc::unbounded();
        let pool = Rc::new_cyclic(|me| Pool {
            me: me.clone(),
            cache,
            config,
            runtime: runtime.clone(),
            data,
            shared,
            metadata: Mutex::new(metadata),
            ahead: Mutex::default(),
            channels: Channels::default(),
            locks: BlockLocks::default(),
            active: RefCell::default(),
            origins: RefCell::default(),
            pending: RefCell::default(),
            no_space: RefCell::default(),
            no_space_round: Cell::new(0),
            no_space_errors: Cell::new(false),
            commits: Commits::default(),
            data_loss: DataLoss::default(),
            freed: RefCell::default(),
            unmapped_some: Cell::new(false),
            wanted: RefCell::default(),
            low_water_triggered: Cell::new(false),
            low_metadata: Cell::new(false),
            watcher: RefCell::default(),
            counters: Cell::default(),
            deletions: RefCell::default(),
            merging: RefCell::default(),
            tasks: RefCell::default(),
            idle: RefCell::default(),
            closed: Cell::new(false),
            timers: RefCell::default(),
            to_owner,
        });
        runtime.spawn(Box::pin(pool.clone().serve(requests)));
        pool.spawn_until_closed(pool.clone().commit_periodically());
        pool.spawn_until_closed(pool.clone().watch_no_space());
        Ok(pool)
    }

    /// Spawns a task that ends with the pool, whatever it is waiting for.
    fn spawn_until_closed(&self, task: impl Future<Output = ()> + 'static) {
        let (task, handle) = futures::future::abortable(task);
        self.timers.borrow_mut().push(handle);
        self.runtime.spawn(Box::pin(async move {
            // Aborted by end_service.
            let _ = task.await;
        }));
    }

    /// Ends timers and the message loop, once no channel is left.
    pub(super) fn end_service(&self) {
        for timer in self.timers.take() {
            timer.abort();
        }
        owner::look_again(&self.to_owner);
    }

    /// Where channels send what they cannot map.
    pub fn owner_queue(&self) -> mpsc::UnboundedSender<ToOwner<Thin>> {
        self.to_owner.clone()
    }

    /// What the pool was opened with.
    pub fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// What every core sees of the pool.
    pub fn shared(&self) -> &Arc<PoolShared> {
        &self.shared
    }

    /// Counters of the slow paths.
    pub fn counters(&self) -> PoolCounters {
        self.counters.get()
    }

    /// Counters of the mapping cache.
    pub fn mapping_cache_stats(&self) -> MappingCacheStats {
        self.cache.stats()
    }

    async fn serve(self: Rc<Self>, mut requests: mpsc::UnboundedReceiver<ToOwner<Thin>>) {
        let mut gathered = Vec::new();
        while let Some(message) = requests.next().await {
            self.take(message, &mut gathered);
            while gathered.len() < provision::MOST
                && let Ok(message) = requests.try_recv()
            {
                self.take(message, &mut gathered);
            }
            self.start_provisioning(&mut gathered);
            if self.closed.get() && self.channels.is_empty() {
                return;
            }
        }
    }

    fn take(self: &Rc<Self>, message: ToOwner<Thin>, gathered: &mut Vec<FirstWrite>) {
        match message {
            ToOwner::Join(id, sender) => self.channels.join(id, sender),
            ToOwner::Leave(id) => self.channels.leave(id),
            ToOwner::Deferred(deferred) if deferred.volume.closed.load(Ordering::Relaxed) => {
                self.channels.complete(&deferred, Err(Errno::ENODEV));
            }
            ToOwner::Deferred(deferred) => match self.first_write(deferred) {
                Ok(first) => {
                    // A task is of one device.
                    if gathered.last().is_some_and(|last| !last.is_with(&first)) {
                        self.start_provisioning(gathered);
                    }
                    gathered.push(first);
                }
                Err(deferred) => self.accept(deferred),
            },
        }
    }

    fn start_provisioning(self: &Rc<Self>, gathered: &mut Vec<FirstWrite>) {
        if let Some(last) = gathered.last() {
            let device = last.device();
            let task = self.clone().provision(std::mem::take(gathered));
            self.run_task(device, task);
        }
    }

    fn accept(self: &Rc<Self>, deferred: Deferred<Thin>) {
        let device = deferred.volume.id;
        let Some(task) = self.task_for(deferred) else {
            return;
        };
        self.run_task(device, task);
    }

    /// Spawns a task that closing the device (or the pool) waits for.
    pub(super) fn run_task(&self, device: u32, task: impl Future<Output = ()> + 'static) {
        let Some(pool) = self.me.upgrade() else {
            return;
        };
        *self.tasks.borrow_mut().entry(device).or_default() += 1;
        self.runtime.spawn(Box::pin(async move {
            task.await;
            pool.task_done(device);
        }));
    }

    fn task_for(
        self: &Rc<Self>,
        deferred: Deferred<Thin>,
    ) -> Option<futures::future::LocalBoxFuture<'static, ()>> {
        let pool = self.clone();
        Some(match deferred.request.kind {
            IoKind::Read | IoKind::Write => {
                let key = (
                    deferred.volume.id,
                    self.shared.split(deferred.request.offset_blocks).0,
                );
                let mut pending = self.pending.borrow_mut();
                if let Some(waiting) = pending.get_mut(&key) {
                    waiting.push(deferred);
                    return None;
                }
                let dev = deferred.volume.clone();
                pending.insert(key, vec![deferred]);
                Box::pin(async move { pool.resolve_block(dev, key.1).await })
            }
            IoKind::Flush => Box::pin(async move { pool.flush(deferred).await }),
            IoKind::Discard => Box::pin(async move { pool.discard(deferred).await }),
            IoKind::WriteZeroes => Box::pin(async move { pool.write_zeroes(deferred).await }),
            IoKind::Reset => Box::pin(async move { pool.reset(deferred).await }),
        })
    }

    fn task_done(&self, device: u32) {
        let mut tasks = self.tasks.borrow_mut();
        if let Some(count) = tasks.get_mut(&device) {
            *count -= 1;
            if *count == 0 {
                tasks.remove(&device);
                drop(tasks);
                for waiter in self.idle.take() {
                    let _ = waiter.send(());
                }
            }
        }
    }

    /// Waits until no task works for a device.
    pub(super) async fn drain_tasks(&self, device: u32) {
        while self.tasks.borrow().contains_key(&device) {
            let (tx, rx) = oneshot::channel();
            self.idle.borrow_mut().push(tx);
            let _ = rx.await;
        }
    }

    /// A bdev reset: what waits for space fails, what is in flight finishes.
    async fn reset(&self, deferred: Deferred<Thin>) {
        self.fail_no_space(Errno::EIO, |waiting| {
            Arc::ptr_eq(&waiting.volume, &deferred.volume)
        });
        self.channels.barrier().await;
        self.channels.complete(&deferred, Ok(()));
    }

    async fn commit_periodically(self: Rc<Self>) {
        while !self.closed.get() {
            self.runtime.sleep(COMMIT_PERIOD).await;
            let changed = match self.metadata.try_lock().ok() {
                Some(metadata) => metadata.changed(),
                None => true,
            };
            if changed && !self.closed.get() && !self.shared.mode().refuses_changes() {
                // The failure has been dealt with and logged; nobody waits for this commit.
                let _ = self.commit().await;
            }
        }
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut PoolCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }
}
