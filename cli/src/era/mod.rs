//! Verbs for the metadata of an era target, in the words of Debian's `era_*` tools.

mod check;
mod dump;
mod invalidate;
mod restore;

use crate::Global;
use crate::error::CliError;
use crate::file::{Access, FileDevice};
use crate::progress::Progress;
use bdev::era::metadata::dump::DumpError;
use bdev::era::metadata::{EraMetadata, View};
use bdev::era::{EraError, metadata::Superblock};
use clap::{Args, Subcommand};
use persistent_data::Error;
use persistent_data::device::{BLOCK_BYTES, BlockDevice};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;

/// Memory for blocks of metadata that is read.
const CACHE_BYTES: usize = 64 << 20;

/// How often metadata in use is opened until no commit comes in between.
const OPEN_TRIES: usize = 20;

/// Between two of them.
const OPEN_PAUSE: Duration = Duration::from_millis(20);

/// What can be done with the metadata of an era target.
#[derive(Subcommand)]
pub enum Verb {
    /// Check metadata, as era_check: structure, eras, and every reference count; never writes
    Check(check::CheckArgs),
    /// Print metadata as XML, in the form of era_dump
    Dump(dump::DumpArgs),
    /// Make new metadata from XML, as era_restore
    Restore(restore::RestoreArgs),
    /// List the blocks that may have been written since an era, in the form of era_invalidate
    Invalidate(invalidate::InvalidateArgs),
}

impl Verb {
    /// Does it. False: the metadata is not as it should be, and that has been said.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        futures::executor::block_on(async {
            match self {
                Verb::Check(args) => args.run(global).await,
                Verb::Dump(args) => args.run(global).await,
                Verb::Restore(args) => args.run(global).await,
                Verb::Invalidate(args) => args.run(global).await,
            }
        })
    }
}

/// Metadata to be read.
#[derive(Args)]
struct Input {
    /// File or block device with the metadata
    input: PathBuf,
    /// Read the metadata snapshot, which is safe while the target is in use; optionally say in which
    /// metadata block it must be
    #[arg(
        short,
        long,
        alias = "metadata-snap",
        value_name = "BLOCK",
        num_args = 0..=1,
        require_equals = true
    )]
    metadata_snapshot: Option<Option<u64>>,
}

impl Input {
    fn view(&self) -> View {
        match self.metadata_snapshot {
            None => View::Live,
            Some(_) => View::Snapshot,
        }
    }

    async fn open(&self, progress: &Progress) -> Result<EraMetadata, CliError> {
        let path = &self.input;
        let access = match self.view() {
            View::Live => Access::Read,
            View::Snapshot => Access::ReadShared,
        };
        let device = FileDevice::open(path, access, progress.clone())?;
        let mut opened = EraMetadata::open_any(device.clone(), CACHE_BYTES).await;
        for _ in 1..OPEN_TRIES {
            if access == Access::Read || opened.is_ok() {
                break;
            }
            // A commit may have come between the superblock and what it refers to.
            sleep(OPEN_PAUSE);
            opened = EraMetadata::open_any(device.clone(), CACHE_BYTES).await;
        }
        let metadata = opened.map_err(|error| read_error(path, error))?;
        if let Some(Some(wanted)) = self.metadata_snapshot
            && metadata.metadata_snap() != Some(wanted)
        {
            return Err(CliError::Usage(match metadata.metadata_snap() {
                Some(found) => format!(
                    "{}: the metadata snapshot is in block {found}, not {wanted}",
                    path.display()
                ),
                None => format!("{}: there is no metadata snapshot", path.display()),
            }));
        }
        progress.expect(metadata.nr_used_metadata());
        Ok(metadata)
    }

    /// What was read is of one moment: a metadata snapshot has not been dropped meanwhile.
    async fn still_there(&self, metadata: &EraMetadata) -> Result<(), CliError> {
        if self.view() == View::Live {
            return Ok(());
        }
        let path = &self.input;
        let device = FileDevice::open(path, Access::ReadShared, Progress::hidden())?;
        let now = superblock(&device)
            .await
            .map_err(|error| read_error(path, error))?;
        match metadata.metadata_snap() == Some(now.metadata_snap) {
            true => Ok(()),
            false => Err(CliError::Usage(format!(
                "{}: the metadata snapshot was dropped while it was read; what was printed is of no use",
                path.display()
            ))),
        }
    }
}

/// The superblock alone.
async fn superblock(device: &Rc<FileDevice>) -> Result<Superblock, EraError> {
    let mut bytes = [0; BLOCK_BYTES];
    device
        .read(0, &mut bytes)
        .await
        .map_err(|source| Error::Device { block: 0, source })?;
    Superblock::read(&bytes, 0)?.ok_or(EraError::Blank)
}

/// An error of reading metadata from a file.
fn read_error(path: &Path, error: EraError) -> CliError {
    let path = path.to_owned();
    match error {
        EraError::Metadata(Error::Device { .. }) => CliError::Era {
            path,
            source: error,
        },
        EraError::Metadata(_) => CliError::Damaged {
            path,
            what: error.to_string(),
            advice: "'spdk-dm era check' shows all damage",
        },
        source => CliError::Era { path, source },
    }
}

/// An error of a dump to a file.
fn dump_error(input: &Path, output: &Path, error: DumpError<std::io::Error>) -> CliError {
    match error {
        DumpError::Sink(source) => CliError::io(output)(source),
        DumpError::Metadata(error) => read_error(input, error),
    }
}
