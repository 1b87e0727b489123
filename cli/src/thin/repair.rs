//! `spdk-dm thin repair`.

use super::dump::Counted;
use super::read_error;
use super::restore::new_pool;
use crate::Global;
use crate::error::CliError;
use crate::file::{self, Access, FileDevice};
use crate::new_metadata::NewMetadata;
use crate::output::Output;
use crate::progress::Progress;
use crate::xml::thin::Overrides;
use bdev::thin::metadata::dump::DumpError;
use bdev::thin::metadata::image::Image;
use bdev::thin::metadata::repair;
use clap::Args;
use std::path::PathBuf;

/// Arguments.
#[derive(Args)]
pub struct RepairArgs {
    /// The damaged metadata; it is only read
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    output: NewMetadata,
    #[command(flatten)]
    overrides: Overrides,
    /// Print what is lost as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Json {
    devices: usize,
    losses: Vec<String>,
}

impl RepairArgs {
    /// Repairs.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let path = &self.input;
        if file::same(path, &self.output.output) {
            return Err(CliError::Usage(
                "the output must be another file or device than the input".to_owned(),
            ));
        }
        let progress = Progress::new(global.quiet, "copying");
        let image = Image::new(FileDevice::open(path, Access::Read, Progress::hidden())?);
        let overrides = repair::Overrides {
            transaction_id: self.overrides.transaction_id,
            data_block_size_sectors: self.overrides.data_block_size,
            nr_data_blocks: self.overrides.nr_data_blocks,
        };
        let salvage = repair::find(&image, overrides).await;
        let salvage = salvage.map_err(CliError::thin(path))?;
        let devices = salvage.nr_devices();
        progress.expect(salvage.nr_mapped_blocks());
        let device = self.output.open().await?;
        let mut sink = Counted {
            sink: new_pool(&self.output, device).await?,
            progress: progress.clone(),
        };
        let result = repair::copy(&image, salvage, &mut sink).await;
        progress.finish();
        let losses = result.map_err(|error| match error {
            DumpError::Sink(source) => CliError::Restore {
                path: self.output.output.clone(),
                source,
            },
            error => read_error(path, error),
        })?;
        if self.json {
            Output::open(None)?.json(&Json {
                devices,
                losses: losses.iter().map(ToString::to_string).collect(),
            })?;
        } else if !global.quiet {
            for loss in &losses {
                eprintln!("{loss}");
            }
            let mappings = sink.sink.nr_mappings();
            println!(
                "{}: {devices} devices with {mappings} mappings copied, {}",
                self.output.output.display(),
                match losses.len() {
                    0 => "nothing was lost".to_owned(),
                    _ => "with the losses above".to_owned(),
                }
            );
        }
        Ok(true)
    }
}
