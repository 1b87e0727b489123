//! Why a ploop target says no, with the errno an RPC answers.

use super::image::Problem;
use crate::errno::Errno;

/// An error of the ploop target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PloopError {
    /// An image that cannot be used.
    #[error("image '{image}': {problem}")]
    Image {
        /// The delta's name.
        image: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The BAT of an image is damaged.
    #[error(
        "image '{image}' is damaged in {count} places, first: {first}; see 'spdk-dm ploop check'"
    )]
    Damaged {
        /// The delta's name.
        image: String,
        /// Places.
        count: u64,
        /// The first.
        first: Problem,
    },
    /// An image that was not closed.
    #[error(
        "image '{0}' is in use, or was not closed: close it there, or if nobody has it open, say that it may be checked and used"
    )]
    InUse(String),
    /// A parameter or device that does not fit.
    #[error("{0}")]
    Invalid(String),
    /// A raw delta of a size that cannot be.
    #[error(
        "raw delta '{name}' has {nr_sectors} sectors, which are no whole number of clusters of {cluster_sectors}"
    )]
    RawSize {
        /// The delta's name.
        name: String,
        /// Its size.
        nr_sectors: u64,
        /// Cluster size of the chain.
        cluster_sectors: u64,
    },
    /// Not now.
    #[error("ploop '{name}': {why}")]
    Busy {
        /// The target.
        name: String,
        /// What is in the way, and the remedy.
        why: &'static str,
    },
    /// The chain is as long as it can be.
    #[error("a ploop target can have 254 lower deltas, not more")]
    TooMany,
    /// There is no such delta.
    #[error("ploop '{name}' has no lower delta {level}; see ploop_status")]
    NoLevel {
        /// The target.
        name: String,
        /// Its number.
        level: usize,
    },
    /// There is no lower delta.
    #[error("ploop '{0}' has no lower deltas")]
    NoLower(String),
    /// No cluster is free.
    #[error("image '{0}' is full; grow the bdev it is on")]
    NoSpace(String),
    /// No memory for a cache.
    #[error("no memory for {0} bytes of BAT cache; give a lower limit")]
    NoMemory(u64),
    /// A device failed.
    #[error("ploop '{name}': {what}: {errno}")]
    Device {
        /// The target.
        name: String,
        /// What was to be done.
        what: &'static str,
        /// How it failed.
        errno: Errno,
    },
    /// A merge was cancelled; what is copied stays.
    #[error(
        "the merge of ploop '{0}' was cancelled; what has been copied stays, start it again to go on"
    )]
    Interrupted(String),
    /// It has begun already.
    #[error("{what} of ploop '{name}' has begun already")]
    Exists {
        /// The target.
        name: String,
        /// What.
        what: &'static str,
    },
    /// It has not begun.
    #[error("{what} of ploop '{name}' has not begun")]
    NotStarted {
        /// The target.
        name: String,
        /// What.
        what: &'static str,
    },
    /// Nothing is dirty, or pending.
    #[error("nothing just now")]
    Nothing(Errno),
    /// There is no push backup.
    #[error("ploop '{0}' has no push backup")]
    NoBackup(String),
    /// Another push backup.
    #[error("the push backup of ploop '{0}' has another uuid")]
    WrongUuid(String),
    /// A held write has waited too long.
    #[error("the push backup of ploop '{0}' has expired; stop it and begin anew")]
    Expired(String),
    /// What was written since a backup is not known.
    #[error(
        "ploop '{name}' has no record of what was written since backup {since} (ploop_status shows since which it has): it was opened again since then, or the backup was not completed; make a full backup"
    )]
    NotRecorded {
        /// The target.
        name: String,
        /// The uuid of the backup.
        since: String,
    },
    /// A backup is reported to be complete that is not.
    #[error(
        "ploop '{name}': {clusters} clusters of the push backup have not been read; it can be stopped, but is not complete"
    )]
    NotComplete {
        /// The target.
        name: String,
        /// Clusters left.
        clusters: u64,
    },
    /// Not a cluster of the device.
    #[error("ploop '{name}' has {nr_clusters} clusters, {cluster} is not one of them")]
    OutOfRange {
        /// The target.
        name: String,
        /// What was asked for.
        cluster: u64,
        /// Clusters there are.
        nr_clusters: u64,
    },
    /// The target has been closed.
    #[error("ploop '{0}' is closed")]
    Closed(String),
}

impl PloopError {
    /// The errno an RPC answers with.
    pub fn errno(&self) -> Errno {
        match self {
            PloopError::Image {
                problem: Problem::Unreadable { errno, .. },
                ..
            } => *errno,
            PloopError::Image { .. } | PloopError::Invalid(_) | PloopError::WrongUuid(_) => {
                Errno::EINVAL
            }
            PloopError::Damaged { .. } => Errno::EIO,
            PloopError::InUse(_) | PloopError::Busy { .. } | PloopError::NotComplete { .. } => {
                Errno::EBUSY
            }
            PloopError::RawSize { .. } => Errno::EPROTO,
            PloopError::TooMany => Errno::EMFILE,
            PloopError::NoLevel { .. } | PloopError::NoLower(_) | PloopError::NotStarted { .. } => {
                Errno::ENOENT
            }
            PloopError::NoSpace(_) => Errno::ENOSPC,
            PloopError::NoMemory(_) => Errno::ENOMEM,
            PloopError::Device { errno, .. } | PloopError::Nothing(errno) => *errno,
            PloopError::Interrupted(_) => Errno::EINTR,
            PloopError::Exists { .. } => Errno::EEXIST,
            PloopError::NoBackup(_) => Errno::EBADF,
            PloopError::Expired(_) | PloopError::NotRecorded { .. } => Errno::ESTALE,
            PloopError::OutOfRange { .. } => Errno::E2BIG,
            PloopError::Closed(_) => Errno::ENODEV,
        }
    }
}
