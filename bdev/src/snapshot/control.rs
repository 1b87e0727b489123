//! Snapshots and merges come and go (snapshot.md 8, 9).

use super::cow::{Cow, Places};
use super::error::SnapshotError;
use super::exceptions::Exceptions;
use super::layout::{Layout, is_chunk_size};
use super::map::{SnapDev, State, Volume};
use super::merge::{Merge, MergeState};
use super::owner::{Origin, Snapshot, SnapshotConfig};
use super::store::{Opened, PersistentStore, Store, TransientStore};
use super::table::StoreKind;
use crate::device::{ByteDeviceRef, DataDevice, SECTOR_BYTES};
use crate::flushes::Listening;
use crate::target::BaseId;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Mutex;

impl Origin {
    /// The number of a COW device that is to come; the host needs it on every core before any I/O.
    pub fn free_base(&self) -> Result<BaseId, SnapshotError> {
        let snapshots = self.snapshots.borrow();
        let merge = self.merge.borrow();
        let used = |base: u8| {
            let base = BaseId(base);
            snapshots.iter().any(|s| s.cow.exceptions.base() == base)
                || merge
                    .as_ref()
                    .is_some_and(|merge| merge.cow.exceptions.base() == base)
        };
        let free = (1..=u8::MAX).find(|base| !used(*base));
        free.map(BaseId).ok_or(SnapshotError::TooMany)
    }

    /// Adds a snapshot: a new one where the COW device begins with zeroes, else the one that is there.
    /// Every write of the origin that is answered after this is not in a new snapshot, every one answered
    /// before is. `base` is from [`Origin::free_base`].
    ///
    /// A store that was invalidated gives a snapshot whose state says so. While a snapshot is merging, only
    /// stores that are there can be opened: a new one would begin with a half-merged origin.
    pub async fn create_snapshot(
        &self,
        config: SnapshotConfig,
        base: BaseId,
        device: ByteDeviceRef,
        cow_flushes: bool,
    ) -> Result<Rc<Snapshot>, SnapshotError> {
        let _alone = self.reconfigure.lock().await;
        self.check_open()?;
        if self.snapshot(&config.name).is_some() {
            return Err(SnapshotError::Exists(config.name));
        }
        let is_merging = self.check_no_merge().is_err();
        let is_new = match config.store {
            StoreKind::Transient => true,
            _ => is_merging && PersistentStore::is_blank(&device).await?,
        };
        if is_merging && is_new {
            return Err(SnapshotError::NotWhileMerging);
        }
        let (cow, state) = self.open_cow(&config, base, device, cow_flushes).await?;
        let nr_logical = self.length(&config)? / self.sectors_per_logical();
        let snapshot = self.new_snapshot(config, Rc::new(cow), state, nr_logical);
        if state != State::Invalid {
            // Writes that are not known to have been seen by this snapshot come to the owner and wait;
            // those on their way are over before the first exception is made.
            self.gate.close();
            let shift = snapshot.cow.exceptions.chunk_shift();
            self.publish_view(false, Some(shift));
            self.channels.barrier().await;
            // What the snapshot begins with is not lost by a power cut.
            let flushes = self.origin_dev().is_some_and(|dev| dev.origin_flushes);
            if flushes && let Err(errno) = self.device.flush().await {
                self.tell_guests();
                self.gate.open();
                self.publish_view(false, None);
                return Err(SnapshotError::Device {
                    what: "flushing the origin",
                    errno,
                });
            }
        }
        self.add(&snapshot);
        self.gate.open();
        self.publish_view(false, None);
        Ok(snapshot)
    }

