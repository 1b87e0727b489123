//! Why a command did not do what it was asked.

use crate::rpc_client::RpcError;
use crate::xml::{ReadError, What};
use bdev::era::EraError;
use bdev::ploop::{PloopError, Problem};
use bdev::thin::metadata::ThinError;
use bdev::thin::metadata::restore::RestoreError;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// An error of a command; the text names the file and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A file or device.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What.
        source: io::Error,
    },
    /// In use by somebody else.
    #[error(
        "{}: in use; deactivate the target first, or read its metadata snapshot with -m",
        .0.display()
    )]
    Busy(PathBuf),
    /// Neither file nor block device.
    #[error("{}: neither a file nor a block device", .0.display())]
    BadType(PathBuf),
    /// Metadata.
    #[error("{}: {source}", path.display())]
    Thin {
        /// Which file or device.
        path: PathBuf,
        /// What.
        source: ThinError,
    },
    /// Metadata of an era target.
    #[error("{}: {source}", path.display())]
    Era {
        /// Which file or device.
        path: PathBuf,
        /// What.
        source: EraError,
    },
    /// A ploop image.
    #[error("{}: {source}", path.display())]
    Image {
        /// Which file or device.
        path: PathBuf,
        /// What.
        source: Problem,
    },
    /// A chain of ploop images; the text names the image.
    #[error(transparent)]
    Ploop(#[from] PloopError),
    /// Metadata that cannot be read.
    #[error("{}: {what}; {advice}", path.display())]
    Damaged {
        /// Which file or device.
        path: PathBuf,
        /// What.
        what: String,
        /// What can be done about it.
        advice: &'static str,
    },
    /// New metadata does not fit.
    #[error(
        "{}: has room for {nr_blocks} metadata blocks, which is too little; give a larger one",
        path.display()
    )]
    TooSmall {
        /// The output.
        path: PathBuf,
        /// Blocks of the output.
        nr_blocks: u64,
    },
    /// New metadata.
    #[error("{}: {source}", path.display())]
    Restore {
        /// The output.
        path: PathBuf,
        /// What.
        source: RestoreError,
    },
    /// XML that is not what it should be.
    #[error("{}: at byte {at}: {what}", path.display())]
    Xml {
        /// The input.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What.
        what: String,
    },
    /// Something is there already.
    #[error("{}: {what}; give --force to overwrite it, or zero its first 4096 bytes", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// An address that cannot be served.
    #[error("{address}: {what}; give another address to --listen")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What.
        what: String,
    },
    /// A running target has not done what it was asked.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// Arguments that contradict each other or what they name.
    #[error("{0}")]
    Usage(String),
}

impl CliError {
    /// An error of this file.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> CliError {
        let path = path.to_owned();
        move |source| CliError::Io { path, source }
    }

    /// An error of the metadata in this file.
    pub fn thin(path: &Path) -> impl FnOnce(ThinError) -> CliError {
        let path = path.to_owned();
        move |source| CliError::Thin { path, source }
    }

    /// An error of the metadata of an era target in this file.
    pub fn era(path: &Path) -> impl FnOnce(EraError) -> CliError {
        let path = path.to_owned();
        move |source| CliError::Era { path, source }
    }

    /// An error of the ploop image in this file.
    pub fn image(path: &Path) -> impl FnOnce(Problem) -> CliError {
        let path = path.to_owned();
        move |source| CliError::Image { path, source }
    }

    /// An error of restoring from XML; `refused` makes it one of the output.
    pub fn from_xml<E>(
        input: &Path,
        error: ReadError<E>,
        refused: impl FnOnce(E) -> CliError,
    ) -> CliError {
        match error.what {
            What::Read(source) => CliError::io(input)(source),
            What::Xml(what) => CliError::Xml {
                path: input.to_owned(),
                at: error.at,
                what,
            },
            What::Sink(source) => {
                log::warn!("{}: stopped at byte {}", input.display(), error.at);
                refused(source)
            }
        }
    }

    /// Whether the reader of the output has gone.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}
