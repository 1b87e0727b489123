//! Trees, space maps and transactions against plain models, with crashes and failing devices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use futures::executor::block_on;
use persistent_data::block::{Kind, no_rules};
use persistent_data::btree::{self, ValueOps};
use persistent_data::check::{Counts, check_space_map, check_tree};
use persistent_data::device::{BLOCK_BYTES, BlockDevice};
use persistent_data::memory::{Event, MemoryDevice};
use persistent_data::space_map::{IndexEntry, SpaceMapRoot};
use persistent_data::tm::{DiskSpaceMap, Sealed, TransactionManager};
use persistent_data::{Error, Result};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

static SUPER: Kind = Kind {
    name: "test superblock",
    xor: 1,
    blocknr_offset: 8,
    validate: no_rules,
};

const ROOT_AT: usize = 64;
const DISK_AT: usize = 96;
const TREES_AT: usize = 128;

/// Values are data blocks: their references are counted in a map, as thin does it.
struct DataRefs<'a>(&'a DiskSpaceMap);

impl ValueOps<u64> for DataRefs<'_> {
    fn inc(&self, _: &TransactionManager, value: u64) -> Result<()> {
        self.0.map().inc(value)
    }
    async fn dec(&self, tm: &TransactionManager, value: u64) -> Result<()> {
        self.0.map().dec(tm, value).await.map(|_| ())
    }
    fn equal(&self, old: u64, new: u64) -> bool {
        old == new
    }
}

type Models = Vec<BTreeMap<u64, u64>>;

struct World {
    tm: TransactionManager,
    disk: DiskSpaceMap,
    trees: Vec<(u64, BTreeMap<u64, u64>)>,
    /// What the last commit holds.
    committed: Models,
    /// A transaction that has ended and is not on the disk yet, its superblock, and what it holds.
    sealed: Option<(Sealed, [u8; BLOCK_BYTES], Models)>,
}

impl World {
    async fn create(device: Rc<dyn BlockDevice>, nr_data: u64, cache: usize) -> Result<World> {
        let tm = TransactionManager::create(device, cache).await?;
        let disk = DiskSpaceMap::create(&tm).await?;
        disk.extend(&tm, nr_data).await?;
        let root = btree::empty::<u64>(&tm).await?;
        let mut world = World {
            tm,
            disk,
            trees: vec![(root, BTreeMap::new())],
            committed: Vec::new(),
            sealed: None,
        };
        world.commit().await?;
        Ok(world)
    }

    async fn open(device: Rc<dyn BlockDevice>, cache: usize) -> Result<World> {
        let mut sb = [0; BLOCK_BYTES];
        device.read(0, &mut sb).await.map_err(Error::Flush)?;
        SUPER.verify(&sb, 0)?;
        let root = SpaceMapRoot::get(&sb[ROOT_AT..]);
        let tm = TransactionManager::open(device, cache, &root).await?;
        let disk = DiskSpaceMap::open(&tm, &SpaceMapRoot::get(&sb[DISK_AT..])).await?;
        let mut trees = Vec::new();
        for slot in sb[TREES_AT..].chunks_exact(8) {
            let root = u64::from_le_bytes(slot.try_into().unwrap());
            if root == 0 {
                break;
            }
            let mut model = BTreeMap::new();
            btree::walk(&tm, root, 0, u64::MAX, |key, value| {
                model.insert(key, value);
            })
            .await?;
            trees.push((root, model));
        }
        let committed = trees.iter().map(|(_, model)| model.clone()).collect();
        Ok(World {
            tm,
            disk,
            trees,
            committed,
            sealed: None,
        })
    }

    fn models(&self) -> Models {
        self.trees.iter().map(|(_, model)| model.clone()).collect()
    }

    async fn seal(&mut self) -> Result<()> {
        self.land().await?;
        let disk = self.disk.pre_commit(&self.tm).await?;
        let sealed = self.tm.seal().await?;
        let sb = self.superblock(disk, sealed.root());
        self.sealed = Some((sealed, sb, self.models()));
        Ok(())
    }

