//! A ploop device, example by example, on simulated disks without faults unless told.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::device::ByteDevice;
use bdev::errno::Errno;
use bdev::ploop::create::create;
use bdev::ploop::image::{Header, InUse};
use bdev::ploop::{
    Direction, Lower, Of, Ploop, PloopConfig, PloopError, PloopTarget, Source, Uuid,
};
use bdev::runtime::Runtime;
use bdev::target::{BaseId, IoKind, Request};
use sim::cores::Cores;
use sim::disk::{Disk, Geometry};
use sim::executor::Executor;
use sim::faults::FaultRates;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const CLUSTER: u64 = 8;
const NR_CLUSTERS: u64 = 10;

struct Bench {
    disks: Vec<Rc<Disk>>,
    ploop: Rc<Ploop>,
    cores: Rc<Cores<PloopTarget>>,
}

fn source(disks: &[Rc<Disk>], number: u8) -> Source {
    Source {
        name: format!("disk{number}"),
        device: disks.get(usize::from(number)).unwrap().clone(),
        base: BaseId(number),
        flushes: true,
    }
}

async fn format(disk: &Rc<Disk>) {
    let size = NR_CLUSTERS * CLUSTER;
    create(&**disk, size, CLUSTER as u32).await.unwrap();
}

impl Bench {
    /// Four disks; the first one is the image.
    async fn new(executor: &Rc<Executor>) -> Bench {
        let geometry = Geometry {
            block_bytes: 512,
            physical_bytes: 512,
        };
        let stale = (0..400).map(|block| (1 << 60) + block);
        let disks: Vec<_> = (0..4)
            .map(|_| Disk::new("disk", executor, geometry, stale.clone()))
            .collect();
        format(disks.first().unwrap()).await;
        Bench::over(executor, disks, Vec::new()).await.unwrap()
    }

    async fn over(
        executor: &Rc<Executor>,
        disks: Vec<Rc<Disk>>,
        lower: Vec<Lower>,
    ) -> Result<Bench, PloopError> {
        let top = source(&disks, 0);
        let config = PloopConfig::new("test");
        let ploop = Ploop::open(config, executor.clone(), top, lower).await?;
        let cores = Cores::new(executor, 2, &disks, &ploop.owner_queue());
        Ok(Bench {
            disks,
            ploop,
            cores,
        })
    }

    async fn io(
        &self,
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
        self.cores
            .io(first % 2, self.ploop.dev(), request, data)
            .await
    }

    async fn write(&self, first: u64, value: u64, count: u64) {
        let data = vec![value; count as usize];
        self.io(IoKind::Write, first, data, count).await.0.unwrap();
    }

    async fn read(&self, first: u64, count: u64) -> Vec<u64> {
        let (result, found) = self.io(IoKind::Read, first, Vec::new(), count).await;
        result.unwrap();
        found
    }
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rc<Executor>) -> F) {
    let executor = Executor::new(1);
    let ended = executor.run(test(executor.clone()), 1_000_000);
    assert!(ended.is_some(), "the test has no end");
}

/// A resize on a failing disk, then one to the old size, which is there afterwards. False: it did not fail.
async fn resize_on_failing_disk(executor: Rc<Executor>) -> bool {
    let bench = Bench::new(&executor).await;
    let size = NR_CLUSTERS * CLUSTER;
    let image = bench.disks.first().unwrap();
    image.set_faults(FaultRates::errors(3));
    let failed = bench.ploop.resize(size + CLUSTER).await.is_err();
    image.set_faults(FaultRates::default());
    if failed {
        bench.ploop.resize(size).await.unwrap();
        let mut first = [0; 512];
        image.read_bytes(0, &mut first).await.unwrap();
        let header = Header::decode(first.first_chunk().unwrap(), 400).unwrap();
        assert_eq!(header.nr_sectors, size);
    }
    failed
}

/// A resize that failed may be on the disk; a resize to the old size makes sure that it is not.
#[test]
fn a_resize_that_failed() {
    let mut failed = 0;
    for seed in 1..=60 {
        let executor = Executor::new(seed);
        let ended = executor.run(resize_on_failing_disk(executor.clone()), 1_000_000);
        assert!(ended.is_some(), "seed {seed} has no end");
        failed += u64::from(ended == Some(true));
    }
    assert!(failed > 5, "{failed}");
}

