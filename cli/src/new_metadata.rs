//! Where new metadata goes: never onto anything unasked.

use crate::error::CliError;
use crate::file::{Access, FileDevice};
use crate::progress::Progress;
use bdev::era::EraError;
use bdev::era::metadata::Superblock as EraSuperblock;
use bdev::thin::metadata::image::Image;
use clap::Args;
use persistent_data::device::{BLOCK_BYTES, BlockDevice};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

/// Memory for blocks of metadata that is being made.
pub const CACHE_BYTES: usize = 64 << 20;

/// Where new metadata goes.
#[derive(Args)]
pub struct NewMetadata {
    /// File or block device that becomes metadata, large enough; see also --size-mib
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Make the output a new file of this size, in MiB
    #[arg(long, value_name = "MIB")]
    size_mib: Option<u64>,
    /// Overwrite the output although its first block is not blank
    #[arg(long)]
    force: bool,
}

impl NewMetadata {
    /// Opens it to be overwritten, if that may be.
    pub async fn open(&self) -> Result<Rc<FileDevice>, CliError> {
        let path = &self.output;
        if let Some(mib) = self.size_mib {
            let file = match self.force {
                true => File::create(path),
                false => File::create_new(path),
            };
            let bytes = mib
                .checked_mul(1 << 20)
                .ok_or_else(|| CliError::Usage(format!("--size-mib {mib}: too large")))?;
            file.and_then(|file| file.set_len(bytes))
                .map_err(CliError::io(path))?;
        }
        let device = FileDevice::open(path, Access::Write, Progress::hidden())?;
        if !self.force
            && let Some(what) = self.found(&device).await?
        {
            return Err(CliError::Exists {
                path: path.clone(),
                what,
            });
        }
        Ok(device)
    }

    /// What is there already.
    async fn found(&self, device: &Rc<FileDevice>) -> Result<Option<&'static str>, CliError> {
        let path = &self.output;
        if device.nr_blocks() == 0 {
            return Err(self.too_small(device));
        }
        let mut bytes = [0; BLOCK_BYTES];
        let read = device.read(0, &mut bytes).await;
        read.map_err(|error| CliError::io(path)(io::Error::from_raw_os_error(error.errno)))?;
        let pool = Image::new(device.clone()).has_superblock().await;
        if pool.map_err(CliError::thin(path))? {
            return Ok(Some("has the metadata of a pool"));
        }
        Ok(match EraSuperblock::read(&bytes, 0) {
            Ok(None) => None,
            Err(EraError::Foreign | EraError::NotEra) => Some("is not blank"),
            _ => Some("has the metadata of an era target"),
        })
    }

    /// The output has no room for what is to be made.
    pub fn too_small(&self, device: &FileDevice) -> CliError {
        CliError::TooSmall {
            path: self.output.clone(),
            nr_blocks: device.nr_blocks(),
        }
    }
}
