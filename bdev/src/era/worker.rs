//! An era target's owner: the one core on which its metadata changes.
//!
//! Channels send the first write to a block in an era; all that wait are recorded by one commit.
//! Metadata is behind one asynchronous lock. When an operation on it fails, the transaction is given up
//! and the next operation tries again: nothing that was let through is lost by that, because a mark is
//! published only when it is committed (era.md 7).

use super::map::{EraDev, EraTarget};
use super::metadata::{EraError, EraMetadata, OpenOptions, Step};
use crate::channel::{Deferred, ToOwner};
use crate::device::{DataDeviceRef, SECTOR_BYTES};
use crate::errno::Errno;
use crate::owner::{self, Channels};
use crate::runtime::RuntimeRef;
use crate::target::IoKind;
use futures::channel::{mpsc, oneshot};
use persistent_data::device::BlockDevice;
use persistent_data::turn::yield_now;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use tokio::sync::Mutex;

/// What an era target is opened with (era.md 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EraConfig {
    /// The target's name, for messages to the user.
    pub name: String,
    /// Data block size in sectors: a multiple of 8; fixed when the metadata is formatted.
    pub block_size_sectors: u32,
    /// Length of the era device; none: that of the origin, which may grow.
    pub nr_sectors: Option<u64>,
    /// Limit of the metadata block cache.
    pub metadata_cache_bytes: u64,
}

impl EraConfig {
    /// Blocks of 64 KiB over the whole origin.
    pub fn new(name: &str) -> Self {
        EraConfig {
            name: name.to_owned(),
            block_size_sectors: 128,
            nr_sectors: None,
            metadata_cache_bytes: 64 << 20,
        }
    }
}

/// Why an era target did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EraTargetError {
    /// The metadata says no, or failed.
    #[error("era '{era}': {source}")]
    Metadata {
        /// The target.
        era: String,
        /// Why.
        source: EraError,
    },
    /// A parameter or device that does not fit.
    #[error("era '{era}': {reason}")]
    Invalid {
        /// The target.
        era: String,
        /// What does not fit, and the remedy.
        reason: String,
    },
    /// The target has been closed.
    #[error("era '{era}' is closed")]
    Closed {
        /// The target.
        era: String,
    },
}

impl EraTargetError {
    /// The errno an RPC answers with.
    pub fn errno(&self) -> Errno {
        match self {
            EraTargetError::Metadata { source, .. } => source.errno(),
            EraTargetError::Invalid { .. } => Errno::EINVAL,
            EraTargetError::Closed { .. } => Errno::ENODEV,
        }
    }
}

/// Counters of the slow paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EraCounters {
    /// Metadata transactions committed.
    pub commits: u64,
    /// I/O that waited to be recorded.
    pub first_writes: u64,
    /// Commits that recorded I/O; compared with the above: how many share one.
    pub mark_commits: u64,
    /// Writesets worked into the era array.
    pub digested: u64,
    /// Metadata operations that failed and were given up.
    pub failures: u64,
}

/// An era target, on its owner's core.
pub struct Era {
    me: Weak<Era>,
    pub(super) config: EraConfig,
    runtime: RuntimeRef,
    pub(super) origin: DataDeviceRef,
    pub(super) dev: Arc<EraDev>,
    pub(super) metadata: Mutex<EraMetadata>,
    pub(super) channels: Channels,
    /// I/O waiting to be recorded.
    waiting: RefCell<Vec<Deferred<EraTarget>>>,
    /// A task is recording.
    marking: Cell<bool>,
    /// A task is digesting.
    digesting: Cell<bool>,
    counters: Cell<EraCounters>,
    /// Tasks at work.
    tasks: Cell<u64>,
    idle: RefCell<Vec<oneshot::Sender<()>>>,
    pub(super) closed: Cell<bool>,
    to_owner: mpsc::UnboundedSender<ToOwner<EraTarget>>,
}