    async fn land(&mut self) -> Result<()> {
        if let Some((sealed, mut sb, models)) = self.sealed.take() {
            sealed.commit(&SUPER, &mut sb).await?;
            self.tm.committed();
            self.disk.committed();
            self.committed = models;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        self.land().await?;
        let disk = self.disk.pre_commit(&self.tm).await?;
        let root = self.tm.pre_commit().await?;
        let mut sb = self.superblock(disk, root);
        self.tm.commit(&SUPER, &mut sb).await?;
        self.disk.committed();
        self.committed = self.models();
        Ok(())
    }

    fn superblock(&self, disk: SpaceMapRoot, root: SpaceMapRoot) -> [u8; BLOCK_BYTES] {
        let mut sb = [0; BLOCK_BYTES];
        root.put(&mut sb[ROOT_AT..]);
        disk.put(&mut sb[DISK_AT..]);
        for (slot, (root, _)) in sb[TREES_AT..].chunks_exact_mut(8).zip(&self.trees) {
            slot.copy_from_slice(&root.to_le_bytes());
        }
        sb
    }

    async fn apply(&mut self, step: &Step) -> Result<()> {
        let nr = self.trees.len();
        match *step {
            Step::Insert { tree, first, count } => {
                let (root, model) = &mut self.trees[tree % nr];
                for key in first..first + count {
                    let block = match self.disk.map().allocate(&self.tm).await {
                        Err(Error::NoSpace) => return Ok(()),
                        block => block?,
                    };
                    let ops = DataRefs(&self.disk);
                    let (new, is_new) = btree::insert(&self.tm, *root, key, block, &ops).await?;
                    assert_eq!(is_new, model.insert(key, block).is_none());
                    *root = new;
                }
            }
            Step::Remove { tree, first, count } => {
                let (root, model) = &mut self.trees[tree % nr];
                let ops = DataRefs(&self.disk);
                let mut seen = Vec::new();
                let (new, removed) =
                    btree::remove_range(&self.tm, *root, first, first + count, &ops, |k, v| {
                        seen.push((k, v));
                    })
                    .await?;
                *root = new;
                let expected: Vec<_> = model
                    .range(first..first + count)
                    .map(|(k, v)| (*k, *v))
                    .collect();
                assert_eq!(seen, expected);
                assert_eq!(removed, expected.len() as u64);
                model.retain(|k, _| !(first..first + count).contains(k));
            }
            Step::Snapshot { tree } => {
                if nr < 6 {
                    let (root, model) = self.trees[tree % nr].clone();
                    self.tm.inc(root)?;
                    self.trees.push((root, model));
                }
            }
            Step::Delete { tree } => {
                if nr > 1 {
                    let (root, _) = self.trees.remove(tree % nr);
                    btree::delete(&self.tm, root, &DataRefs(&self.disk)).await?;
                }
            }
            Step::Ahead {
                of_data,
                of_metadata,
            } => {
                for _ in 0..of_data {
                    self.disk.apply_ahead(&self.tm).await?;
                }
                for _ in 0..of_metadata {
                    self.tm.apply_ahead().await?;
                }
            }
            Step::Seal => self.seal().await?,
            Step::Land => self.land().await?,
            Step::Commit => self.commit().await?,
        }
        self.disk.relieve(&self.tm).await?;
        self.tm.relieve().await
    }

    /// Structure, contents and every count, of metadata and data.
    async fn check(&mut self) -> Result<()> {
        self.commit().await?;
        let mut findings = Vec::new();
        let mut counts = Counts::default();
        let data = RefCell::new(Counts::default());
        for (root, model) in &self.trees {
            let mut found = BTreeMap::new();
            btree::walk(&self.tm, *root, 0, u64::MAX, |k, v| {
                found.insert(k, v);
            })
            .await?;
            assert_eq!(&found, model);
            assert_eq!(
                btree::last_key::<u64>(&self.tm, *root).await?,
                model.last_key_value().map(|(k, _)| *k)
            );
            check_tree::<u64>(&self.tm, *root, &mut counts, &mut findings, |_, v| {
                data.borrow_mut().add(v);
            })
            .await?;
        }
        let disk = self.disk.pre_commit(&self.tm).await?;
        check_tree::<IndexEntry>(
            &self.tm,
            disk.bitmap_root,
            &mut counts,
            &mut findings,
            |_, _| {},
        )
        .await?;
        check_space_map(&self.tm, self.disk.map(), &mut counts, &mut findings).await?;
        check_space_map(&self.tm, self.tm.map(), &mut counts, &mut findings).await?;
        counts.add(0);
        counts.add(self.tm.index_block());
        counts
            .compare(&self.tm, self.tm.map(), "metadata", &mut findings)
            .await?;
        data.into_inner()
            .compare(&self.tm, self.disk.map(), "data", &mut findings)
            .await?;
        assert_eq!(findings, []);
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert { tree: usize, first: u64, count: u64 },
    Remove { tree: usize, first: u64, count: u64 },
    Snapshot { tree: usize },
    Delete { tree: usize },
    Ahead { of_data: usize, of_metadata: usize },
    Seal,
    Land,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..6usize, 0..3000u64, 1..400u64)
            .prop_map(|(tree, first, count)| Step::Insert { tree, first, count }),
        4 => (0..6usize, 0..3000u64, 1..900u64)
            .prop_map(|(tree, first, count)| Step::Remove { tree, first, count }),
        2 => (0..6usize).prop_map(|tree| Step::Snapshot { tree }),
        1 => (0..6usize).prop_map(|tree| Step::Delete { tree }),
        2 => (0..4usize, 0..4usize)
            .prop_map(|(of_data, of_metadata)| Step::Ahead { of_data, of_metadata }),
        2 => Just(Step::Seal),
        1 => Just(Step::Land),
        2 => Just(Step::Commit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Trees that share nodes behave like separate maps; no count is ever wrong; a tiny cache
    /// changes nothing; what was committed can be opened.
    #[test]
    fn trees_are_maps(steps in prop::collection::vec(step(), 1..24), tiny_cache: bool) {
        block_on(async {
            let device = Rc::new(MemoryDevice::new(4000));
            let cache = if tiny_cache { 0 } else { 64 << 20 };
            let mut world = World::create(device.clone(), 40_000, cache).await.unwrap();
            for step in &steps {
                world.apply(step).await.unwrap();
            }
            world.check().await.unwrap();
            let mut again = World::open(device, cache).await.unwrap();
            prop_assert_eq!(
                again.trees.iter().map(|t| &t.1).collect::<Vec<_>>(),
                world.trees.iter().map(|t| &t.1).collect::<Vec<_>>()
            );
            again.check().await.unwrap();
            Ok(())
        })?;
    }

    /// A crash, or a device that fails from some write on, leaves the last committed state or, while
    /// the superblock is being written, that or the next; and a valid one.
    #[test]
    fn crashes_keep_a_committed_state(
        steps in prop::collection::vec(step(), 1..10),
        fail_after in 0u64..40,
        survivors: u64,
    ) {
        // Those that overlap have a test of their own.
        let steps: Vec<_> = steps
            .into_iter()
            .filter(|step| !matches!(step, Step::Seal | Step::Land))
            .collect();
        block_on(async {
            let device = Rc::new(MemoryDevice::new(4000));
            let mut world = World::create(device.clone(), 40_000, 0).await.unwrap();
            for step in &steps {
                world.apply(step).await.unwrap();
            }
            world.commit().await.unwrap();
            let before: Vec<_> = world.trees.iter().map(|t| t.1.clone()).collect();
            device.fail_after(Some(fail_after));
            let mut result = Ok(());
            for step in steps.iter().chain([&Step::Commit]) {
                result = world.apply(step).await;
                if result.is_err() {
                    break;
                }
                if matches!(step, Step::Commit) {
                    break;
                }
            }
            let after: Vec<_> = world.trees.iter().map(|t| t.1.clone()).collect();
            let mut seed = survivors;
            let left = device.after_crash(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                seed >> 63 == 1
            });
            let mut again = World::open(Rc::new(MemoryDevice::from_blocks(left)), 0).await.unwrap();
            let found: Vec<_> = again.trees.iter().map(|t| t.1.clone()).collect();
            if result.is_ok() {
                prop_assert!(found == after);
            } else {
                prop_assert!(found == before || found == after);
            }
            again.check().await.unwrap();
            Ok(())
        })?;
    }

    /// While a sealed transaction is not on the disk, the next one, whatever it does and writes early, touches
    /// neither it nor the last commit: a crash leaves the one or, when the superblock is there, the other. So does a
    /// device that fails.
    #[test]
    fn transactions_overlap(
        steps in prop::collection::vec(step(), 1..16),
        tiny_cache: bool,
        survivors: u64,
        fail_after in prop::option::of(0u64..300),
    ) {
        block_on(async {
            let device = Rc::new(MemoryDevice::new(4000));
            let cache = if tiny_cache { 0 } else { 64 << 20 };
            let mut world = World::create(device.clone(), 40_000, cache).await.unwrap();
            device.fail_after(fail_after);
            let mut seed = survivors;
            for step in &steps {
                if matches!(step, Step::Commit) {
                    continue;
                }
                let sealed = world.sealed.as_ref().map(|(_, _, models)| models.clone());
                let failed = world.apply(step).await.is_err();
                prop_assert!(!failed || fail_after.is_some());
                let left = device.after_crash(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    seed >> 63 == 1
                });
                let mut again = World::open(Rc::new(MemoryDevice::from_blocks(left)), 0).await.unwrap();
                let is_sealed = failed && sealed.is_some_and(|sealed| again.models() == sealed);
                prop_assert!(again.models() == world.committed || is_sealed);
                again.check().await.unwrap();
                if failed {
                    break;
                }
            }
            Ok(())
        })?;
    }

