//! `spdk-dm era dump`.

use super::{Input, dump_error};
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;
use bdev::era::metadata::xml::{Layout, XmlWriter};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments.
#[derive(Args)]
pub struct DumpArgs {
    #[command(flatten)]
    input: Input,
    /// Fold all writesets into the era array: of each block the last era it was written in
    #[arg(long)]
    logical: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As era_dump 0.9, with the writeset of the current era too, which that leaves out: every bit a
    /// writeset has; all versions of era_restore read it
    #[default]
    Xml,
    /// As era_dump 1.x: of each writeset as many bits as there are blocks; era_restore 0.9 reads it only
    /// if the number of blocks never changed
    XmlPadded,
}

impl DumpArgs {
    /// Dumps.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "dumping");
        let metadata = self.input.open(&progress).await?;
        let output = Output::open(self.output.as_deref())?;
        let layout = match self.format {
            Format::Xml => Layout::V0,
            Format::XmlPadded => Layout::V1,
        };
        let mut xml = XmlWriter::new(output.out, layout);
        let view = self.input.view();
        let result = match self.logical {
            true => metadata.dump_logical(view, &mut xml).await,
            false => metadata.dump(view, true, &mut xml).await,
        };
        progress.finish();
        result.map_err(|error| dump_error(&self.input.input, &output.path, error))?;
        self.input.still_there(&metadata).await?;
        Ok(true)
    }
}
