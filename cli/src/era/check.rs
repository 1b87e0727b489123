//! `spdk-dm era check`.

use super::{CACHE_BYTES, superblock};
use crate::Global;
use crate::error::CliError;
use crate::file::{Access, FileDevice};
use crate::output::Output;
use crate::progress::Progress;
use bdev::era::EraError;
use bdev::era::metadata::check::CheckReport;
use bdev::era::metadata::{EraMetadata, Superblock};
use clap::Args;
use persistent_data::Error;
use serde::Serialize;
use std::path::PathBuf;
use std::rc::Rc;

/// Arguments.
#[derive(Args)]
pub struct CheckArgs {
    /// File or block device with the metadata
    input: PathBuf,
    /// Look at the superblock only
    #[arg(long)]
    super_block_only: bool,
    /// Leaked blocks are no reason for exit code 1
    #[arg(long)]
    ignore_non_fatal_errors: bool,
    /// Problems to print; more are only counted
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    max_problems: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// The target must not be used, or may have lost eras.
    Damage,
    /// Space that cannot be used.
    Leak,
    /// Odd, but harmless.
    Warning,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Damage => "damage",
            Severity::Leak => "leak",
            Severity::Warning => "warning",
        }
    }
}

#[derive(Serialize)]
struct Problem {
    severity: Severity,
    /// Of the metadata.
    block: u64,
    what: String,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    current_era: Option<u32>,
    data_block_size_sectors: Option<u32>,
    data_blocks: Option<u32>,
    metadata_blocks: Option<u64>,
    metadata_blocks_used: Option<u64>,
    metadata_snapshot: Option<u64>,
    counts_checked: bool,
    warnings: usize,
    leaks: usize,
    damages: usize,
    problems: Vec<Problem>,
}

impl CheckArgs {
    /// Checks.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "checking");
        let device = FileDevice::open(&self.input, Access::Read, progress.clone())?;
        let (sb, problems, counts_checked) = self.look(&device, &progress).await?;
        progress.finish();
        let count = |severity| problems.iter().filter(|p| p.severity == severity).count();
        let (damages, leaks) = (count(Severity::Damage), count(Severity::Leak));
        let mut report = Report {
            ok: damages == 0 && (leaks == 0 || self.ignore_non_fatal_errors),
            current_era: sb.map(|sb| sb.current_era),
            data_block_size_sectors: sb.map(|sb| sb.data_block_size_sectors),
            data_blocks: sb.map(|sb| sb.nr_blocks),
            metadata_blocks: sb.map(|sb| sb.metadata_map.nr_blocks),
            metadata_blocks_used: sb.map(|sb| sb.metadata_map.nr_allocated),
            metadata_snapshot: sb.map(|sb| sb.metadata_snap).filter(|block| *block != 0),
            counts_checked,
            warnings: count(Severity::Warning),
            leaks,
            damages,
            problems,
        };
        report.problems.truncate(self.max_problems);
        if self.json {
            Output::open(None)?.json(&report)?;
        } else if !global.quiet {
            self.print(&report);
        }
        Ok(report.ok)
    }

    /// The superblock if it can be used, what was found, and whether counts were compared. Error:
    /// this is not the metadata of an era target, or cannot be read at all.
    async fn look(
        &self,
        device: &Rc<FileDevice>,
        progress: &Progress,
    ) -> Result<(Option<Superblock>, Vec<Problem>, bool), CliError> {
        let sb = match superblock(device).await {
            Ok(sb) => sb,
            Err(
                error @ (EraError::BadSuperblock(_)
                | EraError::WrongLocation(_)
                | EraError::Version(_)),
            ) => {
                let what = format!("metadata block 0: {error}");
                return Ok((None, vec![damage(0, what)], false));
            }
            Err(error) => return Err(CliError::era(&self.input)(error)),
        };
        if self.super_block_only {
            return Ok((Some(sb), Vec::new(), false));
        }
        let metadata = match EraMetadata::open_any(device.clone(), CACHE_BYTES).await {
            Ok(metadata) => metadata,
            Err(EraError::Metadata(error)) => {
                return Ok((Some(sb), vec![unreadable(&error)], false));
            }
            Err(error) => {
                let what = format!("metadata block 0: {error}");
                return Ok((Some(sb), vec![damage(0, what)], false));
            }
        };
        progress.expect(metadata.nr_used_metadata());
        let found = metadata.survey().await;
        let counts_checked = found.unreadable.is_empty();
        Ok((Some(sb), problems(found), counts_checked))
    }

    fn print(&self, report: &Report) {
        let path = self.input.display();
        if let (Some(era), Some(size), Some(nr), Some(used), Some(all)) = (
            report.current_era,
            report.data_block_size_sectors,
            report.data_blocks,
            report.metadata_blocks_used,
            report.metadata_blocks,
        ) {
            println!("era {era}, {nr} data blocks of {size} sectors");
            println!("used: {used} of {all} metadata blocks");
        }
        for problem in &report.problems {
            eprintln!("{}: {}", problem.severity.name(), problem.what);
        }
        let total = report.warnings + report.leaks + report.damages;
        if total > report.problems.len() {
            eprintln!("... and {} more", total - report.problems.len());
        }
        if !report.counts_checked && report.damages > 0 {
            eprintln!("reference counts were not compared, because of the damage");
        }
        if report.damages > 0 {
            eprintln!(
                "{path}: damaged; restore it from a dump, or zero its first 4096 bytes to begin anew"
            );
        } else if report.leaks > 0 {
            eprintln!(
                "{path}: blocks have leaked; reclaim them with: spdk-dm era dump {path} -o XML, \
                 spdk-dm era restore --force -i XML -o {path}"
            );
        } else {
            println!("{path}: no damage found");
        }
    }
}

fn damage(block: u64, what: String) -> Problem {
    Problem {
        severity: Severity::Damage,
        block,
        what,
    }
}

fn unreadable(error: &Error) -> Problem {
    damage(error.block().unwrap_or_default(), error.to_string())
}

fn problems(report: CheckReport) -> Vec<Problem> {
    let damages = report.damages.into_iter().chain(report.counts);
    let found = damages.map(|finding| (Severity::Damage, finding));
    let oddities = report.oddities.into_iter();
    let odd = oddities.map(|finding| (Severity::Warning, finding));
    let described = found.chain(odd).map(|(severity, finding)| Problem {
        severity: match finding.is_leak {
            true => Severity::Leak,
            false => severity,
        },
        block: finding.block,
        what: format!("metadata block {}: {}", finding.block, finding.what),
    });
    let unreadable = report.unreadable.iter().map(unreadable);
    unreadable.chain(described).collect()
}
