//! Reading metadata from the middle on, as pages do: what is found there is what a reading of all finds
//! there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "thin_metadata_tools/pool.rs"]
mod pool;

use bdev::thin::metadata::Superblock;
use bdev::thin::metadata::delta::{Difference, Differences};
use bdev::thin::metadata::image::{Image, Mapping, View};
use futures::executor::block_on;
use persistent_data::memory::MemoryDevice;
use proptest::prelude::*;
use std::rc::Rc;

async fn mappings(image: &Image, root: u64, begin: u64) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut mappings = image.mappings_from(root, begin);
    while let Some(mapping) = mappings.next().await {
        found.push(mapping.unwrap());
    }
    found
}

/// In parts of at most `max` blocks.
async fn differences(image: &Image, roots: [u64; 2], begin: u64, max: u64) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut differences = Differences::new(image, roots, begin, max);
    while let Some(difference) = differences.next().await.unwrap() {
        assert!(difference.length <= max);
        found.push(difference);
    }
    found
}

/// Several leaves, holes between the blocks, and devices with and without blocks.
async fn pool(step: u64, broken: std::ops::Range<u64>) -> (Image, Superblock) {
    let device = Rc::new(MemoryDevice::new(2000));
    let mut metadata = pool::open(&device).await;
    metadata.resize_data(5000).await.unwrap();
    for id in [3, 4, 900] {
        metadata.create_thin(id).await.unwrap();
    }
    for block in 0..1000 {
        let data = metadata.alloc_data_block().await.unwrap();
        metadata.insert(3, block * step, data).await.unwrap();
    }
    metadata.create_snap(5, 3).await.unwrap();
    pool::write(&mut metadata, 3, broken).await.unwrap();
    metadata.commit().await.unwrap();
    metadata.reserve_metadata_snap().await.unwrap();
    metadata.commit().await.unwrap();
    metadata.create_thin(6).await.unwrap();
    pool::write(&mut metadata, 3, 0..200).await.unwrap();
    metadata.commit().await.unwrap();
    let image = Image::new(device);
    let sb = image.superblock(View::Snapshot).await.unwrap();
    (image, sb)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Mappings, differences and devices from any point on.
    #[test]
    fn from_the_middle(step in 1u64..4, broken in 0u64..2000, len in 1u64..300,
                       begins in prop::collection::vec(0u64..4100, 12), max in 1u64..50) {
        block_on(async {
            let (image, sb) = pool(step, broken..broken + len).await;
            let devices = image.devices(&sb).await.unwrap();
            prop_assert_eq!(devices.iter().map(|d| d.id).collect::<Vec<_>>(), [3, 4, 5, 900]);
            for id in 0..1000 {
                let wanted = devices.iter().find(|device| device.id >= id);
                if !(8..=890).contains(&id) {
                    let found = image.device_from(&sb, id).await.unwrap();
                    prop_assert_eq!(found.as_ref(), wanted);
                }
            }
            let [left, right] = [0, 2].map(|i: usize| devices[i].root);
            let all = mappings(&image, left, 0).await;
            prop_assert!(all.len() >= 1000);
            let each = differences(&image, [left, right], 0, 1).await;
            let leaf_edges = all.iter().map(|mapping| mapping.virtual_block).step_by(63);
            for begin in begins.into_iter().chain(leaf_edges).chain([0, u64::MAX]) {
                let wanted: Vec<_> =
                    all.iter().filter(|m| m.virtual_block >= begin).copied().collect();
                prop_assert_eq!(mappings(&image, left, begin).await, wanted);
                let wanted: Vec<_> = each.iter().filter(|d| d.begin >= begin).copied().collect();
                let found = differences(&image, [left, right], begin, 1).await;
                prop_assert_eq!(found, wanted);
            }
            // Parts say the same as single blocks.
            let mut again = Vec::new();
            for part in differences(&image, [left, right], 0, max).await {
                again.extend((0..part.length).map(|i| Difference {
                    begin: part.begin + i,
                    left_data: part.left_data.map(|data| data + i),
                    right_data: part.right_data.map(|data| data + i),
                    length: 1,
                    ..part
                }));
            }
            prop_assert_eq!(again, each);
            Ok(())
        })?;
    }
}
