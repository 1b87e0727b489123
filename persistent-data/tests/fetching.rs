//! Reading ahead: what was fetched need not be read again, is read many blocks at a time, and leaves room in the cache.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use async_trait::async_trait;
use futures::executor::block_on;
use persistent_data::btree::{self, Plain};
use persistent_data::device::{BLOCK_BYTES, BlockBytes, BlockDevice, DeviceError};
use persistent_data::memory::MemoryDevice;
use persistent_data::tm::TransactionManager;
use persistent_data::turn::yield_now;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

const KEYS: u64 = 40_000;

/// Counts reads; each takes a moment.
struct Counting {
    memory: Rc<MemoryDevice>,
    read: RefCell<BTreeMap<u64, u64>>,
    under_way: Cell<u64>,
    most_under_way: Cell<u64>,
}

#[async_trait(?Send)]
impl BlockDevice for Counting {
    fn nr_blocks(&self) -> u64 {
        self.memory.nr_blocks()
    }

    async fn read(&self, block: u64, bytes: &mut BlockBytes) -> Result<(), DeviceError> {
        *self.read.borrow_mut().entry(block).or_default() += 1;
        self.under_way.set(self.under_way.get() + 1);
        self.most_under_way
            .set(self.most_under_way.get().max(self.under_way.get()));
        yield_now().await;
        self.under_way.set(self.under_way.get() - 1);
        self.memory.read(block, bytes).await
    }

    async fn write(&self, block: u64, bytes: &BlockBytes) -> Result<(), DeviceError> {
        self.memory.write(block, bytes).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.memory.flush().await
    }
}

/// A tree of even keys, each with three times itself, opened again with nothing in the cache.
async fn cold_tree(cache_blocks: usize) -> (Rc<Counting>, TransactionManager, u64) {
    let device = Rc::new(Counting {
        memory: Rc::new(MemoryDevice::new(2000)),
        read: RefCell::default(),
        under_way: Cell::new(0),
        most_under_way: Cell::new(0),
    });
    let tm = TransactionManager::create(device.clone(), 1 << 24)
        .await
        .unwrap();
    let empty = btree::empty::<u64>(&tm).await.unwrap();
    let entries: Vec<(u64, u64)> = (0..KEYS).map(|i| (2 * i, 6 * i)).collect();
    let root = btree::insert_sorted(&tm, empty, &entries, &Plain)
        .await
        .unwrap();
    let map = tm.pre_commit().await.unwrap();
    let tm = TransactionManager::open(device.clone(), cache_blocks * BLOCK_BYTES, &map)
        .await
        .unwrap();
    device.read.borrow_mut().clear();
    (device, tm, root)
}

async fn look(tm: &TransactionManager, root: u64, keys: Range<u64>) {
    for key in keys {
        let expected = (key % 2 == 0 && key < 2 * KEYS).then_some(3 * key);
        assert_eq!(btree::lookup::<u64>(tm, root, key).await.unwrap(), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Afterwards nothing of it is read from the device, and nothing was read twice.
    #[test]
    fn what_was_fetched_is_there(wanted in prop::collection::vec((0..2 * KEYS + 10, 1..600u64), 1..40)) {
        block_on(async {
            let (device, tm, root) = cold_tree(2000).await;
            let wanted: Vec<Range<u64>> = wanted.into_iter().map(|(first, nr)| first..first + nr).collect();
            btree::fetch::<u64>(&tm, wanted.iter().map(|keys| (root, keys.clone()))).await;
            assert!(device.read.borrow().values().all(|times| *times == 1));
            let fetched = device.read.borrow().len();
            for keys in wanted {
                look(&tm, root, keys).await;
            }
            assert_eq!(device.read.borrow().len(), fetched);
        });
    }
}

/// Nodes of a level are read together.
#[test]
fn many_at_a_time() {
    block_on(async {
        let (device, tm, root) = cold_tree(2000).await;
        let far_apart = (0..64).map(|i| i * 1250..i * 1250 + 1);
        btree::fetch::<u64>(&tm, far_apart.map(|keys| (root, keys))).await;
        assert!(device.most_under_way.get() > 32);
    });
}

/// A small cache is not filled with what is fetched, and what is not there is read by who needs it.
#[test]
fn no_more_than_part_of_a_cache() {
    block_on(async {
        let (device, tm, root) = cold_tree(20).await;
        btree::fetch::<u64>(&tm, [(root, 0..2 * KEYS)]).await;
        assert!(device.most_under_way.get() <= 5);
        assert!(tm.cache_stats().used_bytes <= 20 * BLOCK_BYTES as u64);
        look(&tm, root, 0..2000).await;
    });
}
