//! `spdk-dm thin restore`.

use crate::Global;
use crate::error::CliError;
use crate::file::FileDevice;
use crate::new_metadata::{CACHE_BYTES, NewMetadata};
use crate::progress::Progress;
use crate::xml::input::XmlInput;
use crate::xml::{self, thin::Overrides};
use bdev::thin::metadata::restore::{Restore, RestoreOptions};
use clap::Args;
use std::path::PathBuf;
use std::rc::Rc;

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

/// Begins a pool's metadata.
pub async fn new_pool(output: &NewMetadata, device: Rc<FileDevice>) -> Result<Restore, CliError> {
    let options = RestoreOptions {
        cache_bytes: CACHE_BYTES,
        keep_needs_check: false,
    };
    let restore = Restore::new(device, options).await;
    restore.map_err(|source| CliError::Restore {
        path: output.output.clone(),
        source,
    })
}

impl RestoreArgs {
    /// Restores.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "restoring");
        let input = XmlInput::open(&self.input, &progress)?;
        let device = self.output.open().await?;
        let mut restore = new_pool(&self.output, device).await?;
        let result = xml::thin::read(input, &self.overrides, &mut restore).await;
        progress.finish();
        result.map_err(|error| {
            CliError::from_xml(&self.input, error, |source| CliError::Restore {
                path: self.output.output.clone(),
                source,
            })
        })?;
        for (id, said, found) in restore.corrected() {
            log::warn!("device {id}: the XML says {said} mapped blocks, there are {found}");
        }
        Ok(true)
    }
}
