//! `spdk-dm thin ls`.

use super::{Input, read_error};
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;
use bdev::thin::metadata::usage::{Usage, usage};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::io::Write;

/// Arguments.
#[derive(Args)]
pub struct LsArgs {
    #[command(flatten)]
    input: Input,
    /// Columns, separated by commas
    #[arg(
        short = 'o',
        long,
        value_name = "FIELDS",
        value_enum,
        ignore_case = true,
        value_delimiter = ',',
        default_value = "DEV,MAPPED,CREATE_TIME,SNAP_TIME"
    )]
    format: Vec<Field>,
    /// No line with the names of the columns
    #[arg(long)]
    no_headers: bool,
    /// Print all numbers as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum Field {
    Dev,
    MappedBlocks,
    ExclusiveBlocks,
    SharedBlocks,
    HighestBlock,
    MappedSectors,
    ExclusiveSectors,
    SharedSectors,
    HighestSector,
    MappedBytes,
    ExclusiveBytes,
    SharedBytes,
    HighestByte,
    Mapped,
    Exclusive,
    Shared,
    HighestMapped,
    Transaction,
    CreateTime,
    SnapTime,
}

/// A number of bytes as the tools round it: to the largest unit of which there are 8192 or fewer.
fn rounded(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 8192 {
        return format!("{bytes}b");
    }
    let mut unit_bytes = 1;
    for (i, unit) in units.iter().enumerate() {
        unit_bytes *= 1024;
        if bytes / unit_bytes < 8192 || i + 1 == units.len() {
            let up = u64::from(bytes % unit_bytes >= unit_bytes / 2);
            return format!("{}{unit}", bytes / unit_bytes + up);
        }
    }
    String::new()
}

impl Field {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether all mappings must be looked at.
    fn needs_mappings(self) -> bool {
        let name = self.name();
        ["EXCLUSIVE", "SHARED", "HIGHEST"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    }

    fn text(self, of: &Usage, block_sectors: u64) -> String {
        let details = of.device.details;
        let mapped = details.mapped_blocks;
        let exclusive = of.exclusive_blocks.unwrap_or_default();
        let shared = mapped.saturating_sub(exclusive);
        let highest = of.highest_block.unwrap_or_default();
        let sectors = |blocks: u64| blocks.saturating_mul(block_sectors);
        let bytes = |blocks| sectors(blocks).saturating_mul(512);
        // The last sector or byte of the block.
        let end = highest.saturating_add(1);
        match self {
            Field::Dev => of.device.id.to_string(),
            Field::MappedBlocks => mapped.to_string(),
            Field::ExclusiveBlocks => exclusive.to_string(),
            Field::SharedBlocks => shared.to_string(),
            Field::HighestBlock => highest.to_string(),
            Field::MappedSectors => sectors(mapped).to_string(),
            Field::ExclusiveSectors => sectors(exclusive).to_string(),
            Field::SharedSectors => sectors(shared).to_string(),
            Field::HighestSector => sectors(end).saturating_sub(1).to_string(),
            Field::MappedBytes => bytes(mapped).to_string(),
            Field::ExclusiveBytes => bytes(exclusive).to_string(),
            Field::SharedBytes => bytes(shared).to_string(),
            Field::HighestByte => bytes(end).saturating_sub(1).to_string(),
            Field::Mapped => rounded(bytes(mapped)),
            Field::Exclusive => rounded(bytes(exclusive)),
            Field::Shared => rounded(bytes(shared)),
            Field::HighestMapped => rounded(bytes(end).saturating_sub(1)),
            Field::Transaction => details.transaction_id.to_string(),
            Field::CreateTime => details.creation_time.to_string(),
            Field::SnapTime => details.snapshotted_time.to_string(),
        }
    }
}

impl LsArgs {
    /// Lists.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "reading");
        let image = self.input.open(&progress)?;
        let mappings = self.json || self.format.iter().any(|field| field.needs_mappings());
        let found = usage(&image, self.input.view(), mappings).await;
        progress.finish();
        let (sb, list) = found.map_err(|error| read_error(&self.input.input, error))?;
        let size = u64::from(sb.data_block_size_sectors);
        let mut output = Output::open(None)?;
        if self.json {
            return output.json(&self.to_json(&list)).map(|()| true);
        }
        let mut rows: Vec<Vec<String>> = Vec::new();
        if !self.no_headers {
            rows.push(self.format.iter().map(|field| field.name()).collect());
        }
        for of in &list {
            rows.push(self.format.iter().map(|f| f.text(of, size)).collect());
        }
        let mut widths = vec![0; self.format.len()];
        for row in &rows {
            for (width, text) in widths.iter_mut().zip(row) {
                *width = text.len().max(*width);
            }
        }
        for row in &rows {
            for (text, &width) in row.iter().zip(&widths) {
                write!(output.out, "{text:>width$} ").map_err(CliError::io(&output.path))?;
            }
            writeln!(output.out).map_err(CliError::io(&output.path))?;
        }
        output.out.flush().map_err(CliError::io(&output.path))?;
        Ok(true)
    }

    fn to_json(&self, list: &[Usage]) -> Vec<BTreeMap<&'static str, Option<u64>>> {
        let row = |of: &Usage| {
            let details = of.device.details;
            let mapped = details.mapped_blocks;
            BTreeMap::from([
                ("device", Some(of.device.id)),
                ("mapped_blocks", Some(mapped)),
                ("exclusive_blocks", of.exclusive_blocks),
                (
                    "shared_blocks",
                    of.exclusive_blocks.map(|e| mapped.saturating_sub(e)),
                ),
                ("highest_block", of.highest_block),
                ("transaction_id", Some(details.transaction_id)),
                ("creation_time", Some(u64::from(details.creation_time))),
                (
                    "snapshotted_time",
                    Some(u64::from(details.snapshotted_time)),
                ),
            ])
        };
        list.iter().map(row).collect()
    }
}
