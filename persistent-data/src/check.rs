//! Walks trees strictly: every invariant of persistent-data.md 2, and who refers to what.
//!
//! Meant for checks, tests and the simulator, not for the I/O path: it keeps a count per block.

use crate::btree::Value;
use crate::error::Result;
use crate::node::{self, NODE};
use crate::space_map::{BITMAP, SpaceMap};
use crate::tm::TransactionManager;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The block it concerns, of the metadata or data device as the text says.
    pub block: u64,
    /// What is wrong.
    pub what: String,
    /// Only that the block's count is too high: space that cannot be used, and nothing is in danger.
    pub is_leak: bool,
}

/// Findings that are kept. A damaged bitmap alone can be wrong about 16320 blocks, and one bitmap can
/// stand for many.
const MAX_FINDINGS: usize = 10_000;

/// Notes a finding. When there are too many, the last one says so and the rest is left out.
pub fn note(findings: &mut Vec<Finding>, block: u64, what: impl FnOnce() -> String) {
    keep(findings, block, false, what);
}

fn keep(findings: &mut Vec<Finding>, block: u64, is_leak: bool, what: impl FnOnce() -> String) {
    let what = match findings.len().cmp(&MAX_FINDINGS) {
        Ordering::Less => what(),
        Ordering::Equal => "there are more findings, which are not listed".to_owned(),
        Ordering::Greater => return,
    };
    findings.push(Finding {
        block,
        what,
        is_leak,
    });
}

/// References found so far.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<u64, u32>);

impl Counts {
    /// Counts a reference; true when it is the first.
    pub fn add(&mut self, block: u64) -> bool {
        let count = self.0.entry(block).or_default();
        *count += 1;
        *count == 1
    }

    /// The references found to a block.
    pub fn get(&self, block: u64) -> u32 {
        self.0.get(&block).copied().unwrap_or_default()
    }

    /// Compares with what a space map says.
    pub async fn compare(
        &self,
        tm: &TransactionManager,
        map: &SpaceMap,
        device: &str,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let mut allocated = 0;
        for block in 0..map.nr_blocks() {
            let (found, said) = (self.get(block), map.count(tm, block).await?);
            allocated += u64::from(said > 0);
            if found != said {
                keep(findings, block, found < said, || {
                    format!("{device} block has {found} references, its count is {said}")
                });
            }
        }
        if allocated != map.nr_blocks() - map.nr_free() {
            note(findings, 0, || {
                format!("{device} space map has {allocated} blocks allocated, says otherwise")
            });
        }
        for block in self.0.keys().filter(|block| **block >= map.nr_blocks()) {
            note(findings, *block, || {
                format!("{device} block is used but outside the device")
            });
        }
        Ok(())
    }
}

/// Walks a tree. Each block is counted per reference, but entered only once; `visit` sees the
/// entries of each leaf entered.
pub async fn check_tree<V: Value>(
    tm: &TransactionManager,
    root: u64,
    counts: &mut Counts,
    findings: &mut Vec<Finding>,
    mut visit: impl FnMut(u64, V),
) -> Result<()> {
    let mut leaf_depth = None;
    // Block, depth, and the keys it may hold: from, below.
    let mut todo = vec![(root, 0usize, None, None)];
    while let Some((block, depth, low, high)) = todo.pop() {
        if !counts.add(block) {
            continue;
        }
        let mut finding = |what: &str| note(findings, block, || what.to_owned());
        let node = tm.read(block, &NODE).await?;
        let bytes = node.bytes();
        let (nr, max) = (node::nr_entries(&bytes), node::max_entries(&bytes));
        if depth > 0 && nr < max / 3 {
            finding("node is less than a third full");
        }
        if !max.is_multiple_of(3) {
            finding("capacity is not divisible by 3");
        }
        if depth > 0 && nr == 1 && !node::is_leaf(&bytes) {
            finding("inner node with one child");
        }
        let keys: Vec<u64> = (0..nr).map(|i| node::key(&bytes, i)).collect();
        if !keys.is_sorted_by(|a, b| a < b) {
            finding("keys are not ascending");
        }
        if keys
            .first()
            .zip(low)
            .is_some_and(|(first, low)| *first < low)
            || keys
                .last()
                .zip(high)
                .is_some_and(|(last, high)| *last >= high)
        {
            finding("keys outside what the parent says");
        }
        if node::is_leaf(&bytes) {
            if *leaf_depth.get_or_insert(depth) != depth {
                finding("leaves at different depths");
            }
            if node::value_size(&bytes) != V::SIZE {
                finding("values of another size");
                continue;
            }
            for (i, key) in keys.iter().enumerate() {
                visit(*key, V::get(node::value(&bytes, i)));
            }
        } else if depth >= 64 {
            finding("tree is too deep");
        } else {
            for (i, key) in keys.iter().enumerate() {
                let high = keys.get(i + 1).copied().or(high);
                todo.push((node::child(&bytes, i), depth + 1, Some(*key), high));
            }
        }
    }
    Ok(())
}

/// Counts the blocks a space map itself consists of, apart from its index.
pub async fn check_space_map(
    tm: &TransactionManager,
    map: &SpaceMap,
    counts: &mut Counts,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    for entry in map.index() {
        tm.read(entry.blocknr, &BITMAP).await?;
        counts.add(entry.blocknr);
    }
    check_tree::<u32>(tm, map.root(0).ref_count_root, counts, findings, |_, _| {}).await
}
