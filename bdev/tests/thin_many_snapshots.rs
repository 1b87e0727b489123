//! Ten thousand snapshots of one device: the last costs what the first did.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use async_trait::async_trait;
use bdev::thin::metadata::{OpenOptions, ThinMetadata};
use futures::executor::block_on;
use persistent_data::device::{BLOCK_BYTES, BlockBytes, BlockDevice, DeviceError};
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::ops::AddAssign;
use std::rc::Rc;
use std::time::{Duration, Instant};

mod thin_metadata_tools;
use thin_metadata_tools::pool::{options, write};
use thin_metadata_tools::{Temp, thin_check};

const SNAPSHOTS: u32 = 10_000;
const METADATA_BLOCKS: u64 = 48 << 10;

/// Blocks the origin maps: several leaves, so that its tree has two levels.
const MAPPED: u64 = 1000;

/// What making a snapshot has cost.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    reads: u64,
    writes: u64,
    flushes: u64,
    time: Duration,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.time += other.time;
    }
}

/// A device in memory that counts. A flush costs nothing, other than that of a `MemoryDevice`, which
/// remembers what was there.
struct Counting {
    blocks: RefCell<Vec<BlockBytes>>,
    cost: Cell<Cost>,
}

impl Counting {
    fn count(&self, change: impl Fn(&mut Cost)) {
        let mut cost = self.cost.get();
        change(&mut cost);
        self.cost.set(cost);
    }
}

#[async_trait(?Send)]
impl BlockDevice for Counting {
    fn nr_blocks(&self) -> u64 {
        METADATA_BLOCKS
    }

    async fn read(&self, block: u64, buf: &mut BlockBytes) -> Result<(), DeviceError> {
        self.count(|cost| cost.reads += 1);
        buf.copy_from_slice(&self.blocks.borrow()[block as usize]);
        Ok(())
    }

    async fn write(&self, block: u64, buf: &BlockBytes) -> Result<(), DeviceError> {
        self.count(|cost| cost.writes += 1);
        self.blocks.borrow_mut()[block as usize].copy_from_slice(buf);
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.count(|cost| cost.flushes += 1);
        Ok(())
    }
}

/// Makes snapshots of device 0 until there are `SNAPSHOTS`, each committed, with `between` before each.
/// What the first and the last thousand have cost.
async fn snapshots(
    device: &Rc<Counting>,
    metadata: &mut ThinMetadata,
    between: impl AsyncFn(&mut ThinMetadata, u32),
) -> [Cost; 2] {
    let mut costs = [Cost::default(); 2];
    for number in 0..SNAPSHOTS {
        between(metadata, number).await;
        metadata.commit().await.unwrap();
        device.cost.take();
        let begun = Instant::now();
        metadata.create_snap(number + 1, 0).await.unwrap();
        metadata.commit().await.unwrap();
        let time = begun.elapsed();
        device.count(|cost| cost.time = time);
        match number {
            0..1000 => costs[0] += device.cost.take(),
            _ if number >= SNAPSHOTS - 1000 => costs[1] += device.cost.take(),
            _ => {}
        }
    }
    costs
}

/// Both in one run. The work is what is judged: wall-clock time is for people to look at.
fn compare(name: &str, between: impl AsyncFn(&mut ThinMetadata, u32)) {
    block_on(async {
        let device = Rc::new(Counting {
            blocks: RefCell::new(vec![[0; BLOCK_BYTES]; METADATA_BLOCKS as usize]),
            cost: Cell::default(),
        });
        // A cache that holds little of what there is in the end.
        let options = OpenOptions {
            cache_bytes: 1 << 20,
            ..options()
        };
        let mut metadata = ThinMetadata::open(device.clone(), options).await.unwrap();
        metadata.resize_data(200_000).await.unwrap();
        metadata.create_thin(0).await.unwrap();
        write(&mut metadata, 0, 0..MAPPED).await.unwrap();
        let [first, last] = snapshots(&device, &mut metadata, between).await;
        println!("{name}: 1000 snapshots, metadata blocks read and written, flushes, time");
        for (which, cost) in [("first", first), ("last", last)] {
            println!(
                "  {which:>5}  {:>6} {:>6} {:>5} {:>8.1?} ({:.1?} each)",
                cost.reads,
                cost.writes,
                cost.flushes,
                cost.time,
                cost.time / 1000
            );
        }
        println!(
            "  ratio of times: {:.2}",
            last.time.as_secs_f64() / first.time.as_secs_f64()
        );
        assert_eq!(first.flushes, last.flushes);
        assert!(last.writes <= 2 * first.writes);
        // The first were in the cache as a whole; of the last each reads its path.
        assert!(last.reads <= first.writes, "{} reads", last.reads);
        // What a commit goes through.
        assert!(metadata.devices_in_core() <= 4);
        assert_eq!(metadata.time(), SNAPSHOTS);
        assert_eq!(metadata.mapped_count(SNAPSHOTS).await.unwrap(), MAPPED);
        drop(metadata);

        let mut again = ThinMetadata::open(device.clone(), options).await.unwrap();
        assert_eq!(again.devices().await.unwrap().len() as u32, SNAPSHOTS + 1);
        assert_eq!(again.check().await.unwrap(), []);
        let file = Temp::new("many-snapshots");
        let mut out = std::fs::File::create(&file.0).unwrap();
        for block in device.blocks.borrow().iter() {
            out.write_all(block).unwrap();
        }
        thin_check(&file);
    });
}

/// Of a device nobody writes to: one tree, with ten thousand references.
#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without optimisation")]
fn of_an_idle_device() {
    compare("idle", async |_, _| {});
}

/// Of a device that is written to between them: each snapshot has a leaf of its own.
#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes without optimisation")]
fn of_a_busy_device() {
    compare("busy", async |metadata, number| {
        let block = u64::from(number) * 7919 % MAPPED;
        write(metadata, 0, block..block + 1).await.unwrap();
    });
}
