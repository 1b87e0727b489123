//! Exception stores: persistent and transient (snapshot.md 1, 2).

mod backwards;
mod check;
mod disk;
mod persistent;
mod seen;
mod summary;
mod transient;

pub use backwards::Run;
pub use check::{CheckReport, Finding, check};
pub use persistent::{Opened, PersistentStore};
pub use transient::TransientStore;

use super::error::SnapshotError;
use super::layout::{Exception, Layout};

/// The store of a snapshot.
pub enum Store {
    /// On the COW device, too.
    Persistent(PersistentStore),
    /// Only in memory.
    Transient(TransientStore),
}

impl Store {
    /// The arithmetic of its chunk size.
    pub fn layout(&self) -> Layout {
        match self {
            Store::Persistent(store) => store.layout(),
            Store::Transient(store) => store.layout(),
        }
    }

    /// Allocates the chunk of a new exception. Error: no space.
    pub fn allocate(&self) -> Result<u64, SnapshotError> {
        match self {
            Store::Persistent(store) => store.allocate(),
            Store::Transient(store) => store.allocate(),
        }
    }

    /// Commits exceptions that were allocated in this order. After an error the store is no good.
    pub async fn commit(&self, exceptions: &[Exception]) -> Result<(), SnapshotError> {
        match self {
            Store::Persistent(store) => store.commit(exceptions).await,
            Store::Transient(store) => store.commit(exceptions),
        }
    }

    /// Says on the COW device, durably, that the store is invalid.
    pub async fn invalidate(&self) -> Result<(), SnapshotError> {
        match self {
            Store::Persistent(store) => store.invalidate().await,
            Store::Transient(_) => Ok(()),
        }
    }

    /// Tells all exceptions of the origin's chunks `first..first + count`.
    pub async fn scan(
        &self,
        first: u64,
        count: u64,
        found: impl FnMut(Exception),
    ) -> Result<(), SnapshotError> {
        match self {
            Store::Persistent(store) => store.scan(first, count, found).await,
            Store::Transient(store) => {
                store.scan(first, count, found);
                Ok(())
            }
        }
    }

    /// Sectors taken, for the status line.
    pub fn allocated_sectors(&self) -> u64 {
        match self {
            Store::Persistent(store) => store.allocated_sectors(),
            Store::Transient(store) => store.allocated_sectors(),
        }
    }

    /// Sectors of header and areas.
    pub fn metadata_sectors(&self) -> u64 {
        match self {
            Store::Persistent(store) => store.metadata_sectors(),
            Store::Transient(_) => 0,
        }
    }

    /// Bytes of memory the store takes.
    pub fn used_bytes(&self) -> u64 {
        match self {
            Store::Persistent(store) => store.used_bytes(),
            Store::Transient(store) => store.used_bytes(),
        }
    }
}