impl Era {
    /// Opens an era target, formatting the metadata device if its first block is all zeroes, fits the
    /// era array to the length, begins a new era, and starts serving.
    pub async fn open(
        config: EraConfig,
        runtime: RuntimeRef,
        metadata_device: Rc<dyn BlockDevice>,
        origin: DataDeviceRef,
        origin_flushes: bool,
    ) -> Result<Rc<Era>, EraTargetError> {
        let block_sectors = u64::from(config.block_size_sectors);
        let invalid = |reason: String| EraTargetError::Invalid {
            era: config.name.clone(),
            reason,
        };
        if block_sectors == 0 || !block_sectors.is_multiple_of(8) {
            return Err(invalid(format!(
                "block size {block_sectors} is not a multiple of 8 sectors; choose one, e.g. 128"
            )));
        }
        let has = origin.nr_sectors();
        let nr_sectors = config.nr_sectors.unwrap_or(has);
        if nr_sectors == 0 || nr_sectors > has {
            return Err(invalid(format!(
                "a length of {nr_sectors} sectors does not fit the origin, which has {has}"
            )));
        }
        let options = OpenOptions {
            data_block_size_sectors: config.block_size_sectors,
            cache_bytes: config.metadata_cache_bytes as usize,
            may_format: true,
        };
        let nr_blocks = nr_sectors.div_ceil(block_sectors);
        let metadata = Self::activate(&config, metadata_device, options, nr_blocks)
            .await
            .map_err(|source| EraTargetError::Metadata {
                era: config.name.clone(),
                source,
            })?;
        let sectors_per_logical = u64::from(origin.block_bytes()) / SECTOR_BYTES;
        let dev = EraDev::new(block_sectors, sectors_per_logical, origin_flushes);
        dev.marks.grow(nr_blocks);
        let (to_owner, requests) = mpsc::unbounded();
        let era = Rc::new_cyclic(|me| Era {
            me: me.clone(),
            config,
            runtime: runtime.clone(),
            origin,
            dev: Arc::new(dev),
            metadata: Mutex::new(metadata),
            channels: Channels::default(),
            waiting: RefCell::default(),
            marking: Cell::new(false),
            digesting: Cell::new(false),
            counters: Cell::default(),
            tasks: Cell::new(0),
            idle: RefCell::default(),
            closed: Cell::new(false),
            to_owner,
        });
        runtime.spawn(Box::pin(era.clone().serve(requests)));
        era.start_digest();
        Ok(era)
    }

    /// Size and new era are one transaction (era.md 5.2).
    async fn activate(
        config: &EraConfig,
        device: Rc<dyn BlockDevice>,
        options: OpenOptions,
        nr_blocks: u64,
    ) -> Result<EraMetadata, EraError> {
        let mut metadata = EraMetadata::open(device, options).await?;
        if nr_blocks < metadata.nr_blocks() {
            log::warn!(
                "era '{}': {nr_blocks} blocks, {} before; what is known of the others is dropped",
                config.name,
                metadata.nr_blocks()
            );
        }
        metadata.resize_metadata().await?;
        metadata.resize(nr_blocks).await?;
        metadata.rollover().await?;
        metadata.commit().await?;
        Ok(metadata)
    }

    /// Where channels send what they cannot map.
    pub fn owner_queue(&self) -> mpsc::UnboundedSender<ToOwner<EraTarget>> {
        self.to_owner.clone()
    }

    /// What the target was opened with.
    pub fn config(&self) -> &EraConfig {
        &self.config
    }

    /// The device as every core sees it.
    pub fn dev(&self) -> &Arc<EraDev> {
        &self.dev
    }

    /// Counters of the slow paths.
    pub fn counters(&self) -> EraCounters {
        self.counters.get()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut EraCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    async fn serve(self: Rc<Self>, requests: mpsc::UnboundedReceiver<ToOwner<EraTarget>>) {
        let accept = |deferred| self.accept(deferred);
        self.channels.serve(requests, &self.closed, accept).await;
    }

    /// Ends the message loop, once no channel is left.
    pub(super) fn end_service(&self) {
        owner::look_again(&self.to_owner);
    }

    fn accept(&self, deferred: Deferred<EraTarget>) {
        if self.closed.get() {
            return self.channels.complete(&deferred, Err(Errno::ENODEV));
        }
        match deferred.request.kind {
            IoKind::Reset => self.run_task(|era| async move {
                era.channels.barrier().await;
                era.channels.complete(&deferred, Ok(()));
            }),
            IoKind::Write | IoKind::Discard | IoKind::WriteZeroes => {
                self.count(|counters| counters.first_writes += 1);
                self.waiting.borrow_mut().push(deferred);
                if !self.marking.replace(true) {
                    self.run_task(Era::record_waiting);
                }
            }
            IoKind::Read | IoKind::Flush => self.channels.retry(&deferred),
        }
    }

    /// Spawns a task that closing waits for.
    fn run_task<F: Future<Output = ()> + 'static>(&self, task: impl FnOnce(Rc<Era>) -> F) {
        let Some(era) = self.me.upgrade() else { return };
        let task = task(era.clone());
        self.tasks.set(self.tasks.get() + 1);
        self.runtime.spawn(Box::pin(async move {
            task.await;
            era.tasks.set(era.tasks.get() - 1);
            for waiter in era.idle.take() {
                let _ = waiter.send(());
            }
        }));
    }