    pub(super) fn new_snapshot(
        &self,
        config: SnapshotConfig,
        cow: Rc<Cow>,
        state: State,
        nr_logical: u64,
    ) -> Rc<Snapshot> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let exceptions = cow.exceptions.clone();
        let dev = SnapDev::new(
            id,
            exceptions,
            state,
            config.discards,
            cow.flushes,
            nr_logical,
        );
        Rc::new(Snapshot {
            config,
            volume: Arc::new(Volume::Snapshot(dev)),
            cow,
            pending: Default::default(),
            order: Default::default(),
            committing: Default::default(),
            draining: Default::default(),
            drained: Default::default(),
            gone: Default::default(),
            header_unsure: Default::default(),
            tasks: Default::default(),
        })
    }

    pub(super) fn add(&self, snapshot: &Rc<Snapshot>) {
        let mut snapshots = self.snapshots.borrow_mut();
        snapshots.push(snapshot.clone());
        snapshots.sort_by_key(|s| std::cmp::Reverse(s.cow.exceptions.chunk_shift()));
    }

    /// Length of the part of the origin that counts for a snapshot.
    pub(super) fn length(&self, config: &SnapshotConfig) -> Result<u64, SnapshotError> {
        let has = self.nr_sectors();
        let length = config.nr_sectors.unwrap_or(has);
        match length > 0 && length <= has && length.is_multiple_of(self.sectors_per_logical()) {
            true => Ok(length),
            false => Err(SnapshotError::Invalid(format!(
                "snapshot '{}': a length of {length} sectors does not fit the origin, which has {has}",
                config.name
            ))),
        }
    }

    async fn open_cow(
        &self,
        config: &SnapshotConfig,
        base: BaseId,
        device: ByteDeviceRef,
        flushes: bool,
    ) -> Result<(Cow, State), SnapshotError> {
        let block_bytes = self.device.block_bytes();
        if device.block_bytes() != block_bytes {
            return Err(SnapshotError::Invalid(format!(
                "snapshot '{}': the COW device has logical blocks of {} bytes, the origin of {block_bytes}; use one with the same",
                config.name,
                device.block_bytes()
            )));
        }
        let errors = Rc::default();
        let guests = Listening::new(device.clone(), &errors);
        let device = Rc::new(Listening::new(device, &errors));
        let length = self.length(config)?;
        let make = |layout: Layout| {
            let nr_chunks = length.div_ceil(layout.chunk_sectors());
            let pages = self.cache.page_table(nr_chunks);
            let shift = (layout.chunk_sectors() / self.sectors_per_logical()).trailing_zeros();
            pages
                .map(|pages| Arc::new(Exceptions::new(pages, base, nr_chunks, shift)))
                .ok_or(SnapshotError::NoMemory(nr_chunks))
        };
        let (store, exceptions, state) = match config.store {
            StoreKind::Transient => {
                if config.chunk_sectors == 0 {
                    return Err(SnapshotError::NoChunkSize);
                }
                if !is_chunk_size(config.chunk_sectors, block_bytes) {
                    return Err(SnapshotError::ChunkSize {
                        chunk_sectors: config.chunk_sectors,
                        block_bytes,
                    });
                }
                let layout = Layout::new(config.chunk_sectors);
                let store = TransientStore::new(device.clone(), layout);
                (Store::Transient(store), make(layout)?, State::Active)
            }
            StoreKind::Persistent { .. } => {
                let mut made = None;
                let mut places = Places::new(self.config.exceptions_cache_bytes);
                let opened = PersistentStore::open(
                    device.clone(),
                    config.chunk_sectors,
                    block_bytes,
                    |layout, exception| {
                        let exceptions = made.get_or_insert_with(|| make(layout));
                        places.note(exception);
                        // Without memory nothing is known; that is told below.
                        exceptions
                            .as_ref()
                            .map_or(true, |found| found.note(exception.old_chunk))
                    },
                )
                .await?;
                let (store, state) = match opened {
                    Opened::Valid(store) => (store, State::Active),
                    Opened::Invalid(store) => (store, State::Invalid),
                };
                let exceptions = made.unwrap_or_else(|| make(store.layout()))?;
                places
                    .publish(&exceptions, &self.cache, &self.channels)
                    .await;
                (Store::Persistent(store), exceptions, state)
            }
        };
        let cow = Cow {
            device,
            guests,
            flushes,
            store,
            exceptions,
            lock: Mutex::new(()),
        };
        Ok((cow, state))
    }

    /// Takes a snapshot out of service; its store stays on the COW device. Its bdev must be gone: no I/O
    /// to it may be under way or come. Writes of the origin from now on are not kept from it.
    pub async fn remove_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        let _alone = self.reconfigure.lock().await;
        self.check_open()?;
        let Some(snapshot) = self.snapshot(name) else {
            return Err(SnapshotError::NoSnapshot(name.to_owned()));
        };
        let handed_over = snapshot.gone.replace(true);
        self.snapshots
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, &snapshot));
        self.publish_view(false, None);
        snapshot.tasks.drained().await;
        while snapshot.draining.get() {
            let _ = snapshot.drained.heard().await;
        }
        snapshot.set_state(State::Invalid);
        self.channels.barrier().await;
        if !handed_over {
            self.cache
                .forget(&snapshot.cow.exceptions, &self.channels)
                .await;
        }
        Ok(())
    }

    fn check_no_merge(&self) -> Result<(), SnapshotError> {
        match &*self.merge.borrow() {
            Some(merge) if merge.shown().is_some() => Err(SnapshotError::AlreadyMerging),
            _ => Ok(()),
        }
    }

    /// Begins to merge a snapshot into the origin, which shows the snapshot's content from the answer on.
    /// The snapshot is Invalid from then on and answers with errors.
    pub async fn merge_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        let _alone = self.reconfigure.lock().await;
        self.check_open()?;
        self.check_no_merge()?;
        let Some(snapshot) = self.snapshot(name) else {
            return Err(SnapshotError::NoSnapshot(name.to_owned()));
        };
        let Store::Persistent(store) = &snapshot.cow.store else {
            return Err(SnapshotError::CannotMerge);
        };
        if snapshot.state() == State::Invalid {
            return Err(SnapshotError::Invalid(format!(
                "snapshot '{name}' is invalid, there is nothing to merge"
            )));
        }
        self.check_mergeable(&snapshot.config, snapshot.cow.layout())?;
        let was_valid = self.retire(&snapshot).await != State::Invalid;
        let state = match was_valid {
            true => MergeState::Running,
            false => MergeState::Invalid,
        };
        store.begin_merge();
        let merge = Merge::new(name, snapshot.cow.clone(), state);
        self.begin(merge);
        Ok(())
    }

    /// Merges a store that no active snapshot uses, as after a restart. Other snapshots of the origin must
    /// be there before.
    pub async fn merge_store(
        &self,
        config: SnapshotConfig,
        base: BaseId,
        device: ByteDeviceRef,
        cow_flushes: bool,
    ) -> Result<(), SnapshotError> {
        let _alone = self.reconfigure.lock().await;
        self.check_open()?;
        self.check_no_merge()?;
        if config.store == StoreKind::Transient {
            return Err(SnapshotError::CannotMerge);
        }
        let (cow, state) = self.open_cow(&config, base, device, cow_flushes).await?;
        self.check_mergeable(&config, cow.layout())?;
        if let Store::Persistent(store) = &cow.store {
            store.begin_merge();
        }
        let state = match state {
            State::Invalid => MergeState::Invalid,
            _ => MergeState::Running,
        };
        self.gate.close();
        self.publish_view(true, None);
        self.channels.barrier().await;
        self.begin(Merge::new(&config.name, Rc::new(cow), state));
        Ok(())
    }

    fn begin(&self, merge: Rc<Merge>) {
        let runs = merge.state() == MergeState::Running;
        *self.merge.borrow_mut() = Some(merge.clone());
        self.publish_view(false, None);
        self.gate.open();
        if runs {
            self.run_merge(&merge);
        }
    }

    /// The merge of this origin, if there was one.
    pub fn merge(&self) -> Option<Rc<Merge>> {
        self.merge.borrow().clone()
    }

    /// Lets go of the COW device of a merge that has finished. Afterwards no I/O to it is under way.
    pub async fn forget_merge(&self) -> Result<(), SnapshotError> {
        let _alone = self.reconfigure.lock().await;
        let merge = self.merge();
        let Some(merge) = merge else { return Ok(()) };
        if merge.shown().is_some() {
            return Err(SnapshotError::AlreadyMerging);
        }
        self.merge.take();
        self.channels.barrier().await;
        self.cache
            .forget(&merge.cow.exceptions, &self.channels)
            .await;
        Ok(())
    }

    /// Gives the memory for places of exceptions back; they are read again as they are asked for.
    pub async fn drop_cache(&self) {
        let snapshots = self.snapshots.borrow().clone();
        let merge = self.merge();
        let cows = snapshots.iter().map(|snapshot| &snapshot.cow);
        for cow in cows.chain(merge.iter().map(|merge| &merge.cow)) {
            self.cache.forget(&cow.exceptions, &self.channels).await;
        }
    }

    /// Stops merging after the batch in hand. The origin goes on showing the snapshot's content.
    pub async fn stop_merge(&self) -> Result<(), SnapshotError> {
        let merge = self
            .merge()
            .ok_or(SnapshotError::NoMerge(self.config.name.clone()))?;
        merge.stop.set(true);
        while merge.running.get() {
            let _ = merge.ended.heard().await;
        }
        Ok(())
    }

    /// Goes on with a merge that was stopped or has failed.
    pub fn resume_merge(&self) -> Result<(), SnapshotError> {
        self.check_open()?;
        let merge = self
            .merge()
            .ok_or(SnapshotError::NoMerge(self.config.name.clone()))?;
        if matches!(merge.state(), MergeState::Stopped | MergeState::Failed(_)) {
            self.run_merge(&merge);
        }
        Ok(())
    }

    /// Ends the service. No I/O may be under way or come. Nothing is written: nothing is dirty.
    pub async fn close(&self) -> Result<(), SnapshotError> {
        self.check_open()?;
        if self.merge().is_some() {
            self.stop_merge().await?;
        }
        let _alone = self.reconfigure.lock().await;
        self.closed.set(true);
        let snapshots = self.snapshots.borrow().clone();
        for snapshot in snapshots {
            snapshot.tasks.drained().await;
        }
        self.tasks.drained().await;
        self.channels.barrier().await;
        self.end_service();
        Ok(())
    }

    /// Sectors of the origin.
    pub fn nr_sectors(&self) -> u64 {
        match &*self.volume {
            Volume::Origin(dev) => {
                dev.nr_logical() * u64::from(self.device.block_bytes()) / SECTOR_BYTES
            }
            Volume::Snapshot(_) => 0,
        }
    }
}
