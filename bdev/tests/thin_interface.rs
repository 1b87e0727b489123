//! The kernel's thin metadata interface, function by function: what docs/thin-interface.md names and no
//! other test proves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use async_trait::async_trait;
use bdev::errno::Errno;
use bdev::thin::metadata::{
    FindError, MAX_METADATA_SECTORS, MAX_METADATA_SECTORS_WARNING, METADATA_BLOCK_SIZE_SECTORS,
    MappedBlock, MappedRange, OpenOptions, ThinError, ThinMetadata,
};
use futures::executor::block_on;
use persistent_data::block::{Kind, no_rules, put_u32};
use persistent_data::device::{BLOCK_BYTES, BlockBytes, BlockDevice, DeviceError};
use persistent_data::memory::MemoryDevice;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Mutex;

mod thin_metadata_tools;
use thin_metadata_tools::pool::{open, options, sample, write};
use thin_metadata_tools::{Temp, thin_check};

/// dm_thin_find_block: the data block, shared while a snapshot may show it, ENODATA for a hole and
/// without the device.
#[test]
fn find_block() {
    block_on(async {
        // Device 2 is a snapshot of 1, which has broken block 50 out since.
        let (_, mut metadata) = sample(1024).await;
        let mapped = |data_block, shared| Ok(MappedBlock { data_block, shared });
        assert_eq!(metadata.find_block(1, 49).await, mapped(49, true));
        assert_eq!(metadata.find_block(2, 49).await, mapped(49, true));
        assert_eq!(metadata.find_block(1, 50).await, mapped(100, false));
        // Stale, and on the safe side: the other has let go.
        assert_eq!(metadata.find_block(2, 50).await, mapped(50, true));
        // dm_pool_block_is_shared: by two leaves since one of them changed.
        assert_eq!(metadata.data_count(49).await.unwrap(), 2);
        assert_eq!(metadata.data_count(100).await.unwrap(), 1);
        assert_eq!(metadata.data_count(101).await.unwrap(), 0);
        let hole = metadata.find_block(1, 100).await.unwrap_err();
        assert_eq!(hole.errno(), Errno::ENODATA);
        let unknown = metadata.find_block(3, 0).await.unwrap_err();
        assert_eq!(unknown, FindError::Metadata(ThinError::NoDevice(3)));
        assert_eq!(unknown.errno(), Errno::ENODATA);
        write(&mut metadata, 2, 7..8).await.unwrap();
        assert_eq!(metadata.find_block(2, 7).await, mapped(101, false));
    });
}

/// dm_thin_find_mapped_range: runs end where data blocks are not consecutive, where sharing changes, at a
/// hole, and at the end of the range.
#[test]
fn find_mapped_range() {
    block_on(async {
        let (_, mut metadata) = sample(1024).await;
        metadata.remove_range(1, 20, 30).await.unwrap();
        // After the shared 99 in device and data: the same run but for the sharing.
        metadata.hold_data_block(100);
        write(&mut metadata, 1, 100..102).await.unwrap();
        let range = |virtual_begin, data_begin, length, shared| {
            Ok(MappedRange {
                virtual_begin,
                data_begin,
                length,
                shared,
            })
        };
        assert_eq!(
            metadata.find_mapped_range(1, 0, 1000).await,
            range(0, 0, 20, true)
        );
        assert_eq!(
            metadata.find_mapped_range(1, 5, 9).await,
            range(5, 5, 4, true)
        );
        assert_eq!(
            metadata.find_mapped_range(1, 20, 1000).await,
            range(30, 30, 20, true)
        );
        assert_eq!(
            metadata.find_mapped_range(1, 50, 1000).await,
            range(50, 100, 1, false)
        );
        assert_eq!(
            metadata.find_mapped_range(1, 51, u64::MAX).await,
            range(51, 51, 49, true)
        );
        assert_eq!(
            metadata.find_mapped_range(1, 100, u64::MAX).await,
            range(100, 101, 2, false)
        );
        let nothing = metadata.find_mapped_range(1, 20, 30).await.unwrap_err();
        assert_eq!(nothing.errno(), Errno::ENODATA);
        let nothing = metadata
            .find_mapped_range(1, 102, u64::MAX)
            .await
            .unwrap_err();
        assert_eq!(nothing.errno(), Errno::ENODATA);
    });
}

