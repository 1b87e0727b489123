//! An origin with snapshots under random load from several cores, with a manager who makes, removes and
//! merges snapshots, faults and crashes, against a model.
//!
//! A run is a series of lives. Each begins with opening everything and comparing all content with the
//! model, and ends with a power cut, perhaps after a clean shutdown; then the stores are checked.

mod clients;
mod lives;
mod manager;
mod world;

pub use crate::course::Options;

use crate::course::{self, Lives};
use crate::disk::Disk;
use crate::executor::{Coverage, Executor};
use std::rc::Rc;
use world::World;

/// Runs a seed: what happened how often, or what was wrong.
pub fn run(seed: u64, options: Options) -> Result<Coverage, String> {
    course::run::<Rc<World>>(seed, options)
}

impl Lives for Rc<World> {
    fn begin(executor: &Rc<Executor>) -> Self {
        World::new(executor)
    }

    fn disks(&self) -> Vec<&Rc<Disk>> {
        World::disks(self).iter().collect()
    }

    fn live(&self, _: u64, lying: bool) -> Result<(), String> {
        lives::live(self, lying)
    }

    fn cut_power(&self) -> Result<(), String> {
        lives::cut_power(self)
    }
}
