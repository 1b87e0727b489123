//! The metadata of a pool at its limits: planted defects, growth, large devices, the metadata
//! snapshot, unknown features. What our checker says is compared with the real tools.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::thin::metadata::{OpenOptions, ThinError, ThinMetadata};
use futures::executor::block_on;
use persistent_data::block::{Kind, get_u64, no_rules, put_u32, put_u64};
use persistent_data::device::{BLOCK_BYTES, BlockBytes};
use persistent_data::memory::MemoryDevice;
use persistent_data::node::NODE;
use persistent_data::space_map::BITMAP;
use std::process::Command;
use std::rc::Rc;

mod thin_metadata_tools;
use thin_metadata_tools::pool::{open, options, sample, write};
use thin_metadata_tools::{Temp, both, run, thin_check};

static SUPERBLOCK: Kind = Kind {
    name: "thin superblock",
    xor: 160_774,
    blocknr_offset: 8,
    validate: no_rules,
};

fn edit(blocks: &mut [BlockBytes], nr: u64, kind: &Kind, change: impl FnOnce(&mut BlockBytes)) {
    let bytes = &mut blocks[nr as usize];
    kind.verify(bytes, nr).unwrap();
    change(bytes);
    kind.seal(bytes, nr);
}

const LEAF_VALUES: usize = 2048;
const DETAILS_VALUES: usize = 1040;

/// Each defect that thin.md 12 lists, planted with a right checksum, is found by the checker, in the
/// words expected, and the strict thin_check rejects it too.
#[test]
fn planted_defects_are_found() {
    block_on(async {
        let (device, _) = sample(1024).await;
        let good = device.blocks();
        let sb = &good[0];
        let (mapping, details) = (get_u64(sb, 320), get_u64(sb, 328));
        let data_index = get_u64(sb, 64 + 16);
        let data_bitmap = get_u64(&good[data_index as usize], 32 + 8 * 168);
        let metadata_bitmap = get_u64(&good[get_u64(sb, 192 + 16) as usize], 16);
        let device_1 = get_u64(&good[mapping as usize], LEAF_VALUES);
        type Change = Box<dyn Fn(&mut BlockBytes)>;
        let add = |at: usize, by: u64| -> Change {
            Box::new(move |b| {
                let old = get_u64(&b[..], at);
                put_u64(b, at, old.wrapping_add(by));
            })
        };
        let set = |at: usize, value: u8| -> Change { Box::new(move |b| b[at] = value) };
        // Entry 0 of device 1 points elsewhere; counts in the bitmaps are 2 bits, 4 to a byte.
        let defects: [(&str, u64, &Kind, Change, &str); 9] = [
            (
                "mapped_blocks",
                details,
                &NODE,
                add(DETAILS_VALUES, 1),
                "its details say 101",
            ),
            (
                "id in details only",
                details,
                &NODE,
                add(32 + 8, 5),
                "different devices",
            ),
            (
                "other data block",
                device_1,
                &NODE,
                add(LEAF_VALUES, 1 << 24),
                "data block has",
            ),
            (
                "data leak",
                data_bitmap,
                &BITMAP,
                set(16 + 1000, 2),
                "data block has 0 references",
            ),
            (
                "data count too low",
                data_bitmap,
                &BITMAP,
                set(16, 0),
                "its count is 0",
            ),
            (
                "metadata leak",
                metadata_bitmap,
                &BITMAP,
                set(16 + 200, 2),
                "metadata block has 0",
            ),
            (
                "metadata count too low",
                metadata_bitmap,
                &BITMAP,
                set(16, 0),
                "its count is 0",
            ),
            (
                "keys out of order",
                device_1,
                &NODE,
                add(32, 90),
                "not ascending",
            ),
            (
                "metadata count too high",
                metadata_bitmap,
                &BITMAP,
                set(16, 0x6A),
                "its count is 2",
            ),
        ];
        for (name, nr, kind, change, expected) in defects {
            let mut blocks = good.clone();
            edit(&mut blocks, nr, kind, change);
            let damaged = Rc::new(MemoryDevice::from_blocks(blocks));
            let findings = open(&damaged).await.check().await.unwrap();
            assert!(
                findings.iter().any(|f| f.what.contains(expected)),
                "{name}: {findings:?}"
            );
            let file = Temp::with_blocks("planted", &damaged);
            let [_, mut strict] = both("thin_check");
            let output = strict.arg(&file.0).output().unwrap();
            assert!(
                !output.status.success(),
                "{name}: thin_check 1.1 accepts it"
            );
        }
    });
}

