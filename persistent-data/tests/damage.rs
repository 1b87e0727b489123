//! Damage behind a right checksum: an error that names the block, and nothing worse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use futures::executor::block_on;
use persistent_data::btree::{self, Plain};
use persistent_data::check::Counts;
use persistent_data::device::{BLOCK_BYTES, BlockBytes};
use persistent_data::memory::MemoryDevice;
use persistent_data::node::{self, NODE};
use persistent_data::space_map::SpaceMapRoot;
use persistent_data::tm::{DiskSpaceMap, TransactionManager};
use persistent_data::{Error, Result};
use std::rc::Rc;

async fn metadata() -> TransactionManager {
    let device = Rc::new(MemoryDevice::new(64));
    TransactionManager::create(device, 0).await.unwrap()
}

/// A tree with these keys.
async fn tree(tm: &TransactionManager, keys: impl Iterator<Item = u64>) -> u64 {
    let mut root = btree::empty::<u64>(tm).await.unwrap();
    for key in keys {
        root = btree::insert(tm, root, key, key, &Plain).await.unwrap().0;
    }
    root
}

#[track_caller]
fn corrupt<T>(result: Result<T>) -> u64 {
    match result.map(|_| ()) {
        Err(Error::Corrupt { block, .. }) => block,
        other => panic!("{other:?}"),
    }
}

/// A node that could not be split in two parts with entries is refused when it is read.
#[test]
fn tiny_nodes_are_refused() {
    for (leaf, capacity) in [
        (true, 0),
        (true, 2),
        (false, 1),
        (false, 2),
        (true, 3),
        (false, 3),
    ] {
        let mut bytes = [0; BLOCK_BYTES];
        node::init(&mut bytes, leaf, 8);
        node::insert(&mut bytes, 0, 0, &[0; 8]);
        bytes[20] = capacity;
        bytes[16] = capacity.min(1);
        NODE.seal(&mut bytes, 5);
        match capacity {
            3 => NODE.verify(&bytes, 5).unwrap(),
            _ => assert_eq!(corrupt(NODE.verify(&bytes, 5)), 5),
        }
    }
}

/// A node that becomes its own child is not taken over by itself: its child on disk is a free block,
/// which is then what the node is shadowed to.
#[test]
fn own_children_are_refused() {
    block_on(async {
        let tm = metadata().await;
        let root = tree(&tm, 0..600).await;
        let mut superblock = [0; BLOCK_BYTES];
        let map = tm.pre_commit().await.unwrap();
        tm.commit(&NODE, &mut superblock).await.unwrap();
        let mut blocks = Vec::new();
        for nr in 0..tm.device().nr_blocks() {
            let mut bytes = [0; BLOCK_BYTES];
            tm.device().read(nr, &mut bytes).await.unwrap();
            blocks.push(bytes);
        }
        let open = async |blocks: &[BlockBytes]| {
            let device = Rc::new(MemoryDevice::from_blocks(blocks.to_vec()));
            TransactionManager::open(device, 0, &map).await.unwrap()
        };
        let free = open(&blocks).await.new_block(&NODE).await.unwrap().nr();
        let (top, leaf) = (root as usize, free as usize);
        blocks[leaf] = blocks[node::child(&blocks[top], 0) as usize];
        let nr = node::nr_entries(&blocks[top]);
        node::remove(&mut blocks[top], 1, nr);
        node::set_child(&mut blocks[top], 0, free);
        for nr in [root, free] {
            NODE.seal(&mut blocks[nr as usize], nr);
        }
        let tm = open(&blocks).await;
        assert_eq!(btree::lookup::<u64>(&tm, root, 5).await, Ok(Some(5)));
        let removed = btree::remove::<u64, _>(&tm, root, 5, &Plain).await;
        assert_eq!(corrupt(removed), free);
        let tm = open(&blocks).await;
        let inserted = btree::insert(&tm, root, 5, 0_u64, &Plain).await;
        assert_eq!(corrupt(inserted), free);
    });
}