    /// Whatever bytes a disk holds, opening and walking gives an error or an answer.
    #[test]
    fn corruption_is_an_error(at in prop::collection::vec((0usize..200, 0usize..4096, any::<u8>()), 1..20)) {
        block_on(async {
            let device = Rc::new(MemoryDevice::new(400));
            let mut world = World::create(device.clone(), 4000, 1 << 20).await.unwrap();
            world.apply(&Step::Insert { tree: 0, first: 0, count: 2000 }).await.unwrap();
            world.commit().await.unwrap();
            let mut blocks = device.blocks();
            for (block, offset, value) in at {
                blocks[block][offset] = value;
                // With a good checksum, so that what lies behind it is put to the test.
                for kind in [&persistent_data::node::NODE, &persistent_data::space_map::BITMAP] {
                    let mut sealed = device.blocks()[block];
                    let found = kind.verify(&sealed, block as u64);
                    if found.is_ok() {
                        sealed[offset] = value;
                        kind.seal(&mut sealed, block as u64);
                        blocks[block] = sealed;
                    }
                }
            }
            if let Ok(mut world) = World::open(Rc::new(MemoryDevice::from_blocks(blocks)), 1 << 20).await {
                let root = world.trees[0].0;
                let ops = DataRefs(&world.disk);
                let _ = btree::remove_range(&world.tm, root, 100, 700, &ops, |_, _| {}).await;
                let _ = btree::delete(&world.tm, root, &ops).await;
                let _ = world.commit().await;
            }
        });
    }
}

