//! `spdk-dm migrate`: thin devices of a running target to another pool, while they are in use.
//!
//! A snapshot of each device is copied, then what has changed since, until that is little; then the device's
//! bdev waits for a moment, the rest is copied, and it leads to the new device. What devices share they share
//! afterwards: each begins as a snapshot of the one it shares most with. The old device is the one that counts until
//! its bdev is switched, and the new one after that.

mod finish;
mod mover;
mod plan;
mod state;
mod switch;

use crate::Global;
use crate::backup::new_uuid;
use crate::backup::source::{BLOCK_BYTES, Pool};
use crate::dm::Server;
use crate::error::CliError;
use crate::output::Output;
use crate::rpc_client::RpcClient;
use clap::Args;
use mover::Mover;
use plan::Plan;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use state::{Journal, Moving, Phase, Side, State};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use switch::Rule;

/// Arguments of `migrate`.
#[derive(Args)]
pub struct MigrateArgs {
    /// The pool they are in
    pool: String,
    /// Ids of the thin devices
    #[arg(value_name = "ID", required_unless_present_any = ["resume", "cancel", "abort"])]
    ids: Vec<u32>,
    /// The pool they go to
    #[arg(long, value_name = "POOL")]
    to: String,
    /// RPC socket of the target that has that pool, if it is another process; bdevs are then removed there
    /// and made here
    #[arg(long, value_name = "PATH")]
    to_socket: Option<PathBuf>,
    /// Ids they get, in the order of the others (default: the same)
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    to_ids: Vec<u32>,
    /// Take along all devices that share blocks with them
    #[arg(long)]
    family: bool,
    /// Keep the old devices, which are deleted otherwise when all are switched
    #[arg(long)]
    keep_source: bool,
    /// Passes over a device in use at most, before it is switched
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    max_passes: u32,
    /// Switch a device when a pass has moved less than this
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    switch_mib: u64,
    /// A device goes on as before when its I/O has waited so long
    #[arg(long, value_name = "MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    max_pause_ms: u64,
    /// Read at most so many MiB per second, but for what is read in the pause
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    limit_mib: Option<u64>,
    #[command(flatten)]
    instead: Instead,
    /// The file in which stands how far it has come (default: beside the RPC socket)
    #[arg(long, value_name = "PATH")]
    state: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Args)]
#[group(multiple = false)]
struct Instead {
    /// Only say what would be moved, and whether it fits
    #[arg(long)]
    dry_run: bool,
    /// Go on with a migration that was stopped or cut off
    #[arg(long)]
    resume: bool,
    /// Stop one that another spdk-dm carries out; --resume goes on with it
    #[arg(long)]
    cancel: bool,
    /// Take back one that was stopped or cut off: what was made in the new pool is deleted
    #[arg(long)]
    abort: bool,
}

fn full(path: &Path) -> Result<PathBuf, CliError> {
    path.canonicalize().map_err(CliError::io(path))
}

