//! What a simulated thin pool is like, and what its devices may hold.

use crate::course::Course;
use crate::disk::{Disk, Geometry};
use crate::executor::Executor;
use crate::faults::{Fault, FaultRates, Removal};
use crate::history::{History, Moment};
use bdev::device::DataDeviceRef;
use bdev::thin::{PoolConfig, ThinDev};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

/// Blocks of a device that are ever used.
pub const HOT_BLOCKS: u64 = 8;

/// The device that is merged into its external origin, where one is.
pub const MERGED: u32 = 0;

/// What a seed decides once and for all.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Bytes per logical block of data disk and thin devices.
    pub block_bytes: u32,
    /// Sectors per data block.
    pub data_block_sectors: u32,
    /// Virtual blocks from one used block of a device to the next.
    pub spread: u64,
    /// Simulated cores.
    pub cores: u64,
    /// Concurrent clients.
    pub clients: u64,
    /// Data blocks of the pool at first.
    pub data_blocks: u64,
    /// Logical blocks of the external origin of all devices; 0: there is none.
    pub origin_blocks: u64,
    /// Device 0 is the only one with the external origin, and is merged into it now and then.
    pub merging: bool,
    /// Clients reset devices now and then, which fails what waits for space.
    pub resets: bool,
    /// The pool's options.
    pub config: PoolConfig,
}

impl Shape {
    /// From the dice.
    pub fn roll(dice: &Executor) -> Self {
        let data_block_sectors = [128, 128, 128, 256, 384][dice.below(5) as usize];
        let mut config = PoolConfig::new("sim");
        config.data_block_size_sectors = data_block_sectors;
        config.error_if_no_space = !dice.one_in(3);
        config.no_discard_passdown = dice.one_in(3);
        config.ignore_discard = dice.one_in(8);
        config.low_water_mark_blocks = dice.below(4);
        if dice.one_in(2) {
            // One page of mappings, so that pages are evicted all the time.
            config.mapping_cache_bytes = 1;
        }
        if dice.one_in(2) {
            config.metadata_cache_bytes = 0;
        }
        config.deletion_step_leaves = 1 + dice.below(3) as usize;
        let block_bytes = if dice.one_in(4) { 512 } else { 4096 };
        let per_block = u64::from(data_block_sectors) * 512 / u64::from(block_bytes);
        let merging = dice.one_in(4);
        let spread = [1, 1, 7, 700][dice.below(if merging { 3 } else { 4 }) as usize];
        let origin_blocks = match merging && !dice.one_in(4) {
            true => HOT_BLOCKS * spread * per_block,
            false if merging || dice.one_in(3) => dice.below(HOT_BLOCKS * per_block),
            false => 0,
        };
        Shape {
            block_bytes,
            origin_blocks,
            merging: merging && origin_blocks > 0,
            data_block_sectors,
            spread,
            cores: 1 + dice.below(3),
            clients: 1 + dice.below(6),
            data_blocks: 8 + dice.below(80),
            resets: dice.one_in(3),
            config,
        }
    }

    /// Logical blocks per data block.
    pub fn per_block(&self) -> u64 {
        u64::from(self.data_block_sectors) * 512 / u64::from(self.block_bytes)
    }

    /// Sectors of a thin device.
    pub fn device_sectors(&self) -> u64 {
        (HOT_BLOCKS * self.spread) * u64::from(self.data_block_sectors)
    }

    /// The logical block of a device where used block `hot` begins.
    pub fn logical(&self, hot: u64) -> u64 {
        hot * self.spread * self.per_block()
    }

    /// The shape of the data disk.
    pub fn data_geometry(&self) -> Geometry {
        Geometry {
            block_bytes: self.block_bytes,
            physical_bytes: 4096,
        }
    }

    /// Whether a device has the external origin.
    pub fn has_origin(&self, id: u32) -> bool {
        self.origin_blocks > 0 && (id == MERGED || !self.merging)
    }

    /// Where a block of the model is in the external origin, if a device's hole there shows that.
    pub fn in_origin(&self, id: u32, block: u64) -> Option<u64> {
        let per = self.per_block();
        let logical = self.logical(block / per) + block % per;
        (self.has_origin(id) && logical < self.origin_blocks).then_some(logical)
    }

    /// What a device's hole shows at a block of the model, as long as nothing is merged: the external
    /// origin's contents, or zeroes.
    pub fn hole(&self, id: u32, block: u64) -> u64 {
        self.in_origin(id, block).map_or(0, Shape::origin)
    }

