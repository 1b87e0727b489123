//! An origin and its snapshots, example by example, on simulated disks without faults unless told.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::device::ByteDevice;
use bdev::errno::Errno;
use bdev::runtime::Runtime;
use bdev::snapshot::layout::Exception;
use bdev::snapshot::{
    Discards, MergeState, Origin, OriginConfig, Snapshot, SnapshotConfig, SnapshotError,
    SnapshotEvent, SnapshotTarget, StoreKind, Volume,
};
use bdev::target::{BaseId, IoKind, Request};
use futures::future::join_all;
use sim::cores::Cores;
use sim::disk::{Disk, Geometry};
use sim::executor::Executor;
use sim::faults::FaultRates;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const P: StoreKind = StoreKind::Persistent { overflow: false };
const PO: StoreKind = StoreKind::Persistent { overflow: true };
const N: StoreKind = StoreKind::Transient;

/// What the origin holds at first: block + 1.
struct Bench {
    executor: Rc<Executor>,
    disks: Vec<Rc<Disk>>,
    origin: Rc<Origin>,
    cores: Rc<Cores<SnapshotTarget>>,
    events: Rc<RefCell<Vec<SnapshotEvent>>>,
}

impl Bench {
    /// Sizes in sectors: the origin's, then the COW devices'.
    fn new(executor: &Rc<Executor>, sizes: &[u64]) -> Bench {
        let geometry = Geometry {
            block_bytes: 512,
            physical_bytes: 512,
        };
        let disks: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| {
                let contents = (1..=*size).map(|at| if number == 0 { at } else { 0 });
                Disk::new("disk", executor, geometry, contents)
            })
            .collect();
        Self::over(executor, disks)
    }

    fn over(executor: &Rc<Executor>, disks: Vec<Rc<Disk>>) -> Bench {
        let config = OriginConfig {
            exceptions_cache_bytes: 0,
            ..OriginConfig::new("test")
        };
        let device = disks.first().unwrap().clone();
        let origin = Origin::open(config, executor.clone(), device, true).unwrap();
        let events = Rc::new(RefCell::new(Vec::new()));
        let log = events.clone();
        origin.watch(move |event| log.borrow_mut().push(event.clone()));
        let cores = Cores::new(executor, 3, &disks, &origin.owner_queue());
        Bench {
            executor: executor.clone(),
            disks,
            origin,
            cores,
            events,
        }
    }

    async fn snapshot(&self, number: u8, store: StoreKind, chunk_sectors: u64) -> Rc<Snapshot> {
        self.try_snapshot(number, store, chunk_sectors, Discards::default())
            .await
            .unwrap()
    }

    async fn try_snapshot(
        &self,
        number: u8,
        store: StoreKind,
        chunk_sectors: u64,
        discards: Discards,
    ) -> Result<Rc<Snapshot>, SnapshotError> {
        let config = SnapshotConfig {
            name: format!("snap{number}"),
            store,
            chunk_sectors,
            discards,
            nr_sectors: None,
        };
        let disk = self.disks.get(usize::from(number)).unwrap().clone();
        self.origin
            .create_snapshot(config, BaseId(number), disk, true)
            .await
    }

    async fn io(
        &self,
        volume: &Arc<Volume>,
        kind: IoKind,
        first: u64,
        data: Vec<u64>,
        count: u64,
    ) -> (Result<(), Errno>, Vec<u64>) {
        let request = Request {
            kind,
            offset_blocks: first,
            nr_blocks: count,
        };
        self.cores.io(first % 3, volume, request, data).await
    }

    async fn write(
        &self,
        volume: &Arc<Volume>,
        first: u64,
        count: u64,
        value: u64,
    ) -> Result<(), Errno> {
        let data = vec![value; count as usize];
        self.io(volume, IoKind::Write, first, data, count).await.0
    }

    async fn write_origin(&self, first: u64, count: u64, value: u64) {
        let volume = self.origin.volume().clone();
        self.write(&volume, first, count, value).await.unwrap();
    }

    async fn read(&self, volume: &Arc<Volume>, first: u64, count: u64) -> Result<Vec<u64>, Errno> {
        let (result, found) = self
            .io(volume, IoKind::Read, first, Vec::new(), count)
            .await;
        result.map(|()| found)
    }

    fn line(&self, number: u8) -> String {
        let snapshot = self.origin.snapshot(&format!("snap{number}"));
        snapshot.unwrap().status().to_string()
    }

    /// The first entries of area 0.
    async fn entries(&self, number: usize, chunk_sectors: u64, count: usize) -> Vec<(u64, u64)> {
        let mut bytes = vec![0; 512];
        let disk = self.disks.get(number).unwrap();
        disk.read_bytes(chunk_sectors, &mut bytes).await.unwrap();
        bytes
            .chunks(16)
            .take(count)
            .map(|entry| Exception::decode(entry).map_or((0, 0), |e| (e.old_chunk, e.new_chunk)))
            .collect()
    }

    async fn merge_ends(&self) -> MergeState {
        loop {
            let merge = self.origin.merge().unwrap();
            if merge.state() != MergeState::Running {
                return merge.state();
            }
            self.executor.pass(Duration::from_millis(1)).await;
        }
    }
}

