//! What a simulated ploop device is like.

use crate::course::Course;
use crate::disk::{Disk, Disks, Geometry};
use crate::executor::Executor;
use crate::faults::{Fault, FaultRates, Removal};
use crate::history::History;
use bdev::ploop::image::header::bat_end_sectors;
use bdev::ploop::image::{Header, Version};
use bdev::ploop::{Lower, Ploop, PloopConfig, Source};
use bdev::target::BaseId;
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;

/// Disks for images.
pub const NR_DISKS: usize = 6;

/// What a seed decides once and for all.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Bytes per logical block of all devices.
    pub block_bytes: u32,
    /// Simulated cores.
    pub cores: u64,
    /// Concurrent clients.
    pub clients: u64,
    /// Logical blocks of a cluster.
    pub per_cluster: u64,
    /// Clusters of the device at first.
    pub nr_clusters: u64,
    /// Clusters it may grow to.
    pub max_clusters: u64,
    /// Whether the chain begins with a raw disk.
    pub raw: bool,
    /// What new images are.
    pub version: Version,
    /// Images may run out of space.
    pub tight: bool,
    /// The target's options.
    pub config: PloopConfig,
}

impl Shape {
    fn roll(dice: &Executor) -> Self {
        let block_bytes = if dice.one_in(3) { 4096 } else { 512 };
        let mut config = PloopConfig::new("sim");
        config.bat_cache_bytes = 0;
        config.max_copies = 1 + dice.below(8) as usize;
        config.may_be_in_use = true;
        let (per_cluster, nr_clusters) = match dice.below(5) {
            // More than a page of the BAT has, and data directly behind.
            0 => (1, 900 + dice.below(300)),
            1 => (3 + dice.below(60), 3 + dice.below(10)),
            _ => (1 << (1 + dice.below(4)), 5 + dice.below(40)),
        };
        let growth = match per_cluster {
            1 => dice.below(1500),
            _ => dice.below(60),
        };
        Shape {
            block_bytes,
            cores: 1 + dice.below(3),
            clients: 1 + dice.below(6),
            per_cluster,
            nr_clusters,
            max_clusters: nr_clusters + growth,
            raw: dice.one_in(4),
            version: match block_bytes == 512 && dice.one_in(4) {
                true => Version::V1,
                false => Version::V2,
            },
            tight: dice.one_in(6),
            config,
        }
    }

    /// Sectors of a logical block.
    pub fn block_sectors(&self) -> u64 {
        u64::from(self.block_bytes) / 512
    }

    /// Sectors of a cluster.
    pub fn cluster_sectors(&self) -> u64 {
        self.per_cluster * self.block_sectors()
    }
}

/// The disks of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The one that is written.
    pub top: usize,
    /// The others, oldest first.
    pub lower: Vec<usize>,
}

/// Everything.
pub struct World {
    course: Course,
    /// What the seed decided.
    pub shape: Shape,
    /// The disks, by their number as base devices.
    disks: Disks,
    /// The chain, as far as it is known.
    pub chain: RefCell<Chain>,
    /// The chain that there will be if what goes on now succeeds.
    pub next_chain: RefCell<Option<Chain>>,
    /// Sizes the device may have after a crash, in logical blocks; the first is what it has.
    pub sizes: RefCell<Vec<u64>>,
    /// What the device may hold.
    pub history: RefCell<History>,
    /// I/O under way.
    pub busy: Cell<u64>,
    /// No new I/O now.
    pub paused: Cell<bool>,
    /// The image was closed in this life.
    pub closed: Cell<bool>,
    /// Closing the top image has begun, and not ended well: it may say either.
    pub closing: Cell<bool>,
}

impl Deref for World {
    type Target = Course;

    fn deref(&self) -> &Course {
        &self.course
    }
}

impl World {
    /// A new world: an empty image, perhaps over a raw disk.
    pub fn new(executor: &Rc<Executor>) -> Rc<Self> {
        let shape = Shape::roll(executor);
        let geometry = Geometry::roll(executor, shape.block_bytes);
        let bat = bat_end_sectors(shape.max_clusters as u32 + 1) / shape.block_sectors() + 2;
        let names = ["image 0", "image 1", "image 2", "image 3", "image 4", "raw"];
        let raw_clusters = 1 + executor.below(shape.nr_clusters);
        let disks = (0..NR_DISKS).map(|number| {
            let room = match shape.tight {
                true => shape.nr_clusters / 2 + executor.below(shape.max_clusters),
                // Discarded clusters are free a little later.
                false => shape.max_clusters + 8,
            };
            let blocks = match number == NR_DISKS - 1 {
                true => raw_clusters * shape.per_cluster,
                false => bat + (room + 3) * shape.per_cluster,
            };
            let stale = (0..blocks).map(|block| ((number as u64 + 1) << 56) + block);
            let name = names.get(number).copied().unwrap_or("image");
            Disk::new(name, executor, geometry, stale)
        });
        let disks: Vec<_> = disks.collect();
        let raw = NR_DISKS - 1;
        let raw_blocks = match shape.raw {
            true => raw_clusters * shape.per_cluster,
            false => 0,
        };
        let contents = (0..shape.max_clusters * shape.per_cluster).map(|block| {
            if block < raw_blocks {
                ((raw as u64 + 1) << 56) + block
            } else {
                0
            }
        });
        executor.trace(|| format!("{shape:?} {disks:?}"));
        let size = shape.nr_clusters * shape.per_cluster;
        Rc::new(World {
            course: Course::new(executor),
            chain: RefCell::new(Chain {
                top: 0,
                lower: if shape.raw { vec![raw] } else { Vec::new() },
            }),
            next_chain: RefCell::default(),
            sizes: RefCell::new(vec![size]),
            history: RefCell::new(History::new(contents)),
            shape,
            disks: Disks::new(disks),
            busy: Cell::new(0),
            paused: Cell::new(false),
            closed: Cell::new(false),
            closing: Cell::new(false),
        })
    }