/// The order that crash safety rests on: blocks, flush, superblock, flush; and no block of the
/// committed state is written.
#[test]
fn commit_order() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(400));
        let mut world = World::create(device.clone(), 4000, 1 << 20).await.unwrap();
        let insert = Step::Insert {
            tree: 0,
            first: 0,
            count: 300,
        };
        world.apply(&insert).await.unwrap();
        world.commit().await.unwrap();
        let mut used = Vec::new();
        for block in 1..400 {
            if world.tm.count(block).await.unwrap() > 0 {
                used.push(block);
            }
        }
        device.take_events();
        world.apply(&insert).await.unwrap();
        world.commit().await.unwrap();
        let events = device.take_events();
        let [blocks @ .., Event::Flush, Event::Write(0), Event::Flush] = events.as_slice() else {
            panic!("wrong order: {events:?}");
        };
        assert!(blocks.len() > 3);
        for event in blocks {
            assert!(!matches!(event, Event::Flush | Event::Write(0)));
            assert!(!used.iter().any(|block| *event == Event::Write(*block)));
        }
    });
}

/// Blocks that are written early to make room in the cache, and cannot be, are written by the commit. Who only
/// looked something up need not know.
#[test]
fn early_writes_that_fail_are_made_up_for() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(4000));
        let mut world = World::create(device.clone(), 40_000, 0).await.unwrap();
        for first in (0..20_000).step_by(1000) {
            let insert = Step::Insert {
                tree: 0,
                first,
                count: 500,
            };
            device.fail_after((first % 2000 == 0).then_some(0));
            world.apply(&insert).await.unwrap();
            let (root, model) = &world.trees[0];
            for key in (0..first).step_by(100) {
                let found = btree::lookup::<u64>(&world.tm, *root, key).await.unwrap();
                assert_eq!(found.as_ref(), model.get(&key));
            }
        }
        device.fail_after(None);
        world.check().await.unwrap();
        let mut again = World::open(device, 0).await.unwrap();
        assert!(again.models() == world.models());
        again.check().await.unwrap();
    });
}

