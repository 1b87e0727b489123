//! Arrays of plain values (persistent-data.md 5): a B-tree of array blocks, all full but the last.
//!
//! As with trees, functions take the root's location and return the new one. An array does not know its
//! length; its owner does, and says it where the length is to change. Values refer to nothing.

use crate::block::{Kind, get_u32, put_u32};
use crate::btree::{self, Value, ValueOps};
use crate::cache::Block;
use crate::check::{Counts, Finding, check_tree, note};
use crate::device::{BLOCK_BYTES, BlockBytes};
use crate::error::{Error, Result};
use crate::tm::TransactionManager;
use std::ops::Range;
use std::rc::Rc;

const HEADER_BYTES: usize = 24;

/// An array block.
pub static ARRAY: Kind = Kind {
    name: "array block",
    xor: 595_846_735,
    blocknr_offset: 16,
    validate,
};

fn validate(bytes: &BlockBytes) -> std::result::Result<(), &'static str> {
    let (max, nr, size) = (get_u32(bytes, 4), get_u32(bytes, 8), get_u32(bytes, 12));
    let room = u64::from(max) * u64::from(size) + HEADER_BYTES as u64;
    if max == 0 || size == 0 || room > BLOCK_BYTES as u64 {
        return Err("array block's capacity is not that of a block");
    }
    if nr > max {
        return Err("array block has more entries than capacity");
    }
    Ok(())
}

/// Values an array block has room for.
pub const fn capacity<V: Value>() -> u64 {
    ((BLOCK_BYTES - HEADER_BYTES) / V::SIZE) as u64
}

/// The index of an array refers to its blocks.
pub struct ArrayBlocks;

impl ValueOps<u64> for ArrayBlocks {
    fn inc(&self, tm: &TransactionManager, block: u64) -> Result<()> {
        tm.inc(block)
    }

    async fn dec(&self, tm: &TransactionManager, block: u64) -> Result<()> {
        tm.dec(block).await.map(|_| ())
    }

    fn equal(&self, old: u64, new: u64) -> bool {
        old == new
    }
}

/// The same when a block has moved: shadowing has counted already.
struct MovedBlock;

impl ValueOps<u64> for MovedBlock {
    fn inc(&self, tm: &TransactionManager, block: u64) -> Result<()> {
        tm.inc(block)
    }

    async fn dec(&self, _: &TransactionManager, _: u64) -> Result<()> {
        Ok(())
    }

    fn equal(&self, _: u64, _: u64) -> bool {
        true
    }
}

fn nr_entries(bytes: &BlockBytes) -> u64 {
    u64::from(get_u32(bytes, 8))
}

/// Where value `i` of a block is; `i` is below the block's number of entries.
fn slot<V: Value>(i: u64) -> Range<usize> {
    let at = HEADER_BYTES + i as usize * V::SIZE;
    at..at + V::SIZE
}

fn value<V: Value>(bytes: &BlockBytes, i: u64) -> V {
    V::get(&bytes[slot::<V>(i)])
}

/// Sets the number of entries; those that are new get `default`.
fn set_nr_entries<V: Value>(bytes: &mut BlockBytes, nr: u64, default: V) {
    for i in nr_entries(bytes)..nr {
        default.put(&mut bytes[slot::<V>(i)]);
    }
    put_u32(bytes, 8, nr as u32);
}

fn check_block<V: Value>(block: &Block) -> Result<()> {
    let bytes = block.bytes();
    let fits = get_u32(&bytes[..], 12) as usize == V::SIZE
        && u64::from(get_u32(&bytes[..], 4)) == capacity::<V>();
    match fits {
        true => Ok(()),
        false => Err(Error::Corrupt {
            block: block.nr(),
            what: "array block with values of another size",
        }),
    }
}

fn too_short(block: u64) -> Error {
    Error::Corrupt {
        block,
        what: "array is shorter than its owner says",
    }
}