/// dm_thin_get_mapped_count, dm_thin_get_highest_mapped_block, dm_thin_remove_range and a single block.
#[test]
fn mapped_count_and_highest_block() {
    block_on(async {
        let (_, mut metadata) = sample(1024).await;
        assert_eq!(metadata.mapped_count(1).await.unwrap(), 100);
        assert_eq!(metadata.highest_mapped(1).await.unwrap(), Some(99));
        metadata.remove_range(1, 99, 100).await.unwrap();
        assert_eq!(metadata.mapped_count(1).await.unwrap(), 99);
        assert_eq!(metadata.highest_mapped(1).await.unwrap(), Some(98));
        let far = (1 << 48) + 5;
        write(&mut metadata, 1, far..far + 1).await.unwrap();
        write(&mut metadata, 1, 3..4).await.unwrap();
        assert_eq!(metadata.mapped_count(1).await.unwrap(), 100);
        assert_eq!(metadata.highest_mapped(1).await.unwrap(), Some(far));
        let removed = metadata.remove_range(1, 0, u64::MAX).await.unwrap();
        assert_eq!(removed.count, 100);
        assert_eq!(metadata.mapped_count(1).await.unwrap(), 0);
        assert_eq!(metadata.highest_mapped(1).await.unwrap(), None);
        assert_eq!(metadata.mapped_count(2).await.unwrap(), 100);
        assert_eq!(metadata.mapped_count(9).await, Err(ThinError::NoDevice(9)));
        metadata.commit().await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
    });
}

/// dm_thin_changed_this_transaction and dm_pool_changed_this_transaction: of exactly the devices that
/// changed, until the commit has succeeded.
#[test]
fn changed_this_transaction() {
    block_on(async {
        let (device, mut metadata) = sample(1024).await;
        metadata.create_thin(3).await.unwrap();
        metadata.commit().await.unwrap();
        let changed = |metadata: &ThinMetadata| -> Vec<u32> {
            let all = 0..6;
            all.filter(|id| metadata.changed_this_transaction(*id))
                .collect()
        };
        assert_eq!((changed(&metadata), metadata.changed()), (vec![], false));
        metadata.find_block(1, 0).await.unwrap();
        metadata.set_transaction_id(0, 1).unwrap();
        assert_eq!((changed(&metadata), metadata.changed()), (vec![], true));
        write(&mut metadata, 1, 200..201).await.unwrap();
        assert_eq!(changed(&metadata), [1]);
        metadata.remove_range(2, 500, 600).await.unwrap();
        assert_eq!(changed(&metadata), [1], "nothing was there to remove");
        metadata.remove_range(2, 5, 6).await.unwrap();
        assert_eq!(changed(&metadata), [1, 2]);
        metadata.commit().await.unwrap();
        assert_eq!((changed(&metadata), metadata.changed()), (vec![], false));
        metadata.create_snap(4, 3).await.unwrap();
        metadata.create_thin(5).await.unwrap();
        assert_eq!(changed(&metadata), [3, 4, 5]);
        device.fail_after(Some(1));
        metadata.commit().await.unwrap_err();
        assert_eq!(
            changed(&metadata),
            [3, 4, 5],
            "nobody knows that it is there"
        );
    });
}

