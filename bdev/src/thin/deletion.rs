//! Deletion of thin devices (thin.md 3).
//!
//! A large device is emptied in steps before it goes, so that neither other devices' I/O nor the core
//! waits for it. Power that fails meanwhile leaves a device that has lost some or all of its blocks and
//! can be deleted again: it was given up, and blocks that nothing refers to would be lost for good.

use super::error::PoolError;
use super::metadata::{Shrunk, ThinMetadata};
use super::pool::Pool;
use std::time::Duration;

/// Freed blocks in a transaction at which it is committed: what a commit does with each is not
/// interrupted.
const FREED_PER_COMMIT: usize = 16 << 10;

/// Between steps others get their turn. Longer than nothing, so that the core's pollers do too.
const PAUSE: Duration = Duration::from_micros(20);

/// A deletion under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// The device.
    pub id: u32,
    /// Virtual blocks it had mapped.
    pub mapped_blocks: u64,
    /// Of these, how many are unmapped.
    pub unmapped_blocks: u64,
}

/// Takes a deletion off the list when it ends, however it ends.
struct Listed<'a> {
    pool: &'a Pool,
    id: u32,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.pool.deletions.borrow_mut().remove(&self.id);
    }
}

impl Pool {
    /// Deletes a thin device that is not active; blocks nobody shares become free.
    pub async fn delete(&self, id: u32) -> Result<(), PoolError> {
        self.check_open()?;
        self.writable()?;
        let mut metadata = self.metadata.lock().await;
        self.not_deleting(id)?;
        if self.active.borrow().contains_key(&id) {
            return Err(PoolError::Active {
                pool: self.config.name.clone(),
                id,
            });
        }
        self.make_ready(&mut metadata).await?;
        let deletion = Deletion {
            id,
            mapped_blocks: metadata.details(id).await?.mapped_blocks,
            unmapped_blocks: 0,
        };
        self.deletions.borrow_mut().insert(id, deletion);
        let _listed = Listed { pool: self, id };
        let mut from = 0;
        while let Some(next) = self.delete_step(&mut metadata, id, from).await? {
            from = next;
            drop(metadata);
            self.runtime.sleep(PAUSE).await;
            let many = self.freed.borrow().len() >= FREED_PER_COMMIT;
            if many {
                self.commit()
                    .await
                    .map_err(|errno| self.data_error(errno))?;
            }
            metadata = self.metadata.lock().await;
            self.check_open()?;
            self.writable()?;
            if metadata.is_metadata_tight() {
                self.make_ready_by_commit(&mut metadata).await?;
            }
        }
        drop(metadata);
        let mut change = self.begin_change().await;
        self.check_open()?;
        self.writable()?;
        let result = change.metadata.delete(id).await;
        self.settle(change, result).await
    }

    /// Unmaps some of a device that is being deleted. Returns where to go on.
    async fn delete_step(
        &self,
        metadata: &mut ThinMetadata,
        id: u32,
        from: u64,
    ) -> Result<Option<u64>, PoolError> {
        let shrunk = metadata
            .shrink(id, from, self.config.deletion_step_leaves)
            .await;
        let Shrunk { removed, next } = match shrunk {
            Ok(shrunk) => shrunk,
            Err(error) => {
                if !metadata.is_usable() {
                    self.metadata_failed(metadata, &error).await;
                }
                return Err(error.into());
            }
        };
        self.hold_freed(metadata, removed.freed);
        if let Some(deletion) = self.deletions.borrow_mut().get_mut(&id) {
            deletion.unmapped_blocks += removed.count;
        }
        Ok(next)
    }

    /// Refuses what cannot be done with a device that is being deleted.
    pub(super) fn not_deleting(&self, id: u32) -> Result<(), PoolError> {
        match self.deletions.borrow().get(&id) {
            None => Ok(()),
            Some(deletion) => Err(PoolError::Deleting {
                pool: self.config.name.clone(),
                id,
                unmapped_blocks: deletion.unmapped_blocks,
                mapped_blocks: deletion.mapped_blocks,
            }),
        }
    }
}