async fn locate(tm: &TransactionManager, root: u64, index: u64) -> Result<u64> {
    let found = btree::lookup::<u64>(tm, root, index).await?;
    found.ok_or_else(|| too_short(root))
}

async fn read<V: Value>(tm: &TransactionManager, root: u64, index: u64) -> Result<Rc<Block>> {
    let block = tm.read(locate(tm, root, index).await?, &ARRAY).await?;
    check_block::<V>(&block)?;
    Ok(block)
}

/// Makes block `index` of an array writable, and calls `change` with it. Returns the new root.
async fn modify<V: Value>(
    tm: &TransactionManager,
    root: u64,
    index: u64,
    change: impl FnOnce(&mut BlockBytes) -> Result<()>,
) -> Result<u64> {
    let old = locate(tm, root, index).await?;
    // The path goes first: if it was shared the block has one more referrer now, and must move.
    let (mut root, _) = btree::insert(tm, root, index, old, &MovedBlock).await?;
    let (block, _) = tm.shadow(old, &ARRAY).await?;
    check_block::<V>(&block)?;
    if block.nr() != old {
        (root, _) = btree::insert(tm, root, index, block.nr(), &MovedBlock).await?;
    }
    change(&mut block.bytes_mut())?;
    Ok(root)
}

async fn push<V: Value>(
    tm: &TransactionManager,
    root: u64,
    index: u64,
    nr: u64,
    default: V,
) -> Result<u64> {
    let block = tm.new_block(&ARRAY).await?;
    {
        let mut bytes = block.bytes_mut();
        put_u32(&mut bytes[..], 4, capacity::<V>() as u32);
        put_u32(&mut bytes[..], 12, V::SIZE as u32);
        set_nr_entries(&mut bytes, nr, default);
    }
    let (root, _) = btree::insert(tm, root, index, block.nr(), &ArrayBlocks).await?;
    Ok(root)
}

/// A new array of `nr` times `default`; returns its root.
pub async fn create<V: Value>(tm: &TransactionManager, nr: u64, default: V) -> Result<u64> {
    let root = btree::empty::<u64>(tm).await?;
    resize(tm, root, 0, nr, default).await
}

/// Makes an array of `old` values one of `new`: those that are new are `default`, those past the end
/// are dropped.
pub async fn resize<V: Value>(
    tm: &TransactionManager,
    root: u64,
    old: u64,
    new: u64,
    default: V,
) -> Result<u64> {
    let per = capacity::<V>();
    let mut root = root;
    if new < old {
        let keep = new.div_ceil(per);
        (root, _) =
            btree::remove_range::<u64, _>(tm, root, keep, u64::MAX, &ArrayBlocks, |_, _| {})
                .await?;
        if !new.is_multiple_of(per) {
            root = set_tail(tm, root, new, default).await?;
        }
        return Ok(root);
    }
    if new > old && !old.is_multiple_of(per) {
        let tail = new.min(old.next_multiple_of(per));
        root = set_tail(tm, root, tail, default).await?;
    }
    for index in old.div_ceil(per)..new.div_ceil(per) {
        root = push(tm, root, index, per.min(new - index * per), default).await?;
    }
    Ok(root)
}

/// Gives the last block the entries it has in an array of `nr` values, `nr` above 0.
async fn set_tail<V: Value>(
    tm: &TransactionManager,
    root: u64,
    nr: u64,
    default: V,
) -> Result<u64> {
    let per = capacity::<V>();
    let index = (nr - 1) / per;
    modify::<V>(tm, root, index, |bytes| {
        set_nr_entries(bytes, nr - index * per, default);
        Ok(())
    })
    .await
}

/// The value at `at`. Error: EILSEQ past the end.
pub async fn get<V: Value>(tm: &TransactionManager, root: u64, at: u64) -> Result<V> {
    let per = capacity::<V>();
    let block = read::<V>(tm, root, at / per).await?;
    let bytes = block.bytes();
    match at % per < nr_entries(&bytes) {
        true => Ok(value(&bytes, at % per)),
        false => Err(too_short(block.nr())),
    }
}

