//! B-trees of u64 keys (persistent-data.md 2).
//!
//! Functions take the root's location and return the new one: changing a tree shadows the path from
//! the root. [`ValueOps`] says what a value refers to, so that reference counts follow when a shared
//! node is copied and when a value goes.

mod fetch;
mod insert;
mod remove;
mod unshared;
mod walk;

pub use fetch::fetch;
pub use insert::{insert, insert_sorted};
pub use remove::{delete, remove, remove_range};
pub use unshared::unshared_leaves;
pub use walk::{last_key, lookup, lookup_sorted, next, walk};

use crate::block::{get_u32, get_u64, put_u32, put_u64};
use crate::cache::Block;
use crate::error::{Error, Result};
use crate::node::{self, NODE};
use crate::tm::TransactionManager;
use std::rc::Rc;

/// Deepest tree that is followed; more is corruption. (2^64 keys need 11 levels.)
const MAX_DEPTH: usize = 64;

/// A value as stored in a leaf.
pub trait Value: Copy {
    /// Bytes.
    const SIZE: usize;
    /// Reads from exactly `SIZE` bytes.
    fn get(bytes: &[u8]) -> Self;
    /// Writes exactly `SIZE` bytes.
    fn put(&self, bytes: &mut [u8]);
}

impl Value for u32 {
    const SIZE: usize = 4;
    fn get(bytes: &[u8]) -> Self {
        get_u32(bytes, 0)
    }
    fn put(&self, bytes: &mut [u8]) {
        put_u32(bytes, 0, *self);
    }
}

impl Value for u64 {
    const SIZE: usize = 8;
    fn get(bytes: &[u8]) -> Self {
        get_u64(bytes, 0)
    }
    fn put(&self, bytes: &mut [u8]) {
        put_u64(bytes, 0, *self);
    }
}

/// What values refer to.
#[allow(async_fn_in_trait, reason = "everything here stays on one thread")]
pub trait ValueOps<V> {
    /// The value has gained a referrer: its leaf was duplicated.
    fn inc(&self, tm: &TransactionManager, value: V) -> Result<()>;
    /// The value has lost a referrer.
    async fn dec(&self, tm: &TransactionManager, value: V) -> Result<()>;
    /// Whether overwriting `old` by `new` leaves the reference as it is.
    fn equal(&self, old: V, new: V) -> bool;
}

/// Values that refer to nothing.
pub struct Plain;

impl<V> ValueOps<V> for Plain {
    fn inc(&self, _: &TransactionManager, _: V) -> Result<()> {
        Ok(())
    }
    async fn dec(&self, _: &TransactionManager, _: V) -> Result<()> {
        Ok(())
    }
    fn equal(&self, _: V, _: V) -> bool {
        true
    }
}

/// A new tree without entries; returns its root.
pub async fn empty<V: Value>(tm: &TransactionManager) -> Result<u64> {
    let leaf = tm.new_block(&NODE).await?;
    node::init(&mut leaf.bytes_mut(), true, V::SIZE);
    Ok(leaf.nr())
}

/// A leaf's values must have the size the tree's user expects.
fn check_leaf<V: Value>(block: &Block) -> Result<()> {
    let bytes = block.bytes();
    if node::is_leaf(&bytes) && node::value_size(&bytes) != V::SIZE {
        return Err(Error::Corrupt {
            block: block.nr(),
            what: "leaf with values of another size",
        });
    }
    Ok(())
}

async fn read<V: Value>(tm: &TransactionManager, block: u64) -> Result<Rc<Block>> {
    let node = tm.read(block, &NODE).await?;
    check_leaf::<V>(&node)?;
    Ok(node)
}

/// Makes a node writable, counting the new referrers if it was shared.
async fn shadow<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    block: u64,
    ops: &O,
) -> Result<Rc<Block>> {
    let (node, was_shared) = tm.shadow(block, &NODE).await?;
    check_leaf::<V>(&node)?;
    if was_shared {
        count_contents(tm, &node, ops)?;
    }
    Ok(node)
}

/// Everything a node points to gains a referrer.
fn count_contents<V: Value, O: ValueOps<V>>(
    tm: &TransactionManager,
    node: &Block,
    ops: &O,
) -> Result<()> {
    let bytes = node.bytes();
    for i in 0..node::nr_entries(&bytes) {
        match node::is_leaf(&bytes) {
            true => ops.inc(tm, V::get(node::value(&bytes, i)))?,
            false => tm.inc(node::child(&bytes, i))?,
        }
    }
    Ok(())
}

/// A node is never below itself; both would be changed at once.
fn check_child(parent: &Block, child: u64) -> Result<()> {
    match parent.nr() == child {
        true => Err(Error::Corrupt {
            block: child,
            what: "node is its own child",
        }),
        false => Ok(()),
    }
}

fn out_of_order(block: u64) -> Error {
    Error::Corrupt {
        block,
        what: "keys are not ascending, or not where they belong",
    }
}

fn too_deep(block: u64) -> Error {
    Error::Corrupt {
        block,
        what: "tree is too deep, or goes in circles",
    }
}
