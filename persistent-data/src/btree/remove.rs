//! Removing entries, ranges and whole trees (persistent-data.md 2.5, 2.6).
//!
//! Before a child is entered it gets more than the minimum of entries, so that a removal in it never
//! leaves it too empty. Children with enough entries are left alone.

use super::insert::shadow_child;
use super::walk::{lookup, next};
use super::{
    MAX_DEPTH, Value, ValueOps, check_child, count_contents, out_of_order, read, shadow, too_deep,
};
use crate::cache::Block;
use crate::error::{Error, Result};
use crate::node;
use crate::tm::TransactionManager;
use std::rc::Rc;

fn misplaced(root: u64) -> Error {
    Error::Corrupt {
        block: root,
        what: "keys are not in the leaf where they belong",
    }
}

/// Removes a key. Returns the new root and the value that was there, already released.
pub async fn remove<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    root: u64,
    key: u64,
    ops: &O,
) -> Result<(u64, Option<V>)> {
    // Looked up first, so that a key that is not there shadows nothing.
    let Some(value) = lookup::<V>(tm, root, key).await? else {
        return Ok((root, None));
    };
    let end = key.saturating_add(1);
    let (root, in_leaf) = remove_in_leaf(tm, root, key, end, ops, &mut |_, _| {}).await?;
    match in_leaf {
        0 => Err(misplaced(root)),
        _ => Ok((root, Some(value))),
    }
}

/// Removes all keys in `begin..end`. `removed` sees each entry before it is released. Returns the
/// new root and the number of entries removed.
pub async fn remove_range<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    root: u64,
    begin: u64,
    end: u64,
    ops: &O,
    mut removed: impl FnMut(u64, V),
) -> Result<(u64, u64)> {
    let (mut root, mut count, mut from) = (root, 0, begin);
    while let Some((key, _)) = next::<V>(tm, root, from).await? {
        if key >= end {
            break;
        }
        let (new_root, in_leaf) = remove_in_leaf(tm, root, key, end, ops, &mut removed).await?;
        if in_leaf == 0 {
            return Err(misplaced(new_root));
        }
        root = new_root;
        count += in_leaf;
        from = key;
    }
    Ok((root, count))
}

/// Removes `key` and what follows it in its leaf below `end`, as far as the leaf may shrink.
async fn remove_in_leaf<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    root: u64,
    key: u64,
    end: u64,
    ops: &O,
    removed: &mut impl FnMut(u64, V),
) -> Result<(u64, u64)> {
    let mut node = shadow(tm, root, ops).await?;
    let new_root = node.nr();
    let mut is_root = true;
    for _ in 0..2 * MAX_DEPTH {
        if node::is_leaf(&node.bytes()) {
            let count = remove_run(tm, &node, is_root, key, end, ops, removed).await?;
            return Ok((new_root, count));
        }
        if node::nr_entries(&node.bytes()) == 1 {
            collapse(tm, &node, ops).await?;
            continue;
        }
        let i = node::lower_bound(&node.bytes(), key).unwrap_or(0);
        let child = shadow_child(tm, &node, i, ops).await?;
        if !is_minimal(&child) {
            node = child;
            is_root = false;
            continue;
        }
        // With a sibling's help; then look again, for the key may belong elsewhere and the node may
        // be left with one entry.
        let left = i.saturating_sub(1);
        drop(child);
        rebalance(tm, &node, left, ops).await?;
    }
    Err(too_deep(new_root))
}

fn is_minimal(node: &Block) -> bool {
    let bytes = node.bytes();
    node::nr_entries(&bytes) <= node::max_entries(&bytes) / 3
}

