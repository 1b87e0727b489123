//! Transactions of a pool's metadata: changed, sealed, on the disk; or given up (thin.md 5, 9).

use super::superblock::{SUPERBLOCK, Superblock};
use super::{ThinError, ThinMetadata, read_superblock};
use persistent_data::{btree, tm};

/// A transaction that has ended and is on its way to the disk.
pub struct Sealed {
    blocks: tm::Sealed,
    sb: Superblock,
}

impl Sealed {
    /// Makes it durable. The data device must have been flushed since it was sealed. After an error the
    /// metadata must be given up with [`ThinMetadata::abort`].
    pub async fn commit(self) -> Result<(), ThinError> {
        let mut bytes = self.sb.to_bytes();
        Ok(self.blocks.commit(&SUPERBLOCK, &mut bytes).await?)
    }
}

impl ThinMetadata {
    /// Begins a change. Who gets to its end sets `usable` again.
    pub(super) fn enter(&mut self) -> Result<(), ThinError> {
        match self.usable {
            true if self.options.read_only => Err(ThinError::ReadOnly),
            true => {
                self.usable = false;
                Ok(())
            }
            false => Err(ThinError::Unusable),
        }
    }

    /// Commits the transaction. The data device must have been flushed before, with nothing inserted
    /// since (thin.md 5).
    pub async fn commit(&mut self) -> Result<(), ThinError> {
        if !self.usable {
            return Err(ThinError::Unusable);
        }
        if !self.changed() {
            return Ok(());
        }
        let sealed = self.seal().await?;
        self.usable = false;
        sealed.commit().await?;
        self.committed();
        self.usable = true;
        Ok(())
    }

    /// Ends the transaction, which is committed when [`Sealed::commit`] has made it durable and
    /// [`ThinMetadata::committed`] was told so. The next one begins, and can be sealed after that.
    pub async fn seal(&mut self) -> Result<Sealed, ThinError> {
        self.enter()?;
        for (id, dev) in self.devices.iter_mut().filter(|(_, d)| d.details_changed) {
            let (root, _) = btree::insert(
                &self.tm,
                self.sb.details_root,
                u64::from(*id),
                dev.details,
                &btree::Plain,
            )
            .await?;
            self.sb.details_root = root;
            dev.details_changed = false;
        }
        self.sb.data_map = self.data.pre_commit(&self.tm).await?;
        let blocks = self.tm.seal().await?;
        self.sb.metadata_map = blocks.root();
        self.devices.retain(|_, dev| dev.transaction_ends());
        self.sb_changed = false;
        self.sealed = Some(self.sb);
        self.usable = true;
        Ok(Sealed {
            blocks,
            sb: self.sb,
        })
    }

    /// The sealed transaction is durable.
    pub fn committed(&mut self) {
        let Some(sealed) = self.sealed.take() else {
            return;
        };
        self.tm.committed();
        self.data.committed();
        for dev in self.devices.values_mut() {
            dev.sealed_changes = false;
        }
        self.committed = sealed;
    }

    /// Does some of what sealing would have to do, if that is much, so that sealing itself is short: until it
    /// is over nobody else gets at the metadata. From then on others cannot make it much again. False: there is
    /// not much.
    pub async fn seal_ahead(&mut self) -> Result<bool, ThinError> {
        let (of_data, of_metadata) = (self.data.pieces_to_apply(), self.tm.pieces_to_apply());
        if self.is_metadata_tight() || of_data + of_metadata == 0 {
            return Ok(false);
        }
        self.enter()?;
        match of_data {
            0 => self.tm.apply_ahead().await?,
            _ => self.data.apply_ahead(&self.tm).await?,
        }
        self.usable = true;
        Ok(true)
    }

    /// Applies some of what has been counted, if it has become much.
    pub(super) async fn relieve(&self) -> Result<(), ThinError> {
        self.data.relieve(&self.tm).await?;
        Ok(self.tm.relieve().await?)
    }

    /// Whether the transaction can go on: false after a change that failed halfway.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Whether there is anything to commit beside what is sealed.
    pub fn changed(&self) -> bool {
        self.sb_changed
            || self.tm.is_changed()
            || self.data.map().is_changed()
            || self.devices.values().any(|dev| dev.details_changed)
    }

    /// Gives the transaction up: everything is as of the last commit (thin.md 9).
    pub async fn abort(&mut self) -> Result<(), ThinError> {
        self.usable = false;
        let changed = self.devices.iter().filter(|(_, dev)| dev.has_changes());
        self.aborted.extend(changed.map(|(id, _)| *id));
        let sb = read_superblock(self.device.as_ref())
            .await?
            .ok_or(ThinError::NotAPool)?;
        let aborted = self.aborted.clone();
        *self = Self::load(self.device.clone(), self.options, sb).await?;
        self.aborted = aborted;
        Ok(())
    }
}
