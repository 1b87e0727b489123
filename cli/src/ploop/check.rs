//! `spdk-dm ploop check`.

use super::{source, survey};
use crate::Global;
use crate::error::CliError;
use crate::file::Access;
use crate::output::Output;
use bdev::ploop::offline::mark_closed;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments.
#[derive(Args)]
pub struct CheckArgs {
    /// File or block device with the image, which nobody has open
    image: PathBuf,
    /// Mark an image as closed that was not, if nothing else is wrong with it
    #[arg(long)]
    repair: bool,
    /// Problems to print; more are only counted
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    max_problems: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    not_closed: bool,
    repaired: bool,
    clusters_mapped: u64,
    holes: u64,
    damages: u64,
    problems: Vec<String>,
}

impl CheckArgs {
    /// Checks.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let found = survey(&self.image).await?;
        let not_closed = found.is_in_use();
        let damages = found.nr_problems + u64::from(found.extension_problem.is_some());
        let repaired = self.repair && not_closed && damages == 0;
        if repaired {
            mark_closed(source(&self.image, Access::Write)?).await?;
        }
        let problems = found.problems.iter().chain(&found.extension_problem);
        let mut problems: Vec<String> = problems.map(ToString::to_string).collect();
        problems.truncate(self.max_problems);
        let report = Report {
            ok: damages == 0 && (!not_closed || repaired),
            not_closed,
            repaired,
            clusters_mapped: found.nr_mapped,
            holes: found.nr_holes(),
            damages,
            problems,
        };
        if self.json {
            Output::open(None)?.json(&report)?;
        } else if !global.quiet {
            self.print(&report);
        }
        Ok(report.ok)
    }

    fn print(&self, report: &Report) {
        let path = self.image.display();
        println!(
            "{} clusters mapped, {} holes in the file",
            report.clusters_mapped, report.holes
        );
        for problem in &report.problems {
            eprintln!("damage: {problem}");
        }
        if report.damages > report.problems.len() as u64 {
            let more = report.damages - report.problems.len() as u64;
            eprintln!("... and {more} more");
        }
        match report {
            _ if report.damages > 0 => {
                eprintln!("{path}: damaged; copy what can be read, e.g. by qemu-img convert");
            }
            _ if report.repaired => println!("{path}: no damage found; marked as closed"),
            _ if report.not_closed => eprintln!(
                "{path}: no damage found, but it is in use or was not closed; if nobody has it open, --repair says so in it"
            ),
            _ => println!("{path}: no damage found"),
        }
    }
}
