//! What a simulated origin and its snapshots are like.

use crate::course::Course;
use crate::disk::{Disk, Disks, Geometry};
use crate::executor::Executor;
use crate::faults::{Fault, FaultRates, Removal};
use crate::history::History;
use bdev::snapshot::{Discards, Origin, OriginConfig, SnapshotConfig, StoreKind, Volume};
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

/// COW devices, and so snapshots.
pub const NR_COWS: usize = 3;

/// What a seed decides once and for all.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Bytes per logical block of all devices.
    pub block_bytes: u32,
    /// Simulated cores.
    pub cores: u64,
    /// Concurrent clients.
    pub clients: u64,
    /// Logical blocks of the origin.
    pub origin_blocks: u64,
    /// COW devices may be so small that space runs out.
    pub tight: bool,
    /// How each snapshot is made.
    pub snapshots: Vec<SnapshotConfig>,
    /// The origin's options.
    pub origin: OriginConfig,
}

impl Shape {
    fn roll(dice: &Executor) -> Self {
        let block_bytes = if dice.one_in(3) { 4096 } else { 512 };
        let per = u64::from(block_bytes) / 512;
        let origin_blocks = 40 + dice.below(200);
        let snapshots = (0..NR_COWS)
            .map(|number| {
                let store = match dice.below(4) {
                    0 => StoreKind::Transient,
                    1 | 2 => StoreKind::Persistent { overflow: false },
                    _ => StoreKind::Persistent { overflow: true },
                };
                let short = dice.one_in(4);
                SnapshotConfig {
                    name: format!("snap{number}"),
                    store,
                    chunk_sectors: per << dice.below(5),
                    discards: Discards {
                        zeroes_cow: dice.one_in(2),
                        passdown_origin: false,
                    },
                    nr_sectors: short.then(|| (1 + dice.below(origin_blocks)) * per),
                }
            })
            .collect();
        let mut origin = OriginConfig::new("sim");
        origin.max_copies = 1 + dice.below(8) as usize;
        origin.exceptions_cache_bytes = if dice.one_in(4) { 0 } else { 1 << 20 };
        if dice.one_in(2) {
            origin.merge_bytes_per_second = 1 << (18 + dice.below(6));
        }
        Shape {
            block_bytes,
            cores: 1 + dice.below(3),
            clients: 1 + dice.below(6),
            origin_blocks,
            tight: dice.one_in(4),
            snapshots,
            origin,
        }
    }

    /// Sectors of a logical block.
    pub fn sectors_per_block(&self) -> u64 {
        u64::from(self.block_bytes) / 512
    }
}

/// A COW device's use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Nothing on it counts.
    Free,
    /// A snapshot's.
    Snapshot,
    /// It is being merged.
    Merging,
}

/// What clients do I/O to.
#[derive(Default)]
pub struct Target {
    /// Its device; none: not there for clients.
    pub volume: RefCell<Option<Arc<Volume>>>,
    /// What it may hold.
    pub history: RefCell<History>,
    /// I/O under way.
    pub busy: Cell<u64>,
    /// No new I/O now.
    pub paused: Cell<bool>,
}

