//! An origin with snapshots under random load from several cores, with a manager who makes, removes and
//! merges snapshots, faults and crashes, against a model.
//!
//! A run is a series of lives. Each begins with opening everything and comparing all content with the
//! model, and ends with a power cut, perhaps after a clean shutdown; then the stores are checked.

mod clients;
mod lives;
mod manager;
mod world;

use crate::disk::FaultRates;
use crate::executor::{Coverage, Executor};

/// Changes to what a run does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Print what happens.
    pub trace: bool,
    /// The disks lie: one flush in so many is not carried out. For showing that this is found.
    pub lost_flush: u64,
}

/// Runs a seed: what happened how often, or what was wrong.
pub fn run(seed: u64, options: Options) -> Result<Coverage, String> {
    let executor = Executor::new(seed);
    if options.trace {
        executor.start_tracing();
    }
    let world = world::World::new(&executor);
    for number in 0..5 {
        executor.trace(|| format!("life {number}"));
        let lie = FaultRates {
            lost_flush: options.lost_flush,
            ..FaultRates::default()
        };
        for disk in world.disks() {
            disk.set_faults(lie);
        }
        lives::live(&world, options.lost_flush > 0)?;
        lives::cut_power(&world)?;
    }
    Ok(executor.coverage())
}
