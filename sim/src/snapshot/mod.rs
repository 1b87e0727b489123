//! An origin with snapshots under random load from several cores, with a manager who makes, removes and
//! merges snapshots, faults and crashes, against a model.
//!
//! A run is a series of lives. Each begins with opening everything and comparing all content with the
//! model, and ends with a power cut, perhaps after a clean shutdown; then the stores are checked.

mod clients;
mod lives;
mod manager;
mod world;

use crate::course::{self, Options};
use crate::executor::Coverage;
use world::World;

/// Runs a seed: what happened how often, or what was wrong.
pub fn run(seed: u64, options: Options) -> Result<Coverage, String> {
    course::run::<World>(seed, options)
}
