//! Looking into trees without changing them (persistent-data.md 2.1).

use super::{MAX_DEPTH, Value, out_of_order, read, too_deep};
use crate::cache::Block;
use crate::error::Result;
use crate::node;
use crate::tm::TransactionManager;
use std::rc::Rc;

/// The value of a key.
pub async fn lookup<V: Value>(
    tm: &TransactionManager,
    root: u64,
    wanted: u64,
) -> Result<Option<V>> {
    let (leaf, _) = leaf_of::<V>(tm, root, wanted).await?;
    let bytes = leaf.bytes();
    Ok(node::find(&bytes, wanted).map(|i| V::get(node::value(&bytes, i))))
}

/// The values of keys, which ascend: those of one leaf at a time.
pub async fn lookup_sorted<V: Value>(
    tm: &TransactionManager,
    root: u64,
    wanted: &[u64],
) -> Result<Vec<Option<V>>> {
    let mut found = Vec::with_capacity(wanted.len());
    while let Some(left) = wanted.get(found.len()..)
        && let [first, ..] = left
    {
        let (leaf, end) = leaf_of::<V>(tm, root, *first).await?;
        let bytes = leaf.bytes();
        let here = left.iter().enumerate();
        let here = here.take_while(|(i, key)| *i == 0 || end.is_none_or(|end| **key < end));
        found.extend(here.map(|(_, key)| {
            let i = node::find(&bytes, *key)?;
            Some(V::get(node::value(&bytes, i)))
        }));
    }
    Ok(found)
}

/// The leaf where a key belongs, and the key from which on others belong elsewhere.
async fn leaf_of<V: Value>(
    tm: &TransactionManager,
    root: u64,
    wanted: u64,
) -> Result<(Rc<Block>, Option<u64>)> {
    let (mut block, mut end) = (root, None);
    for _ in 0..MAX_DEPTH {
        let node = read::<V>(tm, block).await?;
        let bytes = node.bytes();
        if node::is_leaf(&bytes) {
            drop(bytes);
            return Ok((node, end));
        }
        let next = node::upper_bound(&bytes, wanted);
        if next < node::nr_entries(&bytes) {
            end = Some(node::key(&bytes, next));
        }
        // A key before the first belongs to the first.
        block = node::child(&bytes, next.saturating_sub(1));
    }
    Err(too_deep(block))
}

/// Calls `visit` for every entry with a key in `begin..end`, ascending.
pub async fn walk<V: Value>(
    tm: &TransactionManager,
    root: u64,
    begin: u64,
    end: u64,
    mut visit: impl FnMut(u64, V),
) -> Result<()> {
    let mut from = begin;
    while from < end {
        match step(tm, root, from, |key, value| {
            if key < end {
                visit(key, value);
            }
            key < end
        })
        .await?
        {
            Some(next) => from = next,
            None => break,
        }
    }
    Ok(())
}

/// The first entry with a key `>= from`.
pub async fn next<V: Value>(
    tm: &TransactionManager,
    root: u64,
    from: u64,
) -> Result<Option<(u64, V)>> {
    let mut found = None;
    let mut from = from;
    while let Some(next) = step(tm, root, from, |key, value| {
        found = Some((key, value));
        false
    })
    .await?
    {
        from = next;
    }
    Ok(found)
}

/// Visits the entries `>= from` of the leaf where `from` belongs, until `visit` says false. Returns
/// the lowest key the next leaf can hold, or None when there is no more to do.
///
/// What is visited ascends and stays below what is returned, so that nobody goes backwards or comes
/// through a leaf twice, whatever the disk says.
async fn step<V: Value>(
    tm: &TransactionManager,
    root: u64,
    from: u64,
    mut visit: impl FnMut(u64, V) -> bool,
) -> Result<Option<u64>> {
    let mut block = root;
    // Keys from here on are in other leaves.
    let mut bound = None;
    for _ in 0..MAX_DEPTH {
        let node = read::<V>(tm, block).await?;
        let bytes = node.bytes();
        let nr = node::nr_entries(&bytes);
        if node::is_leaf(&bytes) {
            let first = node::upper_bound(&bytes, from);
            let first = match node::find(&bytes, from) {
                Some(i) => i,
                None => first,
            };
            let mut previous = None;
            for i in first..nr {
                let key = node::key(&bytes, i);
                if previous.is_some_and(|previous| previous >= key)
                    || bound.is_some_and(|bound| key >= bound)
                {
                    return Err(out_of_order(block));
                }
                if !visit(key, V::get(node::value(&bytes, i))) {
                    return Ok(None);
                }
                previous = Some(key);
            }
            return Ok(bound);
        }
        let i = node::lower_bound(&bytes, from).unwrap_or(0);
        if i + 1 < nr {
            let next = node::key(&bytes, i + 1);
            if next <= from || bound.is_some_and(|bound| next >= bound) {
                return Err(out_of_order(block));
            }
            bound = Some(next);
        }
        block = node::child(&bytes, i);
    }
    Err(too_deep(block))
}

/// The highest key.
pub async fn last_key<V: Value>(tm: &TransactionManager, root: u64) -> Result<Option<u64>> {
    let mut block = root;
    for _ in 0..MAX_DEPTH {
        let node = read::<V>(tm, block).await?;
        let bytes = node.bytes();
        let Some(last) = node::nr_entries(&bytes).checked_sub(1) else {
            return Ok(None);
        };
        if node::is_leaf(&bytes) {
            return Ok(Some(node::key(&bytes, last)));
        }
        block = node::child(&bytes, last);
    }
    Err(too_deep(block))
}
