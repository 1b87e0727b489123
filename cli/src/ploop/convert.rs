//! `spdk-dm ploop convert`.

use super::create::{NewImage, new_file};
use super::device::ImageFile;
use super::{lower, source};
use crate::Global;
use crate::error::CliError;
use crate::file::{Access, same};
use crate::progress::Progress;
use bdev::device::SECTOR_BYTES;
use bdev::ploop::Source;
use bdev::ploop::offline::{ChainReader, GROUP_CLUSTERS, copy};
use bdev::target::BaseId;
use clap::{Args, ValueEnum};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A ploop image.
    Ploop,
    /// The disk itself.
    Raw,
}

/// Arguments.
#[derive(Args)]
pub struct ConvertArgs {
    /// The image, of a chain the newest one; or a raw file
    input: PathBuf,
    /// A lower delta of the chain; oldest first
    #[arg(short, long, value_name = "DELTA")]
    lower: Vec<PathBuf>,
    /// The oldest delta is raw
    #[arg(long, requires = "lower")]
    raw_base: bool,
    /// What the input is
    #[arg(long, value_enum, default_value_t = Format::Ploop)]
    from: Format,
    /// What the output is to be
    #[arg(long, value_enum, default_value_t = Format::Ploop)]
    to: Format,
    /// File to be made, or block device to be overwritten
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    new: NewImage,
}

impl ConvertArgs {
    /// Converts.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let inputs = self.lower.iter().chain([&self.input]);
        if let Some(input) = inputs.into_iter().find(|input| same(input, &self.output)) {
            return Err(CliError::Usage(format!(
                "{}: is input and output",
                input.display()
            )));
        }
        let from = self.open_input().await?;
        let progress = Progress::new(global.quiet, "converting");
        progress.expect(from.nr_clusters());
        let step = || progress.advance(GROUP_CLUSTERS);
        match self.to {
            Format::Raw => self.to_raw(&from, step).await?,
            Format::Ploop => self.to_ploop(&from, step).await?,
        }
        progress.finish();
        Ok(true)
    }

    async fn open_input(&self) -> Result<ChainReader, CliError> {
        if self.from == Format::Raw {
            if !self.lower.is_empty() {
                return Err(CliError::Usage("a raw file has no lower deltas".to_owned()));
            }
            let cluster = u64::from(self.new.cluster_sectors()?);
            let (device, nr_sectors) = ImageFile::open_padded(&self.input, cluster)?;
            let source = Source {
                name: self.input.display().to_string(),
                device,
                base: BaseId(0),
                flushes: true,
            };
            return Ok(ChainReader::of_raw(source, cluster, nr_sectors)?);
        }
        let mut chain = Vec::with_capacity(self.lower.len());
        for (level, path) in self.lower.iter().enumerate() {
            chain.push(lower(path, self.raw_base && level == 0)?);
        }
        let top = source(&self.input, Access::Read)?;
        Ok(ChainReader::open(top, chain).await?)
    }

    /// A file of the disk's size, with holes where the disk has zeroes.
    async fn to_raw(&self, from: &ChainReader, step: impl Fn()) -> Result<(), CliError> {
        let nr_bytes = from.nr_sectors() * SECTOR_BYTES;
        let file = new_file(&self.output, nr_bytes, self.new.force)?;
        let mut cluster_bytes = vec![0; (from.cluster_sectors() * SECTOR_BYTES) as usize];
        for group in 0..from.nr_groups() {
            for (cluster, found) in from.group(group).await? {
                from.read(found, &mut cluster_bytes).await?;
                let at = cluster * from.cluster_sectors() * SECTOR_BYTES;
                let len = nr_bytes.saturating_sub(at).min(cluster_bytes.len() as u64);
                let part = cluster_bytes.get(..len as usize).unwrap_or_default();
                if part.iter().any(|byte| *byte != 0) {
                    file.write_all_at(part, at)
                        .map_err(CliError::io(&self.output))?;
                }
            }
            step();
        }
        file.sync_all().map_err(CliError::io(&self.output))
    }

    /// An image of the input's cluster size.
    async fn to_ploop(&self, from: &ChainReader, step: impl Fn()) -> Result<(), CliError> {
        let new = NewImage {
            cluster_kib: u32::try_from(from.cluster_sectors() / 2).unwrap_or(u32::MAX),
            ..self.new
        };
        if !from.cluster_sectors().is_multiple_of(2) {
            return Err(CliError::Usage(format!(
                "{}: has clusters of {} sectors; convert it to raw, and from that to ploop",
                self.input.display(),
                from.cluster_sectors()
            )));
        }
        new.make(&self.output, from.nr_sectors(), from.nr_clusters())
            .await?;
        let nr_written = copy(from, source(&self.output, Access::Write)?, |_| step()).await?;
        if self.new.compact {
            self.shorten(nr_written).await?;
        }
        Ok(())
    }

    /// Takes room away that nothing is in. Clusters were given out from the lowest on.
    async fn shorten(&self, nr_written: u64) -> Result<(), CliError> {
        let found = super::survey(&self.output).await?;
        let end = found.header.data() + nr_written * found.header.cluster();
        let end = end.max(found.end_sectors);
        let file = std::fs::OpenOptions::new().write(true).open(&self.output);
        file.and_then(|file| file.set_len(end * SECTOR_BYTES))
            .map_err(CliError::io(&self.output))
    }
}