impl MigrateArgs {
    /// Migrates. False: somebody stopped it.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        if self.instead.cancel {
            return match state::cancel(&self.journal_path()?)? {
                true => Ok(true),
                false => Err(CliError::Usage(
                    "no spdk-dm carries such a migration out".to_owned(),
                )),
            };
        }
        let (mut from, mut to) = self.connect()?;
        if self.instead.resume || self.instead.abort {
            let journal = Journal::open(&self.journal_path()?)?;
            self.check_sides(&journal.state)?;
            if self.instead.resume && journal.state.devices.is_empty() {
                return Err(CliError::Usage(
                    "that migration was cut off before it had moved anything; begin it again"
                        .to_owned(),
                ));
            }
            let mover = self.mover(from, to, journal, global)?;
            return match self.instead.abort {
                true => mover.abort().map(|()| true),
                false => self.carry_out(mover),
            };
        }
        let (from_side, to_side) = self.sides()?;
        let path = self.journal_path()?;
        let ids: Vec<u64> = self.ids.iter().map(|id| u64::from(*id)).collect();
        let to_ids: Vec<u64> = self.to_ids.iter().map(|id| u64::from(*id)).collect();
        if self.instead.dry_run {
            let plan = self.plan(&mut from, &mut to, &ids, &to_ids)?;
            self.print(&json!(plan), &plan_text(&plan, &self.to))?;
            return Ok(plan.fits);
        }
        // Planning holds a metadata snapshot for a moment, which is noted like everything else.
        let mut state = State::new(new_uuid()?, from_side, to_side, Vec::new());
        (state.keep_source, state.metadata_snap) = (self.keep_source, true);
        let (mut journal, was_planned) = Journal::begin(&path, state)?;
        if was_planned {
            // That attempt may have ended before or after that.
            let _ = Pool::new(&mut from, &self.pool).release_metadata_snap();
        }
        let plan = self.plan(&mut from, &mut to, &ids, &to_ids);
        let plan = plan.and_then(|plan| match &plan.too_small {
            Some(why) => Err(CliError::Usage(format!("{why}; nothing was moved"))),
            None => Ok(plan),
        });
        match plan {
            Ok(plan) => journal.state.devices = plan.moving(),
            Err(error) => {
                journal.end()?;
                return Err(error);
            }
        }
        journal.state.metadata_snap = false;
        journal.save()?;
        let mover = self.mover(from, to, journal, global)?;
        self.carry_out(mover)
    }

    fn plan(
        &self,
        from: &mut RpcClient,
        to: &mut RpcClient,
        ids: &[u64],
        to_ids: &[u64],
    ) -> Result<Plan, CliError> {
        let (from_side, to_side) = self.sides()?;
        let (mut old, mut new) = (Pool::new(from, &self.pool), Pool::new(to, &self.to));
        let plan = Plan::make(&mut old, &mut new, ids, to_ids, self.family)?;
        if from_side.socket != to_side.socket {
            for bdev in plan.devices.iter().filter_map(|it| it.bdev_name.as_ref()) {
                switch::check_origin(from, bdev)?;
            }
        }
        Ok(plan)
    }

    fn connect(&self) -> Result<(RpcClient, RpcClient), CliError> {
        let from = self.server.connect()?;
        let to = match &self.to_socket {
            Some(socket) => self.server.connect_to(socket)?,
            None => self.server.connect()?,
        };
        Ok((from, to))
    }

    fn sides(&self) -> Result<(Side, Side), CliError> {
        let from = full(self.server.socket())?;
        let to = match &self.to_socket {
            Some(socket) => full(socket)?,
            None => from.clone(),
        };
        if from == to && self.pool == self.to {
            return Err(CliError::Usage(format!(
                "pool '{}' is where the devices are; name another one with --to",
                self.to
            )));
        }
        let side = |socket, pool: &str| Side {
            socket,
            pool: pool.to_owned(),
        };
        Ok((side(from, &self.pool), side(to, &self.to)))
    }

    fn check_sides(&self, state: &State) -> Result<(), CliError> {
        let sides = self.sides()?;
        match (&state.from, &state.to) == (&sides.0, &sides.1) {
            true => Ok(()),
            false => Err(CliError::Usage(format!(
                "the migration that was begun is of pool '{}' at {} to '{}' at {}, not this one",
                state.from.pool,
                state.from.socket.display(),
                state.to.pool,
                state.to.socket.display()
            ))),
        }
    }

    fn journal_path(&self) -> Result<PathBuf, CliError> {
        if let Some(path) = &self.state {
            return Ok(path.clone());
        }
        let socket = self.server.socket();
        let folder = socket.parent().unwrap_or(Path::new("/var/tmp"));
        let target = socket.file_stem().unwrap_or_default().to_string_lossy();
        let name = format!("spdk-dm-migrate-{target}-{}-{}.json", self.pool, self.to);
        Ok(folder.join(name.replace('/', "_")))
    }

    fn mover(
        &self,
        from: RpcClient,
        to: RpcClient,
        journal: Journal,
        global: Global,
    ) -> Result<Mover, CliError> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // A second one ends the process at once: that does no harm either.
            signal_hook::flag::register_conditional_shutdown(signal, 1, interrupted.clone())
                .and_then(|_| signal_hook::flag::register(signal, interrupted.clone()))
                .map_err(|error| CliError::Usage(format!("signals: {error}")))?;
        }
        Ok(Mover {
            from,
            to,
            journal,
            limit_mib: self.limit_mib,
            quiet: global.quiet,
            interrupted,
            chosen: None,
        })
    }

    fn carry_out(&self, mut mover: Mover) -> Result<bool, CliError> {
        let rule = Rule {
            max_passes: self.max_passes,
            small_blocks: (self.switch_mib << 20) / BLOCK_BYTES,
            max_pause_ms: self.max_pause_ms,
        };
        let done = move_all(&mut mover, &rule);
        let ended = done.and_then(|()| mover.finish());
        let mover = match ended {
            Ok(mover) => mover,
            Err(error) => {
                if error.to_string() != mover::STOPPED {
                    eprintln!("spdk-dm: what is done is kept: --resume goes on, --abort ends it");
                }
                return Err(error);
            }
        };
        let state = mover.journal.state.clone();
        mover.journal.end()?;
        self.print(&result(&state), &result_text(&state))?;
        Ok(true)
    }

    fn print(&self, json: &Value, text: &str) -> Result<(), CliError> {
        let mut output = Output::open(None)?;
        if self.json {
            return output.json(json);
        }
        let written = output.out.write_all(text.as_bytes());
        written
            .and_then(|()| output.out.flush())
            .map_err(CliError::io(&output.path))
    }
}

