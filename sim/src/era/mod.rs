//! An era target under random load from several cores, with an operator, faults and crashes, against a
//! model.
//!
//! A run is a series of lives of one target. Each begins with opening it and comparing everything with
//! the model, and ends with a power cut, or with a clean shutdown and then a power cut; then the metadata
//! is checked as strictly as we can. What is promised of eras is in `ledger`.

mod clients;
mod ledger;
mod lives;
mod operator;
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
        for disk in [&world.metadata, &world.origin] {
            disk.set_faults(lie);
        }
        lives::live(&world, number, options.lost_flush > 0)?;
        lives::cut_power(&world)?;
    }
    Ok(executor.coverage())
}
