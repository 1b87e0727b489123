//! The metadata snapshot: a copy of the superblock that stays readable while eras go on (era.md 8).

use super::writesets::{Writeset, WritesetRefs};
use super::{EraError, EraMetadata, SUPERBLOCK, Superblock};
use persistent_data::{array, btree};

impl EraMetadata {
    /// Where the metadata snapshot is.
    pub fn metadata_snap(&self) -> Option<u64> {
        (self.sb.metadata_snap != 0).then_some(self.sb.metadata_snap)
    }

    /// Keeps the state of the last commit readable. To be called right after the commit of a rollover,
    /// so that the era before is in it. Returns where the snapshot is. Errors: EINVAL while there is
    /// one, or when anything is uncommitted.
    pub async fn take_metadata_snap(&mut self) -> Result<u64, EraError> {
        if self.sb.metadata_snap != 0 {
            return Err(EraError::SnapHeld);
        }
        if self.changed() {
            return Err(EraError::Unusable);
        }
        self.enter()?;
        let copy = self.tm.new_block(&SUPERBLOCK).await?;
        copy.bytes_mut().copy_from_slice(&self.sb.to_bytes());
        self.tm.inc(self.sb.writeset_tree_root)?;
        self.tm.inc(self.sb.era_array_root)?;
        self.sb.metadata_snap = copy.nr();
        self.sb_changed = true;
        self.usable = true;
        Ok(copy.nr())
    }

    /// Lets the metadata snapshot go. Error: EINVAL without one.
    pub async fn drop_metadata_snap(&mut self) -> Result<(), EraError> {
        let block = self.metadata_snap().ok_or(EraError::NoSnapHeld)?;
        let held = match self.held_superblock().await {
            Err(error @ EraError::Metadata(persistent_data::Error::Device { .. })) => {
                return Err(error);
            }
            held => held,
        };
        self.enter()?;
        self.sb.metadata_snap = 0;
        self.sb_changed = true;
        match held {
            Ok(held) => {
                let refs = WritesetRefs;
                btree::delete::<Writeset, _>(&self.tm, held.writeset_tree_root, &refs).await?;
                array::delete(&self.tm, held.era_array_root).await?;
                self.tm.dec(block).await?;
            }
            // As the kernel: a broken copy is let go all the same, else there could never be another.
            Err(error) => log::warn!(
                "era metadata snapshot in block {block}: {error}; dropped, what it refers to stays allocated"
            ),
        }
        self.usable = true;
        Ok(())
    }

    /// The superblock of the metadata snapshot. Error: EINVAL without one.
    pub(super) async fn held_superblock(&self) -> Result<Superblock, EraError> {
        let block = self.metadata_snap().ok_or(EraError::NoSnapHeld)?;
        let copy = self.tm.read(block, &SUPERBLOCK).await?;
        let bytes = copy.bytes();
        // One that was made in this transaction is not sealed yet: it is committed first.
        Superblock::read(&bytes, block)?.ok_or(EraError::BadSuperblock("it is all zeroes"))
    }
}