async fn remove_run<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    leaf: &Block,
    is_root: bool,
    key: u64,
    end: u64,
    ops: &O,
    removed: &mut impl FnMut(u64, V),
) -> Result<u64> {
    let (first, last, values) = {
        let bytes = leaf.bytes();
        let nr = node::nr_entries(&bytes);
        let Some(first) = node::find(&bytes, key) else {
            return Ok(0);
        };
        let may_go = match is_root {
            true => nr,
            false => nr.saturating_sub(node::max_entries(&bytes) / 3).max(1),
        };
        let last = (first..nr)
            .take(may_go)
            .take_while(|i| node::key(&bytes, *i) < end)
            .last()
            .map_or(first + 1, |i| i + 1);
        let values: Vec<(u64, V)> = (first..last)
            .map(|i| (node::key(&bytes, i), V::get(node::value(&bytes, i))))
            .collect();
        if !values.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Err(out_of_order(leaf.nr()));
        }
        (first, last, values)
    };
    node::remove(&mut leaf.bytes_mut(), first, last);
    for (key, value) in &values {
        removed(*key, *value);
        ops.dec(tm, *value).await?;
    }
    Ok(values.len() as u64)
}

/// A node with a single child takes over that child's contents.
async fn collapse<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    node: &Block,
    ops: &O,
) -> Result<()> {
    let nr = node::child(&node.bytes(), 0);
    check_child(node, nr)?;
    let child = read::<V>(tm, nr).await?;
    if tm.count(nr).await? > 1 {
        // The child lives on elsewhere, so what it points to has one more referrer now.
        count_contents(tm, &child, ops)?;
    }
    node.bytes_mut().copy_from_slice(&child.bytes()[..]);
    drop(child);
    tm.dec(nr).await?;
    Ok(())
}

/// Merges or levels children `left` and `left + 1` of a writable node that has at least two.
async fn rebalance<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    parent: &Block,
    left: usize,
    ops: &O,
) -> Result<()> {
    let l: Rc<Block> = shadow_child(tm, parent, left, ops).await?;
    let r: Rc<Block> = shadow_child(tm, parent, left + 1, ops).await?;
    if Rc::ptr_eq(&l, &r) {
        return Err(Error::Corrupt {
            block: parent.nr(),
            what: "node has the same child twice",
        });
    }
    let merged = {
        let (mut lb, mut rb) = (l.bytes_mut(), r.bytes_mut());
        if node::max_entries(&lb) != node::max_entries(&rb)
            || node::value_size(&lb) != node::value_size(&rb)
            || node::is_leaf(&lb) != node::is_leaf(&rb)
        {
            return Err(Error::Corrupt {
                block: r.nr(),
                what: "node differs in kind from its sibling",
            });
        }
        let (nl, nr) = (node::nr_entries(&lb), node::nr_entries(&rb));
        let min = node::max_entries(&lb) / 3;
        if nl + nr < 2 * (min + 1) {
            node::append(&mut lb, &rb, 0, nr);
            true
        } else {
            let target = (nl + nr) / 2;
            if nl < target {
                node::append(&mut lb, &rb, 0, target - nl);
                node::remove(&mut rb, 0, target - nl);
            } else {
                node::prepend(&mut rb, &lb, target, nl);
                node::remove(&mut lb, target, nl);
            }
            let key = node::key(&rb, 0);
            node::set_key(&mut parent.bytes_mut(), left + 1, key);
            false
        }
    };
    if merged {
        node::remove(&mut parent.bytes_mut(), left + 1, left + 2);
        let nr = r.nr();
        drop(r);
        // Its contents have moved, so nothing below it is released.
        tm.dec(nr).await?;
    }
    Ok(())
}

/// Releases a tree: what it shares with others lives on.
pub async fn delete<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    root: u64,
    ops: &O,
) -> Result<()> {
    // Blocks whose reference is to be dropped, with their depth.
    let mut todo = vec![(root, 0)];
    while let Some((block, depth)) = todo.pop() {
        if depth >= MAX_DEPTH {
            return Err(too_deep(block));
        }
        if tm.count(block).await? > 1 {
            tm.dec(block).await?;
            continue;
        }
        let node = read::<V>(tm, block).await?;
        let is_leaf = node::is_leaf(&node.bytes());
        let nr = node::nr_entries(&node.bytes());
        for i in 0..nr {
            if is_leaf {
                let value = V::get(node::value(&node.bytes(), i));
                ops.dec(tm, value).await?;
            } else {
                todo.push((node::child(&node.bytes(), i), depth + 1));
            }
        }
        drop(node);
        tm.dec(block).await?;
    }
    Ok(())
}
