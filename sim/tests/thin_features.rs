//! The features of a thin pool's table line, by what they change (thin.md 11.1).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::errno::Errno;
use bdev::target::IoKind;
use bdev::thin::{Pool, PoolConfig, PoolEvent, PoolMode};
use sim::disk::GARBAGE;
use std::time::Duration;

mod pool_lab;
use pool_lab::{Disks, PER, config, on_seeds};

/// skip_block_zeroing: the part of a new block that was not written to shows what was on the data disk;
/// without the feature it shows zeroes.
#[test]
fn skip_block_zeroing() {
    for skip_block_zeroing in [false, true] {
        on_seeds(move |executor| async move {
            let config = PoolConfig {
                skip_block_zeroing,
                ..config()
            };
            let lab = Disks::new(&executor, 256, 32).open(config).await;
            lab.write(3, 30).await.unwrap();
            let (result, found) = lab.io(IoKind::Read, 3 * PER, PER, Vec::new()).await;
            assert_eq!((result, found[0]), (Ok(()), 30));
            let stale = found[1..].iter().all(|value| *value >= 1 << 60);
            let zeroes = found[1..].iter().all(|value| *value == 0);
            assert_eq!((stale, zeroes), (skip_block_zeroing, !skip_block_zeroing));
        });
    }
}

/// Discards reach the data disk once they are committed, unless no_discard_passdown; either way the
/// block is free and reads as zeroes.
#[test]
fn no_discard_passdown() {
    for no_discard_passdown in [false, true] {
        on_seeds(move |executor| async move {
            let config = PoolConfig {
                no_discard_passdown,
                ..config()
            };
            let lab = Disks::new(&executor, 256, 32).open(config).await;
            lab.write(0, 10).await.unwrap();
            lab.flush().await.unwrap();
            assert_eq!(lab.disks.data.read_values(0, 1).await, Ok(vec![10]));
            lab.discard(0, 1).await.unwrap();
            lab.flush().await.unwrap();
            lab.disks.executor.pass(Duration::from_secs(2)).await;
            let left = lab.disks.data.read_values(0, 1).await.unwrap();
            assert_eq!(left, [if no_discard_passdown { 10 } else { GARBAGE }]);
            assert_eq!(lab.read(0).await, Ok(0));
            assert_eq!(lab.status().await, (PoolMode::Write, false, 0));
        });
    }
}

/// ignore_discard: a discard changes nothing. (A bdev over such a pool does not offer unmap at all.)
#[test]
fn ignore_discard() {
    on_seeds(|executor| async move {
        let config = PoolConfig {
            ignore_discard: true,
            ..config()
        };
        let lab = Disks::new(&executor, 256, 32).open(config).await;
        lab.write(0, 10).await.unwrap();
        lab.discard(0, 1).await.unwrap();
        lab.flush().await.unwrap();
        assert_eq!(lab.read(0).await, Ok(10));
        assert_eq!(lab.status().await, (PoolMode::Write, false, 1));
        assert_eq!(lab.disks.data.read_values(0, 1).await, Ok(vec![10]));
    });
}

/// A block that a snapshot still has is not discarded on the data disk.
#[test]
fn shared_blocks_are_not_passed_down() {
    on_seeds(|executor| async move {
        let lab = Disks::new(&executor, 256, 32).open(config()).await;
        lab.write(0, 10).await.unwrap();
        lab.write(1, 11).await.unwrap();
        lab.pool.create_snap(2, 1).await.unwrap();
        lab.write(1, 21).await.unwrap();
        lab.discard(0, 2).await.unwrap();
        lab.flush().await.unwrap();
        lab.disks.executor.pass(Duration::from_secs(2)).await;
        let mut left = Vec::new();
        for block in 0..3 {
            left.extend(lab.disks.data.read_values(block * PER, 1).await.unwrap());
        }
        assert_eq!(left, [10, 11, GARBAGE]);
        assert_eq!(lab.status().await, (PoolMode::Write, false, 2));
    });
}

/// read_only: nothing is formatted, mapped, discarded or committed, messages are refused, and not a block of
/// metadata changes; what is mapped is read, and written in place.
#[test]
fn read_only() {
    on_seeds(|executor| async move {
        let read_only = PoolConfig {
            read_only: true,
            ..config()
        };
        let disks = Disks::new(&executor, 256, 32);
        let (metadata, data) = (disks.metadata.clone(), disks.data.clone());
        let opened = Pool::open(read_only.clone(), executor.clone(), metadata, data, true).await;
        assert_eq!(opened.map(|_| ()).unwrap_err().errno(), Errno::EPERM);

        let lab = disks.open(config()).await;
        lab.write(0, 10).await.unwrap();
        let disks = lab.drop_pool().await;
        let before = disks.metadata.read_values(0, 256).await.unwrap();
        let lab = disks.open(read_only).await;
        assert_eq!(lab.status().await, (PoolMode::ReadOnly, false, 1));
        assert_eq!(lab.read(0).await, Ok(10));
        assert_eq!(lab.write(0, 20).await, Ok(()));
        assert_eq!(lab.write(1, 21).await, Err(Errno::EIO));
        assert_eq!(lab.discard(0, 1).await, Ok(()));
        assert_eq!(lab.read(0).await, Ok(20));
        assert_eq!(lab.flush().await, Ok(()));
        assert_eq!(lab.message_errno().await, Some(Errno::EOPNOTSUPP));
        let disks = lab.drop_pool().await;
        assert_eq!(disks.metadata.read_values(0, 256).await.unwrap(), before);
    });
}

/// The low water mark: one event when so few data blocks are left, and none again until the pool has grown.
#[test]
fn low_water_mark() {
    on_seeds(|executor| async move {
        let config = PoolConfig {
            low_water_mark_blocks: 5,
            ..config()
        };
        let lab = Disks::new(&executor, 256, 32).open(config).await;
        let low = |lab: &pool_lab::Lab| -> Vec<PoolEvent> {
            let seen = lab.events.borrow().clone();
            seen.into_iter()
                .filter(|e| matches!(e, PoolEvent::LowData { .. }))
                .collect()
        };
        for block in 0..26 {
            lab.write(block, 1).await.unwrap();
        }
        assert_eq!(low(&lab), []);
        assert!(!lab.pool.status().await.unwrap().low_data);
        for block in 26..30 {
            lab.write(block, 1).await.unwrap();
        }
        let event = PoolEvent::LowData { free_blocks: 5 };
        assert_eq!(low(&lab), [event]);
        assert!(lab.pool.status().await.unwrap().low_data);
        lab.disks.data.grow(10 * PER, 0);
        lab.pool.grow().await.unwrap();
        assert!(!lab.pool.status().await.unwrap().low_data);
        for block in 30..40 {
            lab.write(block, 1).await.unwrap();
        }
        assert_eq!(low(&lab), [event, event]);
    });
}