/// dm_pool_abort_metadata, dm_thin_aborted_changes: of the devices that lost something, and only those, as
/// long as the metadata is open.
#[test]
fn aborted_with_changes() {
    block_on(async {
        let (device, mut metadata) = sample(1024).await;
        write(&mut metadata, 2, 300..303).await.unwrap();
        metadata.find_block(1, 0).await.unwrap();
        device.fail_after(Some(0));
        metadata.commit().await.unwrap_err();
        device.fail_after(None);
        metadata.abort().await.unwrap();
        let lost = |metadata: &ThinMetadata| -> Vec<u32> {
            let all = 1..4;
            all.filter(|id| metadata.aborted_with_changes(*id))
                .collect()
        };
        assert_eq!(lost(&metadata), [2]);
        assert!(!metadata.changed_this_transaction(2));
        assert_eq!(metadata.mapped_count(2).await.unwrap(), 100);
        write(&mut metadata, 1, 300..301).await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(lost(&metadata), [2], "what is lost stays lost");
        write(&mut metadata, 1, 400..401).await.unwrap();
        metadata.abort().await.unwrap();
        assert_eq!(lost(&metadata), [1, 2]);
        assert_eq!(lost(&open(&device).await), []);
    });
}

/// dm_pool_resize_data_dev: larger is taken, smaller is refused and nothing changes: ENOSPC where a block
/// in use would be lost, EINVAL where only free ones would.
#[test]
fn resize_data() {
    block_on(async {
        let (_, mut metadata) = sample(1024).await;
        assert_eq!(metadata.nr_data_blocks(), 5000);
        let refused = async |metadata: &mut ThinMetadata, nr_blocks| {
            metadata.resize_data(nr_blocks).await.unwrap_err().errno()
        };
        // Blocks 0 to 100 are in use.
        for too_few in [0, 50, 100] {
            assert_eq!(
                refused(&mut metadata, too_few).await,
                Errno::ENOSPC,
                "{too_few}"
            );
        }
        for enough in [101, 4999] {
            assert_eq!(
                refused(&mut metadata, enough).await,
                Errno::EINVAL,
                "{enough}"
            );
        }
        assert!(!metadata.changed());
        assert_eq!(metadata.nr_data_blocks(), 5000);
        metadata.resize_data(5000).await.unwrap();
        assert!(!metadata.changed());
        metadata.resize_data(20_000).await.unwrap();
        assert_eq!(
            (metadata.nr_data_blocks(), metadata.nr_free_data()),
            (20_000, 19_899)
        );
        metadata.commit().await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
    });
}

/// dm_pool_metadata_read_only and _read_write: EPERM for whatever writes, a commit of earlier changes
/// included, and not a block is written; then it goes on where it was.
#[test]
fn read_only_mode() {
    block_on(async {
        let (device, mut metadata) = sample(1024).await;
        write(&mut metadata, 1, 200..203).await.unwrap();
        let free = metadata.nr_free_data();
        device.take_events();
        metadata.set_read_only();
        assert!(metadata.is_read_only());
        let refused = Err(ThinError::ReadOnly);
        assert_eq!(metadata.commit().await, refused);
        assert_eq!(metadata.create_thin(9).await, refused);
        assert_eq!(metadata.create_snap(9, 1).await, refused);
        assert_eq!(metadata.delete(2).await, refused);
        assert_eq!(metadata.insert(1, 7, 4000).await, refused);
        assert_eq!(metadata.remove_range(1, 0, 5).await.map(|_| ()), refused);
        assert_eq!(metadata.set_transaction_id(0, 1), refused);
        assert_eq!(metadata.reserve_metadata_snap().await, refused);
        assert_eq!(metadata.resize_data(9000).await, refused);
        assert_eq!(metadata.resize_metadata().await, refused);
        assert_eq!(metadata.set_needs_check().await, refused);
        assert_eq!(ThinError::ReadOnly.errno(), Errno::EPERM);
        assert_eq!(metadata.find_block(1, 201).await.unwrap().data_block, 102);
        assert_eq!(device.take_events(), []);
        metadata.set_read_write().unwrap();
        assert_eq!(metadata.nr_free_data(), free);
        metadata.commit().await.unwrap();
        let mut again = open(&device).await;
        assert_eq!(again.mapped_count(1).await.unwrap(), 103);
        assert_eq!(again.check().await.unwrap(), []);
    });
}

