//! What the values of a pool's trees refer to (thin.md 2).

use persistent_data::Result;
use persistent_data::block::{get_u32, get_u64, put_u32, put_u64};
use persistent_data::btree::{self, Value, ValueOps};
use persistent_data::tm::{DiskSpaceMap, TransactionManager};
use std::cell::{Cell, RefCell};

/// Bits of the time in a mapping.
pub const TIME_BITS: u32 = 24;

/// References released between looks at whether the map should be relieved.
const RELIEF_PERIOD: u32 = 4096;

/// Mappings refer to data blocks.
pub struct DataRefs<'a> {
    /// Counts of the data device.
    pub map: &'a DiskSpaceMap,
    /// Where data blocks that lose their last reference are listed, if anybody wants to know.
    pub freed: Option<&'a RefCell<Vec<u64>>>,
    /// References released so far.
    pub released: Cell<u32>,
}

impl ValueOps<u64> for DataRefs<'_> {
    fn inc(&self, _: &TransactionManager, value: u64) -> Result<()> {
        self.map.map().inc(value >> TIME_BITS)
    }

    async fn dec(&self, tm: &TransactionManager, value: u64) -> Result<()> {
        let block = value >> TIME_BITS;
        if self.map.map().dec(tm, block).await?
            && let Some(freed) = self.freed
        {
            freed.borrow_mut().push(block);
        }
        // Deleting a large device would else collect a difference per data block in core. The maps'
        // blocks are none of the tree's, so this may come in the middle of a change of the tree.
        self.released.set(self.released.get() + 1);
        if self.released.get() >= RELIEF_PERIOD {
            self.released.set(0);
            Box::pin(self.map.relieve(tm)).await?;
        }
        Ok(())
    }

    fn equal(&self, old: u64, new: u64) -> bool {
        old >> TIME_BITS == new >> TIME_BITS
    }
}

/// Level 1 of the mapping tree refers to the devices' trees.
pub struct TreeRefs<'a>(pub DataRefs<'a>);

impl ValueOps<u64> for TreeRefs<'_> {
    fn inc(&self, tm: &TransactionManager, root: u64) -> Result<()> {
        tm.inc(root)
    }

    async fn dec(&self, tm: &TransactionManager, root: u64) -> Result<()> {
        btree::delete(tm, root, &self.0).await
    }

    fn equal(&self, old: u64, new: u64) -> bool {
        old == new
    }
}

/// Level 1, when a device's root has moved or its reference is handed on: nothing is released.
pub struct MovedRoot;

impl ValueOps<u64> for MovedRoot {
    fn inc(&self, tm: &TransactionManager, root: u64) -> Result<()> {
        tm.inc(root)
    }

    async fn dec(&self, _: &TransactionManager, _: u64) -> Result<()> {
        Ok(())
    }

    fn equal(&self, _: u64, _: u64) -> bool {
        true
    }
}

/// What the details tree says of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Details {
    /// Virtual blocks that are mapped.
    pub mapped_blocks: u64,
    /// The pool's transaction id when the device was created.
    pub transaction_id: u64,
    /// The pool's time when the device was created.
    pub creation_time: u32,
    /// The pool's time of the last snapshot the device took part in.
    pub snapshotted_time: u32,
}

impl Value for Details {
    const SIZE: usize = 24;

    fn get(bytes: &[u8]) -> Self {
        Details {
            mapped_blocks: get_u64(bytes, 0),
            transaction_id: get_u64(bytes, 8),
            creation_time: get_u32(bytes, 16),
            snapshotted_time: get_u32(bytes, 20),
        }
    }

    fn put(&self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self.mapped_blocks);
        put_u64(bytes, 8, self.transaction_id);
        put_u32(bytes, 16, self.creation_time);
        put_u32(bytes, 20, self.snapshotted_time);
    }
}