fn on_bench<F: Future<Output = ()> + 'static>(
    sizes: &'static [u64],
    test: impl Fn(Bench) -> F + 'static,
) {
    for seed in 1..=5 {
        let executor = Executor::new(seed);
        let bench = Bench::new(&executor, sizes);
        assert!(executor.run(test(bench), 10_000_000).is_some(), "no end");
    }
}

/// The figures and entries of snapshot.md 12, and its merge.
#[test]
fn as_on_the_kernel() {
    on_bench(&[32768, 8192], async |bench: Bench| {
        let snapshot = bench.snapshot(1, P, 16).await;
        assert_eq!(bench.line(1), "32/8192 32");
        bench.write_origin(1600, 16, 7).await;
        assert_eq!(bench.line(1), "48/8192 32");
        bench.write_origin(800, 32, 8).await;
        bench.write(snapshot.volume(), 165, 1, 9).await.unwrap();
        assert_eq!(bench.line(1), "96/8192 32");
        let entries = bench.entries(1, 16, 5).await;
        assert_eq!(entries.first(), Some(&(100, 2)));
        assert_eq!(entries.get(3..), Some(&[(10, 5), (0, 0)][..]));
        let found = bench.read(snapshot.volume(), 800, 32).await.unwrap();
        assert_eq!(found, (801..833).collect::<Vec<u64>>());
        let origin = bench.origin.volume().clone();
        bench.origin.merge_snapshot("snap1").await.unwrap();
        assert_eq!(bench.line(1), "Invalid");
        assert_eq!(bench.read(snapshot.volume(), 0, 1).await, Err(Errno::EIO));
        // It shows the snapshot's content from the first moment on.
        let found = bench.read(&origin, 160, 8).await.unwrap();
        assert_eq!(found, [161, 162, 163, 164, 165, 9, 167, 168]);
        assert_eq!(bench.merge_ends().await, MergeState::Finished);
        let status = bench.origin.merge_status().unwrap();
        assert_eq!(status.to_string(), "32/8192 32");
        assert_eq!(bench.entries(1, 16, 5).await, [(0, 0); 5]);
        let disk = bench.disks.first().unwrap();
        let held = disk.read_values(0, 32768).await.unwrap();
        let expected: Vec<u64> = (1..=32768)
            .map(|at| if at == 166 { 9 } else { at })
            .collect();
        assert!(held == expected);
        let finished = SnapshotEvent::MergeFinished {
            snapshot: "snap1".to_owned(),
        };
        assert_eq!(*bench.events.borrow(), [finished]);
    });
}

