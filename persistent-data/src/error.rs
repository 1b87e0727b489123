//! What can go wrong with metadata, and the errno each case stands for (persistent-data.md 7).

use crate::device::DeviceError;

/// A metadata error. Every variant that concerns one block names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The device failed.
    #[error("metadata block {block}: {source}")]
    Device {
        /// Which block.
        block: u64,
        /// How.
        source: DeviceError,
    },
    /// The device failed to flush.
    #[error("flush of the metadata device: {0}")]
    Flush(DeviceError),
    /// The block says it belongs somewhere else.
    #[error("metadata block {block} says it is block {found}")]
    WrongLocation {
        /// Which block.
        block: u64,
        /// What it says.
        found: u64,
    },
    /// The checksum does not match.
    #[error("metadata block {block}: bad checksum for a {kind}")]
    Checksum {
        /// Which block.
        block: u64,
        /// What it should have been.
        kind: &'static str,
    },
    /// The contents break the format.
    #[error("metadata block {block}: {what}")]
    Corrupt {
        /// Which block.
        block: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// One block is used as two types.
    #[error("metadata block {block} is in use as another type than {wanted}")]
    WrongType {
        /// Which block.
        block: u64,
        /// What it was wanted as.
        wanted: &'static str,
    },
    /// A block outside the map.
    #[error("block {block} is outside the space map of {nr_blocks} blocks")]
    OutOfRange {
        /// Which block.
        block: u64,
        /// Size of the map.
        nr_blocks: u64,
    },
    /// A reference count would become negative, or leave its 32 bits.
    #[error("reference count of block {block} out of range")]
    BadCount {
        /// Which block.
        block: u64,
    },
    /// No free block.
    #[error("no free block")]
    NoSpace,
    /// The device is too large or a map cannot take that size.
    #[error("a space map cannot have {nr_blocks} blocks")]
    BadSize {
        /// The size asked for.
        nr_blocks: u64,
    },
    /// An earlier failure made the transaction unusable; it must be aborted.
    #[error("the metadata transaction has failed and must be aborted")]
    Failed,
}

impl Error {
    /// The block of the metadata device that it concerns.
    pub fn block(&self) -> Option<u64> {
        match self {
            Error::Device { block, .. }
            | Error::WrongLocation { block, .. }
            | Error::Checksum { block, .. }
            | Error::Corrupt { block, .. }
            | Error::WrongType { block, .. }
            | Error::OutOfRange { block, .. }
            | Error::BadCount { block } => Some(*block),
            Error::Flush(_) | Error::NoSpace | Error::BadSize { .. } | Error::Failed => None,
        }
    }

    /// The errno the kernel gives for this.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Device { source, .. } | Error::Flush(source) => source.errno,
            Error::WrongLocation { .. } => 15,
            Error::Checksum { .. } | Error::Corrupt { .. } => 84,
            Error::WrongType { .. }
            | Error::OutOfRange { .. }
            | Error::BadCount { .. }
            | Error::BadSize { .. }
            | Error::Failed => 22,
            Error::NoSpace => 28,
        }
    }
}

/// The result of a metadata operation.
pub type Result<T> = std::result::Result<T, Error>;
