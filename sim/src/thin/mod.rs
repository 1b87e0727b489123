//! Thin pools under random load from several cores, with operators, faults and crashes, against a model.
//!
//! A run is a series of lives of one pool. Each begins with opening it and comparing everything with the
//! model, and ends with a power cut, or with a clean shutdown and then a power cut; then the metadata is
//! checked as strictly as we can.

mod clients;
mod lives;
mod manager;
mod merging;
mod world;

use crate::course::{self, Options};
use crate::executor::Coverage;
use world::World;

/// Runs a seed: what happened how often, or what was wrong.
pub fn run(seed: u64, options: Options) -> Result<Coverage, String> {
    course::run::<World>(seed, options)
}
