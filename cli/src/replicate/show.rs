//! `replicate status`.

use super::head::look;
use super::report::{self, Activity, Report};
use crate::backup::source::Pool;
use crate::dm::Server;
use crate::error::CliError;
use crate::output::Output;
use clap::Args;
use serde_json::Value;
use std::io::Write;

/// Arguments of `replicate status`.
#[derive(Args)]
pub struct StatusArgs {
    /// Only of this pool, and read from the pool itself (default: what processes of this target have said)
    pool: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl StatusArgs {
    /// Prints a line for each replication.
    pub fn run(self) -> Result<bool, CliError> {
        let mut reports = report::all(self.server.socket())?;
        if let Some(pool) = &self.pool {
            let said = std::mem::take(&mut reports);
            let mut client = self.server.connect()?;
            let seen = look(&mut Pool::new(&mut client, pool), self.server.socket())?;
            let busy = seen.busy.into_iter().map(|state| (state, true));
            let quiet = seen.states.into_iter().map(|state| (state, false));
            for (state, is_busy) in quiet.chain(busy) {
                let said = said
                    .iter()
                    .find(|report| (&report.chain, &report.pool) == (&state.chain, pool));
                let mut report = said.cloned().unwrap_or_else(|| Report::of(pool, &state));
                // What a process that is at it says is newer than what it began with.
                if !is_busy || said.is_none() {
                    report.know(&state);
                }
                reports.push(report);
            }
        }
        let mut output = Output::open(None)?;
        if self.json {
            let list: Vec<Value> = reports
                .iter()
                .map(|report| Value::Object(report.fields()))
                .collect();
            output.json(&list)?;
            return Ok(true);
        }
        let mut text = format!(
            "{:12}  {:20}  {:8}  {:10}  {:>8}  {:>10}  {:>10}  PEER\n",
            "CHAIN", "POOL", "ROLE", "NOW", "SNAPSHOT", "BEHIND", "TO GO MIB"
        );
        for report in &reports {
            text += &line(report);
        }
        let written = output.out.write_all(text.as_bytes());
        written
            .and_then(|()| output.out.flush())
            .map_err(CliError::io(&output.path))?;
        Ok(true)
    }
}

fn line(report: &Report) -> String {
    let device = match report.device {
        Some(device) => format!("{}/{device}", report.pool),
        None => report.pool.clone(),
    };
    let now = match report.activity {
        Activity::Idle => "idle",
        Activity::Sending => "sending",
        Activity::Receiving => "receiving",
        Activity::Retrying => "retrying",
        Activity::Stopped => "stopped",
    };
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let newest = report.newest.as_ref();
    let mut line = format!(
        "{:12}  {:20}  {:8}  {:10}  {:>8}  {:>10}  {:>10}  {}\n",
        report.chain.get(..12).unwrap_or(&report.chain),
        device,
        report.role.to_string(),
        now,
        or_none(newest.map(|snapshot| snapshot.number.to_string())),
        or_none(report.behind_s().map(|seconds| format!("{seconds} s"))),
        report.to_go_bytes >> 20,
        report.peer.as_deref().unwrap_or("-"),
    );
    if let Some(error) = &report.last_error {
        line += &format!("    {error}\n");
    }
    line
}