    /// Waits until no task is at work.
    pub(super) async fn drain_tasks(&self) {
        while self.tasks.get() > 0 {
            let (tx, rx) = oneshot::channel();
            self.idle.borrow_mut().push(tx);
            let _ = rx.await;
        }
    }

    /// Records all I/O that waits, round by round; each round is one commit.
    async fn record_waiting(self: Rc<Self>) {
        loop {
            let mut metadata = self.metadata.lock().await;
            // What has come while the round before was committing, or while a new era began.
            let batch = self.waiting.take();
            if batch.is_empty() {
                self.marking.set(false);
                return;
            }
            let ranges = self.unmarked(&batch);
            let result = match ranges.is_empty() {
                true => Ok(()),
                false => self.record(&mut metadata, &ranges).await,
            };
            for deferred in &batch {
                match result {
                    // Mapped again, because the era may have ended before it is on its way.
                    Ok(()) => self.channels.retry(deferred),
                    Err(()) => self.channels.complete(deferred, Err(Errno::EIO)),
                }
            }
        }
    }

    /// The blocks a batch touches that are not marked: ascending, without overlap.
    fn unmarked(&self, batch: &[Deferred<EraTarget>]) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = batch
            .iter()
            .filter(|deferred| !self.dev.is_marked(&deferred.request))
            .map(|deferred| self.dev.blocks(&deferred.request))
            .collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }

    async fn record(&self, metadata: &mut EraMetadata, ranges: &[Range<u64>]) -> Result<(), ()> {
        let result = self
            .change(metadata, async |metadata| metadata.mark(ranges).await)
            .await;
        match result {
            Ok(()) => {
                self.count(|counters| counters.mark_commits += 1);
                for range in ranges {
                    self.dev.marks.mark(range.clone());
                }
                Ok(())
            }
            Err(error) => {
                log::error!(
                    "era '{}': cannot record writes, so they fail: {error}",
                    self.config.name
                );
                Err(())
            }
        }
    }

    /// Makes a change and commits it; if either fails, gives the transaction up.
    pub(super) async fn change<V>(
        &self,
        metadata: &mut EraMetadata,
        change: impl AsyncFnOnce(&mut EraMetadata) -> Result<V, EraError>,
    ) -> Result<V, EraError> {
        self.make_usable(metadata).await?;
        let changed = change(metadata).await;
        self.settle(metadata, changed).await
    }

    /// Commits a change; if that or the change has failed, gives the transaction up.
    async fn settle<V>(
        &self,
        metadata: &mut EraMetadata,
        changed: Result<V, EraError>,
    ) -> Result<V, EraError> {
        let result = match changed {
            Ok(value) => metadata.commit().await.map(|()| value),
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => self.count(|counters| counters.commits += 1),
            Err(error) if error.is_refusal() && metadata.is_usable() => {}
            Err(error) => {
                self.count(|counters| counters.failures += 1);
                log::error!(
                    "era '{}': {error}; going back to the last commit",
                    self.config.name
                );
                // If this fails, too, the next operation tries it again.
                if let Err(error) = metadata.recover().await {
                    log::error!("era '{}': {error}", self.config.name);
                }
            }
        }
        result
    }

    /// Takes up again what an earlier failure left.
    pub(super) async fn make_usable(&self, metadata: &mut EraMetadata) -> Result<(), EraError> {
        match metadata.is_usable() {
            true => Ok(()),
            false => metadata.recover().await,
        }
    }

    /// Has archived writesets worked into the era array, between other work.
    pub(super) fn start_digest(&self) {
        if !self.digesting.replace(true) {
            self.run_task(Era::digest);
        }
    }

    async fn digest(self: Rc<Self>) {
        loop {
            yield_now().await;
            let mut metadata = self.metadata.lock().await;
            let step = match self.closed.get() {
                true => Ok(Step::Idle),
                false => self.digest_step(&mut metadata).await,
            };
            match step {
                Ok(Step::Idle) => {}
                Ok(Step::Some) => continue,
                Ok(Step::Finished) => {
                    self.count(|counters| counters.digested += 1);
                    continue;
                }
                Err(error) => log::error!(
                    "era '{}': {error}; eras are digested again after the next checkpoint",
                    self.config.name
                ),
            }
            // While the metadata is held, so that whoever archives next sees it.
            self.digesting.set(false);
            return;
        }
    }

    /// A finished writeset is committed, which gives its space back.
    async fn digest_step(&self, metadata: &mut EraMetadata) -> Result<Step, EraError> {
        self.make_usable(metadata).await?;
        let step = metadata.digest_step().await;
        match step {
            Ok(Step::Idle | Step::Some) => step,
            _ => self.settle(metadata, step).await,
        }
    }
}