/// Two snapshots with other chunks: one write of the origin, one exception each; a chunk that both have
/// goes straight through afterwards; a merge of one leaves the other as it was.
#[test]
fn two_snapshots() {
    on_bench(&[65536, 16384, 16384], async |bench: Bench| {
        let small = bench.snapshot(1, P, 8).await;
        let large = bench.snapshot(2, PO, 32).await;
        assert_eq!(
            (bench.line(1), bench.line(2)),
            ("16/16384 16".into(), "64/16384 64".into())
        );
        bench.write_origin(40, 8, 7).await;
        assert_eq!(
            (bench.line(1), bench.line(2)),
            ("24/16384 16".into(), "96/16384 64".into())
        );
        let writes = |bench: &Bench| -> Vec<u64> {
            bench
                .disks
                .iter()
                .skip(1)
                .map(|disk| disk.nr_writes())
                .collect()
        };
        let before = (writes(&bench), bench.origin.counters());
        bench.write_origin(42, 3, 8).await;
        assert_eq!((writes(&bench), bench.origin.counters()), before);
        bench.write(small.volume(), 40, 8, 5).await.unwrap();
        bench.write(small.volume(), 1000, 8, 6).await.unwrap();
        bench.origin.merge_snapshot("snap1").await.unwrap();
        assert_eq!(bench.merge_ends().await, MergeState::Finished);
        let origin = bench.origin.volume().clone();
        assert_eq!(bench.read(&origin, 40, 8).await.unwrap(), [5; 8]);
        assert_eq!(bench.read(&origin, 1000, 8).await.unwrap(), [6; 8]);
        let found = bench.read(large.volume(), 0, 2000).await.unwrap();
        assert_eq!(found, (1..=2000).collect::<Vec<u64>>());
    });
}

/// A whole chunk needs no copy; many exceptions share a commit.
#[test]
fn full_writes_and_shared_commits() {
    on_bench(&[32768, 16384], async |bench: Bench| {
        let snapshot = bench.snapshot(1, P, 8).await;
        bench.write(snapshot.volume(), 80, 8, 7).await.unwrap();
        let counters = bench.origin.counters();
        assert_eq!((counters.copies, counters.full_writes), (0, 1));
        bench.write(snapshot.volume(), 161, 7, 7).await.unwrap();
        assert_eq!(bench.origin.counters().copies, 1);
        let volume = bench.origin.volume().clone();
        let writes = (100..400).map(|chunk| bench.write(&volume, chunk * 8, 8, 5));
        assert!(join_all(writes).await.iter().all(|done| done.is_ok()));
        let counters = bench.origin.counters();
        assert_eq!(counters.exceptions, 302);
        assert!(counters.commits < 60, "{counters:?}");
    });
}

/// Full because of a write of the origin: the origin goes on, the snapshot is invalid, on the COW device,
/// too, whatever its letter (snapshot.md 10).
#[test]
fn the_origin_goes_before() {
    for store in [P, PO, N] {
        on_bench(&[4096, 40], move |bench: Bench| async move {
            let snapshot = bench.snapshot(1, store, 8).await;
            for chunk in 0..6 {
                bench.write_origin(chunk * 8, 8, 7).await;
            }
            assert_eq!(bench.line(1), "Invalid");
            assert_eq!(bench.read(snapshot.volume(), 0, 1).await, Err(Errno::EIO));
            let flush = bench.io(snapshot.volume(), IoKind::Flush, 0, Vec::new(), 0);
            assert_eq!(flush.await.0, Ok(()));
            assert_eq!(bench.events.borrow().len(), 1);
            bench.origin.remove_snapshot("snap1").await.unwrap();
            if store != N {
                bench.snapshot(1, store, 8).await;
                assert_eq!(bench.line(1), "Invalid");
            }
        });
    }
}

