//! `spdk-dm ploop info`.

use super::{in_use_name, survey, version_name};
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use bdev::device::SECTOR_BYTES;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments.
#[derive(Args)]
pub struct InfoArgs {
    /// File or block device with the image
    image: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Bitmap {
    id: String,
    granularity_bytes: u64,
    size_bytes: u64,
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
    virtual_size_bytes: u64,
    cluster_bytes: u64,
    state: &'static str,
    bat_entries: u32,
    data_offset_bytes: u64,
    clusters_mapped: u64,
    fragments: u64,
    holes: u64,
    problems: u64,
    bitmaps: Vec<Bitmap>,
}

impl InfoArgs {
    /// Prints.
    pub async fn run(&self, _: Global) -> Result<bool, CliError> {
        let found = survey(&self.image).await?;
        let header = found.header;
        let bitmaps = found
            .extension
            .iter()
            .flat_map(|extension| &extension.bitmaps);
        let info = Info {
            version: version_name(header.version),
            virtual_size_bytes: header.nr_sectors * SECTOR_BYTES,
            cluster_bytes: header.cluster() * SECTOR_BYTES,
            state: in_use_name(header.in_use),
            bat_entries: header.nr_entries,
            data_offset_bytes: header.data() * SECTOR_BYTES,
            clusters_mapped: found.nr_mapped,
            fragments: found.nr_fragments,
            holes: found.nr_holes(),
            problems: found.nr_problems + u64::from(found.extension_problem.is_some()),
            bitmaps: bitmaps
                .map(|bitmap| Bitmap {
                    id: bitmap.id.iter().map(|byte| format!("{byte:02x}")).collect(),
                    granularity_bytes: u64::from(bitmap.granularity_sectors) * SECTOR_BYTES,
                    size_bytes: bitmap.nr_sectors * SECTOR_BYTES,
                })
                .collect(),
        };
        if self.json {
            Output::open(None)?.json(&info)?;
            return Ok(true);
        }
        println!("image: {}", self.image.display());
        println!("format: ploop {}", info.version);
        println!("virtual size: {} bytes", info.virtual_size_bytes);
        println!("cluster size: {} bytes", info.cluster_bytes);
        println!("state: {}", info.state);
        println!(
            "mapped: {} of {} clusters, {} fragments, {} holes in the file",
            info.clusters_mapped, info.bat_entries, info.fragments, info.holes
        );
        for bitmap in &info.bitmaps {
            println!(
                "bitmap: {}, {} bytes per bit",
                bitmap.id, bitmap.granularity_bytes
            );
        }
        if info.problems > 0 {
            println!("problems: {}; see 'spdk-dm ploop check'", info.problems);
        }
        Ok(true)
    }
}
