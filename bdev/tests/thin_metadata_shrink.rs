//! A device that is deleted in steps leaves the pool as one deleted at once does, whatever it shares, and
//! the metadata is sound at each commit on the way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::thin::metadata::ThinMetadata;
use futures::executor::block_on;
use persistent_data::memory::MemoryDevice;
use proptest::prelude::*;
use std::rc::Rc;

mod thin_metadata_tools;
use thin_metadata_tools::pool::{open, write};
use thin_metadata_tools::{Temp, thin_check};

/// Virtual blocks of a device: several leaves, two levels.
const BLOCKS: u64 = 3000;

/// A way to fill device 0 and to share it.
#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64),
    Unmap(u64, u64),
    Snapshot,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..BLOCKS, 1..900u64);
    prop_oneof![
        4 => range.clone().prop_map(|(begin, len)| Step::Write(begin, len)),
        1 => range.prop_map(|(begin, len)| Step::Unmap(begin, len)),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Commit),
    ]
}

async fn build(steps: &[Step]) -> (Rc<MemoryDevice>, ThinMetadata, u32) {
    let device = Rc::new(MemoryDevice::new(1024));
    let mut metadata = open(&device).await;
    metadata.resize_data(100_000).await.unwrap();
    metadata.create_thin(0).await.unwrap();
    let mut last = 0;
    for step in steps {
        match *step {
            Step::Write(begin, len) => {
                let range = begin..(begin + len).min(BLOCKS);
                // What is mapped already is let go first, as breaking of sharing does.
                metadata
                    .remove_range(0, range.start, range.end)
                    .await
                    .unwrap();
                write(&mut metadata, 0, range).await.unwrap();
            }
            Step::Unmap(begin, len) => {
                metadata.remove_range(0, begin, begin + len).await.unwrap();
            }
            Step::Snapshot => {
                last += 1;
                metadata.create_snap(last, 0).await.unwrap();
            }
            Step::Commit => metadata.commit().await.unwrap(),
        }
    }
    metadata.commit().await.unwrap();
    (device, metadata, last)
}

async fn mappings(metadata: &mut ThinMetadata, devices: u32) -> Vec<Vec<u64>> {
    let mut all = Vec::new();
    for id in 1..=devices {
        let mut values = vec![u64::MAX; BLOCKS as usize];
        metadata.lookup_range(id, 0, &mut values).await.unwrap();
        all.push(values);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn in_steps_as_at_once(
        steps in prop::collection::vec(step(), 1..14),
        nr_leaves in 1usize..5,
        commits in 1u32..4,
    ) {
        block_on(async {
            let (_, mut at_once, devices) = build(&steps).await;
            at_once.delete(0).await.unwrap();
            at_once.commit().await.unwrap();

            let (device, mut metadata, _) = build(&steps).await;
            let others = mappings(&mut metadata, devices).await;
            let (mut from, mut nr_steps) = (0, 0);
            loop {
                let mapped = metadata.mapped_count(0).await.unwrap();
                let shrunk = metadata.shrink(0, from, nr_leaves).await.unwrap();
                assert_eq!(metadata.mapped_count(0).await.unwrap() + shrunk.removed.count, mapped);
                let Some(next) = shrunk.next else { break };
                assert!(next > from && shrunk.removed.count > 0, "each step gets on");
                from = next;
                nr_steps += 1;
                if nr_steps % commits == 0 {
                    metadata.commit().await.unwrap();
                    assert_eq!(metadata.check().await.unwrap(), []);
                }
            }
            metadata.delete(0).await.unwrap();
            metadata.commit().await.unwrap();
            assert_eq!(metadata.check().await.unwrap(), []);
            assert_eq!(mappings(&mut metadata, devices).await, others);
            assert_eq!(metadata.nr_free_data(), at_once.nr_free_data());
            assert_eq!(metadata.nr_free_metadata(), at_once.nr_free_metadata());
            drop(metadata);
            thin_check(&Temp::with_blocks("shrink", &device));
        });
    }
}