/// Features that allow reading only cannot be got around by way of dm_pool_metadata_read_write.
#[test]
fn read_write_respects_features() {
    static SUPERBLOCK: Kind = Kind {
        name: "thin superblock",
        xor: 160_774,
        blocknr_offset: 8,
        validate: no_rules,
    };
    block_on(async {
        let (device, _) = sample(1024).await;
        let mut blocks = device.blocks();
        put_u32(&mut blocks[0], 356, 2);
        SUPERBLOCK.seal(&mut blocks[0], 0);
        let device = Rc::new(MemoryDevice::from_blocks(blocks));
        let read_only = OpenOptions {
            read_only: true,
            ..options()
        };
        let mut metadata = ThinMetadata::open(device, read_only).await.unwrap();
        let refused = metadata.set_read_write().unwrap_err();
        assert!(matches!(refused, ThinError::Features { flags: 2, .. }));
        assert_eq!(refused.errno(), Errno::EINVAL);
        assert!(metadata.is_read_only());
    });
}

/// dm_pool_set_metadata_transaction_id and _get_: compare and set, kept by a commit, noted in new devices.
#[test]
fn transaction_id() {
    block_on(async {
        let (device, mut metadata) = sample(1024).await;
        assert_eq!(metadata.transaction_id(), 0);
        let refused = metadata.set_transaction_id(1, 2).unwrap_err();
        assert_eq!(
            (refused.errno(), metadata.changed()),
            (Errno::EINVAL, false)
        );
        metadata.set_transaction_id(0, u64::MAX).unwrap();
        metadata.create_thin(7).await.unwrap();
        metadata.commit().await.unwrap();
        let mut again = open(&device).await;
        assert_eq!(again.transaction_id(), u64::MAX);
        assert_eq!(again.details(7).await.unwrap().transaction_id, u64::MAX);
        again.set_transaction_id(u64::MAX, 3).unwrap();
        again.abort().await.unwrap();
        assert_eq!(again.transaction_id(), u64::MAX);
    });
}

/// dm_pool_get_metadata_snap, _metadata_dev_size, _data_dev_size, the data block size, free blocks and
/// thresholds: as the superblock and the tools have them.
#[test]
fn sizes() {
    block_on(async {
        let (device, mut metadata) = sample(1024).await;
        assert_eq!(metadata.data_block_size_sectors(), 128);
        assert_eq!(metadata.nr_metadata_blocks(), 1024);
        assert_eq!(
            (metadata.nr_data_blocks(), metadata.nr_free_data()),
            (5000, 4899)
        );
        assert_eq!(
            (metadata.metadata_reserve(), metadata.metadata_low_water()),
            (102, 256)
        );
        assert!(!metadata.is_metadata_tight());
        let free = metadata.nr_free_metadata();
        assert_eq!(metadata.held_root(), None);
        metadata.reserve_metadata_snap().await.unwrap();
        metadata.commit().await.unwrap();
        let held = metadata.held_root().unwrap();
        assert!(held > 0 && held < 1024);
        assert_eq!(
            u64::from_le_bytes(device.blocks()[0][56..64].try_into().unwrap()),
            held
        );
        assert!(metadata.nr_free_metadata() < free);
        device.grow(2048);
        assert!(metadata.metadata_device_has_grown());
        metadata.resize_metadata().await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_metadata_blocks(), 2048);
        thin_check(&Temp::with_blocks("sizes", &device));
    });
}

/// dm_pool_delete_thin_device of a device in use at this level: operations on it fail with ENODATA from
/// then on. (A pool refuses it: EBUSY.)
#[test]
fn delete_while_in_use() {
    block_on(async {
        let (_, mut metadata) = sample(1024).await;
        write(&mut metadata, 1, 200..203).await.unwrap();
        let block = metadata.alloc_data_block().await.unwrap();
        metadata.delete(1).await.unwrap();
        let gone = ThinError::NoDevice(1);
        assert_eq!(metadata.find_block(1, 200).await, Err(gone.clone().into()));
        assert_eq!(metadata.insert(1, 5, block).await, Err(gone.clone()));
        assert_eq!(
            metadata.remove_range(1, 0, 5).await.map(|_| ()),
            Err(gone.clone())
        );
        assert_eq!(metadata.mapped_count(1).await, Err(gone.clone()));
        assert_eq!(metadata.create_snap(3, 1).await, Err(gone));
        assert!(!metadata.changed_this_transaction(1));
        metadata.free_data_block(block);
        metadata.commit().await.unwrap();
        metadata.create_thin(1).await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
    });
}

