//! `backup full` and `backup incr`: of a thin device, an era target or a ploop target.

use super::base::{self, Base};
use super::header::Source;
use super::stop::Stop;
use super::{era, ploop, thin, verify};
use crate::Global;
use crate::dm::Server;
use crate::error::CliError;
use crate::rpc_client::RpcClient;
use clap::Args;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Arguments of `backup full`.
#[derive(Args)]
pub struct FullArgs {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    how: How,
    /// Size of a thin device that is not active
    #[arg(long, value_name = "MIB")]
    size_mib: Option<u64>,
}

/// Arguments of `backup incr`.
#[derive(Args)]
pub struct IncrArgs {
    #[command(flatten)]
    of: Of,
    /// The backup before, or a folder whose last one it is; without it, the folder of the output
    #[arg(long, value_name = "PATH")]
    since: Option<PathBuf>,
    #[command(flatten)]
    how: How,
    /// Keep what is needed for another backup since the one before
    #[arg(long)]
    keep: bool,
}

#[derive(Args)]
struct Of {
    /// A pool, an era target or a ploop target
    name: String,
    /// Of a pool: the id of the thin device
    id: Option<u32>,
}

/// How a backup is made.
#[derive(Args)]
pub struct How {
    /// The backup: a new file, or - for standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Go on with a file in which an earlier attempt was cut off
    #[arg(long)]
    pub resume: bool,
    /// Read at most so many MiB per second
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit_mib: Option<u64>,
    /// Print JSON of the backup that was made, as `list` does
    #[arg(long)]
    pub json: bool,
    /// Of an era target on an origin: a bdev for what is overwritten meanwhile. Its content is lost
    #[arg(long, value_name = "BDEV")]
    pub cow: Option<String>,
    /// Of a ploop target: how long a write of the guest may wait before the backup gives way, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..18_000))]
    pub hold_s: u64,
    /// The target that is asked
    #[command(flatten)]
    pub server: Server,
}

/// What is to be made.
pub struct Job<'a> {
    /// Since what; None: full.
    pub base: Option<Base>,
    /// Keep what is needed for another one since the one before.
    pub keep: bool,
    /// The rest.
    pub how: &'a How,
    /// Ends it early.
    pub stop: Stop,
    /// Whether there are progress bars.
    pub global: Global,
}

/// What there is of this name.
enum Found {
    Thin(u32),
    Era,
    Ploop,
}

impl Of {
    fn find(&self, client: &mut RpcClient) -> Result<Found, CliError> {
        if let Some(id) = self.id {
            return Ok(Found::Thin(id));
        }
        let mut has = |method: &str| -> Result<bool, CliError> {
            let all = client.call(method, Value::Null)?;
            let mut all = all.as_array().into_iter().flatten();
            Ok(all.any(|found| found["name"].as_str() == Some(&self.name)))
        };
        if has("era_status")? {
            return Ok(Found::Era);
        }
        if has("ploop_status")? {
            return Ok(Found::Ploop);
        }
        Err(CliError::Usage(match has("thin_pool_status")? {
            true => format!(
                "'{}' is a pool: give the id of the thin device, too; see thin_list",
                self.name
            ),
            false => format!(
                "there is no era or ploop target '{}', and no pool; see 'spdk-dm ls'",
                self.name
            ),
        }))
    }
}

impl Found {
    /// Whether a backup is of this.
    fn is(&self, name: &str, source: &Source) -> bool {
        match (self, source) {
            (Found::Thin(id), Source::Thin(thin)) => thin.pool == name && thin.device_id == *id,
            (Found::Era, Source::Era(era)) => era.target == name,
            (Found::Ploop, Source::Ploop(ploop)) => ploop.target == name,
            _ => false,
        }
    }

    fn described(&self, name: &str) -> String {
        match self {
            Found::Thin(id) => format!("thin device {id} of pool '{name}'"),
            Found::Era => format!("era '{name}'"),
            Found::Ploop => format!("ploop '{name}'"),
        }
    }
}

impl FullArgs {
    /// Backs up all that there is. Prints nothing but remarks, and JSON if that was asked for.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let mut client = self.how.server.connect()?;
        let found = self.of.find(&mut client)?;
        let job = Job {
            base: None,
            keep: true,
            how: &self.how,
            stop: Stop::watch()?,
            global,
        };
        make(&mut client, &found, &self.of.name, self.size_mib, &job)?;
        Ok(true)
    }
}

impl IncrArgs {
    /// Backs up what has changed since another backup.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let mut client = self.how.server.connect()?;
        let (found, name) = (self.of.find(&mut client)?, &self.of.name);
        let base = base::find(
            self.since.as_deref(),
            &self.how.output,
            |source| found.is(name, source),
            &found.described(name),
        )?;
        let job = Job {
            base: Some(base),
            keep: self.keep,
            how: &self.how,
            stop: Stop::watch()?,
            global,
        };
        make(&mut client, &found, name, None, &job)?;
        Ok(true)
    }
}

fn make(
    client: &mut RpcClient,
    found: &Found,
    name: &str,
    size_mib: Option<u64>,
    job: &Job<'_>,
) -> Result<(), CliError> {
    if job.how.json && job.how.output == Path::new("-") {
        let why = "--json: standard output is the backup's; give it a file with --output";
        return Err(CliError::Usage(why.to_owned()));
    }
    match found {
        Found::Thin(id) => thin::back_up(client, name, *id, size_mib.map(|mib| mib * 2048), job),
        Found::Era => era::back_up(client, name, job),
        Found::Ploop => ploop::back_up(client, name, job),
    }?;
    match job.how.json {
        true => verify::print(&job.how.output),
        false => Ok(()),
    }
}
