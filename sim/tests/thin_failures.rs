//! What a thin pool does when its disks fail or fill up: mode, status, errno, and what is there after it
//! has been opened again. Each situation on several seeds, so in several orders of completions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::errno::Errno;
use bdev::runtime::Runtime;
use bdev::target::IoKind;
use bdev::thin::{PoolConfig, PoolError, PoolEvent, PoolMode};
use sim::executor::Executor;
use sim::faults::FaultRates;
use std::rc::Rc;
use std::time::Duration;

mod pool_lab;
use pool_lab::{
    Disks, FLUSH_ERRORS, Lab, NO_FAULTS, PER, READ_ERRORS, WRITE_ERRORS, config, on_seeds,
};

/// A device whose blocks 0 and 1 are written and flushed.
async fn with_two_blocks(executor: &Rc<Executor>, config: PoolConfig) -> Lab {
    let lab = Disks::new(executor, 256, 32).open(config).await;
    lab.write(0, 10).await.unwrap();
    lab.write(1, 11).await.unwrap();
    lab.flush().await.unwrap();
    lab
}

/// After a rollback that was recorded: read-only, needs_check, reads and writes in place go on, and all
/// else is refused. Opened again it is read-only until the check, and then writable, with all that was
/// flushed.
async fn read_only_and_back(lab: Lab, flushed: Result<(), Errno>) {
    assert_eq!(lab.status().await, (PoolMode::ReadOnly, true, 2));
    assert_eq!(*lab.events.borrow(), [PoolEvent::Mode(PoolMode::ReadOnly)]);
    assert_eq!(lab.read(0).await, Ok(10));
    assert_eq!(lab.read(9).await, Ok(0), "the lost write is not seen");
    assert_eq!(lab.write(1, 21).await, Ok(()));
    assert_eq!(lab.write(9, 29).await, Err(Errno::EIO));
    assert_eq!(lab.discard(0, 1).await, Ok(()));
    assert_eq!(lab.read(0).await, Ok(10), "a discard does nothing");
    assert_eq!(lab.flush().await, flushed, "an error if a write was lost");
    assert_eq!(lab.message_errno().await, Some(Errno::EOPNOTSUPP));
    let disks = lab.drop_pool().await;
    disks.data.flush_all().await.unwrap();

    let lab = disks.open(config()).await;
    assert_eq!(lab.status().await, (PoolMode::ReadOnly, true, 2));
    assert_eq!((lab.read(0).await, lab.read(1).await), (Ok(10), Ok(21)));
    assert_eq!(lab.write(9, 29).await, Err(Errno::EIO));
    assert_eq!(lab.flush().await, Ok(()), "nothing of this one was lost");
    assert_eq!(lab.message_errno().await, Some(Errno::EOPNOTSUPP));
    let disks = lab.drop_pool().await;
    assert!(disks.check_after_power_cut().await, "the mark is durable");

    let lab = disks.open(config()).await;
    assert_eq!(lab.status().await, (PoolMode::Write, false, 2));
    assert_eq!(lab.write(9, 39).await, Ok(()));
    assert_eq!(lab.flush().await, Ok(()));
    assert_eq!(lab.read(9).await, Ok(39));
    let disks = lab.drop_pool().await;
    assert!(!disks.check_after_power_cut().await);
}

/// After a failure that could not be recorded: everything fails. Opened again, it is the last commit.
async fn failed_and_back(lab: Lab) {
    assert_eq!(lab.mode(), PoolMode::Fail);
    assert_eq!(lab.status().await.0, PoolMode::Fail);
    let seen = lab.events.borrow().clone();
    let expected = [PoolMode::ReadOnly, PoolMode::Fail].map(PoolEvent::Mode);
    assert_eq!(seen, expected);
    assert_eq!(lab.read(0).await, Err(Errno::EIO));
    assert_eq!(lab.write(0, 1).await, Err(Errno::EIO));
    assert_eq!(lab.discard(0, 1).await, Err(Errno::EIO));
    assert_eq!(lab.flush().await, Err(Errno::EIO));
    assert_eq!(lab.message_errno().await, Some(Errno::EOPNOTSUPP));
    let disks = lab.drop_pool().await;
    // The write of the mark may have reached the disk, although it said that it failed.
    let _ = disks.check_after_power_cut().await;
    let lab = disks.open(config()).await;
    assert_eq!(lab.status().await, (PoolMode::Write, false, 2));
    assert_eq!((lab.read(0).await, lab.read(1).await), (Ok(10), Ok(11)));
    assert_eq!(lab.write(9, 39).await, Ok(()));
    assert_eq!(lab.flush().await, Ok(()));
}

