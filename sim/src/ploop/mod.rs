//! A ploop device under random load from several cores, with an operator who changes the chain, resizes,
//! merges, tracks and backs up, faults and crashes, against a model.
//!
//! A run is a series of lives. Each begins with opening the chain and comparing all content with the model,
//! and ends with a power cut, perhaps after a clean shutdown; then the images are checked.

mod clients;
mod lives;
mod operator;
mod sessions;
mod world;

use crate::course::{self, Options};
use crate::executor::Coverage;
use world::World;

/// Runs a seed: what happened how often, or what was wrong.
pub fn run(seed: u64, options: Options) -> Result<Coverage, String> {
    course::run::<World>(seed, options)
}