    /// All disks, by base device.
    pub fn disks(&self) -> &[Rc<Disk>] {
        self.disks.all()
    }

    /// The disk with this number.
    pub fn disk(&self, number: usize) -> Rc<Disk> {
        self.disks.numbered(number)
    }

    /// A disk as a delta.
    pub fn source(&self, number: usize) -> Source {
        Source {
            name: number.to_string(),
            device: self.disk(number),
            base: BaseId(number as u8),
            flushes: true,
        }
    }

    /// A disk as a lower delta.
    pub fn lower(&self, number: usize) -> Lower {
        Lower {
            source: self.source(number),
            raw: number == NR_DISKS - 1,
        }
    }

    /// Disks that no chain has.
    pub fn free_disks(&self) -> Vec<usize> {
        let used = |number: &usize| {
            let in_chain = |chain: &Chain| chain.top == *number || chain.lower.contains(number);
            in_chain(&self.chain.borrow()) || self.next_chain.borrow().iter().any(in_chain)
        };
        (0..NR_DISKS - 1).filter(|number| !used(number)).collect()
    }

    /// Size of the device in logical blocks.
    pub fn nr_logical(&self) -> u64 {
        self.sizes.borrow().first().copied().unwrap_or_default()
    }

    /// Makes an empty image on a disk. False: the disk failed.
    pub async fn format(&self, number: usize) -> bool {
        let disk = self.disk(number);
        let nr_sectors = self.nr_logical() * self.shape.block_sectors();
        let cluster = self.shape.cluster_sectors() as u32;
        let made = bdev::ploop::create::create(&*disk, nr_sectors, cluster).await;
        let Ok(header) = made else { return false };
        if self.shape.version == Version::V2 {
            return true;
        }
        // Data begins directly behind the BAT.
        let header = Header {
            version: Version::V1,
            data_sectors: bat_end_sectors(header.nr_entries) as u32,
            ..header
        };
        let mut first = vec![0; self.shape.block_bytes as usize];
        for (to, from) in first.iter_mut().zip(header.encode()) {
            *to = from;
        }
        use bdev::device::ByteDevice;
        disk.write_bytes(0, &first).await.is_ok() && disk.flush_all().await.is_ok()
    }

    /// What the target says its chain is.
    pub fn chain_of(&self, ploop: &Ploop) -> Chain {
        let status = ploop.status();
        Chain {
            top: usize::from(status.top.base.0),
            lower: status.lower.iter().map(|d| usize::from(d.base.0)).collect(),
        }
    }

    /// Whether failures are no surprise.
    pub fn may_fail(&self) -> bool {
        self.faulty.get() || self.shape.tight
    }

    /// Keeps clients away until nothing is under way. False: the end has come.
    pub async fn pause(&self) -> bool {
        self.paused.set(true);
        while self.busy.get() > 0 && !self.stopping.get() {
            self.executor.delay().await;
        }
        self.busy.get() == 0
    }

    /// Chooses what will go wrong in this life, and lets it. Returns what is left to do.
    pub fn roll_faults(&self) -> Option<Removal> {
        let often = self.roll_often();
        let dice = &self.executor;
        let top = self.disk(self.chain.borrow().top);
        let all = || self.disks.all().to_vec();
        self.go_wrong(match dice.below(18) {
            0 => Fault::Rates(all(), FaultRates::errors(often)),
            1 | 2 => Fault::Rates(vec![top], FaultRates::errors(often)),
            3 | 4 => Fault::Rates(vec![top], FaultRates::write_errors(often / 3 + 1)),
            5 => Fault::Rates(vec![top], FaultRates::flush_errors(often / 5 + 1)),
            6 => Fault::Rates(all(), FaultRates::stalls(often)),
            7 => Fault::Rates(all(), FaultRates::latent_errors(often)),
            8 => Fault::Removal(top),
            9 => Fault::Removal(self.disk(dice.below(NR_DISKS as u64) as usize)),
            _ => Fault::None,
        })
    }
}
