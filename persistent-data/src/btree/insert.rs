//! Inserting and overwriting (persistent-data.md 2.4).
//!
//! Full nodes are split on the way down, so a node always has room for what its child hands up.

use super::{MAX_DEPTH, Value, ValueOps, check_child, shadow, too_deep};
use crate::cache::Block;
use crate::error::Result;
use crate::node::{self, NODE};
use crate::tm::TransactionManager;
use std::rc::Rc;

/// Stores a value under a key. Returns the new root, and whether the key is new.
pub async fn insert<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    root: u64,
    key: u64,
    value: V,
    ops: &O,
) -> Result<(u64, bool)> {
    let Way { root, leaf, .. } = way_to(tm, root, key, ops).await?;
    let is_new = put(tm, &leaf, key, value, ops).await?;
    Ok((root, is_new))
}

/// Stores values under keys, which ascend: those that belong into one leaf at a time. Returns the new root.
pub async fn insert_sorted<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    root: u64,
    entries: &[(u64, V)],
    ops: &O,
) -> Result<u64> {
    let mut root = root;
    let mut left = entries;
    while let Some((first, _)) = left.first() {
        let way = way_to(tm, root, *first, ops).await?;
        root = way.root;
        let mut used = 0;
        for (key, value) in left {
            let fits = way.end.is_none_or(|end| *key < end) && !wants_room(&way.leaf, *key);
            if used > 0 && !fits {
                break;
            }
            put(tm, &way.leaf, *key, *value, ops).await?;
            used += 1;
        }
        left = left.get(used..).unwrap_or_default();
    }
    Ok(root)
}

/// Where a key belongs.
struct Way {
    root: u64,
    /// Writable, with room for the key.
    leaf: Rc<Block>,
    /// Keys from here on belong elsewhere.
    end: Option<u64>,
}

/// Makes the way to a key's leaf writable, and room in it.
async fn way_to<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    root: u64,
    key: u64,
    ops: &O,
) -> Result<Way> {
    let mut node = shadow(tm, root, ops).await?;
    let new_root = node.nr();
    if wants_room(&node, key) {
        split_root(tm, &node).await?;
    }
    let mut end = None;
    for _ in 0..MAX_DEPTH {
        if node::is_leaf(&node.bytes()) {
            return Ok(Way {
                root: new_root,
                leaf: node,
                end,
            });
        }
        let i = {
            let bytes = node.bytes();
            node::lower_bound(&bytes, key)
        };
        let i = i.unwrap_or_else(|| {
            node::set_key(&mut node.bytes_mut(), 0, key);
            0
        });
        let child = shadow_child(tm, &node, i, ops).await?;
        let child = match wants_room(&child, key) {
            true => split(tm, &node, i, child, key).await?,
            false => child,
        };
        end = {
            let bytes = node.bytes();
            let next = node::upper_bound(&bytes, key);
            (next < node::nr_entries(&bytes)).then(|| node::key(&bytes, next))
        }
        .or(end);
        node = child;
    }
    Err(too_deep(new_root))
}

/// Whether a node must be split before a key can go into or below it.
fn wants_room(node: &Block, key: u64) -> bool {
    let bytes = node.bytes();
    node::nr_entries(&bytes) == node::max_entries(&bytes)
        && !(node::is_leaf(&bytes) && node::find(&bytes, key).is_some())
}

/// Makes child `i` of a writable node writable.
pub(super) async fn shadow_child<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    node: &Block,
    i: usize,
    ops: &O,
) -> Result<Rc<Block>> {
    let old = node::child(&node.bytes(), i);
    let child = shadow(tm, old, ops).await?;
    check_child(node, child.nr())?;
    if child.nr() != old {
        node::set_child(&mut node.bytes_mut(), i, child.nr());
    }
    Ok(child)
}

async fn put<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    leaf: &Block,
    key: u64,
    value: V,
    ops: &O,
) -> Result<bool> {
    let (at, old) = {
        let bytes = leaf.bytes();
        match node::find(&bytes, key) {
            Some(i) => (i, Some(V::get(node::value(&bytes, i)))),
            None => (node::upper_bound(&bytes, key), None),
        }
    };
    if let Some(old) = old {
        if !ops.equal(old, value) {
            ops.dec(tm, old).await?;
        }
        value.put(node::value_mut(&mut leaf.bytes_mut(), at));
        return Ok(false);
    }
    value.put(node::open_gap(&mut leaf.bytes_mut(), at, key));
    Ok(true)
}

/// Keeps the root's block: its entries move to two new children.
async fn split_root(tm: &TransactionManager, root: &Block) -> Result<()> {
    let left = tm.new_block(&NODE).await?;
    let right = tm.new_block(&NODE).await?;
    let mut old = root.bytes_mut();
    let nr = node::nr_entries(&old);
    let (mut left_bytes, mut right_bytes) = (left.bytes_mut(), right.bytes_mut());
    for half in [&mut left_bytes, &mut right_bytes] {
        node::init(half, node::is_leaf(&old), node::value_size(&old));
    }
    node::append(&mut left_bytes, &old, 0, nr / 2);
    node::append(&mut right_bytes, &old, nr / 2, nr);
    node::init(&mut old, false, 8);
    for (i, (half, block)) in [(&left_bytes, &left), (&right_bytes, &right)]
        .into_iter()
        .enumerate()
    {
        let key = node::key(half, 0);
        node::insert(&mut old, i, key, &block.nr().to_le_bytes());
    }
    Ok(())
}

/// Splits child `i` of `parent` in two and returns the half where `key` belongs. A key past the end
/// leaves the left part as full as the format allows: ascending inserts then fill nodes by 2/3.
async fn split(
    tm: &TransactionManager,
    parent: &Block,
    i: usize,
    child: Rc<Block>,
    key: u64,
) -> Result<Rc<Block>> {
    let right = tm.new_block(&NODE).await?;
    let right_key = {
        let (mut left_bytes, mut right_bytes) = (child.bytes_mut(), right.bytes_mut());
        let nr = node::nr_entries(&left_bytes);
        let ascending = node::upper_bound(&left_bytes, key) == nr;
        let at = match ascending {
            true => nr - node::max_entries(&left_bytes) / 3,
            false => nr / 2,
        };
        let (leaf, size) = (node::is_leaf(&left_bytes), node::value_size(&left_bytes));
        node::init(&mut right_bytes, leaf, size);
        node::append(&mut right_bytes, &left_bytes, at, nr);
        node::remove(&mut left_bytes, at, nr);
        node::key(&right_bytes, 0)
    };
    node::insert(
        &mut parent.bytes_mut(),
        i + 1,
        right_key,
        &right.nr().to_le_bytes(),
    );
    Ok(if key < right_key { child } else { right })
}
