//! The metadata of a pool when its device fails, fills up, or crashes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::thin::metadata::dump::DumpedDevice;
use bdev::thin::metadata::{ThinError, ThinMetadata};
use futures::executor::block_on;
use persistent_data::memory::MemoryDevice;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::process::Command;
use std::rc::Rc;

mod thin_metadata_tools;
use thin_metadata_tools::pool::{open, sample, write};
use thin_metadata_tools::{Temp, run};

type Dump = BTreeMap<u32, DumpedDevice>;

#[derive(Debug, Clone)]
enum Step {
    Create(u32),
    Snap(u32, u32),
    Delete(u32),
    Write(u32, u64, u64),
    Discard(u32, u64, u64),
    Reserve,
    Release,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..4u32;
    prop_oneof![
        1 => id.clone().prop_map(Step::Create),
        2 => (id.clone(), id.clone()).prop_map(|(a, b)| Step::Snap(a, b)),
        1 => id.clone().prop_map(Step::Delete),
        6 => (id.clone(), 0..20_000u64, 1..400u64).prop_map(|(id, at, n)| Step::Write(id, at, n)),
        3 => (id.clone(), 0..20_000u64, 1..4000u64).prop_map(|(id, at, n)| Step::Discard(id, at, n)),
        1 => Just(Step::Reserve),
        1 => Just(Step::Release),
        3 => Just(Step::Commit),
    ]
}

async fn apply(metadata: &mut ThinMetadata, step: &Step) -> Result<(), ThinError> {
    let result = match *step {
        Step::Create(id) => metadata.create_thin(id).await,
        Step::Snap(id, origin) => metadata.create_snap(id, origin).await,
        Step::Delete(id) => metadata.delete(id).await,
        Step::Write(id, at, n) => write(metadata, id, at..at + n).await,
        Step::Discard(id, at, n) => metadata.remove_range(id, at, at + n).await.map(|_| ()),
        Step::Reserve => metadata.reserve_metadata_snap().await,
        Step::Release => metadata.release_metadata_snap().await,
        Step::Commit => Ok(()),
    };
    match result {
        Err(error) if error.is_refusal() || error.is_no_data_space() => Ok(()),
        result => result,
    }
}

/// Runs steps until one fails. Returns the states that may be on the disk then.
async fn run_until_failure(metadata: &mut ThinMetadata, steps: &[Step]) -> Vec<Dump> {
    let mut committed = metadata.dump().await.unwrap();
    for step in steps {
        let commits = matches!(step, Step::Commit | Step::Reserve | Step::Release);
        if commits {
            let Ok(wanted) = metadata.dump().await else {
                return vec![committed];
            };
            if metadata.commit().await.is_err() {
                return vec![committed, wanted];
            }
            committed = wanted;
        }
        if apply(metadata, step).await.is_err() {
            return vec![committed];
        }
        if commits && metadata.commit().await.is_err() {
            return vec![committed];
        }
    }
    vec![committed]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// A device that fails at any write or flush, and a crash that keeps any of the unflushed blocks:
    /// what is found is a committed state, with every count right.
    #[test]
    fn a_crash_shows_a_committed_state(
        steps in prop::collection::vec(step(), 10..60), fail_after in 0..600u64, survivors: u64,
    ) {
        block_on(async {
            let (device, mut metadata) = sample(1500).await;
            device.fail_after(Some(fail_after));
            let allowed = run_until_failure(&mut metadata, &steps).await;
            drop(metadata);
            let survives = |nr: u64| (survivors.rotate_left((nr % 64) as u32) ^ nr).count_ones().is_multiple_of(2);
            let crashed = Rc::new(MemoryDevice::from_blocks(device.after_crash(survives)));
            let mut metadata = open(&crashed).await;
            prop_assert_eq!(metadata.check().await.unwrap(), []);
            let found = metadata.dump().await.unwrap();
            prop_assert!(allowed.contains(&found));
            // It goes on from there.
            apply(&mut metadata, &Step::Discard(1, 0, 60)).await.unwrap();
            metadata.commit().await.unwrap();
            prop_assert_eq!(metadata.check().await.unwrap(), []);
            Ok(())
        })?;
    }

    /// After a failure nothing of the transaction can be committed; abort goes back to the last
    /// commit, and the need for a check is recorded durably.
    #[test]
    fn abort_goes_back(steps in prop::collection::vec(step(), 10..60), fail_after in 0..600u64) {
        block_on(async {
            let (device, mut metadata) = sample(1500).await;
            device.fail_after(Some(fail_after));
            let allowed = run_until_failure(&mut metadata, &steps).await;
            device.fail_after(None);
            metadata.abort().await.unwrap();
            metadata.set_needs_check().await.unwrap();
            prop_assert!(!metadata.changed());
            prop_assert!(allowed.contains(&metadata.dump().await.unwrap()));
            prop_assert_eq!(metadata.check().await.unwrap(), []);
            let crashed = Rc::new(MemoryDevice::from_blocks(device.after_crash(|_| false)));
            let mut again = open(&crashed).await;
            prop_assert!(again.needs_check());
            prop_assert_eq!(again.dump().await.unwrap(), metadata.dump().await.unwrap());
            Ok(())
        })?;
    }
}

/// A change that failed halfway is not committed by whoever forgets to abort.
#[test]
fn a_half_done_change_is_never_committed() {
    block_on(async {
        let (device, mut metadata) = sample(1500).await;
        write(&mut metadata, 1, 200..210).await.unwrap();
        device.fail_after(Some(1));
        assert_eq!(metadata.commit().await.unwrap_err().errno().0, 5);
        device.fail_after(None);
        device.take_events();
        assert_eq!(metadata.commit().await, Err(ThinError::Unusable));
        assert_eq!(metadata.create_thin(7).await, Err(ThinError::Unusable));
        assert_eq!(device.take_events(), []);
    });
}

/// needs_check can be recorded beside uncommitted changes without publishing any of them; the tool
/// clears it.
#[test]
fn needs_check_publishes_nothing_else() {
    block_on(async {
        let (device, mut metadata) = sample(1500).await;
        let committed = metadata.dump().await.unwrap();
        write(&mut metadata, 2, 300..400).await.unwrap();
        metadata.create_thin(9).await.unwrap();
        metadata.set_needs_check().await.unwrap();
        let crashed = Rc::new(MemoryDevice::from_blocks(device.after_crash(|_| false)));
        let mut again = open(&crashed).await;
        assert!(again.needs_check());
        assert_eq!(again.dump().await.unwrap(), committed);
        assert_eq!(again.check().await.unwrap(), []);
        let file = Temp::with_blocks("needs-check", &crashed);
        run(Command::new("thin_check")
            .arg("--clear-needs-check-flag")
            .arg(&file.0));
        assert!(!open(&file.to_device()).await.needs_check());
    });
}

/// Metadata that runs out of blocks says so as ENOSPC of metadata, and the last commit survives.
#[test]
fn running_out_of_metadata_is_survived() {
    block_on(async {
        let (_, mut metadata) = sample(48).await;
        let committed = metadata.dump().await.unwrap();
        let error = async {
            for block in 0.. {
                write(&mut metadata, 1, 1000 + block * 7..1001 + block * 7).await?;
            }
            Ok::<(), ThinError>(())
        }
        .await
        .unwrap_err();
        assert_eq!(error.errno().0, 28, "{error}");
        metadata.abort().await.unwrap();
        assert_eq!(metadata.dump().await.unwrap(), committed);
        assert_eq!(metadata.check().await.unwrap(), []);
    });
}