/// One course of a merge into an older delta on a failing disk, then of the promise below. False: the merge
/// did not fail.
async fn merge_on_failing_disk(executor: Rc<Executor>) -> bool {
    let bench = Bench::new(&executor).await;
    bench.write(0, 1, CLUSTER).await;
    format(bench.disks.get(1).unwrap()).await;
    format(bench.disks.get(2).unwrap()).await;
    bench.ploop.snapshot(source(&bench.disks, 1)).await.unwrap();
    bench.write(CLUSTER, 2, CLUSTER).await;
    bench.ploop.snapshot(source(&bench.disks, 2)).await.unwrap();
    let base = bench.disks.first().unwrap();
    base.set_faults(FaultRates::write_errors(3));
    let merged = bench.ploop.merge_lower(1, Direction::Backward).await;
    base.set_faults(FaultRates::default());
    if merged.is_ok() {
        return false;
    }
    bench.ploop.merge().await.unwrap();
    let discarded = bench
        .io(IoKind::Discard, CLUSTER, Vec::new(), CLUSTER)
        .await;
    discarded.0.unwrap();
    bench.ploop.close().await.unwrap();
    let lower = Lower {
        source: source(&bench.disks, 0),
        raw: false,
    };
    let config = PloopConfig {
        may_be_in_use: true,
        ..PloopConfig::new("again")
    };
    let top = source(&bench.disks, 2);
    let ploop = Ploop::open(config, executor.clone(), top, vec![lower]).await;
    let ploop = ploop.unwrap();
    let cores = Cores::new(&executor, 2, &bench.disks, &ploop.owner_queue());
    let disks = bench.disks.clone();
    let again = Bench {
        disks,
        ploop,
        cores,
    };
    assert_eq!(again.read(0, 1).await, [1]);
    assert_eq!(again.read(CLUSTER, 1).await, [0]);
    true
}

/// What a merge that failed has copied into an older delta does not show through when the newer one has left
/// by another merge and the cluster is discarded.
#[test]
fn a_merge_that_failed_halfway() {
    let mut failed = 0;
    for seed in 1..=40 {
        let executor = Executor::new(seed);
        let ended = executor.run(merge_on_failing_disk(executor.clone()), 1_000_000);
        assert!(ended.is_some(), "seed {seed} has no end");
        failed += u64::from(ended == Some(true));
    }
    assert!(failed > 5, "{failed}");
}

fn errno<T: std::fmt::Debug>(result: Result<T, PloopError>) -> Errno {
    result.unwrap_err().errno()
}

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

