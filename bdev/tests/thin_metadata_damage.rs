//! Damage to a pool's metadata behind a right checksum.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::thin::metadata::ThinError;
use futures::executor::block_on;
use persistent_data::Error;
use persistent_data::memory::MemoryDevice;
use persistent_data::node::{self, NODE};
use std::rc::Rc;

mod thin_metadata_tools;
use thin_metadata_tools::pool::{open, write};

/// A pool of 50 data blocks whose device 1 maps 10, with the leaf of that device changed.
async fn damaged(change: impl Fn(&mut [u8; 4096])) -> Rc<MemoryDevice> {
    let device = Rc::new(MemoryDevice::new(64));
    let mut metadata = open(&device).await;
    metadata.resize_data(50).await.unwrap();
    metadata.create_thin(1).await.unwrap();
    write(&mut metadata, 1, 0..10).await.unwrap();
    metadata.commit().await.unwrap();
    let mut blocks = device.blocks();
    let is_its = |nr: u64, bytes: &[u8; 4096]| {
        NODE.verify(bytes, nr).is_ok() && node::is_leaf(bytes) && node::nr_entries(bytes) == 10
    };
    let nr = (0..64)
        .find(|nr| is_its(*nr, &blocks[*nr as usize]))
        .unwrap();
    change(&mut blocks[nr as usize]);
    NODE.seal(&mut blocks[nr as usize], nr);
    Rc::new(MemoryDevice::from_blocks(blocks))
}

/// A mapping that leads outside the data device is an error: none of all ones, which means "not
/// mapped" in core, is taken for a hole, and no address is made of it.
#[test]
fn mappings_lead_into_the_data_device() {
    block_on(async {
        for block in [49, 50, (1 << 40) - 1] {
            let value = block << 24 | 0xFF_FFFF_u64;
            let device = damaged(|bytes| {
                node::value_mut(bytes, 3).copy_from_slice(&value.to_le_bytes());
            });
            let mut metadata = open(&device.await).await;
            let expected = match block {
                49 => Ok(()),
                _ => Err(ThinError::Metadata(Error::OutOfRange {
                    block,
                    nr_blocks: 50,
                })),
            };
            let mut values = [u64::MAX; 20];
            assert_eq!(metadata.lookup_range(1, 0, &mut values).await, expected);
            assert_eq!(metadata.lookup(1, 3).await.map(|_| ()), expected);
            assert!(metadata.lookup(1, 4).await.unwrap().is_some());
            let findings = metadata.check().await.unwrap();
            assert!(!findings.is_empty());
        }
    });
}

/// Keys out of order take nobody back, and remove nothing outside the range.
#[test]
fn mappings_in_disorder_are_noticed() {
    block_on(async {
        let device = damaged(|bytes| node::set_key(bytes, 6, 2)).await;
        let mut metadata = open(&device).await;
        let mut values = [0; 20];
        let error = metadata.lookup_range(1, 3, &mut values).await.unwrap_err();
        assert!(matches!(error, ThinError::Metadata(Error::Corrupt { .. })));
        let error = metadata.remove_range(1, 4, 9).await.unwrap_err();
        assert!(matches!(error, ThinError::Metadata(Error::Corrupt { .. })));
        assert_eq!(metadata.commit().await, Err(ThinError::Unusable));
        metadata.abort().await.unwrap();
        assert!(
            metadata
                .check()
                .await
                .unwrap()
                .iter()
                .any(|f| f.what.contains("not ascending"))
        );
    });
}
