//! What of a tree belongs to it alone.

use super::{MAX_DEPTH, Value, check_child, read, too_deep};
use crate::error::Result;
use crate::node;
use crate::tm::TransactionManager;
use std::ops::Range;

/// The first leaves that only this tree refers to, in order of their keys from `from` on, as ranges of
/// keys that hold all of theirs; at most `most`. The root must not be reached by way of shared blocks.
pub async fn unshared_leaves<V: Value>(
    tm: &TransactionManager,
    root: u64,
    from: u64,
    most: usize,
) -> Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    // Blocks to look into, the one with the lowest keys on top.
    let mut todo = vec![(root, 0)];
    while found.len() < most
        && let Some((block, depth)) = todo.pop()
    {
        if depth >= MAX_DEPTH {
            return Err(too_deep(block));
        }
        if tm.count(block).await? > 1 {
            continue;
        }
        let node = read::<V>(tm, block).await?;
        let bytes = node.bytes();
        let nr = node::nr_entries(&bytes);
        if node::is_leaf(&bytes) {
            if nr > 0 && node::key(&bytes, nr - 1) >= from {
                let first = node::key(&bytes, 0).max(from);
                found.push(first..node::key(&bytes, nr - 1).saturating_add(1));
            }
            continue;
        }
        let first = node::lower_bound(&bytes, from).unwrap_or(0);
        for i in (first..nr).rev() {
            let child = node::child(&bytes, i);
            check_child(&node, child)?;
            todo.push((child, depth + 1));
        }
    }
    Ok(found)
}