/// Changes the values at some places, ascending by place. Error: EILSEQ past the end.
pub async fn update<V: Value, P>(
    tm: &TransactionManager,
    root: u64,
    places: &[P],
    place: impl Fn(&P) -> u64,
    change: impl Fn(V, &P) -> V,
) -> Result<u64> {
    let per = capacity::<V>();
    let mut root = root;
    for group in places.chunk_by(|a, b| place(a) / per == place(b) / per) {
        let Some(first) = group.first() else { continue };
        let index = place(first) / per;
        root = modify::<V>(tm, root, index, |bytes| {
            for at in group {
                let i = place(at) % per;
                if i >= nr_entries(bytes) {
                    return Err(too_short(index));
                }
                let new = change(value(bytes, i), at);
                new.put(&mut bytes[slot::<V>(i)]);
            }
            Ok(())
        })
        .await?;
    }
    Ok(root)
}

/// Calls `visit` with the values at `range`, ascending, until it says false. Error: EILSEQ past the
/// end.
pub async fn walk<V: Value>(
    tm: &TransactionManager,
    root: u64,
    range: Range<u64>,
    mut visit: impl FnMut(u64, V) -> bool,
) -> Result<()> {
    let per = capacity::<V>();
    let mut at = range.start;
    while at < range.end {
        let block = read::<V>(tm, root, at / per).await?;
        let bytes = block.bytes();
        let base = at / per * per;
        let end = range.end.min(base + per);
        if end - base > nr_entries(&bytes) {
            return Err(too_short(block.nr()));
        }
        for i in at..end {
            if !visit(i, value(&bytes, i - base)) {
                return Ok(());
            }
        }
        at = end;
    }
    Ok(())
}

/// Releases an array.
pub async fn delete(tm: &TransactionManager, root: u64) -> Result<()> {
    btree::delete::<u64, _>(tm, root, &ArrayBlocks).await
}

/// Checks an array of `nr` values: the index, every block, and who refers to what. `visit` sees the
/// values, unless the array was looked at before.
pub async fn check<V: Value>(
    tm: &TransactionManager,
    root: u64,
    nr: u64,
    counts: &mut Counts,
    findings: &mut Vec<Finding>,
    mut visit: impl FnMut(u64, V),
) -> Result<()> {
    let per = capacity::<V>();
    let is_new = counts.get(root) == 0;
    let mut blocks = Vec::new();
    // The caller's reference to the root is counted by this.
    check_tree::<u64>(tm, root, counts, findings, |index, block| {
        blocks.push((index, block));
    })
    .await?;
    if !is_new {
        return Ok(());
    }
    // Nodes shared with another array have been looked at before; the index must be whole all the same.
    let (mut next, mut gap) = (0, false);
    btree::walk(tm, root, 0, u64::MAX, |index, _: u64| {
        gap |= index != next;
        next += 1;
    })
    .await?;
    if gap || next != nr.div_ceil(per) {
        note(findings, root, || {
            format!("array of {nr} values has {next} blocks, or gaps")
        });
    }
    for (index, location) in blocks {
        let is_first = counts.add(location);
        let block = tm.read(location, &ARRAY).await?;
        check_block::<V>(&block)?;
        let bytes = block.bytes();
        let wanted = per.min(nr.saturating_sub(index.saturating_mul(per)));
        if nr_entries(&bytes) != wanted {
            note(findings, location, || {
                format!(
                    "array block {index} has {} values, not {wanted}",
                    nr_entries(&bytes)
                )
            });
        }
        if is_first {
            for i in 0..nr_entries(&bytes) {
                visit(
                    index.saturating_mul(per).saturating_add(i),
                    value(&bytes, i),
                );
            }
        }
    }
    Ok(())
}
