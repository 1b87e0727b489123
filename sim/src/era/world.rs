//! What a simulated era target is like.

use super::ledger::{Ledger, Must};
use crate::course::Course;
use crate::disk::{Disk, Geometry};
use crate::executor::Executor;
use crate::faults::{Fault, FaultRates, Removal};
use crate::history::History;
use crate::watched::Watched;
use bdev::era::EraConfig;
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::ops::Range;
use std::rc::Rc;

/// Logical blocks the origin may grow to beyond its first size.
const GROWTH_BLOCKS: u64 = 400;

/// What grown parts of the origin hold.
const GROWN: u64 = 3 << 60;

/// What a seed decides once and for all.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Bytes per logical block.
    pub block_bytes: u32,
    /// Simulated cores.
    pub cores: u64,
    /// Concurrent clients.
    pub clients: u64,
    /// Logical blocks of the origin at first.
    pub origin_blocks: u64,
    /// The metadata device is so small that space may run out.
    pub tight: bool,
    /// The target's options.
    pub config: EraConfig,
}

impl Shape {
    fn roll(dice: &Executor) -> Self {
        let mut config = EraConfig::new("sim");
        config.block_size_sectors = [8, 8, 24, 128][dice.below(4) as usize];
        if dice.one_in(2) {
            config.metadata_cache_bytes = 0;
        }
        let block_bytes = if dice.one_in(4) { 512 } else { 4096 };
        let per = u64::from(config.block_size_sectors) * 512 / u64::from(block_bytes);
        // Often few blocks, so that all are marked soon; now and then more than an array block has.
        let blocks = match dice.below(4) {
            0 if per == 1 => 1000 + dice.below(1500),
            1 => 1 + dice.below(4),
            _ => 5 + dice.below(60),
        };
        Shape {
            block_bytes,
            cores: 1 + dice.below(3),
            clients: 1 + dice.below(6),
            origin_blocks: (blocks * per).saturating_sub(dice.below(per)).max(8),
            tight: dice.one_in(8),
            config,
        }
    }

    /// Logical blocks per data block.
    pub fn per_block(&self) -> u64 {
        u64::from(self.config.block_size_sectors) * 512 / u64::from(self.block_bytes)
    }

    /// The data blocks of a range of logical blocks.
    pub fn data_blocks(&self, first: u64, count: u64) -> Range<u64> {
        let per = self.per_block();
        first / per..(first + count).div_ceil(per)
    }

    /// What the origin holds at first.
    fn stale(&self, block: u64) -> u64 {
        match block < self.origin_blocks {
            true => (1 << 60) + block,
            false => GROWN,
        }
    }
}

/// A metadata snapshot as the model knows it.
#[derive(Debug, Clone)]
pub struct Held {
    /// What it must report.
    pub must: Vec<Must>,
}

/// Whether there is a metadata snapshot.
#[derive(Debug, Clone)]
pub enum Snap {
    /// Certainly not.
    None,
    /// This one.
    Held(Held),
    /// One that nobody knows, or none: an operation has not been answered.
    Unsure,
}

/// Everything.
pub struct World {
    /// What every run has; the world stands for it.
    course: Course,
    /// What the seed decided.
    pub shape: Shape,
    /// The metadata disk.
    pub metadata: Rc<Disk>,
    /// The origin.
    pub origin: Rc<Disk>,
    /// What the origin may hold.
    pub history: RefCell<History>,
    /// Eras and attempts.
    pub ledger: RefCell<Ledger>,
    /// The metadata snapshot.
    pub snap: RefCell<Snap>,
    /// Logical blocks clients may use.
    pub nr_logical: Cell<u64>,
    /// The metadata has been formatted, for certain.
    pub formatted: Cell<bool>,
}

impl Deref for World {
    type Target = Course;

    fn deref(&self) -> &Course {
        &self.course
    }
}

impl World {
    /// A new world.
    pub fn new(executor: &Rc<Executor>) -> Rc<Self> {
        let shape = Shape::roll(executor);
        let blocks = match shape.tight {
            true => 14 + executor.below(20),
            false => 80 + executor.below(100),
        };
        let geometry = Geometry::of_metadata(executor);
        let metadata = Disk::new("metadata", executor, geometry, (0..blocks * 8).map(|_| 0));
        let geometry = Geometry {
            block_bytes: shape.block_bytes,
            physical_bytes: 4096,
        };
        let contents = (0..shape.origin_blocks).map(|block| shape.stale(block));
        let origin = Disk::new("origin", executor, geometry, contents);
        let most = (0..shape.origin_blocks + GROWTH_BLOCKS).map(|block| shape.stale(block));
        executor.trace(|| format!("{shape:?}, {blocks} metadata blocks"));
        Rc::new(World {
            course: Course::new(executor),
            history: RefCell::new(History::new(most)),
            nr_logical: Cell::new(shape.origin_blocks),
            shape,
            metadata,
            origin,
            ledger: RefCell::default(),
            snap: RefCell::new(Snap::None),
            formatted: Cell::new(false),
        })
    }

    /// What the model knows of the origin.
    pub fn watched(&self) -> Watched<'_, &'static str> {
        Watched {
            course: self,
            history: &self.history,
            name: "the origin",
        }
    }

    /// The disks grow, perhaps. True if the origin did.
    pub fn grow_disks(&self) {
        let dice = &self.executor;
        let most = self.history.borrow().len() - self.origin.nr_logical_blocks();
        if dice.one_in(2) {
            self.origin.grow(dice.below(60).min(most), GROWN);
        }
        if dice.one_in(2) {
            self.metadata.grow(dice.below(12) * 8, 0);
        }
    }

    /// What must be reported from now on.
    pub fn must(&self) -> Vec<Must> {
        let reached = |number| {
            let mut blocks: Vec<u64> = self
                .origin
                .reached_since(number)
                .into_iter()
                .map(|block| block / self.shape.per_block())
                .collect();
            blocks.dedup();
            blocks
        };
        let dice = &self.executor;
        self.ledger.borrow().must(reached, || !dice.one_in(3))
    }

    /// Whether failures are no surprise.
    pub fn may_fail(&self) -> bool {
        self.faulty.get() || self.shape.tight
    }

    /// Chooses what will go wrong in this life, and lets it. Returns what is left to do.
    pub fn roll_faults(&self) -> Option<Removal> {
        let often = self.roll_often();
        let both = || vec![self.origin.clone(), self.metadata.clone()];
        let metadata = || vec![self.metadata.clone()];
        self.go_wrong(match self.executor.below(16) {
            0 => Fault::Rates(vec![self.origin.clone()], FaultRates::errors(often)),
            1..=3 => Fault::Rates(metadata(), FaultRates::errors(often)),
            4 => Fault::Rates(metadata(), FaultRates::flush_errors(often / 5 + 1)),
            5 => Fault::Rates(both(), FaultRates::stalls(often)),
            6 => Fault::Rates(both(), FaultRates::latent_errors(often)),
            7 => Fault::Removal(self.metadata.clone()),
            8 => Fault::Removal(self.origin.clone()),
            _ => Fault::None,
        })
    }
}
