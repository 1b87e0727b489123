//! What is done when all devices are switched, or when somebody does not want to go on.

use super::mover::Mover;
use super::state::{Phase, Snapshot};
use crate::error::CliError;

impl Mover {
    /// Deletes the old devices, unless they are to stay, and all snapshots; the migration is over.
    pub fn finish(mut self) -> Result<Mover, CliError> {
        for at in 0..self.journal.state.devices.len() {
            self.drop_snapshots(at)?;
            let keep = self.journal.state.keep_source;
            let moving = self.moving(at);
            if moving.phase == Phase::Switched {
                let old = Snapshot {
                    id: moving.id,
                    time: moving.time,
                };
                if !keep {
                    self.delete_snapshot(old)?;
                }
                self.moving(at).phase = Phase::Done;
                self.journal.save()?;
            }
        }
        self.sweep()?;
        Ok(self)
    }

    /// Takes back what was made for devices that are not switched; those that are stay so.
    pub fn abort(mut self) -> Result<(), CliError> {
        self.clear()?;
        for at in 0..self.journal.state.devices.len() {
            self.settle(at)?;
        }
        // Snapshots in the new pool before what they are snapshots of.
        for at in (0..self.journal.state.devices.len()).rev() {
            self.drop_snapshots(at)?;
            let moving = self.moving(at);
            if moving.phase != Phase::Copying {
                eprintln!(
                    "spdk-dm: thin device {} was switched already, and stays so; the old one stays, too",
                    moving.id
                );
                continue;
            }
            let (to_id, time) = (moving.to_id, moving.to_time);
            let mut new = self.new_pool();
            let mut there = new.devices()?.into_iter();
            let Some(device) = there.find(|device| device.id == to_id) else {
                continue;
            };
            if Some(device.creation_time) == time {
                new.delete(to_id)?;
            } else if self.moving(at).making {
                eprintln!(
                    "spdk-dm: thin device {to_id} of pool '{}' may be one this migration made and lost sight of; if nobody knows it, thin_delete it",
                    self.journal.state.to.pool
                );
            }
        }
        self.sweep()?;
        self.journal.end()
    }

    /// The snapshots of a device are of no use any more.
    fn drop_snapshots(&mut self, at: usize) -> Result<(), CliError> {
        let pool = self.journal.state.from.pool.clone();
        let moving = self.moving(at);
        let (base, pass) = (moving.base.take(), moving.pass.take());
        let passing = pass.and_then(|pass| {
            let time = pass.time?;
            Some(Snapshot { id: pass.id, time })
        });
        if let Some(pass) = pass.filter(|pass| pass.time.is_none())
            && self.old().device(pass.id).is_ok()
        {
            eprintln!(
                "spdk-dm: thin device {} of pool '{pool}' may be a snapshot this migration made and lost sight of; if nobody knows it, thin_delete it",
                pass.id
            );
        }
        self.journal.state.stale.extend(base);
        self.journal.state.stale.extend(passing);
        self.journal.save()?;
        self.sweep()
    }
}
