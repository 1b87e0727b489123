//! Verbs for ploop images: files that QEMU knows as `parallels`, Virtuozzo as ploop1.

mod check;
mod convert;
mod create;
mod device;
mod info;

use crate::Global;
use crate::error::CliError;
use crate::file::Access;
use bdev::ploop::image::survey::Survey;
use bdev::ploop::image::{InUse, Version};
use bdev::ploop::{Lower, Source};
use bdev::target::BaseId;
use clap::Subcommand;
use device::ImageFile;
use std::path::Path;

/// What can be done with ploop images.
#[derive(Subcommand)]
pub enum Verb {
    /// Make a new, empty image
    Create(create::CreateArgs),
    /// Show what an image is like
    Info(info::InfoArgs),
    /// Check an image: header, every BAT entry, format extension; writes only with --repair
    Check(check::CheckArgs),
    /// Copy a disk between images, chains of images and raw files
    Convert(convert::ConvertArgs),
}

impl Verb {
    /// Does it. False: the image is not as it should be, and that has been said.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        futures::executor::block_on(async {
            match self {
                Verb::Create(args) => args.run(global).await,
                Verb::Info(args) => args.run(global).await,
                Verb::Check(args) => args.run(global).await,
                Verb::Convert(args) => args.run(global).await,
            }
        })
    }
}

/// A file as an image.
fn source(path: &Path, access: Access) -> Result<Source, CliError> {
    Ok(Source {
        name: path.display().to_string(),
        device: ImageFile::open(path, access)?,
        base: BaseId(0),
        flushes: true,
    })
}

/// A file as a lower delta.
fn lower(path: &Path, raw: bool) -> Result<Lower, CliError> {
    let source = source(path, Access::Read)?;
    Ok(Lower { source, raw })
}

/// Looks at all of an image.
async fn survey(path: &Path) -> Result<Survey, CliError> {
    let file = ImageFile::open(path, Access::Read)?;
    Survey::of(&*file).await.map_err(CliError::image(path))
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::V1 => "v1 (WithoutFreeSpace)",
        Version::V2 => "v2 (WithouFreSpacExt)",
    }
}

fn in_use_name(in_use: InUse) -> &'static str {
    match in_use {
        InUse::Open => "in use, or not closed",
        InUse::Closed => "closed",
        InUse::ClosedByOld => "closed, without regard to a format extension",
    }
}