/// Both devices grow over the end of their first bitmap, and everything stays as it should.
#[test]
fn both_devices_grow() {
    block_on(async {
        let (device, mut metadata) = sample(1024).await;
        let before = metadata.dump().await.unwrap();
        device.grow(40_000);
        metadata.resize_metadata().await.unwrap();
        metadata.resize_data(50_000).await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_metadata_blocks(), 40_000);
        assert_eq!(metadata.dump().await.unwrap(), before);
        thin_check(&Temp::with_blocks("grown", &device));
        metadata.create_thin(3).await.unwrap();
        write(&mut metadata, 3, 0..20_000).await.unwrap();
        metadata.commit().await.unwrap();
        let mut again = open(&device).await;
        assert_eq!(again.nr_data_blocks(), 50_000);
        assert_eq!(again.nr_metadata_blocks(), 40_000);
        assert_eq!(again.details(3).await.unwrap().mapped_blocks, 20_000);
        assert_eq!(again.check().await.unwrap(), []);
        thin_check(&Temp::with_blocks("grown-used", &device));
        let shrunk = again.resize_data(40_000).await.unwrap_err();
        assert_eq!(shrunk.errno().0, 22);
    });
}

/// A device with more mappings than the map of counts keeps differences for in core is deleted, and
/// every count is right.
#[test]
fn a_large_device_is_deleted() {
    block_on(async {
        let nr = 300_000;
        let device = Rc::new(MemoryDevice::new(4096));
        let mut metadata = open(&device).await;
        metadata.resize_data(nr + 1000).await.unwrap();
        metadata.create_thin(0).await.unwrap();
        write(&mut metadata, 0, 0..nr).await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_free_data(), 1000);
        metadata.delete(0).await.unwrap();
        assert_eq!(metadata.nr_free_data(), nr + 1000);
        metadata.commit().await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
        thin_check(&Temp::with_blocks("large", &device));
    });
}

/// What is seen through a metadata snapshot is the state when it was made, whatever happens after;
/// the tools read it, and letting it go releases everything.
#[test]
fn the_metadata_snapshot_stays() {
    block_on(async {
        let (device, mut metadata) = sample(1024).await;
        let lines = |xml: &str| -> Vec<String> {
            let lines = xml.lines().skip(1).map(|line| line.trim().to_owned());
            lines.filter(|line| !line.is_empty()).collect()
        };
        let before = metadata.dump_xml().await.unwrap();
        metadata.reserve_metadata_snap().await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(
            metadata.reserve_metadata_snap().await,
            Err(ThinError::SnapHeld)
        );
        metadata.delete(2).await.unwrap();
        metadata.remove_range(1, 10, 90).await.unwrap();
        write(&mut metadata, 1, 0..5).await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
        let file = Temp::with_blocks("held", &device);
        thin_check(&file);
        let seen = run(Command::new("thin_dump").arg("-m").arg(&file.0));
        assert_eq!(lines(&seen), lines(&before));
        metadata.release_metadata_snap().await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.held_root(), None);
        assert_eq!(metadata.check().await.unwrap(), []);
        thin_check(&Temp::with_blocks("released", &device));
    });
}

fn with_superblock(device: &MemoryDevice, at: usize, value: u32) -> Rc<MemoryDevice> {
    let mut blocks = device.blocks();
    edit(&mut blocks, 0, &SUPERBLOCK, |sb| put_u32(sb, at, value));
    Rc::new(MemoryDevice::from_blocks(blocks))
}