/// Walks neither go backwards nor leave a leaf's bounds, and nothing outside a range is removed.
#[test]
fn keys_in_disorder_are_noticed() {
    block_on(async {
        // Not where a binary search looks. In a single leaf; in the first of several, where a key
        // belongs to the next leaf.
        for (nr, at, key) in [(100, 30, 7), (100, 30, 29), (600, 30, 200)] {
            let tm = metadata().await;
            let root = tree(&tm, 0..nr).await;
            let top = tm.read(root, &NODE).await.unwrap();
            let leaf = match node::is_leaf(&top.bytes()) {
                true => root,
                false => node::child(&top.bytes(), 0),
            };
            drop(top);
            let block = tm.read(leaf, &NODE).await.unwrap();
            node::set_key(&mut block.bytes_mut(), at, key);
            drop(block);
            for from in [0, 20, 28] {
                let mut last = None;
                let walked = btree::walk(&tm, root, from, nr, |key, _: u64| {
                    assert!(last < Some(key) && key >= from);
                    last = Some(key);
                });
                assert_eq!(corrupt(walked.await), leaf);
                let found = btree::next::<u64>(&tm, root, from).await;
                assert!(found.unwrap().unwrap().0 >= from);
            }
            let mut removed = Vec::new();
            let result = btree::remove_range(&tm, root, 20, 80, &Plain, |key, _: u64| {
                removed.push(key);
            });
            // Balancing may bring a key to where it is in order again.
            match result.await {
                Ok(_) if leaf != root => {}
                result => assert_eq!(corrupt(result), leaf),
            }
            assert!(
                removed.iter().all(|key| (20..80).contains(key)),
                "{removed:?}"
            );
        }
    });
}

/// A node of the middle whose keys reach beyond what its parent says leads nowhere, too.
#[test]
fn separators_in_disorder_are_noticed() {
    block_on(async {
        let tm = metadata().await;
        let root = tree(&tm, 0..600).await;
        let block = tm.read(root, &NODE).await.unwrap();
        node::set_key(&mut block.bytes_mut(), 1, 1000);
        drop(block);
        let walked = btree::walk(&tm, root, 0, u64::MAX, |_, _: u64| {}).await;
        // The second leaf is reached only below its key, where nothing else is out of order; then
        // the third's key lies behind.
        assert!(matches!(walked, Ok(()) | Err(Error::Corrupt { .. })));
        let mut seen = Vec::new();
        let _ = btree::walk(&tm, root, 0, u64::MAX, |key, _: u64| seen.push(key)).await;
        assert!(seen.is_sorted_by(|a, b| a < b));
    });
}

/// Hints of a bitmap's index entry are only hints, and may be anything.
#[test]
fn hints_may_be_anything() {
    block_on(async {
        let tm = metadata().await;
        let data = DiskSpaceMap::create(&tm).await.unwrap();
        data.extend(&tm, 100).await.unwrap();
        for _ in 0..10 {
            data.map().allocate(&tm).await.unwrap();
        }
        let root = data.pre_commit(&tm).await.unwrap();
        // The commit: the next transaction reads what the index says.
        let mut superblock = [0; BLOCK_BYTES];
        tm.pre_commit().await.unwrap();
        tm.commit(&NODE, &mut superblock).await.unwrap();
        let (index, _) = tm.shadow(root.bitmap_root, &NODE).await.unwrap();
        node::value_mut(&mut index.bytes_mut(), 0)[8..16].fill(0xFF);
        let root = SpaceMapRoot {
            bitmap_root: index.nr(),
            ..root
        };
        drop(index);
        let data = DiskSpaceMap::open(&tm, &root).await.unwrap();
        for block in 0..5 {
            assert!(data.map().dec(&tm, block).await.unwrap());
        }
        data.pre_commit(&tm).await.unwrap();
        assert_eq!(data.map().count(&tm, 0).await.unwrap(), 0);
    });
}

/// A root with more blocks allocated than there are is refused.
#[test]
fn impossible_counts_are_refused() {
    block_on(async {
        let tm = metadata().await;
        let data = DiskSpaceMap::create(&tm).await.unwrap();
        data.extend(&tm, 100).await.unwrap();
        let root = data.pre_commit(&tm).await.unwrap();
        for nr_allocated in [101, i64::MAX as u64, u64::MAX] {
            let bad = SpaceMapRoot {
                nr_allocated,
                ..root
            };
            assert_eq!(corrupt(DiskSpaceMap::open(&tm, &bad).await), 0);
        }
        assert!(DiskSpaceMap::open(&tm, &root).await.is_ok());
    });
}

/// However much is wrong, a check keeps a bounded number of findings.
#[test]
fn findings_are_bounded() {
    block_on(async {
        let tm = metadata().await;
        let data = DiskSpaceMap::create(&tm).await.unwrap();
        data.extend(&tm, 100_000).await.unwrap();
        let mut counts = Counts::default();
        for block in 0..50_000 {
            counts.add(block);
        }
        let mut findings = Vec::new();
        counts
            .compare(&tm, data.map(), "data", &mut findings)
            .await
            .unwrap();
        assert_eq!(findings.len(), 10_001);
        assert!(findings.last().unwrap().what.contains("more findings"));
    });
}