/// Fails a commit: it finds the faults, and then those stay, or are over when the rollback begins.
async fn fail_a_commit(lab: &Lab, faults: FaultRates, lasting: bool) {
    lab.write(9, 19).await.unwrap();
    lab.disks.metadata.set_faults(faults);
    if !lasting {
        lab.heal_metadata_at_the_next_event();
    }
    assert_eq!(lab.flush().await, Err(Errno::EIO));
}

/// A commit whose metadata writes fail once.
#[test]
fn a_failed_metadata_write_is_rolled_back() {
    on_seeds(|executor| async move {
        let lab = with_two_blocks(&executor, config()).await;
        fail_a_commit(&lab, WRITE_ERRORS, false).await;
        read_only_and_back(lab, Err(Errno::EIO)).await;
    });
}

/// A commit whose flush of the metadata fails once.
#[test]
fn a_failed_metadata_flush_is_rolled_back() {
    on_seeds(|executor| async move {
        let lab = with_two_blocks(&executor, config()).await;
        fail_a_commit(&lab, FLUSH_ERRORS, false).await;
        read_only_and_back(lab, Err(Errno::EIO)).await;
    });
}

/// Metadata that cannot be written at all: not even needs_check can be recorded.
#[test]
fn lasting_metadata_write_errors_fail_the_pool() {
    on_seeds(|executor| async move {
        let lab = with_two_blocks(&executor, config()).await;
        fail_a_commit(&lab, WRITE_ERRORS, true).await;
        failed_and_back(lab).await;
    });
}

/// The periodic commit fails, with nobody waiting for it: the pool is read-only all the same, and the
/// flush that comes later says that writes were lost.
#[test]
fn a_failed_periodic_commit_is_told_to_the_next_flush() {
    on_seeds(|executor| async move {
        let lab = with_two_blocks(&executor, config()).await;
        lab.write(9, 19).await.unwrap();
        lab.disks.metadata.set_faults(WRITE_ERRORS);
        lab.heal_metadata_at_the_next_event();
        lab.until(PoolMode::ReadOnly).await;
        read_only_and_back(lab, Err(Errno::EIO)).await;
    });
}

/// Mappings that cannot be read fail the I/O that needs them, and nothing else: no mode changes, and when
/// the disk is well again, so is the pool.
#[test]
fn metadata_read_errors_fail_the_io() {
    on_seeds(|executor| async move {
        let disks = with_two_blocks(&executor, config()).await.drop_pool().await;
        let lab = disks.open(config()).await;
        lab.disks.metadata.set_faults(READ_ERRORS);
        assert_eq!(lab.read(0).await, Err(Errno::EIO));
        assert_eq!(lab.write(0, 1).await, Err(Errno::EIO));
        assert_eq!(lab.mode(), PoolMode::Write);
        lab.disks.metadata.set_faults(NO_FAULTS);
        assert_eq!(lab.status().await, (PoolMode::Write, false, 2));
        assert_eq!((lab.read(0).await, lab.read(1).await), (Ok(10), Ok(11)));
        assert_eq!(*lab.events.borrow(), []);
        let disks = lab.drop_pool().await;
        assert!(!disks.check_after_power_cut().await);
    });
}

/// A change that meets a read error is rolled back, as any metadata operation that fails; if the
/// superblock cannot be read either, the pool has failed.
#[test]
fn a_change_that_meets_metadata_read_errors() {
    for lasting in [false, true] {
        on_seeds(move |executor| async move {
            let lab = with_two_blocks(&executor, config()).await;
            // Opened anew: its mappings are loaded by the read, what is free is not known yet.
            let lab = lab.drop_pool().await.open(config()).await;
            assert_eq!(lab.read(9).await, Ok(0));
            lab.disks.metadata.set_faults(READ_ERRORS);
            if !lasting {
                lab.heal_metadata_at_the_next_event();
            }
            assert_eq!(lab.write(9, 19).await, Err(Errno::EIO));
            match lasting {
                true => failed_and_back(lab).await,
                false => read_only_and_back(lab, Ok(())).await,
            }
        });
    }
}