/// The snapshot counter never leaves the 24 bits a mapping has for it.
#[test]
fn the_snapshot_counter_is_bounded() {
    block_on(async {
        let (device, _) = sample(1024).await;
        for time in [1 << 24, u32::MAX] {
            let result = ThinMetadata::open(with_superblock(&device, 44, time), options()).await;
            assert_eq!(result.map(|_| ()).unwrap_err().errno().0, 84);
        }
        let mut metadata = open(&with_superblock(&device, 44, (1 << 24) - 2)).await;
        metadata.create_snap(3, 1).await.unwrap();
        metadata.commit().await.unwrap();
        let refused = metadata.create_snap(4, 1).await.unwrap_err();
        assert_eq!(refused, ThinError::TooManySnapshots);
        assert!(refused.is_refusal() && !metadata.changed());
        assert_eq!(metadata.time(), (1 << 24) - 1);
        assert_eq!(
            metadata.create_thin(1 << 24).await,
            Err(ThinError::BadId(1 << 24))
        );
    });
}

/// Features nobody knows here keep a pool from being opened, or from being written; read-only writes
/// nothing. What is not ours in the superblock survives a commit.
#[test]
fn features_and_read_only() {
    block_on(async {
        let (device, _) = sample(1024).await;
        let read_only = OpenOptions {
            read_only: true,
            ..options()
        };
        let incompat = with_superblock(&device, 360, 4);
        for options in [options(), read_only] {
            let error = ThinMetadata::open(incompat.clone(), options)
                .await
                .map(|_| ());
            assert_eq!(error.unwrap_err().errno().0, 22);
        }
        let compat_ro = with_superblock(&device, 356, 4);
        let error = ThinMetadata::open(compat_ro.clone(), options())
            .await
            .map(|_| ());
        assert_eq!(error.unwrap_err().errno().0, 22);
        let mut metadata = ThinMetadata::open(compat_ro.clone(), read_only)
            .await
            .unwrap();
        assert_eq!(metadata.details(1).await.unwrap().mapped_blocks, 100);
        assert_eq!(metadata.create_thin(5).await, Err(ThinError::ReadOnly));
        assert_eq!(metadata.set_needs_check().await, Err(ThinError::ReadOnly));
        metadata.commit().await.unwrap();
        assert_eq!(compat_ro.take_events(), []);

        let mut blocks = with_superblock(&device, 352, 8).blocks();
        edit(&mut blocks, 0, &SUPERBLOCK, |sb| sb[16..32].fill(0xA5));
        let foreign = Rc::new(MemoryDevice::from_blocks(blocks));
        let mut metadata = open(&foreign).await;
        metadata.create_thin(5).await.unwrap();
        metadata.commit().await.unwrap();
        let sb = foreign.blocks()[0];
        assert_eq!((&sb[16..32], sb[352]), (&[0xA5; 16][..], 8));

        let noise = Rc::new(MemoryDevice::from_blocks(vec![[0x5A; BLOCK_BYTES]; 1024]));
        let error = ThinMetadata::open(noise, options())
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.errno().0, 15);
    });
}

/// A held block is handed out to nobody, and is not counted as free.
#[test]
fn held_blocks_are_not_allocated() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(1024));
        let mut metadata = open(&device).await;
        metadata.resize_data(4).await.unwrap();
        metadata.hold_data_block(1);
        assert_eq!(metadata.nr_free_data(), 3);
        let mut got = Vec::new();
        let error = loop {
            match metadata.alloc_data_block().await {
                Ok(block) => got.push(block),
                Err(error) => break error,
            }
        };
        assert!(error.is_no_data_space());
        assert_eq!(got, [0, 2, 3]);
        metadata.unhold_data_block(1);
        assert_eq!(metadata.alloc_data_block().await.unwrap(), 1);
        metadata.free_data_block(3);
        assert_eq!(metadata.alloc_data_block().await.unwrap(), 3);
    });
}
