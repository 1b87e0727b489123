//! What RPCs and messages ask of a pool: devices, snapshots, activation, closing (thin.md 3, 11).

use super::commit::Change;
use super::error::PoolError;
use super::map::{PoolMode, ThinDev};
use super::metadata::{Details, ThinError, ThinMetadata};
use super::pool::{NO_DEVICE, Pool};
use super::status::{PoolStatus, ThinStatus};
use crate::device::DataDeviceRef;
use crate::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

impl Pool {
    pub(super) fn writable(&self) -> Result<(), PoolError> {
        let (mode, remedy) = match self.shared.mode() {
            PoolMode::Write | PoolMode::OutOfDataSpace => return Ok(()),
            PoolMode::OutOfMetadataSpace => (
                "out of metadata space",
                "; grow the metadata bdev and reload the pool",
            ),
            PoolMode::ReadOnly => (
                "read-only",
                "; see the log for why, run thin_check and reload the pool",
            ),
            PoolMode::Fail => ("failed", "; reload the pool"),
        };
        Err(PoolError::Mode {
            pool: self.config.name.clone(),
            mode,
            remedy,
        })
    }

    pub(super) fn check_open(&self) -> Result<(), PoolError> {
        match self.closed.get() {
            false => Ok(()),
            true => Err(PoolError::Closed {
                pool: self.config.name.clone(),
            }),
        }
    }

    pub(super) fn data_error(&self, errno: Errno) -> PoolError {
        PoolError::Data {
            pool: self.config.name.clone(),
            errno,
        }
    }

    /// What precedes every change: the transaction is ended if it has used most of the free metadata, and
    /// the data bdev must flush now, so that a change is hardly ever made that then cannot be committed.
    pub(super) async fn make_ready(&self, metadata: &mut ThinMetadata) -> Result<(), PoolError> {
        if metadata.is_metadata_tight() {
            return self.make_ready_by_commit(metadata).await;
        }
        self.flush_data(metadata)
            .await
            .map_err(|errno| self.data_error(errno))?;
        self.writable()
    }

    /// The same as far as it takes no metadata, for who wants to hold that for a short time only.
    async fn ready_ahead(&self) -> Result<(), Errno> {
        self.flush_data_aside().await?;
        self.seal_ahead().await
    }

    /// Commits, and asks whether the pool may still be changed.
    pub(super) async fn make_ready_by_commit(
        &self,
        metadata: &mut ThinMetadata,
    ) -> Result<(), PoolError> {
        self.commit_locked(metadata)
            .await
            .map_err(|errno| self.data_error(errno))?;
        self.writable()
    }

    /// Refusals leave the transaction as it was; anything else has to be undone as a whole.
    pub(super) async fn settle<V>(
        &self,
        mut change: Change<'_>,
        result: Result<V, ThinError>,
    ) -> Result<V, PoolError> {
        match result {
            Ok(value) => {
                match self.commit_change(change).await {
                    Ok(()) => Ok(value),
                    // Undone and read-only by now.
                    Err(errno) if self.shared.mode().refuses_changes() => {
                        Err(self.data_error(errno))
                    }
                    Err(errno) => Err(PoolError::Uncommitted {
                        pool: self.config.name.clone(),
                        errno,
                    }),
                }
            }
            // Nothing has been changed: what others did in this transaction must not go with it.
            Err(error) if error.is_refusal() || change.metadata.is_usable() => Err(error.into()),
            Err(error) => {
                self.metadata_failed(&mut change.metadata, &error).await;
                Err(error.into())
            }
        }
    }

    /// Creates an empty thin device.
    pub async fn create_thin(&self, id: u32) -> Result<(), PoolError> {
        self.check_open()?;
        self.writable()?;
        let mut change = self.begin_change().await;
        self.make_ready(&mut change.metadata).await?;
        let result = change.metadata.create_thin(id).await;
        self.settle(change, result).await
    }

