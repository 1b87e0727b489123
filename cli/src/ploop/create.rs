//! `spdk-dm ploop create`.

use super::source;
use crate::Global;
use crate::error::CliError;
use crate::file::Access;
use bdev::device::SECTOR_BYTES;
use bdev::ploop::create::create;
use bdev::ploop::image::Header;
use clap::Args;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

const SECTORS_PER_MIB: u64 = (1 << 20) / SECTOR_BYTES;

/// Arguments.
#[derive(Args)]
pub struct CreateArgs {
    /// File to be made, or block device to be overwritten
    pub image: PathBuf,
    /// Size of the disk in it, in MiB
    #[arg(long, value_name = "MIB")]
    size_mib: u64,
    #[command(flatten)]
    pub new: NewImage,
}

/// How a new image is made.
#[derive(Args)]
pub struct NewImage {
    /// Cluster size in KiB
    #[arg(long, value_name = "KIB", default_value_t = 1024)]
    pub cluster_kib: u32,
    /// Make the file no longer than what is in it: for QEMU, which makes it longer as it is written; a bdev
    /// cannot grow by itself
    #[arg(long)]
    pub compact: bool,
    /// Overwrite what is there
    #[arg(long)]
    pub force: bool,
}

impl NewImage {
    /// Cluster size in sectors.
    pub fn cluster_sectors(&self) -> Result<u32, CliError> {
        let sectors = self.cluster_kib.checked_mul(2);
        sectors.ok_or_else(|| CliError::Usage("--cluster-kib: too large".to_owned()))
    }

    /// Makes an empty image. Its file has room for `nr_clusters`, without taking it on the disk.
    pub async fn make(
        &self,
        path: &Path,
        nr_sectors: u64,
        nr_clusters: u64,
    ) -> Result<Header, CliError> {
        let header = Header::new(nr_sectors, self.cluster_sectors()?);
        let header = header.map_err(CliError::image(path))?;
        let room = header.data() + nr_clusters * header.cluster();
        new_file(path, room * SECTOR_BYTES, self.force)?;
        let image = source(path, Access::Write)?;
        create(&*image.device, nr_sectors, header.cluster_sectors)
            .await
            .map_err(CliError::image(path))
    }
}

/// Makes a file of this size, or sees that a block device is large enough.
pub fn new_file(path: &Path, nr_bytes: u64, force: bool) -> Result<File, CliError> {
    let is_device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    if is_device && !force {
        return Err(CliError::Exists {
            path: path.to_owned(),
            what: "is a block device",
        });
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if !is_device {
        options.create(true).create_new(!force).truncate(force);
    }
    let file = options.open(path).map_err(CliError::io(path))?;
    if !is_device {
        file.set_len(nr_bytes).map_err(CliError::io(path))?;
    }
    Ok(file)
}

impl CreateArgs {
    /// Makes it.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let nr_sectors = self.size_mib.checked_mul(SECTORS_PER_MIB);
        let nr_sectors = nr_sectors.filter(|nr| *nr > 0);
        let nr_sectors = nr_sectors.ok_or_else(|| {
            CliError::Usage(format!("--size-mib {}: not possible", self.size_mib))
        })?;
        let cluster = u64::from(self.new.cluster_sectors()?).max(1);
        let room = match self.new.compact {
            true => 0,
            false => nr_sectors.div_ceil(cluster),
        };
        let header = self.new.make(&self.image, nr_sectors, room).await?;
        if !global.quiet {
            println!(
                "{}: {} sectors in clusters of {}, data from sector {} on",
                self.image.display(),
                header.nr_sectors,
                header.cluster_sectors,
                header.data_sectors
            );
        }
        Ok(true)
    }
}
