//! Why a snapshot target says no. Where the kernel has a text for a refusal, it is this (snapshot.md 3).

use crate::errno::Errno;

/// An error of the snapshot targets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A table line or parameter, in the kernel's words.
    #[error("{0}")]
    Table(&'static str),
    /// A parameter or device that does not fit.
    #[error("{0}")]
    Invalid(String),
    /// The chunk size, of a table or found in a header.
    #[error(
        "chunk size {chunk_sectors} is not possible: it must be a power of two up to 2097152 sectors and a multiple of the {block_bytes} bytes of a logical block"
    )]
    ChunkSize {
        /// In sectors.
        chunk_sectors: u64,
        /// Of the COW device and the origin.
        block_bytes: u32,
    },
    /// A transient store needs one.
    #[error("Chunk size not set")]
    NoChunkSize,
    /// Something else is on the COW device.
    #[error(
        "Failed to read snapshot metadata: the COW device begins with {0:#010x}; zero its first chunk to have it formatted"
    )]
    Foreign(u32),
    /// Written by something newer.
    #[error("exception store of version {0} is not known here, only version 1")]
    Version(u32),
    /// An entry that cannot be.
    #[error(
        "entry {index} of area {area} of the COW device maps chunk {old_chunk} to {new_chunk}: {reason}; the snapshot cannot be used"
    )]
    Entry {
        /// The area.
        area: u64,
        /// Entry within it.
        index: u64,
        /// Chunk of the origin.
        old_chunk: u64,
        /// Chunk of the COW device.
        new_chunk: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The device is too small for what must be there.
    #[error("the COW device ends before chunk {chunk}; is it the whole device?")]
    TooShort {
        /// What is not there.
        chunk: u64,
    },
    /// No room for another exception.
    #[error("the COW device is full; grow it")]
    NoSpace,
    /// No memory for what every core reads.
    #[error("no memory for the exceptions of {0} chunks; use larger chunks")]
    NoMemory(u64),
    /// A device failed.
    #[error("{what}: {errno}")]
    Device {
        /// What was to be done.
        what: &'static str,
        /// How it failed.
        errno: Errno,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot '{0}' of this origin")]
    NoSnapshot(String),
    /// The name is taken.
    #[error("there is a snapshot '{0}' of this origin already")]
    Exists(String),
    /// As the kernel says.
    #[error("A snapshot is already merging.")]
    AlreadyMerging,
    /// It would show the origin's device, which is half merged.
    #[error("no new snapshot can be made while a snapshot is merging; wait until that has ended")]
    NotWhileMerging,
    /// There is nothing to stop, resume or ask.
    #[error("origin '{0}' has no merge")]
    NoMerge(String),
    /// As the kernel says.
    #[error("Snapshot cow pairing for exception table handover failed")]
    Handover,
    /// As the kernel says.
    #[error("Snapshot exception store does not support snapshot-merge.")]
    CannotMerge,
    /// Too many at once.
    #[error("an origin can have 255 COW devices, not more")]
    TooMany,
    /// The target has been closed.
    #[error("origin '{0}' is closed")]
    Closed(String),
}

impl SnapshotError {
    /// The errno an RPC answers with.
    pub fn errno(&self) -> Errno {
        match self {
            SnapshotError::Foreign(_) => Errno(6), // ENXIO
            SnapshotError::Entry { .. } | SnapshotError::TooShort { .. } => Errno::EIO,
            SnapshotError::NoSpace => Errno::ENOSPC,
            SnapshotError::NoMemory(_) => Errno::ENOMEM,
            SnapshotError::Device { errno, .. } => *errno,
            SnapshotError::NoSnapshot(_) | SnapshotError::Closed(_) => Errno::ENODEV,
            SnapshotError::Exists(_) => Errno::EEXIST,
            SnapshotError::NotWhileMerging => Errno::EBUSY,
            _ => Errno::EINVAL,
        }
    }

    /// For `map_err`: a device failed while doing this.
    pub(super) fn device(what: &'static str) -> impl Fn(Errno) -> SnapshotError {
        move |errno| SnapshotError::Device { what, errno }
    }
}