/// Everything.
pub struct World {
    course: Course,
    /// What the seed decided.
    pub shape: Shape,
    /// The origin, then the COW devices: by their number as base devices.
    disks: Disks,
    /// The origin, then the snapshots.
    pub targets: Vec<Target>,
    /// What each COW device is used for.
    pub uses: [Cell<Use>; NR_COWS],
    /// A snapshot was seen invalid, whatever its store says.
    pub dead: [Cell<bool>; NR_COWS],
    /// The origin of this life, for a look at it after the power cut.
    pub last: RefCell<Option<Rc<Origin>>>,
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
        let geometry = Geometry::roll(executor, shape.block_bytes);
        let stale = |block| (1 << 60) + block;
        let origin = Disk::new(
            "origin",
            executor,
            geometry,
            (0..shape.origin_blocks).map(stale),
        );
        let mut disks = vec![origin];
        let names = ["cow 0", "cow 1", "cow 2"];
        for (number, name) in names.into_iter().enumerate().take(NR_COWS) {
            let config = shape.snapshots.get(number);
            let chunk = config.map_or(1, |config| config.chunk_sectors) / shape.sectors_per_block();
            let chunk = chunk.max(1);
            let needed = shape.origin_blocks.div_ceil(chunk) + 16;
            let nr_chunks = match shape.tight {
                true => 3 + executor.below(needed),
                // An area for every 32 chunks at most.
                false => needed + needed / 16,
            };
            let garbage = (0..nr_chunks * chunk).map(|block| (2 << 60) + block);
            disks.push(Disk::new(name, executor, geometry, garbage));
        }
        executor.trace(|| format!("{shape:?} {disks:?}"));
        let targets: Vec<Target> = (0..=NR_COWS).map(|_| Target::default()).collect();
        if let Some(origin) = targets.first() {
            *origin.history.borrow_mut() = History::new((0..shape.origin_blocks).map(stale));
        }
        Rc::new(World {
            course: Course::new(executor),
            shape,
            disks: Disks::new(disks),
            targets,
            uses: [const { Cell::new(Use::Free) }; NR_COWS],
            dead: [const { Cell::new(false) }; NR_COWS],
            last: RefCell::default(),
        })
    }

    /// All disks, by base device.
    pub fn disks(&self) -> &[Rc<Disk>] {
        self.disks.all()
    }

    /// The origin.
    pub fn origin_disk(&self) -> Rc<Disk> {
        self.disk(0)
    }

    /// The disk with this number as a base device.
    pub fn disk(&self, base: usize) -> Rc<Disk> {
        self.disks.numbered(base)
    }

    /// The target of the origin (0) or of a snapshot (1 and up).
    pub fn target(&self, number: usize) -> &Target {
        match self.targets.get(number).or(self.targets.first()) {
            Some(target) => target,
            None => unreachable!("a world has targets"),
        }
    }

    /// How a COW device is used.
    pub fn use_of(&self, cow: usize) -> Use {
        self.uses.get(cow).map_or(Use::Free, Cell::get)
    }

    /// It is used like this from now on.
    pub fn set_use(&self, cow: usize, now: Use) {
        if let Some(slot) = self.uses.get(cow) {
            slot.set(now);
        }
    }

    /// Whether a snapshot was seen invalid.
    pub fn is_dead(&self, cow: usize) -> bool {
        self.dead.get(cow).is_some_and(Cell::get)
    }

    /// It was, or a new one is made.
    pub fn set_dead(&self, cow: usize, dead: bool) {
        if let Some(slot) = self.dead.get(cow) {
            slot.set(dead);
        }
    }

    /// Whether failures are no surprise.
    pub fn may_fail(&self) -> bool {
        self.faulty.get() || self.shape.tight
    }

    /// Keeps clients from a target until nothing is under way there.
    pub async fn pause(&self, number: usize) {
        let target = self.target(number);
        target.paused.set(true);
        while target.busy.get() > 0 {
            self.executor.delay().await;
        }
    }

    /// Chooses what will go wrong in this life, and lets it. Returns what is left to do.
    pub fn roll_faults(&self) -> Option<Removal> {
        let often = self.roll_often();
        let cow = self.disk(1 + self.executor.below(NR_COWS as u64) as usize);
        self.go_wrong(match self.executor.below(16) {
            0 => Fault::Rates(vec![self.origin_disk()], FaultRates::errors(often)),
            1 | 2 => Fault::Rates(vec![cow], FaultRates::errors(often)),
            3 => Fault::Rates(vec![cow], FaultRates::write_errors(often)),
            4 => Fault::Rates(vec![cow], FaultRates::flush_errors(often / 5 + 1)),
            5 => Fault::Rates(self.disks.all().to_vec(), FaultRates::stalls(often)),
            6 => Fault::Rates(self.disks.all().to_vec(), FaultRates::latent_errors(often)),
            7 => Fault::Removal(cow),
            _ => Fault::None,
        })
    }
}