/// Full because of a write to the snapshot: P is invalid, PO overflows (snapshot.md 6).
#[test]
fn overflow() {
    on_bench(&[4096, 40, 40], async |bench: Bench| {
        let (p, po) = (
            bench.snapshot(1, P, 8).await,
            bench.snapshot(2, PO, 8).await,
        );
        for snapshot in [&p, &po] {
            for chunk in 0..3 {
                bench
                    .write(snapshot.volume(), chunk * 8, 1, 7)
                    .await
                    .unwrap();
            }
            let full = bench.write(snapshot.volume(), 80, 1, 7).await;
            assert_eq!(full, Err(Errno::EIO));
        }
        assert_eq!(
            (bench.line(1), bench.line(2)),
            ("Invalid".into(), "Overflow".into())
        );
        assert_eq!(bench.read(po.volume(), 0, 2).await.unwrap(), [7, 2]);
        // Also where there is an exception.
        assert_eq!(bench.write(po.volume(), 0, 1, 7).await, Err(Errno::EIO));
        bench.write_origin(80, 1, 7).await;
        assert_eq!(bench.line(2), "Invalid");
    });
}

/// What is refused, and with which words.
#[test]
fn refusals() {
    on_bench(&[4096, 400, 400, 400], async |bench: Bench| {
        bench.snapshot(1, N, 8).await;
        assert_eq!(bench.line(1), "0/400 0");
        let none = Discards::default();
        let exists = bench.try_snapshot(1, P, 8, none).await.err();
        assert_eq!(exists, Some(SnapshotError::Exists("snap1".into())));
        let no_size = bench.try_snapshot(2, N, 0, none).await.err();
        assert_eq!(no_size, Some(SnapshotError::NoChunkSize));
        let merge = bench.origin.merge_snapshot("snap1").await;
        assert_eq!(merge, Err(SnapshotError::CannotMerge));
        assert_eq!(merge.unwrap_err().errno(), Errno::EINVAL);
        let merge = bench.origin.merge_snapshot("nobody").await;
        assert_eq!(merge.unwrap_err().errno(), Errno::ENODEV);
        let second = bench.snapshot(2, P, 0).await;
        assert_eq!(second.status().chunk_sectors, 32);
        bench.write(second.volume(), 0, 8, 7).await.unwrap();
        // A flush that fails may lose what was not flushed before.
        let flush = bench.io(second.volume(), IoKind::Flush, 0, Vec::new(), 0);
        flush.await.0.unwrap();
        bench.disks.get(2).unwrap().set_faults(FaultRates {
            flush_error: 1,
            ..FaultRates::default()
        });
        bench.origin.merge_snapshot("snap2").await.unwrap();
        assert!(matches!(bench.merge_ends().await, MergeState::Failed(_)));
        assert_eq!(
            bench.origin.merge_status().unwrap().to_string(),
            "Merge failed"
        );
        let again = bench.origin.merge_snapshot("snap1").await;
        assert_eq!(again, Err(SnapshotError::AlreadyMerging));
        let new = bench.try_snapshot(3, P, 8, none).await.err();
        assert_eq!(new, Some(SnapshotError::NotWhileMerging));
        // The device may have forgotten the exception: no write is let through to it.
        let origin = bench.origin.volume().clone();
        assert_eq!(bench.write(&origin, 0, 1, 9).await, Err(Errno::EIO));
        assert_eq!(bench.read(&origin, 0, 1).await.unwrap(), [7]);
        bench.write_origin(64, 1, 9).await;
        bench
            .disks
            .get(2)
            .unwrap()
            .set_faults(FaultRates::default());
        bench.origin.resume_merge().unwrap();
        assert_eq!(bench.merge_ends().await, MergeState::Finished);
        bench.write_origin(0, 1, 9).await;
        assert_eq!(bench.read(&origin, 0, 2).await.unwrap(), [9, 7]);
    });
}

