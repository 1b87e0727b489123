//! Why the metadata of a pool says no.

use crate::errno::Errno;

/// An error of a pool's metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThinError {
    /// The structures below.
    #[error(transparent)]
    Metadata(#[from] persistent_data::Error),
    /// No free data block, or only such as were freed in this transaction.
    #[error("no free data block")]
    NoDataSpace,
    /// The id is taken.
    #[error("thin device {0} exists already; choose another id or delete it first")]
    Exists(u32),
    /// There is no such device.
    #[error("there is no thin device {0} in the pool; create it first")]
    NoDevice(u32),
    /// Ids have 24 bits.
    #[error("thin device id {0} is larger than 16777215")]
    BadId(u32),
    /// The pool's snapshot counter has 24 bits in every mapping.
    #[error("the pool has taken 2^24 snapshots and cannot take another; copy it into a new pool")]
    TooManySnapshots,
    /// Compare-and-set of the transaction id failed.
    #[error("the transaction id is {found}, not {expected}")]
    TransactionId {
        /// What the caller believed.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// Block 0 is not even a superblock in its place.
    #[error(
        "metadata block 0 is not a thin pool superblock; zero its first 4096 bytes to have it formatted"
    )]
    Foreign,
    /// The superblock is another's.
    #[error(
        "metadata block 0 is not a thin pool superblock; zero its first 4096 bytes to have it formatted"
    )]
    NotAPool,
    /// The superblock is broken.
    #[error("the thin pool superblock is damaged ({0}); try thin_repair")]
    BadSuperblock(&'static str),
    /// The superblock says it belongs elsewhere.
    #[error("the thin pool superblock says it is block {0}; is this a metadata snapshot?")]
    WrongLocation(u64),
    /// Unknown features.
    #[error("the pool uses features {flags:#x} ({what}) that are not known here")]
    Features {
        /// Which.
        flags: u32,
        /// Of which set.
        what: &'static str,
    },
    /// The pool was made with another block size.
    #[error("changing the data block size (from {found} to {wanted} sectors) is not supported")]
    BlockSize {
        /// The stored one.
        found: u32,
        /// The one asked for.
        wanted: u32,
    },
    /// Formatting was not allowed.
    #[error("the metadata device is not formatted, and a read-only pool cannot format it")]
    Unformatted,
    /// A tool was given metadata without a pool.
    #[error("there is no pool: metadata block 0 is all zeroes")]
    Blank,
    /// The data device has shrunk.
    #[error("the data device has {wanted} blocks, the pool uses {found}")]
    Shrunk {
        /// As recorded.
        found: u64,
        /// As it is.
        wanted: u64,
    },
    /// A metadata snapshot exists.
    #[error("there is a metadata snapshot already; release it first")]
    SnapHeld,
    /// No metadata snapshot exists.
    #[error("there is no metadata snapshot")]
    NoSnapHeld,
    /// An operation failed or was given up halfway, and the transaction was not rolled back since.
    #[error(
        "a metadata operation has failed halfway; go back to the last commit or reload the pool"
    )]
    Unusable,
    /// The metadata was opened for reading only.
    #[error("the pool's metadata was opened read-only; reload the pool without read_only")]
    ReadOnly,
}

impl ThinError {
    /// The kernel's errno for this.
    pub fn errno(&self) -> Errno {
        match self {
            ThinError::Metadata(error) => Errno(error.errno()),
            ThinError::NoDataSpace | ThinError::TooManySnapshots => Errno::ENOSPC,
            ThinError::Exists(_) => Errno::EEXIST,
            ThinError::NoDevice(_) => Errno::ENODATA,
            ThinError::NotAPool | ThinError::BadSuperblock(_) => Errno(84),
            ThinError::Foreign | ThinError::WrongLocation(_) => Errno(15),
            ThinError::Unformatted | ThinError::Blank | ThinError::ReadOnly => Errno::EPERM,
            ThinError::SnapHeld => Errno::EBUSY,
            ThinError::BadId(_)
            | ThinError::TransactionId { .. }
            | ThinError::Features { .. }
            | ThinError::BlockSize { .. }
            | ThinError::Shrunk { .. }
            | ThinError::NoSnapHeld
            | ThinError::Unusable => Errno::EINVAL,
        }
    }

    /// Whether data space is what is missing.
    pub fn is_no_data_space(&self) -> bool {
        *self == ThinError::NoDataSpace
    }

    /// Whether this is an answer to the caller that left the transaction as it was.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            ThinError::Exists(_)
                | ThinError::NoDevice(_)
                | ThinError::BadId(_)
                | ThinError::TooManySnapshots
                | ThinError::TransactionId { .. }
                | ThinError::SnapHeld
                | ThinError::NoSnapHeld
        )
    }
}
