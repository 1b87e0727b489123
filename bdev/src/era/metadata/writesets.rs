//! Archived writesets (era.md 2): what the values of their tree are and refer to.

use super::{EraError, EraMetadata, Superblock};
use persistent_data::block::{get_u32, get_u64, put_u32, put_u64};
use persistent_data::btree::{self, Value, ValueOps};
use persistent_data::tm::TransactionManager;
use persistent_data::{Result, array};

/// A writeset: the blocks written in one era.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writeset {
    /// Its length; may differ from the number of blocks after a resize.
    pub nr_bits: u32,
    /// Its bitset.
    pub root: u64,
}

impl Value for Writeset {
    const SIZE: usize = 12;

    fn get(bytes: &[u8]) -> Self {
        Writeset {
            nr_bits: get_u32(bytes, 0),
            root: get_u64(bytes, 4),
        }
    }

    fn put(&self, bytes: &mut [u8]) {
        put_u32(bytes, 0, self.nr_bits);
        put_u64(bytes, 4, self.root);
    }
}

/// An entry of the tree owns a reference to its bitset.
pub struct WritesetRefs;

impl ValueOps<Writeset> for WritesetRefs {
    fn inc(&self, tm: &TransactionManager, writeset: Writeset) -> Result<()> {
        tm.inc(writeset.root)
    }

    async fn dec(&self, tm: &TransactionManager, writeset: Writeset) -> Result<()> {
        array::delete(tm, writeset.root).await
    }

    fn equal(&self, old: Writeset, new: Writeset) -> bool {
        old.root == new.root
    }
}

impl EraMetadata {
    /// The archived writesets of a tree, by era. An era above 2^32 cannot be: EILSEQ.
    pub(super) async fn writesets(
        &self,
        root: u64,
    ) -> std::result::Result<Vec<(u32, Writeset)>, EraError> {
        let mut found = Vec::new();
        let mut wrong = false;
        btree::walk(
            &self.tm,
            root,
            0,
            u64::MAX,
            |key, writeset: Writeset| match u32::try_from(key) {
                Ok(era) => found.push((era, writeset)),
                Err(_) => wrong = true,
            },
        )
        .await?;
        match wrong {
            false => Ok(found),
            true => Err(persistent_data::Error::Corrupt {
                block: root,
                what: "an archived writeset's era has more than 32 bits",
            }
            .into()),
        }
    }

    /// The archived writesets, and perhaps the current one. That of a metadata snapshot must be left
    /// out: it is a copy of a root long gone.
    pub(super) async fn all_writesets(
        &self,
        sb: &Superblock,
        with_current: bool,
    ) -> std::result::Result<Vec<(u32, Writeset)>, EraError> {
        let mut writesets = self.writesets(sb.writeset_tree_root).await?;
        if with_current && sb.writeset_root != 0 {
            let current = Writeset {
                nr_bits: sb.writeset_bits,
                root: sb.writeset_root,
            };
            writesets.push((sb.current_era, current));
        }
        Ok(writesets)
    }
}
