//! `spdk-dm thin restore`.

use super::{CACHE_BYTES, read_xml};
use crate::Global;
use crate::error::CliError;
use crate::file::{Access, FileDevice};
use crate::progress::Progress;
use bdev::thin::metadata::image::Image;
use bdev::thin::metadata::restore::{Restore, RestoreOptions};
use clap::Args;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 1 << 20;

/// Arguments.
#[derive(Args)]
pub struct RestoreArgs {
    /// The XML; - for standard input
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    output: NewMetadata,
    #[command(flatten)]
    overrides: Overrides,
}

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

/// What the input says wrongly or not at all.
#[derive(Args, Clone, Copy)]
pub struct Overrides {
    /// Transaction id of the new metadata
    #[arg(long, value_name = "NUMBER")]
    pub transaction_id: Option<u64>,
    /// Data block size in sectors
    #[arg(long, value_name = "SECTORS")]
    pub data_block_size: Option<u32>,
    /// Size of the data device in data blocks
    #[arg(long, value_name = "BLOCKS")]
    pub nr_data_blocks: Option<u64>,
}

impl NewMetadata {
    /// Opens it to be overwritten, if that may be.
    pub async fn open(&self) -> Result<Restore, CliError> {
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
        let image = Image::new(device.clone());
        if !self.force && !image.is_blank().await.map_err(CliError::thin(path))? {
            let pool = image.has_superblock().await.map_err(CliError::thin(path))?;
            return Err(CliError::Exists {
                path: path.clone(),
                what: match pool {
                    true => "has the metadata of a pool",
                    false => "is not blank",
                },
            });
        }
        let options = RestoreOptions {
            cache_bytes: CACHE_BYTES,
            keep_needs_check: false,
        };
        let restore = Restore::new(device, options).await;
        restore.map_err(|source| CliError::Restore {
            path: path.clone(),
            source,
        })
    }
}

/// Moves a bar on with what is read.
struct CountedRead<R> {
    inner: R,
    progress: Progress,
}

impl<R: Read> Read for CountedRead<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.progress.advance(count as u64);
        Ok(count)
    }
}

impl RestoreArgs {
    /// Restores.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "restoring");
        let path = &self.input;
        let inner: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            let file = File::open(path).map_err(CliError::io(path))?;
            progress.expect(file.metadata().map_or(0, |m| m.len()));
            Box::new(file)
        };
        let xml = BufReader::with_capacity(
            BUFFER_BYTES,
            CountedRead {
                inner,
                progress: progress.clone(),
            },
        );
        let mut restore = self.output.open().await?;
        let result = read_xml::read(xml, &self.overrides, &mut restore).await;
        progress.finish();
        result.map_err(|error| match error.what {
            read_xml::What::Read(source) => CliError::io(path)(source),
            read_xml::What::Xml(what) => CliError::Xml {
                path: path.clone(),
                at: error.at,
                what,
            },
            read_xml::What::Sink(source) => {
                log::warn!("{}: stopped at byte {}", path.display(), error.at);
                CliError::Restore {
                    path: self.output.output.clone(),
                    source,
                }
            }
        })?;
        for (id, said, found) in restore.corrected() {
            log::warn!("device {id}: the XML says {said} mapped blocks, there are {found}");
        }
        Ok(true)
    }
}
