//! The end of a device's way: its bdev waits for a moment and leads to the new device then.

use super::mover::Mover;
use super::state::Phase;
use crate::backup::source::{BLOCK_BYTES, Pool};
use crate::dm::odd;
use crate::error::CliError;
use crate::rpc_client::{RpcClient, RpcError};
use serde_json::json;
use std::time::Instant;

/// So often a device is tried to be switched, when a pause was too short.
const ATTEMPTS: usize = 3;

/// A pass that moves nine tenths of what the one before has moved, or more: it does not get less.
const SHRINKS: (u64, u64) = (9, 10);

/// Where the external origin is in a thin device's table line.
const ORIGIN_WORD: usize = 5;

/// When the passes of a device in use are followed by its switch.
pub struct Rule {
    /// After so many at the latest.
    pub max_passes: u32,
    /// After one of less than this.
    pub small_blocks: u64,
    /// The device waits at most so long.
    pub max_pause_ms: u64,
}

fn is(error: &CliError, errno: i32) -> bool {
    matches!(error, CliError::Rpc(RpcError::Refused { code, .. }) if *code == -i64::from(errno))
}

/// Refuses a bdev of which another process could not show all: an external origin is a bdev of this one.
pub fn check_origin(client: &mut RpcClient, bdev: &str) -> Result<(), CliError> {
    let line = client.call("dm_table", json!({ "name": bdev }))?;
    let line = line.as_str().ok_or_else(|| odd("dm_table"))?;
    match line.split_whitespace().nth(ORIGIN_WORD) {
        None => Ok(()),
        Some(origin) => Err(CliError::Usage(format!(
            "bdev '{bdev}' has the external origin '{origin}', which the other process has not; merge it first, or stay in this process"
        ))),
    }
}