    /// Creates a snapshot of a thin device, active or not. Writes to the origin that were under way
    /// are finished first; those acknowledged before the call are in the snapshot.
    pub async fn create_snap(&self, id: u32, origin: u32) -> Result<(), PoolError> {
        self.check_open()?;
        self.writable()?;
        let ready = self.ready_ahead().await;
        ready.map_err(|errno| self.data_error(errno))?;
        let mut change = self.begin_change().await;
        let metadata = &mut *change.metadata;
        self.check_open()?;
        self.writable()?;
        self.not_deleting(origin)?;
        self.check_no_external_merge(origin)?;
        if metadata.is_metadata_tight() {
            self.make_ready_by_commit(metadata).await?;
        }
        metadata.check_snap(id, origin).await?;
        let active = self.active.borrow().get(&origin).cloned();
        if let Some(dev) = active {
            // From here on writes find every mapping shared, so they come here and wait for the
            // metadata. This is never taken back: a task may be copying a block because of it, and a
            // write let through to the old block meanwhile would be lost.
            dev.snapshotted_time
                .store(metadata.time().saturating_add(1), Ordering::SeqCst);
            self.channels.barrier().await;
        }
        let result = metadata.create_snap(id, origin).await;
        self.settle(change, result).await
    }

    /// The devices of the pool, in order of id.
    pub async fn list(&self) -> Result<Vec<(u32, Details)>, PoolError> {
        self.check_open()?;
        Ok(self.metadata.lock().await.devices().await?)
    }

    /// Sets the transaction id where it has the expected value.
    pub async fn set_transaction_id(&self, current: u64, new: u64) -> Result<(), PoolError> {
        self.check_open()?;
        self.writable()?;
        let mut change = self.begin_change().await;
        self.make_ready(&mut change.metadata).await?;
        let result = change.metadata.set_transaction_id(current, new);
        self.settle(change, result).await
    }

    /// Metadata block of the metadata snapshot, if there is one.
    pub async fn metadata_snap(&self) -> Result<Option<u64>, PoolError> {
        self.check_open()?;
        Ok(self.metadata.lock().await.held_root())
    }

    /// Keeps the metadata as it is now readable for the tools.
    pub async fn reserve_metadata_snap(&self) -> Result<(), PoolError> {
        self.check_open()?;
        self.writable()?;
        let ready = self.seal_ahead().await;
        ready.map_err(|errno| self.data_error(errno))?;
        let mut change = self.begin_change().await;
        self.make_ready_by_commit(&mut change.metadata).await?;
        let result = change.metadata.reserve_metadata_snap().await;
        self.settle(change, result).await
    }

    /// Lets the metadata snapshot go.
    pub async fn release_metadata_snap(&self) -> Result<(), PoolError> {
        self.check_open()?;
        self.writable()?;
        let mut change = self.begin_change().await;
        self.make_ready(&mut change.metadata).await?;
        let result = change.metadata.release_metadata_snap().await;
        self.settle(change, result).await
    }