/// First all once, because each may begin as a snapshot of another; then each to its end.
fn move_all(mover: &mut Mover, rule: &Rule) -> Result<(), CliError> {
    mover.clear()?;
    let all = 0..mover.journal.state.devices.len();
    for at in all.clone() {
        mover.settle(at)?;
        let moving = mover.moving(at);
        if moving.phase == Phase::Copying && moving.base.is_none() {
            mover.go_on()?;
            mover.pass(at, true)?;
        }
    }
    for at in all {
        mover.sweep()?;
        if mover.moving(at).phase == Phase::Copying {
            mover.move_over(at, rule)?;
        }
    }
    Ok(())
}

fn mib(blocks: u64) -> u64 {
    (blocks * BLOCK_BYTES).div_ceil(1 << 20)
}

fn result(state: &State) -> Value {
    let device = |moving: &Moving| {
        json!({
            "id": moving.id,
            "to_id": moving.to_id,
            "bdev_name": moving.bdev,
            "snapshot_of": moving.parent,
            "passes": moving.passes,
            "moved_bytes": moving.moved_blocks * BLOCK_BYTES,
            "pause_ms": moving.pause_ms,
        })
    };
    let moved: u64 = state.devices.iter().map(|moving| moving.moved_blocks).sum();
    json!({
        "pool": state.from.pool,
        "to": state.to.pool,
        "moved_bytes": moved * BLOCK_BYTES,
        "devices": state.devices.iter().map(device).collect::<Vec<_>>(),
    })
}

fn result_text(state: &State) -> String {
    let mut text = String::new();
    for moving in &state.devices {
        text += &format!(
            "{}/{} -> {}/{}: {} MiB in {} passes",
            state.from.pool,
            moving.id,
            state.to.pool,
            moving.to_id,
            mib(moving.moved_blocks),
            moving.passes
        );
        if let (Some(bdev), Some(pause_ms)) = (&moving.bdev, moving.pause_ms) {
            text += &format!(", bdev '{bdev}' waited for {pause_ms} ms");
        }
        text += "\n";
    }
    text
}

fn plan_text(plan: &Plan, to: &str) -> String {
    let mut text = String::new();
    for device in &plan.devices {
        text += &format!(
            "thin device {} -> {}: {} MiB",
            device.id,
            device.to_id,
            device.bytes.div_ceil(1 << 20)
        );
        if let Some(parent) = device.snapshot_of {
            text += &format!(", the rest is shared with {parent}");
        }
        text += "\n";
    }
    text += &match &plan.too_small {
        Some(why) => format!("it does not fit: {why}\n"),
        None => format!(
            "{} MiB in all, which fit into the {} MiB free in pool '{to}'\n",
            plan.bytes.div_ceil(1 << 20),
            plan.free_bytes >> 20
        ),
    };
    text
}
