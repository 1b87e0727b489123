//! Era metadata against a model, the strict checker, and the real tools of both generations.
//!
//! The tools are Debian's thin-provisioning-tools on PATH, and the strict 1.1 under
//! `SPDK_DM_STRICT_TOOLS` (both by `spdk-config/setup-tools`). Without them these tests fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::single_range_in_vec_init,
    reason = "a test fails by panicking; ranges are what blocks are listed as"
)]

use bdev::era::metadata::xml::Layout;
use bdev::era::metadata::{Step as Digested, View};
use futures::executor::block_on;
use persistent_data::memory::MemoryDevice;
use proptest::prelude::*;
use std::rc::Rc;

mod era_world;
mod thin_metadata_tools;
use era_world::{World, begin_era, open, step};
use thin_metadata_tools::{Temp, both, run};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Every block is reported since the era it was last written in and since none after, whatever is
    /// digested, held, resized, or given up; counts and structure are always right.
    #[test]
    fn eras_are_remembered(nr in 1..3000u64, steps in prop::collection::vec(step(), 1..30)) {
        block_on(async {
            let mut world = World::new(nr).await;
            for step in &steps {
                world.apply(step).await;
            }
            world.check().await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// era_check of both generations is content, era_dump prints what we dump, and era_invalidate lists
    /// what we list.
    #[test]
    fn the_tools_agree(nr in 1..3000u64, steps in prop::collection::vec(step(), 1..24)) {
        block_on(async {
            let mut world = World::new(nr).await;
            for step in &steps {
                world.apply(step).await;
            }
            world.check_with_tools().await;
        });
    }

    /// A device that fails, then a power cut: what was committed is there, or what was being committed.
    #[test]
    fn failures_keep_a_committed_state(
        nr in 1..3000u64,
        steps in prop::collection::vec(step(), 1..12),
        fail_after in 0..60u64,
        survivors: u64,
        recovered: bool,
    ) {
        block_on(async {
            let mut world = World::new(nr).await;
            for step in &steps {
                world.apply(step).await;
            }
            world.commit().await;
            let before = world.model.clone();
            world.device.fail_after(Some(fail_after));
            let result = async {
                world.metadata.mark(&[0..nr.min(world.metadata.nr_blocks())]).await?;
                world.metadata.rollover().await?;
                world.metadata.commit().await?;
                while world.metadata.digest_step().await? != Digested::Idle {}
                world.metadata.commit().await
            }
            .await;
            let mut after = before.clone();
            after.mark(&[0..nr.min(world.metadata.nr_blocks())]);
            after.era += 1;
            if recovered && result.is_err() {
                world.device.fail_after(None);
                assert!(!world.metadata.is_usable());
                world.metadata.recover().await.unwrap();
                // Work goes on, and must not have touched what a power cut brings back.
                let era = world.metadata.rollover().await.unwrap();
                for model in [&before, &after] {
                    if model.era + 1 == era {
                        let mut model = model.clone();
                        model.era = era;
                        world.compare(View::Live, &model).await;
                    }
                }
                world.device.fail_after(Some(survivors % 3));
                let _ = world.metadata.commit().await;
            }
            let mut seed = survivors;
            let left = world.device.after_crash(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                seed >> 63 == 1
            });
            let device = Rc::new(MemoryDevice::from_blocks(left));
            world.metadata = open(&device).await;
            prop_assert_eq!(world.metadata.check().await.unwrap(), []);
            let era = world.metadata.current_era();
            let mut found = if era == before.era { before } else { after };
            prop_assert!(era == found.era || (recovered && result.is_err()));
            if result.is_ok() {
                prop_assert_eq!(era, found.era);
            }
            found.era = era;
            world.compare(View::Live, &found).await;
            Ok(())
        })?;
    }

    /// What era_restore wrote can be opened and gone on with; what we restore, the tools read.
    #[test]
    fn restored_both_ways(nr in 1..2000u64, steps in prop::collection::vec(step(), 1..12)) {
        block_on(async {
            let mut world = World::new(nr).await;
            for step in &steps {
                world.apply(step).await;
            }
            world.check().await;
            world.metadata.archive().await.unwrap();
            world.commit().await;
            for (mut command, layout) in both("era_restore").into_iter().zip([Layout::V0, Layout::V1]) {
                let xml = Temp::new("era.xml");
                std::fs::write(&xml.0, world.dump(layout).await).unwrap();
                let file = Temp::with_blocks("era-restored", &MemoryDevice::new(2500));
                run(command.arg("-i").arg(&xml.0).arg("-o").arg(&file.0));
                let device = file.to_device();
                let mut metadata = open(&device).await;
                prop_assert_eq!(metadata.check().await.unwrap(), []);
                let era = metadata.current_era();
                prop_assert_eq!(era, world.model.era);
                let mut model = world.model.clone();
                model.era = begin_era(&mut metadata).await;
                prop_assert_eq!(model.era, era + 1);
                metadata.mark(&[0..1]).await.unwrap();
                model.mark(&[0..1]);
                while metadata.digest_step().await.unwrap() != Digested::Idle {}
                metadata.commit().await.unwrap();
                prop_assert_eq!(metadata.check().await.unwrap(), []);
                for since in [1, era, era + 1] {
                    let all = 0..metadata.nr_blocks();
                    let found = metadata.written_since(View::Live, since, all).await.unwrap();
                    model.check(since, &found);
                }
            }
        Ok(())
        })?;
    }
}
