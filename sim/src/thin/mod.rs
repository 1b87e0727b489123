//! Thin pools under random load from several cores, with operators, faults and crashes, against a model.
//!
//! A run is a series of lives of one pool. Each begins with opening it and comparing everything with the
//! model, and ends with a power cut, or with a clean shutdown and then a power cut; then the metadata is
//! checked as strictly as we can.

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
        vec![&self.metadata, &self.data]
    }

    fn live(&self, number: u64, lying: bool) -> Result<(), String> {
        lives::live(self, number, lying)
    }

    fn cut_power(&self) -> Result<(), String> {
        lives::cut_power(self)
    }
}