/// The errnos of the original's messages, where there is nothing to do for them (ploop.md, Messages).
#[test]
fn refusals() {
    run(async |executor| {
        let bench = Bench::new(&executor).await;
        let ploop = &bench.ploop;
        assert_eq!(errno(ploop.merge().await), Errno::ENOENT);
        assert_eq!(
            errno(ploop.notify_merged(0, Direction::Forward).await),
            Errno::ENOENT
        );
        assert_eq!(errno(ploop.update_delta_index(0, &[]).await), Errno::ENOENT);
        let lower = |raw| Lower {
            source: source(&bench.disks, 1),
            raw,
        };
        assert_eq!(errno(ploop.add_delta(lower(true)).await), Errno::EBUSY);
        assert_eq!(errno(ploop.flip_upper_deltas().await), Errno::EBUSY);
        let size = NR_CLUSTERS * CLUSTER;
        for wrong in [size - CLUSTER, size + 1, 0] {
            assert_eq!(errno(ploop.resize(wrong).await), Errno::EINVAL);
        }
        assert_eq!(ploop.resize(size).await, Ok(()));
        assert_eq!(errno(ploop.set_noresume(false)), Errno::EBUSY);
        ploop.set_noresume(true).unwrap();
        ploop.suspend().await.unwrap();
        assert_eq!(errno(ploop.resume()), Errno::EBUSY);
        assert_eq!(errno(ploop.flip_upper_deltas().await), Errno::ENOENT);
        ploop.set_noresume(false).unwrap();
        ploop.add_delta(lower(true)).await.unwrap();
        assert_eq!(
            errno(ploop.add_delta(lower(true)).await),
            Errno::EINVAL,
            "raw on another"
        );
        ploop.resume().unwrap();
        assert_eq!(
            errno(ploop.notify_merged(0, Direction::Forward).await),
            Errno::EINVAL
        );
        assert_eq!(
            errno(ploop.notify_merged(0, Direction::Backward).await),
            Errno::EINVAL
        );
        assert_eq!(
            bench.read(0, 2).await,
            [1 << 60, (1 << 60) + 1],
            "the raw base shows"
        );
        // Maintenance.
        assert_eq!(errno(ploop.tracking_get_next(1).await), Errno::ENOENT);
        assert_eq!(errno(ploop.tracking_stop()), Errno::ENOENT);
        ploop.tracking_start().unwrap();
        assert_eq!(errno(ploop.tracking_start()), Errno::EEXIST);
        assert_eq!(errno(ploop.merge().await), Errno::EBUSY);
        assert_eq!(errno(ploop.resize(size + CLUSTER).await), Errno::EBUSY);
        assert_eq!(
            errno(ploop.push_backup_start(uuid("a"), Of::All, None).await),
            Errno::EBUSY
        );
        assert_eq!(
            ploop.tracking_get_next(9).await,
            Ok(vec![0]),
            "header and BAT"
        );
        assert_eq!(errno(ploop.tracking_get_next(9).await), Errno::EAGAIN);
        ploop.tracking_stop().unwrap();
        assert_eq!(errno(ploop.push_backup_get_uuid()), Errno::EBADF);
        assert_eq!(errno(ploop.push_backup_read(&uuid("a"), 1)), Errno::EBADF);
        assert_eq!(errno(ploop.push_backup_stop(&uuid("a"))), Errno::ENOENT);
        let beyond = 3..NR_CLUSTERS + 1;
        let started =
            ploop.push_backup_start(uuid("a"), Of::Clusters(std::slice::from_ref(&beyond)), None);
        assert_eq!(errno(started.await), Errno::E2BIG);
        ploop
            .push_backup_start(uuid("a"), Of::All, None)
            .await
            .unwrap();
        assert_eq!(ploop.push_backup_get_uuid(), Ok(uuid("a")));
        assert_eq!(
            errno(ploop.push_backup_start(uuid("b"), Of::All, None).await),
            Errno::EEXIST
        );
        assert_eq!(errno(ploop.push_backup_read(&uuid("b"), 1)), Errno::EINVAL);
        assert_eq!(errno(ploop.push_backup_read(&uuid("a"), 1)), Errno::ENOENT);
        assert_eq!(
            errno(ploop.push_backup_write(&uuid("a"), beyond)),
            Errno::E2BIG
        );
        assert_eq!(
            errno(ploop.snapshot(source(&bench.disks, 2)).await),
            Errno::EBUSY
        );
        ploop.push_backup_stop(&uuid("a")).unwrap();
        assert!("x".repeat(40).parse::<Uuid>().is_err());
    });
}

/// A held write is not held for ever: the backup expires, the write goes on, and the backup says so.
#[test]
fn backups_expire() {
    run(async |executor| {
        let bench = Bench::new(&executor).await;
        bench.write(0, 7, 8).await;
        let timeout = Some(Duration::from_secs(5));
        let (ploop, a) = (&bench.ploop, uuid("a"));
        ploop
            .push_backup_start(a.clone(), Of::All, timeout)
            .await
            .unwrap();
        let began = executor.now();
        bench.write(0, 8, 1).await;
        assert!(
            executor.now() - began >= Duration::from_secs(5),
            "it was not held"
        );
        assert_eq!(errno(ploop.push_backup_read(&a, 1)), Errno::ESTALE);
        assert_eq!(errno(ploop.push_backup_write(&a, 0..1)), Errno::ESTALE);
        assert!(ploop.status().backup.unwrap().expired);
        ploop.push_backup_stop(&a).unwrap();
        // Of clusters that are not listed, writes are not held.
        ploop
            .push_backup_start(
                a.clone(),
                Of::Clusters(std::slice::from_ref(&(2..3))),
                timeout,
            )
            .await
            .unwrap();
        let began = executor.now();
        bench.write(0, 9, 1).await;
        assert!(executor.now() - began < Duration::from_secs(1));
        // Of those that are, until they are read.
        let done = Rc::new(Cell::new(false));
        let (flag, cores, dev) = (done.clone(), bench.cores.clone(), ploop.dev().clone());
        executor.spawn(Box::pin(async move {
            let request = Request {
                kind: IoKind::Write,
                offset_blocks: 16,
                nr_blocks: 1,
            };
            cores.io(0, &dev, request, vec![5]).await.0.unwrap();
            flag.set(true);
        }));
        executor.pass(Duration::from_secs(1)).await;
        assert_eq!(ploop.push_backup_read(&a, 9), Ok(vec![2]));
        assert_eq!(
            errno(ploop.push_backup_read(&a, 9)),
            Errno::ENOENT,
            "told once"
        );
        assert_eq!((bench.read(16, 1).await, done.get()), (vec![0], false));
        assert_eq!(ploop.status().backup.unwrap().held_writes, 1);
        ploop.push_backup_write(&a, 2..3).unwrap();
        executor.pass(Duration::from_secs(1)).await;
        assert_eq!((bench.read(16, 1).await, done.get()), (vec![5], true));
        assert_eq!(ploop.status().backup.unwrap().remaining_clusters, 0);
    });
}

