//! An era target, example by example, on simulated disks without faults unless told.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::single_range_in_vec_init,
    reason = "a test fails by panicking; ranges are what blocks are listed as"
)]

use bdev::era::{Era, EraConfig, EraTarget, View};
use bdev::errno::Errno;
use bdev::target::{IoKind, Request};
use futures::future::join_all;
use sim::cores::Cores;
use sim::disk::{Disk, Geometry};
use sim::executor::Executor;
use sim::faults::FaultRates;
use std::rc::Rc;

/// 1024 data blocks of 16 logical blocks.
const PER_BLOCK: u64 = 16;

struct Bench {
    metadata: Rc<Disk>,
    origin: Rc<Disk>,
    era: Rc<Era>,
    cores: Rc<Cores<EraTarget>>,
}

impl Bench {
    async fn new(executor: Rc<Executor>) -> Bench {
        let geometry = Geometry {
            block_bytes: 4096,
            physical_bytes: 4096,
        };
        let origin = Disk::new(
            "origin",
            &executor,
            geometry,
            (0..1024 * PER_BLOCK).map(|_| 0),
        );
        let metadata = Disk::new("metadata", &executor, geometry, (0..1024).map(|_| 0));
        let era = Era::open(
            EraConfig::new("test"),
            executor.clone(),
            metadata.clone(),
            origin.clone(),
            true,
        )
        .await
        .unwrap();
        let disks = std::slice::from_ref(&origin);
        let cores = Cores::new(&executor, 3, disks, &era.owner_queue());
        Bench {
            metadata,
            origin,
            era,
            cores,
        }
    }

    async fn io(&self, kind: IoKind, first: u64, count: u64) -> Result<(), Errno> {
        let request = Request {
            kind,
            offset_blocks: first,
            nr_blocks: count,
        };
        let data = match kind {
            IoKind::Write => vec![7; count as usize],
            _ => Vec::new(),
        };
        let core = first % 3;
        self.cores.io(core, self.era.dev(), request, data).await.0
    }

    async fn write(&self, block: u64) -> Result<(), Errno> {
        self.io(IoKind::Write, block * PER_BLOCK + 3, 1).await
    }
}

fn on_bench<F: Future<Output = ()> + 'static>(seed: u64, test: impl FnOnce(Bench) -> F + 'static) {
    let executor = Executor::new(seed);
    let main = async move |executor: Rc<Executor>| test(Bench::new(executor).await).await;
    assert!(executor.run(main(executor.clone()), 10_000_000).is_some());
}

/// First writes that wait together share commits; a second write to a block makes none and writes no
/// metadata; reads and flushes never come to the owner.
#[test]
fn first_writes_share_commits() {
    for seed in 0..20 {
        on_bench(seed, async |bench| {
            let digested = bench.era.counters().commits;
            let writes = join_all((0..300).map(|block| bench.write(block))).await;
            assert!(writes.iter().all(Result::is_ok));
            let counters = bench.era.counters();
            assert_eq!(counters.first_writes, 300);
            assert!(counters.mark_commits <= 3, "{counters:?}");
            assert!(counters.commits - digested <= 3);
            let written = bench.metadata.nr_writes();
            join_all((0..300).map(|block| bench.write(block))).await;
            for block in 0..600 {
                bench.io(IoKind::Read, block * PER_BLOCK, 1).await.unwrap();
            }
            bench.io(IoKind::Flush, 0, 0).await.unwrap();
            assert_eq!(bench.era.counters(), counters);
            assert_eq!(bench.metadata.nr_writes(), written);
        });
    }
}