/// Data that cannot be read: the read fails, and so does a write that has to copy; nothing is leaked, no
/// mode changes.
#[test]
fn data_read_errors_fail_the_io() {
    on_seeds(|executor| async move {
        let lab = with_two_blocks(&executor, config()).await;
        lab.pool.create_snap(2, 1).await.unwrap();
        lab.disks.data.set_faults(READ_ERRORS);
        assert_eq!(lab.read(0).await, Err(Errno::EIO));
        assert_eq!(
            lab.write(0, 20).await,
            Err(Errno::EIO),
            "sharing cannot be broken"
        );
        assert_eq!(lab.write(9, 19).await, Ok(()), "nothing to read");
        assert_eq!(lab.flush().await, Ok(()));
        assert_eq!(lab.status().await, (PoolMode::Write, false, 3));
        lab.disks.data.set_faults(NO_FAULTS);
        assert_eq!(lab.read(0).await, Ok(10));
        assert_eq!(lab.write(0, 20).await, Ok(()));
        assert_eq!(lab.flush().await, Ok(()));
        assert_eq!(lab.status().await, (PoolMode::Write, false, 4));
        assert_eq!(*lab.events.borrow(), []);
        let disks = lab.drop_pool().await;
        assert!(!disks.check_after_power_cut().await);
    });
}

/// Data that cannot be written: in place, zeroed for a hole, or copied, the write fails; no block is
/// mapped or leaked for it, and no mode changes.
#[test]
fn data_write_errors_fail_the_io() {
    on_seeds(|executor| async move {
        let lab = with_two_blocks(&executor, config()).await;
        lab.disks.data.set_faults(WRITE_ERRORS);
        assert_eq!(lab.write(0, 20).await, Err(Errno::EIO));
        assert_eq!(lab.write(9, 19).await, Err(Errno::EIO));
        let whole = (0..PER).collect();
        let (result, _) = lab.io(IoKind::Write, 5 * PER, PER, whole).await;
        assert_eq!(result, Err(Errno::EIO), "a block overwritten as a whole");
        lab.pool.create_snap(2, 1).await.unwrap();
        assert_eq!(lab.write(1, 21).await, Err(Errno::EIO));
        assert_eq!(lab.flush().await, Ok(()));
        assert_eq!(lab.status().await, (PoolMode::Write, false, 2));
        lab.disks.data.set_faults(NO_FAULTS);
        assert_eq!((lab.read(1).await, lab.read(9).await), (Ok(11), Ok(0)));
        assert_eq!(lab.read(5).await, Ok(0));
        assert_eq!(lab.write(9, 19).await, Ok(()));
        assert_eq!(lab.flush().await, Ok(()));
        assert_eq!(lab.status().await, (PoolMode::Write, false, 3));
        assert_eq!(*lab.events.borrow(), []);
        let disks = lab.drop_pool().await;
        assert!(!disks.check_after_power_cut().await);
        let lab = disks.open(config()).await;
        assert_eq!((lab.read(1).await, lab.read(9).await), (Ok(11), Ok(19)));
    });
}

/// A flush of the data that fails may have lost it: the FLUSH fails, and all later ones; the pool goes back to
/// its last commit and is read-only until it is loaded again, without a check. A new block never shows what the
/// disk held there before.
#[test]
fn a_failed_data_flush_is_rolled_back() {
    on_seeds(|executor| async move {
        let lab = with_two_blocks(&executor, config()).await;
        lab.write(9, 19).await.unwrap();
        lab.disks.data.set_faults(FLUSH_ERRORS);
        if lab.disks.executor.one_in(2) {
            // A commit that nobody has asked for finds it.
            lab.disks.executor.pass(Duration::from_secs(5)).await;
        } else {
            assert_eq!(lab.flush().await, Err(Errno::EIO));
        }
        lab.disks.data.set_faults(NO_FAULTS);
        assert_eq!(lab.flush().await, Err(Errno::EIO));
        let seen = lab.events.borrow().clone();
        assert_eq!(seen, [PoolEvent::Mode(PoolMode::ReadOnly)]);
        assert_eq!(lab.status().await, (PoolMode::ReadOnly, false, 2));
        assert_eq!(lab.message_errno().await, Some(Errno::EOPNOTSUPP));
        assert_eq!((lab.read(0).await, lab.read(9).await), (Ok(10), Ok(0)));
        let disks = match lab.disks.executor.one_in(2) {
            true => lab.drop_pool().await,
            false => lab.disks.clone(),
        };
        assert!(!disks.check_after_power_cut().await);
        let lab = disks.open(config()).await;
        assert_eq!((lab.read(0).await, lab.read(9).await), (Ok(10), Ok(0)));
        assert_eq!(lab.write(9, 29).await, Ok(()));
        assert_eq!(lab.flush().await, Ok(()));
    });
}

