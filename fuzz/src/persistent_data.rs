//! Nodes, space maps and bitmaps of any shape: every block of a small device is described by the
//! input, so trees with tiny nodes, shared children and circles come cheap.

use arbitrary::{Arbitrary, Unstructured};
use futures::executor::block_on;
use persistent_data::block::{Kind, no_rules, put_u32, put_u64};
use persistent_data::btree::{self, Plain, Value, ValueOps};
use persistent_data::check::{Counts, check_space_map, check_tree};
use persistent_data::device::{BLOCK_BYTES, BlockBytes};
use persistent_data::memory::MemoryDevice;
use persistent_data::node::NODE;
use persistent_data::space_map::{BITMAP, INDEX, IndexEntry, SpaceMapRoot};
use persistent_data::tm::{DiskSpaceMap, TransactionManager};
use persistent_data::{Error, Result};
use std::rc::Rc;

static SUPER: Kind = Kind {
    name: "fuzz superblock",
    xor: 1,
    blocknr_offset: 8,
    validate: no_rules,
};

const MAX_BLOCKS: usize = 32;
const MAX_STEPS: usize = 24;

/// A number, mostly a small one.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Number {
    Small(u8),
    Same(u8),
    Medium(u16),
    Any(u64),
}

impl Number {
    fn get(self) -> u64 {
        match self {
            Number::Small(n) | Number::Same(n) => u64::from(n),
            Number::Medium(n) => u64::from(n),
            Number::Any(n) => n,
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Spec {
    Node {
        flags: Option<u32>,
        leaf: bool,
        nr_entries: Option<u32>,
        max_entries: u16,
        value_size: u8,
        first_key: Number,
        entries: Vec<(u8, Number)>,
    },
    Bitmap(Vec<u8>),
    /// Every count is this one.
    FullBitmap(u8),
    Index(Vec<(u8, Option<(u32, u32)>)>),
    Noise(u8, Vec<u8>),
}

/// Both space maps in good order at the start of the device, so that what follows gets past opening.
#[derive(Debug, Arbitrary)]
struct Skeleton {
    /// Pairs of the metadata device's bitmap; blocks in use have one reference otherwise.
    metadata_counts: Option<Vec<u8>>,
    metadata_overflow: Vec<(u8, u32)>,
    nr_data: u16,
    data_counts: Vec<u8>,
    nr_allocated: Number,
}

/// Blocks of a skeleton: index, bitmap, overflow of the metadata; index, bitmap, overflow of the data.
const SKELETON: u64 = 6;

#[derive(Debug, Arbitrary)]
struct Root {
    nr_blocks: Number,
    nr_allocated: Number,
    bitmap_root: u8,
    ref_count_root: u8,
}

impl Root {
    fn get(&self) -> SpaceMapRoot {
        SpaceMapRoot {
            nr_blocks: self.nr_blocks.get(),
            nr_allocated: self.nr_allocated.get(),
            bitmap_root: u64::from(self.bitmap_root),
            ref_count_root: u64::from(self.ref_count_root),
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Case {
    blocks: Vec<Spec>,
    nr_free: u8,
    metadata: Root,
    data: Root,
    skeleton: Option<Skeleton>,
    trees: [u8; 4],
    steps: Vec<(u8, Step)>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Lookup(Number),
    Walk(Number, Number),
    Next(Number),
    LastKey,
    Insert(Number, Number),
    InsertMany(Number, u8, u8),
    Remove(Number),
    RemoveRange(Number, Number),
    Delete,
    Share,
    CheckTree,
    CheckMaps,
    AllocateData(u8),
    ReleaseData(Number),
    GrowData(u16),
    Extend,
    Commit,
}

impl Skeleton {
    fn blocks(&self, nr_used: u64, has_data: bool) -> [BlockBytes; SKELETON as usize] {
        let full = |count: u64| {
            // Pairs 10: the high bit is worth 1.
            let mut pairs = vec![0b1010_1010; count as usize / 4];
            pairs.push((0b1010_1010_u16 >> (8 - 2 * (count % 4))) as u8);
            pairs
        };
        let counts = self.metadata_counts.clone();
        let leaf = |entries: Vec<(u8, Number)>, size: u8| Spec::Node {
            flags: None,
            leaf: true,
            nr_entries: None,
            max_entries: 120,
            value_size: size,
            first_key: Number::Small(0),
            entries,
        };
        let overflow = self.metadata_overflow.iter();
        let overflow = overflow.map(|(step, count)| (*step, Number::Any(u64::from(*count))));
        let index = match has_data {
            true => vec![(0, Number::Small(5))],
            false => Vec::new(),
        };
        [
            block(&Spec::Index(vec![(2, None)]), 1),
            block(&Spec::Bitmap(counts.unwrap_or_else(|| full(nr_used))), 2),
            block(&leaf(overflow.collect(), 1), 3),
            block(&leaf(index, 2), 4),
            block(&Spec::Bitmap(self.data_counts.clone()), 5),
            block(&leaf(Vec::new(), 1), 6),
        ]
    }
}

fn block(spec: &Spec, nr: u64) -> BlockBytes {
    let mut bytes = [0; BLOCK_BYTES];
    match spec {
        Spec::Node {
            flags,
            leaf,
            nr_entries,
            max_entries,
            value_size,
            first_key,
            entries,
        } => {
            let size = match *leaf {
                true => [8, 4, 16, 24, 0, *value_size][usize::from(*value_size) % 6],
                false => 8,
            };
            let max = u32::from(*max_entries) % 600;
            put_u32(&mut bytes, 4, flags.unwrap_or(1 + u32::from(*leaf)));
            let nr_entries = nr_entries.unwrap_or(entries.len() as u32);
            put_u32(&mut bytes, 16, nr_entries);
            put_u32(&mut bytes, 20, max);
            put_u32(&mut bytes, 24, u32::from(size));
            let mut key = first_key.get();
            for (i, (step, value)) in entries.iter().enumerate() {
                let values = 32 + 8 * max as usize + usize::from(size) * i;
                if 32 + 8 * i > BLOCK_BYTES - 8 || values > BLOCK_BYTES - 8 {
                    break;
                }
                put_u64(&mut bytes, 32 + 8 * i, key);
                if size >= 8 {
                    put_u64(&mut bytes, values, value.get());
                } else {
                    put_u32(&mut bytes, values, value.get() as u32);
                }
                // Mostly ascending.
                key = match step {
                    255 => key.wrapping_sub(1),
                    step => key.wrapping_add(u64::from(*step)),
                };
            }
            NODE.seal(&mut bytes, nr);
        }
        Spec::Bitmap(counts) => {
            let length = counts.len().min(BLOCK_BYTES - 16);
            bytes[16..16 + length].copy_from_slice(&counts[..length]);
            BITMAP.seal(&mut bytes, nr);
        }
        Spec::FullBitmap(counts) => {
            bytes[16..].fill(*counts);
            BITMAP.seal(&mut bytes, nr);
        }
        Spec::Index(entries) => {
            for (slot, (blocknr, hints)) in bytes[16..].chunks_exact_mut(16).zip(entries) {
                let (nr_free, none_free_before) = hints.unwrap_or((16_000, 0));
                let entry = IndexEntry {
                    blocknr: u64::from(*blocknr),
                    nr_free,
                    none_free_before,
                };
                entry.put(slot);
            }
            INDEX.seal(&mut bytes, nr);
        }
        Spec::Noise(kind, noise) => {
            let length = noise.len().min(BLOCK_BYTES);
            bytes[..length].copy_from_slice(&noise[..length]);
            match kind % 4 {
                0 => NODE.seal(&mut bytes, nr),
                1 => BITMAP.seal(&mut bytes, nr),
                2 => INDEX.seal(&mut bytes, nr),
                _ => {}
            }
        }
    }
    bytes
}

/// Values are data blocks, counted in the data map.
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

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(case) = Case::arbitrary(&mut input) else {
        return;
    };
    // What a corrupt disk leads to is an error; that is all there is to it.
    let _ = block_on(drive(&case));
}

async fn drive(case: &Case) -> Result<()> {
    let mut blocks = vec![[0; BLOCK_BYTES]];
    let (mut root, mut data) = (case.metadata.get(), case.data.get());
    let nr_specs = case.blocks.len().min(MAX_BLOCKS) as u64;
    if let Some(skeleton) = &case.skeleton {
        let nr_used = 1 + SKELETON + nr_specs;
        root = SpaceMapRoot {
            nr_blocks: nr_used + u64::from(case.nr_free),
            nr_allocated: skeleton.nr_allocated.get(),
            bitmap_root: 1,
            ref_count_root: 3,
        };
        data = SpaceMapRoot {
            nr_blocks: u64::from(skeleton.nr_data % 16_321),
            nr_allocated: skeleton.nr_allocated.get(),
            bitmap_root: 4,
            ref_count_root: 6,
        };
        blocks.extend(skeleton.blocks(nr_used, data.nr_blocks > 0));
    }
    for (nr, spec) in (blocks.len() as u64..).zip(case.blocks.iter().take(MAX_BLOCKS)) {
        blocks.push(block(spec, nr));
    }
    blocks.resize(blocks.len() + usize::from(case.nr_free), [0; BLOCK_BYTES]);
    let device = Rc::new(MemoryDevice::from_blocks(blocks));
    let tm = TransactionManager::open(device, 0, &root).await?;
    let data = match DiskSpaceMap::open(&tm, &data).await {
        Ok(data) => data,
        Err(_) => DiskSpaceMap::create(&tm).await?,
    };
    let mut trees = case.trees.map(u64::from);
    for (which, step) in case.steps.iter().take(MAX_STEPS) {
        let Some(root) = trees.get_mut(usize::from(which % 4)) else {
            continue;
        };
        let result = match which % 4 {
            0 => take(&tm, &data, root, step, &DataRefs(&data), |n| n).await,
            1 => take(&tm, &data, root, step, &Plain, |n| n as u32).await,
            2 => {
                let entry = |blocknr| IndexEntry {
                    blocknr,
                    ..IndexEntry::default()
                };
                take(&tm, &data, root, step, &Plain, entry).await
            }
            _ => take(&tm, &data, root, step, &Plain, |n| n).await,
        };
        match result {
            // A transaction that failed is given up.
            Err(_) if changes(step) => return result,
            _ => {}
        }
        assert!(tm.cache_stats().used_bytes <= 128 * BLOCK_BYTES as u64);
    }
    Ok(())
}

fn changes(step: &Step) -> bool {
    !matches!(
        step,
        Step::Lookup(_)
            | Step::Walk(..)
            | Step::Next(_)
            | Step::LastKey
            | Step::CheckTree
            | Step::CheckMaps
    )
}

async fn take<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    data: &DiskSpaceMap,
    root: &mut u64,
    step: &Step,
    ops: &O,
    value: impl Fn(u64) -> V,
) -> Result<()> {
    match *step {
        Step::Lookup(key) => {
            btree::lookup::<V>(tm, *root, key.get()).await?;
        }
        Step::Walk(begin, end) => {
            let (begin, end) = (begin.get(), end.get());
            let mut last = None;
            btree::walk::<V>(tm, *root, begin, end, |key, _| {
                assert!((begin..end).contains(&key), "{key} is outside");
                assert!(last < Some(key), "{key} comes after {last:?}");
                last = Some(key);
            })
            .await?;
        }
        Step::Next(from) => {
            let next = btree::next::<V>(tm, *root, from.get()).await?;
            assert!(next.is_none_or(|(key, _)| key >= from.get()));
        }
        Step::LastKey => {
            btree::last_key::<V>(tm, *root).await?;
        }
        Step::Insert(key, new) => {
            *root = btree::insert(tm, *root, key.get(), value(new.get()), ops)
                .await?
                .0;
        }
        Step::InsertMany(key, step, count) => {
            for i in 0..u64::from(count) {
                let key = key.get().wrapping_add(i * u64::from(step));
                *root = btree::insert(tm, *root, key, value(i), ops).await?.0;
            }
        }
        Step::Remove(key) => *root = btree::remove(tm, *root, key.get(), ops).await?.0,
        Step::RemoveRange(begin, end) => {
            let (begin, end) = (begin.get(), end.get());
            let removed = |key, _| assert!((begin..end).contains(&key), "{key} is outside");
            *root = btree::remove_range(tm, *root, begin, end, ops, removed)
                .await?
                .0;
        }
        Step::Delete => btree::delete(tm, *root, ops).await?,
        Step::Share => tm.inc(*root)?,
        Step::CheckTree => {
            let (mut counts, mut findings) = (Counts::default(), Vec::new());
            check_tree::<V>(tm, *root, &mut counts, &mut findings, |_, _| {}).await?;
        }
        Step::CheckMaps => {
            let (mut counts, mut findings) = (Counts::default(), Vec::new());
            for map in [tm.map(), data.map()] {
                check_space_map(tm, map, &mut counts, &mut findings).await?;
                counts.compare(tm, map, "a", &mut findings).await?;
            }
        }
        Step::AllocateData(count) => {
            for _ in 0..count {
                data.map().allocate(tm).await?;
            }
        }
        Step::ReleaseData(block) => {
            data.map().dec(tm, block.get()).await?;
        }
        Step::GrowData(by) => {
            let nr = data.map().nr_blocks();
            data.extend(tm, nr.checked_add(u64::from(by)).ok_or(Error::NoSpace)?)
                .await?;
        }
        Step::Extend => tm.extend().await?,
        Step::Commit => {
            let data_root = data.pre_commit(tm).await?;
            let root = tm.pre_commit().await?;
            let mut bytes = [0; BLOCK_BYTES];
            root.put(&mut bytes[64..]);
            data_root.put(&mut bytes[96..]);
            tm.commit(&SUPER, &mut bytes).await?;
            data.committed();
        }
    }
    Ok(())
}