/// Discards as the features say (snapshot.md 6).
#[test]
fn discards() {
    on_bench(&[4096, 400, 400, 400], async |bench: Bench| {
        let mut zeroes = Discards {
            zeroes_cow: true,
            passdown_origin: false,
        };
        let without = bench.snapshot(1, P, 8).await;
        let with = bench.try_snapshot(2, P, 8, zeroes).await.unwrap();
        let discard = |volume: &Arc<Volume>, first, count| {
            let volume = volume.clone();
            let bench = &bench;
            async move {
                bench
                    .io(&volume, IoKind::Discard, first, Vec::new(), count)
                    .await
                    .0
            }
        };
        let refused = discard(without.volume(), 0, 8).await;
        assert_eq!(refused, Err(Errno::EOPNOTSUPP));
        for first in [8, 16] {
            bench.write(with.volume(), first, 8, 7).await.unwrap();
        }
        let before = bench.line(2);
        // From the middle of a chunk with an exception over a whole one to one without: the neighbour's
        // chunk on the COW device is not touched.
        assert_eq!(discard(with.volume(), 12, 20).await, Ok(()));
        let found = bench.read(with.volume(), 8, 24).await.unwrap();
        assert_eq!(found.get(..4), Some(&[7; 4][..]));
        assert_eq!(found.get(8..16), Some(&[0; 8][..]));
        assert_eq!(found.get(16..), Some(&(25..=32).collect::<Vec<u64>>()[..]));
        assert_eq!(bench.line(2), before);
        zeroes.passdown_origin = true;
        let down = bench.try_snapshot(3, P, 8, zeroes).await.unwrap();
        assert_eq!(discard(down.volume(), 800, 8).await, Ok(()));
        let origin = bench.origin.volume().clone();
        assert_ne!(bench.read(&origin, 800, 1).await.unwrap(), [801]);
        assert_eq!(bench.line(3), "16/400 16");
    });
}

/// More exceptions than the cache has places for: all are found, again after opening, and the cache keeps
/// its limit.
#[test]
fn larger_than_memory() {
    on_bench(&[150 * 512, 400], async |bench: Bench| {
        let snapshot = bench.snapshot(1, P, 1).await;
        for page in 0..150 {
            bench
                .write(snapshot.volume(), page * 512 + page, 1, 100_000 + page)
                .await
                .unwrap();
        }
        let check = async |bench: &Bench, volume: &Arc<Volume>| {
            for page in (0..150).rev() {
                let found = bench.read(volume, page * 512 + page, 2).await.unwrap();
                assert_eq!(found, [100_000 + page, page * 512 + page + 2]);
            }
            let cache = bench.origin.status().cache;
            assert!(cache.used_bytes <= cache.limit_bytes && cache.limit_bytes < 150 * 4096);
            assert!(bench.origin.counters().page_loads > 50);
        };
        check(&bench, snapshot.volume()).await;
        bench.origin.close().await.unwrap();
        bench.cores.leave();
        let again = Bench::over(&bench.executor, bench.disks.clone());
        let snapshot = again.snapshot(1, P, 0).await;
        assert_eq!(snapshot.status().chunk_sectors, 1);
        check(&again, snapshot.volume()).await;
    });
}

/// A header that cannot be written does not hold the origin up; it is tried again until it is.
#[test]
fn a_header_that_cannot_be_written() {
    on_bench(&[4096, 400], async |bench: Bench| {
        let snapshot = bench.snapshot(1, P, 8).await;
        let cow = bench.disks.get(1).unwrap();
        cow.set_faults(FaultRates {
            write_error: 1,
            ..FaultRates::default()
        });
        bench.write_origin(0, 8, 7).await;
        assert!(snapshot.status().header_unsure);
        assert_eq!(bench.line(1), "Invalid");
        cow.set_faults(FaultRates::default());
        bench.executor.sleep(Duration::from_secs(20)).await;
        assert!(!snapshot.status().header_unsure);
        bench.origin.remove_snapshot("snap1").await.unwrap();
        bench.snapshot(1, P, 8).await;
        assert_eq!(bench.line(1), "Invalid");
    });
}
