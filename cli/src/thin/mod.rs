//! Verbs for the metadata of a thin pool.

mod check;
mod delta;
mod dump;
mod ls;
mod repair;
mod restore;
mod rmap;

use crate::Global;
use crate::error::CliError;
use crate::file::{Access, FileDevice};
use crate::progress::Progress;
use bdev::thin::metadata::ThinError;
use bdev::thin::metadata::dump::DumpError;
use bdev::thin::metadata::image::{Image, View};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// What can be done with a pool's metadata.
#[derive(Subcommand)]
pub enum Verb {
    /// What needs no `thin` before it
    #[command(flatten)]
    Plain(PlainVerb),
    /// List the thin devices, as thin_ls
    Ls(ls::LsArgs),
}

/// What can be done also without the word `thin`.
#[derive(Subcommand)]
pub enum PlainVerb {
    /// Check metadata: structure, mapped blocks, and every reference count; never writes unless told
    Check(check::CheckArgs),
    /// Print metadata as XML, in the form of thin_dump
    Dump(dump::DumpArgs),
    /// Make new metadata from XML
    Restore(restore::RestoreArgs),
    /// Copy what is readable of damaged metadata to new metadata; the input is never written
    Repair(repair::RepairArgs),
    /// Print the differences between two thin devices, in the form of thin_delta
    Delta(delta::DeltaArgs),
    /// List who refers to regions of the data device, as thin_rmap
    Rmap(rmap::RmapArgs),
}

impl Verb {
    /// Does it. False: the metadata is not as it should be, and that has been said.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        match self {
            Verb::Plain(verb) => verb.run(global),
            Verb::Ls(args) => futures::executor::block_on(args.run(global)),
        }
    }
}

impl PlainVerb {
    /// Does it. False: the metadata is not as it should be, and that has been said.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        futures::executor::block_on(async {
            match self {
                PlainVerb::Check(args) => args.run(global).await,
                PlainVerb::Dump(args) => args.run(global).await,
                PlainVerb::Restore(args) => args.run(global).await,
                PlainVerb::Repair(args) => args.run(global).await,
                PlainVerb::Delta(args) => args.run(global).await,
                PlainVerb::Rmap(args) => args.run(global).await,
            }
        })
    }
}

/// Metadata to be read.
#[derive(Args)]
struct Input {
    /// File or block device with the metadata
    input: PathBuf,
    /// Read the metadata snapshot, which is safe while the pool is in use; optionally the one in this
    /// metadata block
    #[arg(short, long, value_name = "BLOCK", num_args = 0..=1, require_equals = true)]
    metadata_snap: Option<Option<u64>>,
}

impl Input {
    fn view(&self) -> View {
        match self.metadata_snap {
            None => View::Current,
            Some(None) => View::Snapshot,
            Some(Some(block)) => View::SnapshotAt(block),
        }
    }

    fn open(&self, progress: &Progress) -> Result<Image, CliError> {
        let access = match self.view() {
            View::Current => Access::Read,
            View::Snapshot | View::SnapshotAt(_) => Access::ReadShared,
        };
        let device = FileDevice::open(&self.input, access, progress.clone())?;
        Ok(Image::new(device))
    }
}

/// An error of reading metadata from a file.
fn read_error<E: std::fmt::Display>(path: &Path, error: DumpError<E>) -> CliError {
    use persistent_data::Error;
    let path = path.to_owned();
    match error {
        DumpError::Metadata(
            source @ (ThinError::Blank
            | ThinError::NoDevice(_)
            | ThinError::NoSnapHeld
            | ThinError::Foreign
            | ThinError::Features { .. }
            | ThinError::Metadata(Error::Device { .. })),
        ) => CliError::Thin { path, source },
        error => CliError::Damaged {
            path,
            what: error.to_string(),
            advice: "'spdk-dm thin check' shows all damage, 'spdk-dm thin repair' copies what is readable",
        },
    }
}
