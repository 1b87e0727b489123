//! Deleting a device in steps: what would take long goes first, a part at a time (thin.md 3).

use super::{Removed, ThinError, ThinMetadata};
use persistent_data::btree;

/// What a step of [`ThinMetadata::shrink`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shrunk {
    /// Mappings removed, and the data blocks that nobody refers to any more.
    pub removed: Removed,
    /// Where the next step goes on. None: few leaves are the device's own, and
    /// [`ThinMetadata::delete`] is quick now.
    pub next: Option<u64>,
}

impl ThinMetadata {
    /// Unmaps what `nr_leaves` leaves of a device's tree hold that it shares with no other device, from
    /// the virtual block `from` on. What is shared costs a deletion nothing, and stays. Error: ENODATA.
    pub async fn shrink(
        &mut self,
        id: u32,
        from: u64,
        nr_leaves: usize,
    ) -> Result<Shrunk, ThinError> {
        let root = self.own_root(id).await?;
        let leaves = btree::unshared_leaves::<u64>(&self.tm, root, from, nr_leaves).await?;
        self.usable = true;
        let mut shrunk = Shrunk::default();
        if leaves.len() < nr_leaves {
            return Ok(shrunk);
        }
        for blocks in leaves {
            let removed = self.remove_range(id, blocks.start, blocks.end).await?;
            shrunk.removed.count += removed.count;
            shrunk.removed.freed.extend(removed.freed);
            shrunk.next = Some(blocks.end);
        }
        Ok(shrunk)
    }
}
