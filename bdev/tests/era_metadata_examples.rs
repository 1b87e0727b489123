//! Era metadata, example by example: sizes, order of writes, refusals. `era_check` comes from
//! `spdk-config/setup-tools`, as in `era_metadata`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::single_range_in_vec_init,
    reason = "a test fails by panicking; ranges are what blocks are listed as"
)]

use bdev::era::metadata::dump::EraInfo;
use bdev::era::metadata::restore::Restore;
use bdev::era::metadata::{EraError, EraMetadata, OpenOptions, Step as Digested, View};
use futures::executor::block_on;
use persistent_data::block::get_u32;
use persistent_data::memory::{Event, MemoryDevice};
use std::rc::Rc;

mod era_world;
mod thin_metadata_tools;
use era_world::{begin_era, open, options};
use thin_metadata_tools::{Temp, both, run};

/// The numbers of blocks in use that the kernel shows (era.md 3, 11).
#[test]
fn fresh_metadata_takes_ten_blocks() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(1024));
        let mut metadata = open(&device).await;
        metadata.resize(1024).await.unwrap();
        assert_eq!(begin_era(&mut metadata).await, 1);
        assert_eq!(metadata.nr_used_metadata(), 10);
        assert_eq!(metadata.nr_metadata_blocks(), 1024);
        metadata.mark(&[5..8]).await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 10);
        begin_era(&mut metadata).await;
        // `8 12/1024 2 -`, and 10 again once digested (era.md 11).
        assert_eq!(metadata.nr_used_metadata(), 12);
        while metadata.digest_step().await.unwrap() != Digested::Idle {}
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 10);
        metadata.mark(&[9..10]).await.unwrap();
        begin_era(&mut metadata).await;
        metadata.take_metadata_snap().await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 13);
        let since = metadata.written_since(View::Snapshot, 1, 0..1024).await;
        assert_eq!(since.unwrap(), [5..8, 9..10]);
        while metadata.digest_step().await.unwrap() != Digested::Idle {}
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 16);
        metadata.drop_metadata_snap().await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 10);
    });
}

/// Only the second phase of a commit touches block 0, and a second commit without a change writes
/// nothing.
#[test]
fn a_mark_is_four_blocks_and_a_superblock() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(1024));
        let mut metadata = open(&device).await;
        metadata.resize(1024).await.unwrap();
        begin_era(&mut metadata).await;
        device.take_events();
        metadata.mark(&[7..8]).await.unwrap();
        metadata.commit().await.unwrap();
        metadata.commit().await.unwrap();
        let events = device.take_events();
        let [blocks @ .., Event::Flush, Event::Write(0), Event::Flush] = events.as_slice() else {
            panic!("wrong order: {events:?}");
        };
        // Index, bitmap, root and block of the writeset: as the kernel (era.md 11).
        assert_eq!(blocks.len(), 4, "{events:?}");
    });
}

/// Reading block 0 refuses what is not era metadata, each with its own errno (era.md 1).
#[test]
fn superblock_refusals() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(100));
        open(&device).await;
        let good = device.blocks();
        assert_eq!(get_u32(&good[0], 40), 1);
        let mut cases = Vec::new();
        for (at, errno) in [(8, 15), (32, 84), (100, 84)] {
            let mut blocks = good.clone();
            blocks[0][at] ^= 1;
            cases.push((blocks, errno));
        }
        let mut blocks = good.clone();
        blocks[0][40] = 2;
        bdev::era::metadata::SUPERBLOCK.seal(&mut blocks[0], 0);
        cases.push((blocks, 22));
        for (blocks, errno) in cases {
            let device = Rc::new(MemoryDevice::from_blocks(blocks));
            let error = EraMetadata::open(device, options()).await.err().unwrap();
            assert_eq!(error.errno().0, errno, "{error}");
        }
        let other = OpenOptions {
            data_block_size_sectors: 64,
            ..options()
        };
        let error = EraMetadata::open(device.clone(), other)
            .await
            .err()
            .unwrap();
        assert_eq!(error.errno().0, 22);
        let blank = Rc::new(MemoryDevice::new(100));
        let error = EraMetadata::open_any(blank, 0).await.err().unwrap();
        assert_eq!(error, EraError::Blank);
    });
}

/// Our own restore gives what was asked for, and refuses nonsense.
#[test]
fn restore_from_parts() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(200));
        let info = EraInfo {
            block_size_sectors: 8,
            nr_blocks: 1500,
            current_era: 7,
        };
        let mut restore = Restore::begin(device.clone(), 0, &info).await.unwrap();
        assert!(restore.mark(&[1..2]).await.is_err());
        restore.writeset_begin(6, 1500).await.unwrap();
        restore.mark(&[70..71]).await.unwrap();
        restore.mark(&[1..3]).await.unwrap();
        restore.writeset_begin(7, 1500).await.unwrap();
        restore.mark(&[1..2]).await.unwrap();
        assert!(restore.mark(&[1499..1501]).await.is_err());
        restore.writeset_end().await.unwrap();
        restore.era(0, 5).await.unwrap();
        restore.era(1400, 3).await.unwrap();
        assert!(restore.era(1400, 3).await.is_err());
        assert!(restore.era(1500, 3).await.is_err());
        assert!(restore.era(1401, 8).await.is_err());
        assert!(restore.writeset_begin(8, 10).await.is_err());
        let metadata = restore.finish().await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
        let file = Temp::with_blocks("era-ours", &device);
        for mut command in both("era_check") {
            run(command.arg(&file.0));
        }
        let metadata = EraMetadata::open_any(device, 0).await.unwrap();
        for (since, expected) in [
            (6, vec![1..3, 70..71]),
            (7, vec![1..2]),
            (4, vec![0..3, 70..71]),
        ] {
            let found = metadata
                .written_since(View::Live, since, 0..1500)
                .await
                .unwrap();
            assert_eq!(found, expected);
        }
    });
}

/// The era array takes blocks in order only, also where what came before is already in the array.
#[test]
fn restored_eras_ascend() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(200));
        let info = EraInfo {
            block_size_sectors: 8,
            nr_blocks: 20_000,
            current_era: 7,
        };
        let mut restore = Restore::begin(device, 0, &info).await.unwrap();
        for block in 0..10_000 {
            restore.era(block, 1).await.unwrap();
            for earlier in [0, block / 2, block] {
                assert!(restore.era(earlier, 2).await.is_err());
            }
        }
        let metadata = restore.finish().await.unwrap();
        let found = metadata.written_since(View::Live, 1, 0..20_000).await;
        assert_eq!(found.unwrap(), [0..10_000]);
        let since = metadata.written_since(View::Live, 2, 0..20_000).await;
        assert_eq!(since.unwrap(), []);
    });
}
