//! `spdk-dm era invalidate`.

use super::{Input, dump_error};
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;
use bdev::era::metadata::EraMetadata;
use bdev::era::metadata::dump::DumpError;
use bdev::era::metadata::xml::BlocksWriter;
use clap::Args;
use std::io::{self, Write};
use std::path::PathBuf;

/// Blocks looked at in one go, which bounds memory.
const PAGE_BLOCKS: u64 = 1 << 20;

/// Arguments.
#[derive(Args)]
pub struct InvalidateArgs {
    #[command(flatten)]
    input: Input,
    /// List blocks written in this era or later; unlike era_invalidate also what the current writeset
    /// says, which a crash leaves behind
    #[arg(long, value_name = "ERA")]
    written_since: u32,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl InvalidateArgs {
    /// Lists.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "listing");
        let metadata = self.input.open(&progress).await?;
        let mut output = Output::open(self.output.as_deref())?;
        let result = self.list(&metadata, &mut output.out).await;
        progress.finish();
        result.map_err(|error| dump_error(&self.input.input, &output.path, error))?;
        self.input.still_there(&metadata).await?;
        Ok(true)
    }

    async fn list(
        &self,
        metadata: &EraMetadata,
        out: impl Write,
    ) -> Result<(), DumpError<io::Error>> {
        let view = self.input.view();
        let (nr_blocks, _) = metadata.extent(view).await?;
        let mut blocks = BlocksWriter::begin(out).map_err(DumpError::Sink)?;
        let mut from = 0;
        while from < nr_blocks {
            let until = nr_blocks.min(from + PAGE_BLOCKS);
            let page = metadata.written_since(view, self.written_since, from..until);
            for range in page.await? {
                blocks.range(range).map_err(DumpError::Sink)?;
            }
            from = until;
        }
        blocks.end().map(drop).map_err(DumpError::Sink)
    }
}