    /// A device of holes.
    pub fn holes(&self, id: u32) -> impl Iterator<Item = u64> + '_ {
        (0..HOT_BLOCKS * self.per_block()).map(move |block| self.hole(id, block))
    }

    /// What the external origin holds.
    pub fn origin(block: u64) -> u64 {
        (2 << 60) + block
    }

    /// Old data of somebody else's at a place of the data disk.
    pub fn stale(block: u64) -> u64 {
        (1 << 60) + block
    }
}

/// Whether a device is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Certainly.
    There,
    /// It is being made, as a snapshot of a device since a moment, or empty; or making it failed.
    Making(Option<(u32, Moment)>),
    /// It is being deleted, or that failed.
    Deleting,
}

/// A thin device as the model knows it.
pub struct Volume {
    /// Its id in the pool.
    pub id: u32,
    /// What it may hold.
    pub history: RefCell<History>,
    /// Whether it is there.
    pub fate: Cell<Fate>,
    /// Active, open to clients.
    pub dev: RefCell<Option<Arc<ThinDev>>>,
    /// I/O under way.
    pub in_flight: Cell<u64>,
    /// Somebody is doing something to the device as a whole.
    pub busy: Cell<bool>,
    /// Since it was made it has been written to, or a deletion of it has begun: it need not show one
    /// moment of its origin.
    pub written: Cell<bool>,
}

impl Volume {
    /// A device of which this is known.
    pub fn new(id: u32, history: History, fate: Fate) -> Rc<Self> {
        Rc::new(Volume {
            id,
            history: RefCell::new(history),
            fate: Cell::new(fate),
            dev: RefCell::new(None),
            in_flight: Cell::new(0),
            busy: Cell::new(false),
            written: Cell::new(false),
        })
    }
}

/// Everything.
pub struct World {
    /// What every run has; the world stands for it.
    course: Course,
    /// What the seed decided.
    pub shape: Shape,
    /// The metadata disk.
    pub metadata: Rc<Disk>,
    /// The data disk.
    pub data: Rc<Disk>,
    /// The external origin, if there is one.
    pub origin: Option<Rc<Disk>>,
    /// The devices that are or may be there.
    pub volumes: RefCell<BTreeMap<u32, Rc<Volume>>>,
    /// The pool's transaction id, one of these.
    pub transaction_id: RefCell<Vec<u64>>,
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
        let geometry = Geometry::of_metadata(executor);
        let blocks = 64 + executor.below(100);
        let metadata = Disk::new("metadata", executor, geometry, (0..blocks * 8).map(|_| 0));
        let blocks = shape.data_blocks * shape.per_block();
        let data = Disk::new(
            "data",
            executor,
            shape.data_geometry(),
            (0..blocks).map(Shape::stale),
        );
        let origin = (shape.origin_blocks > 0).then(|| {
            let contents = (0..shape.origin_blocks).map(Shape::origin);
            Disk::new("origin", executor, shape.data_geometry(), contents)
        });
        executor.trace(|| format!("{shape:?}"));
        Rc::new(World {
            course: Course::new(executor),
            shape,
            metadata,
            data,
            origin,
            volumes: RefCell::default(),
            transaction_id: RefCell::new(vec![0]),
        })
    }

    /// The external origin that a device is activated with.
    pub fn origin_device(&self, id: u32) -> Option<DataDeviceRef> {
        let origin = self.origin.clone().filter(|_| self.shape.has_origin(id))?;
        Some(origin)
    }

    /// The disks cores send I/O to, by base id.
    pub fn bases(&self) -> Vec<Rc<Disk>> {
        let mut bases = vec![self.data.clone()];
        bases.extend(self.origin.clone());
        bases
    }

    /// Chooses what will go wrong in this life, and lets it. Returns what is left to do.
    pub fn roll_faults(&self) -> Option<Removal> {
        let often = self.roll_often();
        let both = || vec![self.data.clone(), self.metadata.clone()];
        let data = || vec![self.data.clone()];
        self.go_wrong(match self.executor.below(16) {
            0 => Fault::Rates(data(), FaultRates::errors(often)),
            1 | 2 => Fault::Rates(vec![self.metadata.clone()], FaultRates::errors(often)),
            3 => Fault::Rates(data(), FaultRates::flush_errors(often / 5 + 1)),
            4 => Fault::Rates(both(), FaultRates::stalls(often)),
            5 => Fault::Rates(both(), FaultRates::latent_errors(often)),
            6 => Fault::Removal(self.data.clone()),
            7 => Fault::Removal(self.metadata.clone()),
            8 | 9 if self.shape.merging => Fault::Rates(
                self.origin.iter().cloned().collect(),
                FaultRates::errors(often),
            ),
            _ => Fault::None,
        })
    }
}
