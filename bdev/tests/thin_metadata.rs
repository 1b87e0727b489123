//! The metadata of a pool against a model, the strict checker, and the real tools.
//!
//! The tools are Debian's thin-provisioning-tools on PATH, and the strict 1.1 under
//! `SPDK_DM_STRICT_TOOLS` (both by `spdk-config/setup-tools`). Without them these tests fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::thin::metadata::{OpenOptions, ThinError, ThinMetadata};
use futures::executor::block_on;
use persistent_data::block::get_u32;
use persistent_data::memory::MemoryDevice;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::process::Command;
use std::rc::Rc;

mod thin_metadata_tools;
use thin_metadata_tools::{Temp, both, run, thin_check};

const NR_DATA: u64 = 5000;

fn options() -> OpenOptions {
    OpenOptions {
        data_block_size_sectors: 128,
        cache_bytes: 1 << 20,
        may_format: true,
        read_only: false,
    }
}

async fn open(device: &Rc<MemoryDevice>) -> ThinMetadata {
    let mut metadata = ThinMetadata::open(device.clone(), options()).await.unwrap();
    metadata.resize_data(NR_DATA).await.unwrap();
    metadata
}

/// A freshly formatted device is, to the byte, what the kernel writes: the checksums of thin.md 4.
#[test]
fn format_is_the_kernels() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(1024));
        ThinMetadata::open(device.clone(), options()).await.unwrap();
        let sums: Vec<u32> = device.blocks()[..8]
            .iter()
            .map(|b| get_u32(&b[..], 0))
            .collect();
        assert_eq!(
            sums,
            [
                0xCAFF_9186,
                0x18E0_660A,
                0xC360_E452,
                0xA19F_6375,
                0x787F_52C8,
                0x41BF_AA04,
                0xCB3D_DA35,
                0xB1C8_1346
            ]
        );
        thin_check(&Temp::with_blocks("format", &device));
    });
}

/// Opening and closing without a change writes nothing.
#[test]
fn opening_writes_nothing() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(1024));
        open(&device).await.commit().await.unwrap();
        device.take_events();
        let mut metadata = open(&device).await;
        metadata.commit().await.unwrap();
        assert_eq!(device.take_events(), []);
    });
}

