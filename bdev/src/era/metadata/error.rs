//! Why era metadata says no.

use crate::errno::Errno;

/// An error of era metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EraError {
    /// The structures below.
    #[error(transparent)]
    Metadata(#[from] persistent_data::Error),
    /// Block 0 is not even a superblock in its place.
    #[error(
        "metadata block 0 is not an era superblock; zero its first 4096 bytes to have it formatted"
    )]
    Foreign,
    /// The superblock is another's.
    #[error(
        "metadata block 0 is not an era superblock; zero its first 4096 bytes to have it formatted"
    )]
    NotEra,
    /// The superblock says it belongs elsewhere.
    #[error("the era superblock says it is block {0}; is this a metadata snapshot?")]
    WrongLocation(u64),
    /// The superblock is broken.
    #[error("the era superblock is damaged ({0}); restore the metadata from a dump")]
    BadSuperblock(&'static str),
    /// Written by something newer.
    #[error("era metadata of version {0} is not known here, only version 1")]
    Version(u32),
    /// The metadata was made with another block size.
    #[error("the metadata is for blocks of {found} sectors, not {wanted}; use that block size")]
    BlockSize {
        /// The stored one.
        found: u32,
        /// The one asked for.
        wanted: u32,
    },
    /// Nothing to open.
    #[error("there is no era metadata: metadata block 0 is all zeroes")]
    Blank,
    /// Block numbers have 31 bits.
    #[error("the origin has {0} blocks, at most 2147483647 are possible; use larger blocks")]
    TooManyBlocks(u64),
    /// A block past the end.
    #[error("block {block} is past the end: there are {nr_blocks}")]
    NoBlock {
        /// Which block, or the end of a range.
        block: u64,
        /// How many there are.
        nr_blocks: u64,
    },
    /// There is no current writeset.
    #[error("no era has begun: the metadata is not activated")]
    Inactive,
    /// Eras have 32 bits.
    #[error("the era counter has reached its end; dump, renumber and restore the metadata")]
    TooManyEras,
    /// A metadata snapshot exists.
    #[error("there is a metadata snapshot already; drop it first")]
    SnapHeld,
    /// No metadata snapshot exists.
    #[error("there is no metadata snapshot; take one first")]
    NoSnapHeld,
    /// An operation failed or was given up halfway, and the transaction was not rolled back since.
    #[error("a metadata operation has failed halfway; go back to the last commit")]
    Unusable,
    /// What is restored does not fit together.
    #[error("cannot restore: {0}")]
    BadInput(String),
}

impl EraError {
    /// The kernel's errno for this.
    pub fn errno(&self) -> Errno {
        match self {
            EraError::Metadata(error) => Errno(error.errno()),
            EraError::NotEra | EraError::BadSuperblock(_) => Errno(84),
            EraError::Foreign | EraError::WrongLocation(_) => Errno(15),
            EraError::Unusable => Errno::EIO,
            EraError::Version(_)
            | EraError::BlockSize { .. }
            | EraError::Blank
            | EraError::TooManyBlocks(_)
            | EraError::NoBlock { .. }
            | EraError::Inactive
            | EraError::TooManyEras
            | EraError::SnapHeld
            | EraError::NoSnapHeld
            | EraError::BadInput(_) => Errno::EINVAL,
        }
    }

    /// Whether this is an answer to the caller that left the transaction as it was.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            EraError::TooManyBlocks(_)
                | EraError::NoBlock { .. }
                | EraError::Inactive
                | EraError::TooManyEras
                | EraError::SnapHeld
                | EraError::NoSnapHeld
        )
    }
}