impl Mover {
    /// Finds out whether a device was switched by an attempt that was cut off.
    pub fn settle(&mut self, at: usize) -> Result<(), CliError> {
        let moving = self.moving(at);
        let is_known = matches!(moving.phase, Phase::Switched | Phase::Done);
        // The target may have carried out the last call of an attempt after that was gone.
        if is_known || moving.to_time.is_none() || moving.bdev.is_none() {
            return Ok(());
        }
        let (id, to_id, bdev) = {
            let moving = self.moving(at);
            (moving.id, moving.to_id, moving.bdev.clone())
        };
        let bdev_of = |mut pool: Pool<'_>, id| -> Result<Option<String>, CliError> {
            let mut devices = pool.devices()?.into_iter();
            Ok(devices
                .find(|device| device.id == id)
                .and_then(|it| it.bdev))
        };
        let new = bdev_of(self.new_pool(), to_id)?;
        let old = bdev_of(self.old(), id)?;
        let switched = new.is_some() && new == bdev && old != bdev;
        self.moving(at).phase = match switched {
            true => Phase::Switched,
            false => Phase::Copying,
        };
        if !switched && let Some(bdev) = new.filter(|new| Some(new) == bdev.as_ref()) {
            // In another process, where nobody had begun to use it.
            self.to
                .call("thin_deactivate", json!({ "bdev_name": bdev }))?;
        }
        self.journal.save()
    }

    /// Passes, until there is little to do in a pause or it does not get less; and the switch.
    pub fn move_over(&mut self, at: usize, rule: &Rule) -> Result<(), CliError> {
        let mut before = u64::MAX;
        loop {
            self.go_on()?;
            if self.active_bdev(at)?.is_none() {
                // Nobody writes: one pass is the last. There is nothing to do if it was never in use.
                self.pass(at, true)?;
                if self.active_bdev(at)?.is_some() {
                    continue;
                }
                self.moving(at).phase = Phase::Switched;
                return self.journal.save();
            }
            let written = self.pass(at, true)?;
            self.sweep()?;
            let (num, den) = SHRINKS;
            let passes = self.moving(at).passes;
            if written < rule.small_blocks
                || written.saturating_mul(den) >= before.saturating_mul(num)
                || passes >= rule.max_passes
            {
                break;
            }
            before = written;
        }
        self.switch(at, rule)
    }

    /// The bdev of the old device.
    fn active_bdev(&mut self, at: usize) -> Result<Option<String>, CliError> {
        let id = self.moving(at).id;
        let bdev = self.old().device(id)?.bdev;
        if bdev.is_some() && self.moving(at).bdev != bdev {
            self.moving(at).bdev.clone_from(&bdev);
            self.journal.save()?;
        }
        Ok(bdev)
    }

    fn switch(&mut self, at: usize, rule: &Rule) -> Result<(), CliError> {
        for _ in 0..ATTEMPTS {
            self.go_on()?;
            let Some(bdev) = self.active_bdev(at)? else {
                return self.move_over(at, rule);
            };
            self.prepare(at, &bdev)?;
            let began = Instant::now();
            let limit = json!({ "bdev_name": bdev, "timeout_ms": rule.max_pause_ms });
            let suspended = self.from.call("thin_suspend", limit)?;
            let suspension = suspended["suspension"].as_u64();
            let suspension = suspension.ok_or_else(|| odd("thin_suspend"))?;
            let written = self.pass(at, false);
            let switched = match &written {
                Ok(_) => self.lead_over(at, &bdev, suspension),
                Err(_) => Ok(()),
            };
            let pause_ms = began.elapsed().as_millis() as u64;
            if written.is_ok() && switched.is_ok() {
                self.journal.state.suspended = None;
                let moving = self.moving(at);
                (moving.phase, moving.pause_ms) = (Phase::Switched, Some(pause_ms));
                self.journal.save()?;
                return self.sweep();
            }
            // Unless its time was over it goes on now; the old device is the one in use.
            let _ = self.from.call("thin_resume", json!({ "bdev_name": bdev }));
            self.journal.state.suspended = None;
            let blocks = written?;
            self.journal.save()?;
            self.settle(at)?;
            match switched {
                Err(error) if is(&error, libc::ESTALE) => eprintln!(
                    "spdk-dm: bdev '{bdev}' was to wait for {} ms at most, which was too short for the last {} MiB; it went on as before",
                    rule.max_pause_ms,
                    (blocks * BLOCK_BYTES) >> 20
                ),
                Err(error) => return Err(error),
                Ok(()) => {}
            }
            self.sweep()?;
            self.pass(at, true)?;
            self.sweep()?;
        }
        let pause = rule.max_pause_ms;
        Err(CliError::Usage(format!(
            "thin device {} could not be switched within {pause} ms; --resume with a larger --max-pause-ms, or when less is written",
            self.moving(at).id
        )))
    }

    /// Has a suspended bdev lead to the new device.
    fn lead_over(&mut self, at: usize, bdev: &str, suspension: u64) -> Result<(), CliError> {
        let (id, to_id) = (self.moving(at).id, self.moving(at).to_id);
        self.moving(at).phase = Phase::Switching;
        self.journal.save()?;
        let pool = self.journal.state.to.pool.clone();
        if self.journal.state.from.socket == self.journal.state.to.socket {
            let to =
                json!({ "bdev_name": bdev, "pool": pool, "id": to_id, "suspension": suspension });
            self.from.call("thin_switch", to)?;
            return Ok(());
        }
        check_origin(&mut self.from, bdev)?;
        let size_sectors = self.old().device(id)?.size_sectors;
        let size_sectors = size_sectors.ok_or_else(|| odd("thin_list"))?;
        self.new_pool().activate(to_id, bdev, size_sectors)?;
        let gone = json!({ "bdev_name": bdev, "suspension": suspension });
        let gone = self.from.call("thin_deactivate", gone);
        if gone.is_err() {
            // The first error is the one to tell.
            let _ = self
                .to
                .call("thin_deactivate", json!({ "bdev_name": bdev }));
        }
        gone?;
        Ok(())
    }
}
