//! `spdk-dm thin check`.

use super::Input;
use crate::Global;
use crate::error::CliError;
use crate::file::{Access, FileDevice};
use crate::output::Output;
use crate::progress::Progress;
use bdev::thin::metadata::check::{CheckOptions, CheckReport, check, clear_needs_check};
use bdev::thin::metadata::image::{Image, View};
use bdev::thin::metadata::problem::{Problem, Severity};
use clap::Args;
use serde::Serialize;

/// Arguments.
#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    input: Input,
    /// Look at the superblock only
    #[arg(long)]
    super_block_only: bool,
    /// Do not look at the mappings, and so at no reference counts either
    #[arg(long)]
    skip_mappings: bool,
    /// Leaked blocks are no reason for exit code 1
    #[arg(long)]
    ignore_non_fatal_errors: bool,
    /// Clear the flag that a check is needed, if nothing is wrong
    #[arg(long, alias = "clear-needs-check-flag", conflicts_with_all = ["metadata_snap", "skip_mappings", "super_block_only"])]
    clear_needs_check: bool,
    /// Problems to print; more are only counted
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    max_problems: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Json {
    ok: bool,
    needs_check: Option<bool>,
    transaction_id: Option<u64>,
    time: Option<u32>,
    data_block_size_sectors: Option<u32>,
    data_blocks: Option<u64>,
    data_blocks_used: u64,
    metadata_blocks: Option<u64>,
    metadata_blocks_used: u64,
    devices: u64,
    mappings: u64,
    counts_checked: bool,
    warnings: u64,
    leaks: u64,
    damages: u64,
    problems: Vec<JsonProblem>,
}

#[derive(Serialize)]
struct JsonProblem {
    severity: &'static str,
    device: String,
    block: u64,
    what: String,
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Leak => "leak",
        Severity::Damage => "damage",
    }
}

impl CheckArgs {
    /// Checks.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "checking");
        let report = {
            let image = self.input.open(&progress)?;
            self.check(&image, &progress).await
        };
        progress.finish();
        let fatal = report.nr_damages > 0;
        let ok = !fatal && (report.nr_leaks == 0 || self.ignore_non_fatal_errors);
        let mut cleared = false;
        if self.clear_needs_check && ok && report.superblock.is_some_and(|sb| sb.needs_check) {
            let path = &self.input.input;
            let device = FileDevice::open(path, Access::Write, Progress::hidden())?;
            let result = clear_needs_check(device).await;
            result.map_err(CliError::thin(path))?;
            cleared = true;
        }
        if self.json {
            Output::open(None)?.json(&self.to_json(ok, cleared, &report))?;
        } else if !global.quiet {
            self.print(ok, cleared, &report);
        }
        Ok(ok)
    }

    async fn check(&self, image: &Image, progress: &Progress) -> CheckReport {
        let view = self.input.view();
        let sb = image.superblock(view).await;
        if let Ok(sb) = sb
            && self.super_block_only
        {
            return CheckReport {
                superblock: Some(sb),
                counts_unchecked: true,
                ..CheckReport::default()
            };
        }
        if let Ok(sb) = sb
            && view == View::Current
        {
            progress.expect(sb.metadata_map.nr_allocated);
        }
        let options = CheckOptions {
            view,
            keep_problems: self.max_problems,
            skip_mappings: self.skip_mappings,
        };
        check(image, options).await
    }

    fn to_json(&self, ok: bool, cleared: bool, report: &CheckReport) -> Json {
        let sb = report.superblock;
        Json {
            ok,
            needs_check: sb.map(|sb| sb.needs_check && !cleared),
            transaction_id: sb.map(|sb| sb.transaction_id),
            time: sb.map(|sb| sb.time),
            data_block_size_sectors: sb.map(|sb| sb.data_block_size_sectors),
            data_blocks: sb.map(|sb| sb.data_map.nr_blocks),
            data_blocks_used: report.nr_data_used,
            metadata_blocks: sb.map(|sb| sb.metadata_map.nr_blocks),
            metadata_blocks_used: report.nr_metadata_used,
            devices: report.nr_devices,
            mappings: report.nr_mappings,
            counts_checked: !report.counts_unchecked,
            warnings: report.nr_warnings,
            leaks: report.nr_leaks,
            damages: report.nr_damages,
            problems: report.problems.iter().map(to_json).collect(),
        }
    }

    fn print(&self, ok: bool, cleared: bool, report: &CheckReport) {
        let path = self.input.input.display();
        if let Some(sb) = report.superblock {
            println!(
                "pool: transaction {}, time {}, data blocks of {} sectors",
                sb.transaction_id, sb.time, sb.data_block_size_sectors
            );
            if !self.super_block_only {
                println!(
                    "{} devices, {} mappings; used: {} of {} data blocks, {} of {} metadata blocks",
                    report.nr_devices,
                    report.nr_mappings,
                    report.nr_data_used,
                    sb.data_map.nr_blocks,
                    report.nr_metadata_used,
                    sb.metadata_map.nr_blocks
                );
            }
        }
        for problem in &report.problems {
            eprintln!("{}: {problem}", name(problem.severity()));
        }
        let total = report.nr_warnings + report.nr_leaks + report.nr_damages;
        let untold = total.saturating_sub(report.problems.len() as u64);
        if untold > 0 {
            eprintln!("... and {untold} more");
        }
        if report.counts_unchecked && report.nr_damages > 0 {
            eprintln!("reference counts were not compared, because of the damage");
        }
        if cleared {
            println!("the flag that a check is needed has been cleared");
        } else if report.superblock.is_some_and(|sb| sb.needs_check) {
            println!(
                "the pool's flag that a check is needed is set{}",
                match ok {
                    true => "; --clear-needs-check clears it",
                    false => "",
                }
            );
        }
        if report.nr_damages > 0 {
            eprintln!(
                "{path}: damaged; copy what is readable with: spdk-dm thin repair -i {path} -o OUTPUT"
            );
        } else if report.nr_leaks > 0 {
            eprintln!(
                "{path}: blocks have leaked; reclaim them with: spdk-dm thin repair -i {path} -o OUTPUT"
            );
        } else {
            println!("{path}: no damage found");
        }
    }
}

fn to_json(problem: &Problem) -> JsonProblem {
    JsonProblem {
        severity: name(problem.severity()),
        device: problem.area().to_string(),
        block: problem.block(),
        what: problem.to_string(),
    }
}