/// The data disk vanishes: whatever needs it fails with its errno, holes still read, the metadata stay at
/// the last commit; with the disk back, what was flushed is there.
#[test]
fn a_vanished_data_disk() {
    on_seeds(|executor| async move {
        let lab = with_two_blocks(&executor, config()).await;
        lab.write(9, 19).await.unwrap();
        lab.disks.data.remove();
        let gone = Errno::ENODEV;
        assert_eq!(lab.read(0).await, Err(gone));
        assert_eq!(lab.read(20).await, Ok(0));
        assert_eq!(lab.write(0, 20).await, Err(gone));
        assert_eq!(lab.write(8, 18).await, Err(gone));
        assert_eq!(lab.flush().await, Err(gone));
        assert_eq!(lab.message_errno().await, Some(gone));
        assert_eq!(lab.mode(), PoolMode::Write);
        let disks = lab.disks.clone();
        assert!(
            lab.pool.deactivate(1).await.is_err(),
            "an uncommitted write is lost"
        );
        assert!(lab.pool.close().await.is_err());
        lab.cores.leave();
        assert!(!disks.check_after_power_cut().await);
        let lab = disks.open(config()).await;
        assert_eq!((lab.read(0).await, lab.read(1).await), (Ok(10), Ok(11)));
        assert_eq!(lab.read(9).await, Ok(0));
    });
}

/// The metadata disk vanishes: the pool fails as soon as something needs it.
#[test]
fn a_vanished_metadata_disk() {
    on_seeds(|executor| async move {
        let lab = with_two_blocks(&executor, config()).await;
        lab.write(9, 19).await.unwrap();
        lab.disks.metadata.remove();
        assert_eq!(lab.read(0).await, Ok(10), "its mapping is in core");
        assert_eq!(lab.flush().await, Err(Errno::EIO));
        failed_and_back(lab).await;
    });
}

/// Fills the pool's 32 data blocks.
async fn fill(executor: &Rc<Executor>, config: PoolConfig) -> Lab {
    let lab = with_two_blocks(executor, config).await;
    for block in 2..32 {
        lab.write(block, 100 + block).await.unwrap();
    }
    assert_eq!(lab.status().await, (PoolMode::Write, false, 32));
    lab
}

/// No data space, with error_if_no_space: ENOSPC at once, everything else goes on; a discard ends it.
#[test]
fn no_data_space_errors() {
    on_seeds(|executor| async move {
        let errors = PoolConfig {
            error_if_no_space: true,
            ..config()
        };
        let lab = fill(&executor, errors.clone()).await;
        let before = lab.disks.executor.now();
        assert_eq!(lab.write(40, 1).await, Err(Errno::ENOSPC));
        assert!(lab.disks.executor.now() - before < errors.no_space_timeout);
        assert_eq!(lab.status().await, (PoolMode::OutOfDataSpace, false, 32));
        assert_eq!(lab.write(5, 55).await, Ok(()));
        assert_eq!((lab.read(5).await, lab.read(40).await), (Ok(55), Ok(0)));
        assert_eq!(lab.flush().await, Ok(()));
        assert_eq!(lab.message_errno().await, None, "messages work");
        // Opened again it is full still, which the next write finds.
        let disks = lab.drop_pool().await;
        let lab = disks.open(errors).await;
        assert_eq!(lab.status().await, (PoolMode::Write, false, 32));
        assert_eq!(lab.write(40, 1).await, Err(Errno::ENOSPC));
        assert_eq!(lab.mode(), PoolMode::OutOfDataSpace);
        assert_eq!(lab.discard(10, 2).await, Ok(()));
        assert_eq!(lab.flush().await, Ok(()));
        lab.until(PoolMode::Write).await;
        assert_eq!(lab.write(40, 1).await, Ok(()));
        assert_eq!(lab.status().await, (PoolMode::Write, false, 31));
        let modes = [PoolMode::OutOfDataSpace, PoolMode::Write].map(PoolEvent::Mode);
        let seen: Vec<_> = lab.events.borrow().clone();
        let seen: Vec<_> = seen
            .into_iter()
            .filter(|e| matches!(e, PoolEvent::Mode(_)))
            .collect();
        assert_eq!(seen, modes);
        let disks = lab.drop_pool().await;
        assert!(!disks.check_after_power_cut().await);
    });
}