#[derive(Debug, Clone)]
enum Step {
    Create(u32),
    Snap(u32, u32),
    Delete(u32),
    Write { id: u32, first: u64, count: u64 },
    Discard { id: u32, first: u64, count: u64 },
    ReserveSnap,
    ReleaseSnap,
    Commit,
    Abort,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..6u32;
    prop_oneof![
        2 => id.clone().prop_map(Step::Create),
        3 => (id.clone(), id.clone()).prop_map(|(a, b)| Step::Snap(a, b)),
        1 => id.clone().prop_map(Step::Delete),
        6 => (id.clone(), 0..2000u64, 1..300u64)
            .prop_map(|(id, first, count)| Step::Write { id, first, count }),
        4 => (id, 0..2000u64, 1..600u64)
            .prop_map(|(id, first, count)| Step::Discard { id, first, count }),
        1 => Just(Step::ReserveSnap),
        1 => Just(Step::ReleaseSnap),
        2 => Just(Step::Commit),
        1 => Just(Step::Abort),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    /// Device, block: data block and time.
    devices: BTreeMap<u32, BTreeMap<u64, (u64, u32)>>,
    time: u32,
    held: bool,
}

async fn apply(metadata: &mut ThinMetadata, model: &mut Model, step: &Step) {
    match *step {
        Step::Create(id) => match metadata.create_thin(id).await {
            Ok(()) => assert!(model.devices.insert(id, BTreeMap::new()).is_none()),
            Err(error) => {
                assert_eq!(error, ThinError::Exists(id));
                assert!(model.devices.contains_key(&id));
            }
        },
        Step::Snap(id, origin) => match metadata.create_snap(id, origin).await {
            Ok(()) => {
                let copy = model.devices[&origin].clone();
                assert!(model.devices.insert(id, copy).is_none());
                model.time += 1;
            }
            Err(ThinError::Exists(_)) => assert!(model.devices.contains_key(&id)),
            Err(error) => {
                assert_eq!(error, ThinError::NoDevice(origin));
                assert!(!model.devices.contains_key(&origin));
            }
        },
        Step::Delete(id) => {
            let result = metadata.delete(id).await;
            assert_eq!(result.is_ok(), model.devices.remove(&id).is_some());
        }
        Step::Write { id, first, count } => {
            let Some(blocks) = model.devices.get_mut(&id) else {
                assert_eq!(metadata.details(id).await, Err(ThinError::NoDevice(id)));
                return;
            };
            for block in first..first + count {
                let data = match metadata.alloc_data_block().await {
                    Err(ThinError::NoDataSpace) => return,
                    data => data.unwrap(),
                };
                metadata.insert(id, block, data).await.unwrap();
                blocks.insert(block, (data, metadata.time()));
            }
        }
        Step::Discard { id, first, count } => {
            let Some(blocks) = model.devices.get_mut(&id) else {
                return;
            };
            let removed = metadata
                .remove_range(id, first, first + count)
                .await
                .unwrap();
            let before = blocks.len();
            blocks.retain(|block, _| !(first..first + count).contains(block));
            assert_eq!(removed.count, (before - blocks.len()) as u64);
            let used: Vec<u64> = model
                .devices
                .values()
                .flat_map(|d| d.values())
                .map(|m| m.0)
                .collect();
            assert!(removed.freed.iter().all(|block| !used.contains(block)));
        }
        Step::ReserveSnap => {
            metadata.commit().await.unwrap();
            assert_eq!(metadata.reserve_metadata_snap().await.is_ok(), !model.held);
            metadata.commit().await.unwrap();
            model.held = true;
        }
        Step::ReleaseSnap => {
            assert_eq!(metadata.release_metadata_snap().await.is_ok(), model.held);
            model.held = false;
        }
        Step::Commit | Step::Abort | Step::Reopen => metadata.commit().await.unwrap(),
    }
}

async fn compare(metadata: &mut ThinMetadata, model: &Model) {
    let dumped = metadata.dump().await.unwrap();
    let found: BTreeMap<_, _> = dumped
        .iter()
        .map(|(id, d)| (*id, d.mappings.clone()))
        .collect();
    assert_eq!(found, model.devices);
    for dev in dumped.values() {
        assert_eq!(dev.details.mapped_blocks, dev.mappings.len() as u64);
    }
}

async fn run_steps(device: &Rc<MemoryDevice>, steps: &[Step]) -> (ThinMetadata, Model) {
    let mut metadata = open(device).await;
    metadata.commit().await.unwrap();
    let mut model = Model::default();
    let mut committed = model.clone();
    for step in steps {
        match step {
            Step::Abort => {
                metadata.abort().await.unwrap();
                model = committed.clone();
            }
            Step::Reopen => {
                drop(metadata);
                metadata = open(device).await;
                model = committed.clone();
            }
            _ => apply(&mut metadata, &mut model, step).await,
        }
        if !metadata.changed() {
            committed = model.clone();
        }
    }
    metadata.commit().await.unwrap();
    (metadata, model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done, mappings are the model's, and every count is right after a commit.
    #[test]
    fn behaves_as_the_model(steps in prop::collection::vec(step(), 1..30)) {
        block_on(async {
            let device = Rc::new(MemoryDevice::new(3000));
            let (mut metadata, model) = run_steps(&device, &steps).await;
            compare(&mut metadata, &model).await;
            prop_assert_eq!(metadata.check().await.unwrap(), []);
            let mut again = open(&device).await;
            compare(&mut again, &model).await;
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// thin_check of both generations accepts what we write, and thin_dump reads in it what we do.
    #[test]
    fn the_tools_agree(steps in prop::collection::vec(step(), 1..30), name: u64) {
        block_on(async {
            let device = Rc::new(MemoryDevice::new(3000));
            let (mut metadata, _) = run_steps(&device, &steps).await;
            let file = Temp::with_blocks(&format!("{name}"), &device);
            thin_check(&file);
            let theirs = run(Command::new("thin_dump").arg(&file.0));
            let ours = metadata.dump_xml().await.unwrap();
            // The tool names the metadata snapshot in the first line, ours does not.
            let body = |xml: &str| xml.lines().skip(1).map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect::<Vec<_>>();
            prop_assert_eq!(body(&theirs), body(&ours));
            Ok(())
        })?;
    }
}

/// What thin_restore writes from XML opens here with the same mappings, goes on being used, and still
/// satisfies the tools.
#[test]
fn restored_metadata_opens() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(3000));
        let steps = [
            Step::Create(0),
            Step::Write {
                id: 0,
                first: 10,
                count: 1500,
            },
            Step::Snap(3, 0),
            Step::Write {
                id: 0,
                first: 100,
                count: 200,
            },
            Step::Discard {
                id: 3,
                first: 50,
                count: 77,
            },
        ];
        let (mut metadata, model) = run_steps(&device, &steps).await;
        let xml = Temp::new("restore.xml");
        std::fs::write(&xml.0, metadata.dump_xml().await.unwrap()).unwrap();
        for (i, mut restore) in both("thin_restore").into_iter().enumerate() {
            let file = Temp::with_blocks(&format!("restore-{i}"), &MemoryDevice::new(3000));
            run(restore.arg("-i").arg(&xml.0).arg("-o").arg(&file.0));
            let restored = file.to_device();
            let mut again = open(&restored).await;
            compare(&mut again, &model).await;
            let mut changed = model.clone();
            changed.time = again.time();
            for step in [
                Step::Write {
                    id: 3,
                    first: 0,
                    count: 300,
                },
                Step::Snap(4, 3),
                Step::Discard {
                    id: 0,
                    first: 0,
                    count: 900,
                },
                Step::Commit,
            ] {
                apply(&mut again, &mut changed, &step).await;
            }
            compare(&mut again, &changed).await;
            // thin_restore 0.9 writes an allocated total that is off; no tool looks at it.
            let mut findings = again.check().await.unwrap();
            findings.retain(|finding| !finding.what.contains("blocks allocated, says otherwise"));
            assert_eq!(findings, []);
            thin_check(&Temp::with_blocks(&format!("restored-{i}"), &restored));
        }
    });
}

/// A data block that was handed out but not mapped when a commit came is not leaked by a crash: the
/// strict thin_check finds nothing. (Found by the kill loop.)
#[test]
fn a_crash_between_allocation_and_mapping_leaks_nothing() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(1024));
        let mut metadata = open(&device).await;
        metadata.create_thin(0).await.unwrap();
        let first = metadata.alloc_data_block().await.unwrap();
        let second = metadata.alloc_data_block().await.unwrap();
        assert_ne!(first, second);
        metadata.insert(0, 7, first).await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
        thin_check(&Temp::with_blocks("reserved", &device));
        metadata.insert(0, 8, second).await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
    });
}

/// The refusals of thin.md 1, in words and errno.
#[test]
fn foreign_and_damaged_superblocks_are_refused() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(1024));
        ThinMetadata::open(device.clone(), options()).await.unwrap();
        let with = |at: usize, value: u8| {
            let mut blocks = device.blocks();
            blocks[0][at] = value;
            Rc::new(MemoryDevice::from_blocks(blocks))
        };
        let errno = async |device| {
            let result = ThinMetadata::open(device, options()).await;
            result.map(|_| ()).unwrap_err().errno().0
        };
        assert_eq!(errno(with(8, 1)).await, 15);
        assert_eq!(errno(with(32, 1)).await, 84);
        assert_eq!(errno(with(100, 1)).await, 84);
        let other = OpenOptions {
            data_block_size_sectors: 256,
            ..options()
        };
        let result = ThinMetadata::open(device.clone(), other).await;
        assert_eq!(result.map(|_| ()).unwrap_err().errno().0, 22);
        let empty = Rc::new(MemoryDevice::new(1024));
        let read_only = OpenOptions {
            read_only: true,
            ..options()
        };
        let result = ThinMetadata::open(empty, read_only).await;
        assert_eq!(result.map(|_| ()).unwrap_err().errno().0, 1);
    });
}
