//! Reading nodes ahead: an operation reads one node after the other and waits for the disk each time; of many
//! operations, all nodes of a level can be read at once.

use super::{MAX_DEPTH, Value, read};
use crate::device::BlockBytes;
use crate::node;
use crate::tm::TransactionManager;
use futures::StreamExt;
use std::collections::BTreeMap;
use std::ops::Range;

/// Reads under way at once.
const DEPTH: usize = 64;

/// Part of the cache that is filled ahead at most: what is read has to be there still when it is needed.
const CACHE_PART: usize = 4;

/// Has in the cache what looking up, or inserting, these keys of trees (by their roots) reads. Advice: what cannot be read is left
/// to who needs it, and what there is no room for, too.
pub async fn fetch<V: Value>(
    tm: &TransactionManager,
    wanted: impl IntoIterator<Item = (u64, Range<u64>)>,
) {
    // By node, so that none is read twice at once: trees share nodes.
    let mut level: BTreeMap<u64, Vec<Range<u64>>> = BTreeMap::new();
    for (root, keys) in wanted {
        level.entry(root).or_default().push(keys);
    }
    let most = tm.max_cached_blocks() / CACHE_PART;
    for _ in 0..MAX_DEPTH {
        let reads = std::mem::take(&mut level).into_iter().take(most);
        let reads = reads.map(|(block, keys)| async move {
            let node = read::<V>(tm, block).await.ok()?;
            let children = children(&node.bytes(), &keys);
            Some(children)
        });
        let mut found = futures::stream::iter(reads).buffer_unordered(DEPTH);
        while let Some(children) = found.next().await {
            for (child, keys) in children.unwrap_or_default() {
                level.entry(child).or_default().push(keys);
            }
        }
        if level.is_empty() {
            return;
        }
    }
}

/// The nodes below one where these keys belong.
fn children(bytes: &BlockBytes, wanted: &[Range<u64>]) -> Vec<(u64, Range<u64>)> {
    if node::is_leaf(bytes) || node::nr_entries(bytes) == 0 {
        return Vec::new();
    }
    let below = wanted.iter().flat_map(|keys| {
        // A key before the first belongs to the first.
        let first = node::lower_bound(bytes, keys.start).unwrap_or(0);
        let last = node::lower_bound(bytes, keys.end.saturating_sub(1)).unwrap_or(0);
        (first..=last.max(first)).map(|i| (node::child(bytes, i), keys.clone()))
    });
    below.collect()
}