/// No data space, and the write waits: it goes on when there is space, or fails with ENOSPC when it has
/// waited for the time set; from then on writes fail at once, until there is space.
#[test]
fn no_data_space_queues() {
    on_seeds(|executor| async move {
        let lab = fill(&executor, config()).await;
        let waiting = lab.write(40, 1);
        let rescue = async {
            lab.until(PoolMode::OutOfDataSpace).await;
            lab.disks.executor.pass(Duration::from_secs(30)).await;
            assert_eq!(lab.discard(10, 1).await, Ok(()));
            assert_eq!(lab.flush().await, Ok(()));
        };
        let (written, ()) = futures::join!(waiting, rescue);
        assert_eq!(written, Ok(()));
        assert_eq!(lab.status().await, (PoolMode::Write, false, 32));

        let before = lab.disks.executor.now();
        assert_eq!(lab.write(41, 1).await, Err(Errno::ENOSPC));
        let waited = lab.disks.executor.now() - before;
        let limit = config().no_space_timeout;
        assert!(
            waited >= limit && waited < limit * 2,
            "simulated time: {waited:?}"
        );
        assert_eq!(lab.mode(), PoolMode::OutOfDataSpace);
        assert!(lab.events.borrow().contains(&PoolEvent::NoSpaceTimeout));
        assert!(lab.pool.status().await.unwrap().error_if_no_space);
        let before = lab.disks.executor.now();
        assert_eq!(lab.write(42, 1).await, Err(Errno::ENOSPC));
        assert!(lab.disks.executor.now() - before < limit);
        assert_eq!(lab.discard(20, 4).await, Ok(()));
        assert_eq!(lab.flush().await, Ok(()));
        lab.until(PoolMode::Write).await;
        assert!(!lab.pool.status().await.unwrap().error_if_no_space);
        assert_eq!(lab.write(42, 2).await, Ok(()));
        let disks = lab.drop_pool().await;
        assert!(!disks.check_after_power_cut().await);
    });
}

/// No metadata space: read-only without a check needed, writes to what is mapped go on; more metadata ends
/// it, online or when the pool is opened again.
#[test]
fn no_metadata_space() {
    on_seeds(|executor| async move {
        let lab = Disks::new(&executor, 64, 32).open(config()).await;
        lab.write(0, 10).await.unwrap();
        lab.flush().await.unwrap();
        let mut made = 0;
        let refused = loop {
            match lab.pool.create_thin(100 + made).await {
                Ok(()) => made += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, PoolError::Mode { .. }), "{refused}");
        assert_eq!(refused.errno(), Errno::EOPNOTSUPP);
        assert!(made > 5);
        assert_eq!(lab.status().await, (PoolMode::OutOfMetadataSpace, false, 1));
        let seen = lab.events.borrow().clone();
        let [PoolEvent::LowMetadata { free_blocks }, PoolEvent::Mode(_)] = seen[..] else {
            panic!("{seen:?}");
        };
        assert!(
            free_blocks > 6 && free_blocks <= 16,
            "a quarter is left, once: {free_blocks}"
        );
        assert_eq!(lab.read(0).await, Ok(10));
        assert_eq!(lab.write(0, 20).await, Ok(()));
        assert_eq!(lab.write(9, 19).await, Err(Errno::EIO));
        assert_eq!(lab.discard(0, 1).await, Ok(()));
        assert_eq!(lab.read(0).await, Ok(20));
        assert_eq!(lab.flush().await, Ok(()));
        let lab = if lab.disks.executor.one_in(2) {
            lab.disks.metadata.grow(64, 0);
            lab.pool.grow().await.unwrap();
            lab
        } else {
            let disks = lab.drop_pool().await;
            assert!(!disks.check_after_power_cut().await);
            disks.metadata.grow(64, 0);
            disks.open(config()).await
        };
        assert_eq!(lab.status().await, (PoolMode::Write, false, 1));
        assert_eq!(lab.pool.list().await.unwrap().len() as u32, made + 1);
        assert_eq!(lab.write(9, 19).await, Ok(()));
        assert_eq!(
            lab.pool.create_thin(999).await.map_err(|e| e.to_string()),
            Ok(())
        );
        let disks = lab.drop_pool().await;
        assert!(!disks.check_after_power_cut().await);
    });
}