/// Blocks freed in a transaction come back only after its commit, even when nothing else is left.
#[test]
fn freed_blocks_wait_for_the_commit() {
    block_on(async {
        let mut world = World::create(Rc::new(MemoryDevice::new(400)), 100, 1 << 20)
            .await
            .unwrap();
        world
            .apply(&Step::Insert {
                tree: 0,
                first: 0,
                count: 100,
            })
            .await
            .unwrap();
        world.commit().await.unwrap();
        world
            .apply(&Step::Remove {
                tree: 0,
                first: 0,
                count: 10,
            })
            .await
            .unwrap();
        assert_eq!(world.disk.map().nr_free(), 10);
        assert_eq!(
            world.disk.map().allocate(&world.tm).await,
            Err(Error::NoSpace)
        );
        world.commit().await.unwrap();
        world.disk.map().hold(0);
        let got = world.disk.map().allocate(&world.tm).await.unwrap();
        assert!(got < 100 && got != 0, "held block was handed out");
    });
}

/// Both maps grow over bitmap borders and stay right.
#[test]
fn maps_grow() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(900));
        let mut world = World::create(device.clone(), 10_000, 1 << 20)
            .await
            .unwrap();
        world
            .apply(&Step::Insert {
                tree: 0,
                first: 0,
                count: 3000,
            })
            .await
            .unwrap();
        world.commit().await.unwrap();
        device.grow(40_000);
        world.tm.extend().await.unwrap();
        world.disk.extend(&world.tm, 50_000).await.unwrap();
        world
            .apply(&Step::Insert {
                tree: 0,
                first: 3000,
                count: 30_000,
            })
            .await
            .unwrap();
        world.check().await.unwrap();
        let mut again = World::open(device, 1 << 20).await.unwrap();
        assert_eq!(again.tm.map().nr_blocks(), 40_000);
        again.check().await.unwrap();
    });
}
