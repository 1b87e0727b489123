//! `spdk-dm era restore`.

use crate::Global;
use crate::error::CliError;
use crate::new_metadata::{CACHE_BYTES, NewMetadata};
use crate::progress::Progress;
use crate::xml;
use crate::xml::input::XmlInput;
use bdev::era::EraError;
use clap::Args;
use persistent_data::Error;
use std::path::PathBuf;

/// Arguments.
#[derive(Args)]
pub struct RestoreArgs {
    /// The XML; - for standard input
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    output: NewMetadata,
}

impl RestoreArgs {
    /// Restores.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "restoring");
        let input = XmlInput::open(&self.input, &progress)?;
        let device = self.output.open().await?;
        let result = xml::era::restore(input, device.clone(), CACHE_BYTES).await;
        progress.finish();
        result.map_err(|error| {
            CliError::from_xml(&self.input, error, |source| match source {
                EraError::Metadata(Error::NoSpace | Error::BadSize { .. }) => {
                    self.output.too_small(&device)
                }
                source => CliError::era(&self.output.output)(source),
            })
        })?;
        Ok(true)
    }
}
