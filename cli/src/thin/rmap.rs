//! `spdk-dm thin rmap`.

use super::{Input, read_error};
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;
use bdev::thin::metadata::usage::owners;
use clap::Args;
use std::io::Write;
use std::ops::Range;

/// Arguments.
#[derive(Args)]
pub struct RmapArgs {
    #[command(flatten)]
    input: Input,
    /// Data blocks from BEGIN up to, but not including, END; may be repeated
    #[arg(long, value_name = "BEGIN..END", required = true, value_parser = region)]
    region: Vec<Range<u64>>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Json {
    device: u64,
    data_begin: u64,
    virtual_begin: u64,
    length: u64,
}

fn region(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(begin, end)| {
        let range: Range<u64> = begin.parse().ok()?..end.parse().ok()?;
        (!range.is_empty()).then_some(range)
    });
    parsed.ok_or_else(|| "must be BEGIN..END, with BEGIN below END".to_owned())
}

impl RmapArgs {
    /// Lists.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "reading");
        let image = self.input.open(&progress)?;
        let found = owners(&image, self.input.view(), &self.region).await;
        progress.finish();
        let found = found.map_err(|error| read_error(&self.input.input, error))?;
        let mut output = Output::open(None)?;
        if self.json {
            let list: Vec<Json> = found
                .iter()
                .flatten()
                .map(|o| Json {
                    device: o.device,
                    data_begin: o.data_begin,
                    virtual_begin: o.virtual_begin,
                    length: o.length,
                })
                .collect();
            output.json(&list)?;
            return Ok(true);
        }
        for o in found.iter().flatten() {
            writeln!(
                output.out,
                "data {}..{} -> thin({}) {}..{}",
                o.data_begin,
                o.data_begin + o.length,
                o.device,
                o.virtual_begin,
                o.virtual_begin + o.length
            )
            .map_err(CliError::io(&output.path))?;
        }
        output.out.flush().map_err(CliError::io(&output.path))?;
        Ok(true)
    }
}