/// Status and messages are the kernel's (era.md 4, 11).
#[test]
fn status_and_messages() {
    on_bench(1, async |bench| {
        let era = &bench.era;
        assert_eq!(era.status().await.unwrap().to_string(), "8 10/1024 1 -");
        for block in 5..8 {
            bench.write(block).await.unwrap();
        }
        era.message("Checkpoint").await.unwrap();
        bench.write(9).await.unwrap();
        for text in ["", "checkpoint now", "check", "drop_metadata_snap"] {
            assert_eq!(
                era.message(text).await.err().unwrap().errno(),
                Errno::EINVAL,
                "{text}"
            );
        }
        assert_eq!(era.status().await.unwrap().current_era, 2);
        era.message("take_metadata_snap").await.unwrap();
        let status = era.status().await.unwrap();
        let block = status.metadata_snap.unwrap();
        assert!(status.to_string().ends_with(&format!("/1024 3 {block}")));
        assert_eq!(
            era.take_metadata_snap().await.err().unwrap().errno(),
            Errno::EINVAL
        );
        // A refusal changes nothing, not even the era.
        assert_eq!(era.status().await.unwrap().current_era, 3);
        bench.write(10).await.unwrap();
        for (since, held, live) in [
            (1, vec![5..8, 9..10], vec![5..8, 9..11]),
            (2, vec![9..10], vec![9..11]),
            (3, vec![], vec![10..11]),
        ] {
            let all = 0..u64::MAX;
            let found = era.written_since(View::Snapshot, since, all.clone()).await;
            assert_eq!(found.unwrap(), held);
            let found = era.written_since(View::Live, since, all).await;
            assert_eq!(found.unwrap(), live);
        }
        era.drop_metadata_snap().await.unwrap();
        assert!(era.written_since(View::Snapshot, 0, 0..1).await.is_err());
        era.close().await.unwrap();
        assert_eq!(era.status().await.err().unwrap().errno(), Errno::ENODEV);
    });
}

/// Discards and write-zeroes mark every block they touch, not only the first.
#[test]
fn ranges_mark_every_block() {
    for kind in [IoKind::Discard, IoKind::WriteZeroes] {
        on_bench(2, async move |bench| {
            let (first, last) = (30 * PER_BLOCK + 15, 34 * PER_BLOCK);
            bench.io(kind, first, last + 1 - first).await.unwrap();
            let found = bench.era.written_since(View::Live, 1, 0..1024).await;
            assert_eq!(found.unwrap(), [30..35]);
            bench.io(kind, 0, 1024 * PER_BLOCK).await.unwrap();
            let found = bench.era.written_since(View::Live, 1, 0..1024).await;
            assert_eq!(found.unwrap(), [0..1024]);
        });
    }
}

/// While the metadata fails, marked blocks can be written, others cannot, the status is `Error`; when it
/// works again, so does everything.
#[test]
fn failing_metadata() {
    on_bench(3, async |bench| {
        bench.write(1).await.unwrap();
        bench.metadata.set_faults(FaultRates {
            write_error: 1,
            read_error: 1,
            ..FaultRates::default()
        });
        let before = bench.origin.nr_writes();
        assert_eq!(bench.write(2).await, Err(Errno::EIO));
        assert_eq!(
            bench.origin.nr_writes(),
            before,
            "it went through unrecorded"
        );
        assert!(bench.era.checkpoint().await.is_err());
        bench.write(1).await.unwrap();
        assert_eq!(bench.era.status().await.unwrap().to_string(), "Error");
        bench.metadata.set_faults(FaultRates::default());
        assert_eq!(bench.era.checkpoint().await.unwrap(), 2);
        bench.write(2).await.unwrap();
        let found = bench.era.written_since(View::Live, 1, 0..1024).await;
        assert_eq!(found.unwrap(), [1..3]);
        assert!(bench.era.counters().failures > 0);
    });
}

/// In a new era the first write to each block is recorded again.
#[test]
fn every_era_records_afresh() {
    on_bench(4, async |bench| {
        for era in 1..5 {
            assert_eq!(bench.era.status().await.unwrap().current_era, era);
            let before = bench.era.counters().first_writes;
            join_all((0..1024).map(|block| bench.write(block))).await;
            assert_eq!(bench.era.counters().first_writes - before, 1024);
            let found = bench.era.written_since(View::Live, era, 0..1024).await;
            assert_eq!(found.unwrap(), [0..1024]);
            bench.era.checkpoint().await.unwrap();
        }
    });
}
