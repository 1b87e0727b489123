//! Looks for the roots of a pool's trees among all metadata blocks, for when the superblock is lost.
//!
//! A pair of roots is taken for the pool's if both trees are of the same devices and every device has as
//! many mappings as its details say. Blocks of older transactions may still be there; of several pairs
//! the newest is taken, by transaction ids and times.

use super::image::{Image, node_fault};
use super::problem::{Owner, Problems};
use super::refs::{Details, TIME_BITS};
use super::survey::Survey;
use super::{ThinError, image::MAX_DEPTH};
use persistent_data::btree::Value;
use persistent_data::node::{self, NODE};
use rustc_hash::FxHashMap;
use std::collections::HashMap;

/// Roots that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Roots {
    pub mapping_root: u64,
    pub details_root: u64,
}

/// Roots that are known already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub mapping_root: Option<u64>,
    pub details_root: Option<u64>,
}

/// How good a pair is; more is better, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merit {
    /// Devices with as many mappings as they should have, less others.
    agree: i64,
    transaction_id: u64,
    time: u32,
    /// A later transaction usually lies further on.
    block: u64,
}

/// Searches the whole device for what is not known.
pub(super) async fn search(image: &Image, known: Known) -> Result<Option<Roots>, ThinError> {
    // Sound nodes by block: the size of the values in leaves below, 0 where not known yet.
    let mut nodes: FxHashMap<u64, usize> = FxHashMap::default();
    let mut inner: Vec<(u64, u64)> = Vec::new();
    for block in 1..image.nr_blocks() {
        let Ok(bytes) = image.block(block, &NODE).await else {
            continue;
        };
        if node_fault(&bytes, node::value_size(&bytes), None, None).is_some() {
            continue;
        }
        if node::is_leaf(&bytes) {
            nodes.insert(block, node::value_size(&bytes));
        } else {
            nodes.insert(block, 0);
            inner.push((block, node::child(&bytes, 0)));
        }
    }
    for _ in 0..MAX_DEPTH {
        let mut changed = false;
        for (block, child) in &inner {
            let below = nodes.get(child).copied().unwrap_or_default();
            if below != 0 && nodes.insert(*block, below) == Some(0) {
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let mut lists: HashMap<Vec<u64>, Vec<(u64, Vec<Details>)>> = HashMap::new();
    for block in candidates(known.details_root, &nodes, Details::SIZE) {
        if let Ok(entries) = image.entries::<Details>(block).await {
            let (ids, details) = entries.into_iter().unzip();
            lists.entry(ids).or_default().push((block, details));
        }
    }
    let mut survey = Survey::default();
    let mut best: Option<(Merit, Roots)> = None;
    for mapping_root in candidates(known.mapping_root, &nodes, u64::SIZE) {
        let Some((ids, roots)) = device_roots(image, &nodes, mapping_root).await else {
            continue;
        };
        let Some(lists) = lists.get(&ids) else {
            continue;
        };
        let mut mapped = Vec::new();
        for root in &roots {
            mapped.push(nr_mappings(image, &mut survey, *root).await);
        }
        for (details_root, details) in lists {
            let merit = Merit {
                agree: details
                    .iter()
                    .zip(&mapped)
                    .map(|(d, m)| if Some(d.mapped_blocks) == *m { 1 } else { -1 })
                    .sum(),
                transaction_id: details.iter().map(|d| d.transaction_id).max().unwrap_or(0),
                time: details
                    .iter()
                    .map(|d| d.snapshotted_time)
                    .max()
                    .unwrap_or(0),
                block: mapping_root,
            };
            if best.is_none_or(|(other, _)| merit > other) {
                best = Some((
                    merit,
                    Roots {
                        mapping_root,
                        details_root: *details_root,
                    },
                ));
            }
        }
    }
    Ok(best.map(|(_, roots)| roots))
}

/// The root that is known, or else every node of trees with values of this size.
fn candidates(known: Option<u64>, nodes: &FxHashMap<u64, usize>, size: usize) -> Vec<u64> {
    if let Some(root) = known {
        return vec![root];
    }
    let mut blocks: Vec<u64> = nodes
        .iter()
        .filter(|(_, s)| **s == size)
        .map(|(block, _)| *block)
        .collect();
    blocks.sort_unstable();
    blocks
}

/// Ids and roots, if a tree may be the upper level of the mappings: every value is a node of
/// mappings. Looks at no more of a tree than shows that it is not.
async fn device_roots(
    image: &Image,
    nodes: &FxHashMap<u64, usize>,
    root: u64,
) -> Option<(Vec<u64>, Vec<u64>)> {
    let mut ids = Vec::new();
    let mut roots = Vec::new();
    let mut leaves = image.leaves::<u64>(root);
    while let Some(leaf) = leaves.next().await {
        let leaf = leaf.ok()?;
        for (id, value) in leaf.entries::<u64>() {
            // A device whose root is damaged may be among them, but no mapping to a data block.
            let known = nodes.get(&value).map_or(0, |size| *size);
            if id >> TIME_BITS != 0 || value >= image.nr_blocks() || known != u64::SIZE {
                return None;
            }
            ids.push(id);
            roots.push(value);
        }
    }
    (!ids.is_empty()).then_some((ids, roots))
}

/// Mappings of a device, if all can be read.
async fn nr_mappings(image: &Image, survey: &mut Survey, root: u64) -> Option<u64> {
    let mut problems = Problems::new(0);
    let summary = survey
        .walk::<u64>(image, root, Owner::Devices, &mut problems, |_| {})
        .await;
    summary.complete.then_some(summary.entries)
}
