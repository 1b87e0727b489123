//! Why a pool refuses, with the errno an RPC answers.

use super::metadata::ThinError;
use crate::errno::Errno;

/// Why a pool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The metadata says no.
    #[error(transparent)]
    Metadata(#[from] ThinError),
    /// The pool's mode does not allow changes.
    #[error("pool '{pool}' is {mode}: no changes are possible{remedy}")]
    Mode {
        /// The pool.
        pool: String,
        /// Its mode in words.
        mode: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A device is active.
    #[error("thin device {id} of pool '{pool}' is active; deactivate it first")]
    Active {
        /// The pool.
        pool: String,
        /// The device.
        id: u32,
    },
    /// A device is being deleted.
    #[error(
        "thin device {id} of pool '{pool}' is being deleted: {unmapped_blocks} of {mapped_blocks} blocks are unmapped"
    )]
    Deleting {
        /// The pool.
        pool: String,
        /// The device.
        id: u32,
        /// Of its blocks, how many are unmapped.
        unmapped_blocks: u64,
        /// How many it had mapped.
        mapped_blocks: u64,
    },
    /// A device is being merged into its external origin.
    #[error(
        "thin device {id} of pool '{pool}' is being merged into its external origin; wait until that has ended, or stop it"
    )]
    Merging {
        /// The pool.
        pool: String,
        /// The device.
        id: u32,
    },
    /// A device is not being merged.
    #[error(
        "thin device {id} of pool '{pool}' is not being merged into its external origin; see thin_merge_external_status"
    )]
    NotMerging {
        /// The pool.
        pool: String,
        /// The device.
        id: u32,
    },
    /// Other devices show what would change.
    #[error(
        "thin device {id} of pool '{pool}' cannot be merged into its external origin: it shares blocks with {others}, which would see the external origin change; delete that first"
    )]
    Related {
        /// The pool.
        pool: String,
        /// The device.
        id: u32,
        /// The others, in words.
        others: String,
    },
    /// A device is not active.
    #[error("thin device {id} of pool '{pool}' is not active")]
    NotActive {
        /// The pool.
        pool: String,
        /// The device.
        id: u32,
    },
    /// Devices are active.
    #[error("pool '{pool}' has {count} active thin devices; deactivate them first")]
    InUse {
        /// The pool.
        pool: String,
        /// How many.
        count: usize,
    },
    /// A parameter or device that does not fit.
    #[error("pool '{pool}': {reason}")]
    Invalid {
        /// The pool.
        pool: String,
        /// What does not fit, and the remedy.
        reason: String,
    },
    /// A data device failed.
    #[error("pool '{pool}': the data device failed: {errno}")]
    Data {
        /// The pool.
        pool: String,
        /// How.
        errno: Errno,
    },
    /// A change is made, but not committed: it lasts only if a later commit succeeds.
    #[error(
        "pool '{pool}': the change is made but not committed yet, because the data bdev's flush failed: {errno}; it will be by the next flush that succeeds"
    )]
    Uncommitted {
        /// The pool.
        pool: String,
        /// How the flush failed.
        errno: Errno,
    },
    /// The pool has been closed.
    #[error("pool '{pool}' is closed")]
    Closed {
        /// The pool.
        pool: String,
    },
}

impl PoolError {
    /// The errno an RPC answers with.
    pub fn errno(&self) -> Errno {
        match self {
            PoolError::Metadata(error) => error.errno(),
            PoolError::Mode { .. } => Errno::EOPNOTSUPP,
            PoolError::Active { .. }
            | PoolError::InUse { .. }
            | PoolError::Deleting { .. }
            | PoolError::Merging { .. }
            | PoolError::Related { .. } => Errno::EBUSY,
            PoolError::NotActive { .. }
            | PoolError::NotMerging { .. }
            | PoolError::Closed { .. } => Errno::ENODEV,
            PoolError::Invalid { .. } => Errno::EINVAL,
            PoolError::Data { errno, .. } | PoolError::Uncommitted { errno, .. } => *errno,
        }
    }
}