/// Discarded clusters are used again, the lowest first; an older delta does not show through.
#[test]
fn holes_are_used_again() {
    run(async |executor| {
        let bench = Bench::new(&executor).await;
        for cluster in 0..4 {
            bench.write(cluster * CLUSTER, cluster + 1, CLUSTER).await;
        }
        let used = bench.ploop.status().used_clusters;
        bench
            .io(IoKind::Discard, CLUSTER, Vec::new(), 2 * CLUSTER)
            .await
            .0
            .unwrap();
        assert_eq!(bench.ploop.status().used_clusters, used - 2);
        assert_eq!(bench.read(CLUSTER, 1).await, [0]);
        bench.write(5 * CLUSTER, 9, 1).await;
        let top = bench.disks.first().unwrap();
        let data = CLUSTER; // Header and BAT are the first cluster.
        assert_eq!(top.read_values(data + CLUSTER, 2).await.unwrap(), [9, 0]);
        format(bench.disks.get(1).unwrap()).await;
        bench.ploop.snapshot(source(&bench.disks, 1)).await.unwrap();
        bench.write(0, 3, 1).await;
        for kind in [IoKind::Discard, IoKind::WriteZeroes] {
            bench.io(kind, 0, Vec::new(), CLUSTER).await.0.unwrap();
            assert_eq!(
                bench.read(0, CLUSTER).await,
                [0; CLUSTER as usize],
                "{kind:?}"
            );
        }
        // What only the older one has is zeroed only if it must be.
        bench
            .io(IoKind::WriteZeroes, 3 * CLUSTER, Vec::new(), CLUSTER)
            .await
            .0
            .unwrap();
        assert_eq!(bench.read(3 * CLUSTER, 1).await, [0]);
    });
}

/// An image that was not closed is refused unless it may be; a closed one says so, one with an extension
/// that its bitmaps may be out of date.
#[test]
fn the_mark() {
    run(async |executor| {
        let bench = Bench::new(&executor).await;
        let disks = bench.disks.clone();
        let again = Bench::over(&executor, disks.clone(), Vec::new()).await;
        assert_eq!(again.err().map(|error| error.errno()), Some(Errno::EBUSY));
        bench.ploop.close().await.unwrap();
        bench.cores.leave();
        let mut bytes = [0; 512];
        let disk = disks.first().unwrap();
        disk.read_bytes(0, &mut bytes).await.unwrap();
        let header = Header::decode(bytes.first_chunk().unwrap(), 400).unwrap();
        assert_eq!(header.in_use, InUse::Closed);
        assert_eq!(errno(bench.ploop.suspend().await), Errno::ENODEV);
        let again = Bench::over(&executor, disks, Vec::new()).await.unwrap();
        again.write(0, 1, 1).await;
    });
}

/// A flush is answered only when the BAT on the disk is known: one whose write has failed is written again.
#[test]
fn a_failed_bat_write_holds_flushes() {
    run(async |executor| {
        let bench = Bench::new(&executor).await;
        bench.write(0, 7, CLUSTER).await;
        let top = bench.disks.first().unwrap();
        top.set_faults(FaultRates {
            write_error: 1,
            ..FaultRates::default()
        });
        let discarded = bench.io(IoKind::Discard, 0, Vec::new(), CLUSTER).await.0;
        assert_eq!(discarded, Err(Errno::EIO));
        assert!(bench.ploop.status().bat_unsure);
        assert_eq!(
            bench.io(IoKind::Flush, 0, Vec::new(), 0).await.0,
            Err(Errno::EIO)
        );
        top.set_faults(FaultRates::default());
        assert_eq!(bench.io(IoKind::Flush, 0, Vec::new(), 0).await.0, Ok(()));
        assert!(!bench.ploop.status().bat_unsure);
        assert_eq!(bench.read(0, 1).await, [7]);
    });
}
