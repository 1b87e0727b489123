//! The metadata snapshot: a copy of the superblock that tools read while the pool is live
//! (thin.md 11.4).

use super::refs::{Details, TreeRefs};
use super::superblock::{SUPERBLOCK, Superblock};
use super::{ThinError, ThinMetadata};
use persistent_data::btree;
use persistent_data::space_map::SpaceMapRoot;

impl ThinMetadata {
    /// Where the metadata snapshot is.
    pub fn held_root(&self) -> Option<u64> {
        (self.sb.held_root != 0).then_some(self.sb.held_root)
    }

    /// Keeps the state of the last commit, which must be the current one, readable. Error: EBUSY.
    pub async fn reserve_metadata_snap(&mut self) -> Result<(), ThinError> {
        if self.sb.held_root != 0 {
            return Err(ThinError::SnapHeld);
        }
        self.enter()?;
        let copy = self.tm.new_block(&SUPERBLOCK).await?;
        let held = Superblock {
            data_map: SpaceMapRoot::default(),
            metadata_map: SpaceMapRoot::default(),
            held_root: 0,
            ..self.sb
        };
        copy.bytes_mut().copy_from_slice(&held.to_bytes());
        self.tm.inc(self.sb.mapping_root)?;
        self.tm.inc(self.sb.details_root)?;
        self.sb.held_root = copy.nr();
        self.sb_changed = true;
        // The roots are shared now: paths must be shadowed again before anything below changes.
        for dev in self.devices.values_mut() {
            dev.path_shadowed = false;
        }
        self.usable = true;
        Ok(())
    }

    /// Lets the metadata snapshot go. Error: EINVAL without one.
    pub async fn release_metadata_snap(&mut self) -> Result<(), ThinError> {
        let block = self.held_root().ok_or(ThinError::NoSnapHeld)?;
        let held = {
            let copy = self.tm.read(block, &SUPERBLOCK).await?;
            let bytes = copy.bytes();
            Superblock::read(&bytes, block).ok().flatten()
        };
        // A copy that was made in this transaction is not sealed yet: it is committed first.
        let held = held.ok_or(ThinError::BadSuperblock("the metadata snapshot is broken"))?;
        self.enter()?;
        self.sb.held_root = 0;
        self.sb_changed = true;
        let refs = TreeRefs(self.refs(None));
        btree::delete::<u64, _>(&self.tm, held.mapping_root, &refs).await?;
        btree::delete::<Details, _>(&self.tm, held.details_root, &btree::Plain).await?;
        self.tm.dec(block).await?;
        self.relieve().await?;
        self.usable = true;
        Ok(())
    }
}