/// A device of any size of which only what was written takes memory.
struct Sparse {
    nr_blocks: u64,
    blocks: RefCell<BTreeMap<u64, Box<BlockBytes>>>,
}

#[async_trait(?Send)]
impl BlockDevice for Sparse {
    fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    async fn read(&self, block: u64, buf: &mut BlockBytes) -> Result<(), DeviceError> {
        match self.blocks.borrow().get(&block) {
            Some(bytes) => buf.copy_from_slice(&bytes[..]),
            None => *buf = [0; BLOCK_BYTES],
        }
        Ok(())
    }

    async fn write(&self, block: u64, buf: &BlockBytes) -> Result<(), DeviceError> {
        self.blocks.borrow_mut().insert(block, Box::new(*buf));
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// What was logged as a warning by this thread's test.
struct Warnings(Mutex<Vec<(std::thread::ThreadId, String)>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl log::Log for Warnings {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() == log::Level::Warn {
            let here = std::thread::current().id();
            self.0
                .lock()
                .unwrap()
                .push((here, record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// THIN_METADATA_MAX_SECTORS and its warning: of a larger device 255 bitmaps' worth of blocks is used; who
/// has given more than 16 GiB is told, who has given 16 GiB is not.
#[test]
fn the_limit_of_metadata() {
    log::set_logger(&WARNINGS).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let here = std::thread::current().id();
    let warnings = || -> Vec<String> {
        let all = std::mem::take(&mut *WARNINGS.0.lock().unwrap());
        all.into_iter()
            .filter(|(by, _)| *by == here)
            .map(|(_, text)| text)
            .collect()
    };
    assert_eq!(
        (METADATA_BLOCK_SIZE_SECTORS, MAX_METADATA_SECTORS),
        (8, 33_292_800)
    );
    assert_eq!(MAX_METADATA_SECTORS_WARNING * 512, 16 << 30);
    block_on(async {
        let per = u64::from(METADATA_BLOCK_SIZE_SECTORS);
        for (sectors, used, warned) in [
            (
                MAX_METADATA_SECTORS - per,
                MAX_METADATA_SECTORS - per,
                false,
            ),
            (MAX_METADATA_SECTORS, MAX_METADATA_SECTORS, false),
            (MAX_METADATA_SECTORS_WARNING, MAX_METADATA_SECTORS, false),
            (
                MAX_METADATA_SECTORS_WARNING + per,
                MAX_METADATA_SECTORS,
                true,
            ),
            (1 << 40, MAX_METADATA_SECTORS, true),
        ] {
            let device = Rc::new(Sparse {
                nr_blocks: sectors / per,
                blocks: RefCell::default(),
            });
            let mut metadata = ThinMetadata::open(device.clone(), options()).await.unwrap();
            assert_eq!(metadata.nr_metadata_blocks(), used / per);
            assert!(!metadata.metadata_device_has_grown());
            let told = warnings();
            assert_eq!(told.len(), usize::from(warned), "{sectors}: {told:?}");
            assert!(told.iter().all(|text| text.contains("will not be used")));
            metadata.resize_data(100).await.unwrap();
            metadata.create_thin(1).await.unwrap();
            write(&mut metadata, 1, 0..10).await.unwrap();
            metadata.commit().await.unwrap();
            drop(metadata);
            let mut again = ThinMetadata::open(device, options()).await.unwrap();
            assert_eq!(again.mapped_count(1).await.unwrap(), 10);
            assert_eq!(warnings().len(), usize::from(warned));
        }
    });
}