    /// Opens a thin device for I/O with a size in sectors, which is stored nowhere (thin.md 2). Its
    /// holes show the external origin (thin.md 10), which must not change and whose size is taken now;
    /// that is stored nowhere either, so it is to be given each time, for snapshots too.
    pub async fn activate(
        &self,
        id: u32,
        nr_sectors: u64,
        origin: Option<DataDeviceRef>,
    ) -> Result<Arc<ThinDev>, PoolError> {
        self.check_open()?;
        let block_sectors = u64::from(self.config.data_block_size_sectors);
        let sectors_per_logical = self.shared.sectors_per_logical();
        if let Some(origin) = &origin
            && origin.block_bytes() != self.data.block_bytes()
        {
            return Err(PoolError::Invalid {
                pool: self.config.name.clone(),
                reason: format!(
                    "the external origin of thin device {id} has blocks of {} bytes, the data bdev of {}; they must be equal",
                    origin.block_bytes(),
                    self.data.block_bytes()
                ),
            });
        }
        let nr_logical_blocks = nr_sectors / sectors_per_logical;
        if nr_logical_blocks == 0 || !nr_sectors.is_multiple_of(sectors_per_logical) {
            return Err(PoolError::Invalid {
                pool: self.config.name.clone(),
                reason: format!(
                    "size of {nr_sectors} sectors is not a positive multiple of the data bdev's block size of {sectors_per_logical} sectors"
                ),
            });
        }
        let mut metadata = self.metadata.lock().await;
        if self.active.borrow().contains_key(&id) {
            return Err(PoolError::Active {
                pool: self.config.name.clone(),
                id,
            });
        }
        self.not_deleting(id)?;
        let details = metadata.details(id).await?;
        let pages = self
            .cache
            .page_table(nr_sectors.div_ceil(block_sectors))
            .ok_or_else(|| PoolError::Invalid {
                pool: self.config.name.clone(),
                reason: format!(
                    "there is not the memory to map a thin device of {nr_sectors} sectors; choose a smaller size"
                ),
            })?;
        let dev = Arc::new(ThinDev {
            id,
            nr_logical_blocks,
            origin_logical_blocks: origin
                .as_ref()
                .map_or(0, |origin| origin.nr_sectors() / sectors_per_logical),
            pool: self.shared.clone(),
            pages,
            snapshotted_time: AtomicU32::new(details.snapshotted_time),
            dirty: AtomicU64::new(self.last_changes(&metadata)),
            aborted: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        self.active.borrow_mut().insert(id, dev.clone());
        if let Some(origin) = origin {
            self.origins.borrow_mut().insert(id, origin);
        }
        Ok(dev)
    }

    /// Completes when all I/O that was mapped before, of any device, is over.
    pub async fn wait_for_mapped(&self) {
        self.channels.barrier().await;
    }

    /// Makes durable what was acknowledged, of all devices.
    pub async fn make_durable(&self) -> Result<(), PoolError> {
        self.check_open()?;
        self.writable()?;
        self.commit().await.map_err(|errno| self.data_error(errno))
    }

    /// To be called when a device's bdev begins to go: writes that wait for data space fail, and later
    /// ones do not wait. Its users could not let go of the bdev otherwise.
    pub fn begin_deactivation(&self, id: u32) {
        let dev = self.active.borrow().get(&id).cloned();
        if let Some(dev) = dev {
            dev.leaving.store(true, Ordering::SeqCst);
            self.let_merge_go(id);
            self.fail_no_space(Errno::ENOSPC, |waiting| Arc::ptr_eq(&waiting.volume, &dev));
        }
    }

    /// Closes an active device. Its bdev is gone, so no new I/O comes; what is under way finishes
    /// and everything acknowledged is committed.
    pub async fn deactivate(&self, id: u32) -> Result<(), PoolError> {
        let Some(dev) = self.active.borrow().get(&id).cloned() else {
            return Err(PoolError::NotActive {
                pool: self.config.name.clone(),
                id,
            });
        };
        dev.closed.store(true, Ordering::SeqCst);
        self.let_merge_go(id);
        self.fail_no_space(Errno::ENODEV, |waiting| Arc::ptr_eq(&waiting.volume, &dev));
        self.channels.barrier().await;
        self.drain_tasks(id).await;
        self.fail_no_space(Errno::ENODEV, |waiting| Arc::ptr_eq(&waiting.volume, &dev));
        let committed = match self.shared.mode().refuses_changes() {
            true => Ok(()),
            false => self.commit().await.map_err(|errno| self.data_error(errno)),
        };
        self.cache.forget(&dev, &self.channels).await;
        self.active.borrow_mut().remove(&id);
        self.origins.borrow_mut().remove(&id);
        self.merging.borrow_mut().remove(&id);
        committed
    }

    /// Ids of the active devices.
    pub fn active_ids(&self) -> Vec<u32> {
        self.active.borrow().keys().copied().collect()
    }

    /// Commits and closes the pool. Devices must have been deactivated. The pool answers nothing
    /// afterwards, whatever this returns.
    pub async fn close(&self) -> Result<(), PoolError> {
        let count = self.active.borrow().len();
        if count > 0 {
            return Err(PoolError::InUse {
                pool: self.config.name.clone(),
                count,
            });
        }
        self.check_open()?;
        self.closed.set(true);
        let committed = match self.shared.mode().refuses_changes() {
            true => Ok(()),
            false => self.commit().await.map_err(|errno| self.data_error(errno)),
        };
        self.drain_tasks(NO_DEVICE).await;
        self.end_service();
        committed
    }

    /// The pool's state, field by field. Commits first, as the kernel's status does, unless the pool
    /// cannot.
    pub async fn status(&self) -> Result<PoolStatus, PoolError> {
        self.check_open()?;
        if !self.shared.mode().refuses_changes() {
            // A failure shows in the mode.
            let _ = self.commit().await;
        }
        let metadata = self.metadata.lock().await;
        Ok(PoolStatus::gather(self, &metadata))
    }

    /// An active device's state.
    pub async fn thin_status(&self, id: u32) -> Result<ThinStatus, PoolError> {
        self.check_open()?;
        let mut metadata = self.metadata.lock().await;
        let details = metadata.details(id).await?;
        Ok(ThinStatus {
            mapped_blocks: details.mapped_blocks,
            highest_mapped_block: metadata.highest_mapped(id).await?,
            block_sectors: self.config.data_block_size_sectors,
        })
    }
}
