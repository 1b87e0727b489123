//! Thin devices and their mappings (thin.md 2, 3).

use super::refs::{Details, MovedRoot, TIME_BITS, TreeRefs};
use super::{Device, Removed, ThinError, ThinMetadata};
use crate::errno::Errno;
use persistent_data::btree;
use std::cell::RefCell;
use std::ops::Range;

/// A mapping as I/O needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedBlock {
    /// Block of the data device.
    pub data_block: u64,
    /// Another device may map the same data block: it must not be written to. May be true when that is
    /// over, never false while it lasts (thin.md 3).
    pub shared: bool,
}

/// Mappings of consecutive blocks to consecutive data blocks, all shared or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedRange {
    /// First block of the thin device.
    pub virtual_begin: u64,
    /// First block of the data device.
    pub data_begin: u64,
    /// Blocks; at least 1.
    pub length: u64,
    /// See [`MappedBlock::shared`].
    pub shared: bool,
}

/// Why a mapping was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// There is none.
    #[error("block {block} of thin device {id} is a hole")]
    Hole {
        /// The device.
        id: u32,
        /// Its block.
        block: u64,
    },
    /// It could not be looked for.
    #[error(transparent)]
    Metadata(#[from] ThinError),
}

impl FindError {
    /// ENODATA for a hole.
    pub fn errno(&self) -> Errno {
        match self {
            FindError::Hole { .. } => Errno::ENODATA,
            FindError::Metadata(error) => error.errno(),
        }
    }
}

const MAX_ID: u32 = (1 << 24) - 1;

impl Device {
    /// The transaction is sealed. Whether the device stays in core.
    pub(super) fn transaction_ends(&mut self) -> bool {
        self.sealed_changes = std::mem::take(&mut self.changed);
        self.path_shadowed = false;
        std::mem::take(&mut self.used) || self.sealed_changes
    }

    pub(super) fn has_changes(&self) -> bool {
        self.changed || self.sealed_changes
    }
}

impl ThinMetadata {
    /// Devices whose state is in core: those used in this transaction or the one before, however many the
    /// pool has.
    pub fn devices_in_core(&self) -> usize {
        self.devices.len()
    }

    async fn details_on_disk(&self, id: u32) -> Result<Option<Details>, ThinError> {
        Ok(btree::lookup(&self.tm, self.sb.details_root, u64::from(id)).await?)
    }

    /// The state of a device in core, read if need be.
    async fn device(&mut self, id: u32) -> Result<Device, ThinError> {
        if let Some(dev) = self.devices.get_mut(&id) {
            dev.used = true;
            return Ok(*dev);
        }
        let details = self
            .details_on_disk(id)
            .await?
            .ok_or(ThinError::NoDevice(id))?;
        let root = btree::lookup::<u64>(&self.tm, self.sb.mapping_root, u64::from(id))
            .await?
            .ok_or(ThinError::NoDevice(id))?;
        let dev = Device {
            root,
            details,
            details_changed: false,
            changed: false,
            sealed_changes: false,
            used: true,
            path_shadowed: false,
        };
        self.devices.insert(id, dev);
        Ok(dev)
    }

    /// The device with the path to its root shadowed, so that its tree may be changed.
    async fn writable_device(&mut self, id: u32) -> Result<Device, ThinError> {
        let dev = self.device(id).await?;
        if dev.path_shadowed {
            return Ok(dev);
        }
        self.set_root(id, dev.root).await?;
        self.device(id).await
    }

    /// The root of a device's tree, with nothing shared on the way to it.
    pub(super) async fn own_root(&mut self, id: u32) -> Result<u64, ThinError> {
        self.device(id).await?;
        self.enter()?;
        Ok(self.writable_device(id).await?.root)
    }

    /// Notes where a device's root is now, in core and in level 1.
    async fn set_root(&mut self, id: u32, root: u64) -> Result<(), ThinError> {
        let (mapping_root, _) = btree::insert(
            &self.tm,
            self.sb.mapping_root,
            u64::from(id),
            root,
            &MovedRoot,
        )
        .await?;
        self.sb.mapping_root = mapping_root;
        if let Some(dev) = self.devices.get_mut(&id) {
            dev.root = root;
            dev.path_shadowed = true;
        }
        Ok(())
    }

    async fn changed_tree(
        &mut self,
        id: u32,
        dev: &Device,
        root: u64,
        mapped_by: i64,
    ) -> Result<(), ThinError> {
        if root != dev.root {
            self.set_root(id, root).await?;
        }
        if let Some(dev) = self.devices.get_mut(&id) {
            dev.details.mapped_blocks = dev.details.mapped_blocks.saturating_add_signed(mapped_by);
            // Also where the number is the same: as the kernel, so that a held metadata snapshot never
            // shares its details with changed mappings, which the tools take for damage.
            dev.details_changed = true;
            dev.changed = true;
        }
        self.sb_changed = true;
        self.relieve().await
    }

    async fn check_new_id(&self, id: u32) -> Result<(), ThinError> {
        if id > MAX_ID {
            return Err(ThinError::BadId(id));
        }
        match self.devices.contains_key(&id) || self.details_on_disk(id).await?.is_some() {
            true => Err(ThinError::Exists(id)),
            false => Ok(()),
        }
    }

    async fn add_device(&mut self, id: u32, root: u64, details: Details) -> Result<(), ThinError> {
        self.set_root(id, root).await?;
        self.devices.insert(
            id,
            Device {
                root,
                details,
                details_changed: true,
                changed: true,
                sealed_changes: false,
                used: true,
                path_shadowed: true,
            },
        );
        Ok(())
    }

    /// Creates an empty device. Errors: EEXIST, EINVAL for an id above 2^24 - 1.
    pub async fn create_thin(&mut self, id: u32) -> Result<(), ThinError> {
        self.check_new_id(id).await?;
        self.enter()?;
        let root = btree::empty::<u64>(&self.tm).await?;
        let details = Details {
            mapped_blocks: 0,
            transaction_id: self.sb.transaction_id,
            creation_time: self.sb.time,
            snapshotted_time: self.sb.time,
        };
        self.add_device(id, root, details).await?;
        self.usable = true;
        Ok(())
    }

    /// Whether `id` could be made a snapshot of `origin`: the refusals of
    /// [`ThinMetadata::create_snap`], with nothing changed.
    pub async fn check_snap(&mut self, id: u32, origin: u32) -> Result<(), ThinError> {
        self.check_new_id(id).await?;
        if self.sb.time.saturating_add(1) >> TIME_BITS != 0 {
            return Err(ThinError::TooManySnapshots);
        }
        self.device(origin).await?;
        Ok(())
    }

    /// Makes `id` a snapshot of `origin`. Errors: EEXIST, ENODATA without an origin. Writes to the
    /// origin must have been quiesced.
    pub async fn create_snap(&mut self, id: u32, origin: u32) -> Result<(), ThinError> {
        self.check_snap(id, origin).await?;
        let time = self.sb.time + 1;
        self.enter()?;
        let dev = self.writable_device(origin).await?;
        self.tm.inc(dev.root)?;
        self.sb.time = time;
        let details = Details {
            mapped_blocks: dev.details.mapped_blocks,
            transaction_id: self.sb.transaction_id,
            creation_time: time,
            snapshotted_time: time,
        };
        self.add_device(id, dev.root, details).await?;
        if let Some(dev) = self.devices.get_mut(&origin) {
            dev.details.snapshotted_time = time;
            dev.details_changed = true;
            dev.changed = true;
        }
        self.usable = true;
        Ok(())
    }

    /// Deletes a device; the data blocks it shared with nobody become free. Error: ENODATA.
    pub async fn delete(&mut self, id: u32) -> Result<(), ThinError> {
        self.device(id).await?;
        self.enter()?;
        let key = u64::from(id);
        let (details_root, _) =
            btree::remove::<Details, _>(&self.tm, self.sb.details_root, key, &btree::Plain).await?;
        let refs = TreeRefs(self.refs(None));
        let (mapping_root, _) =
            btree::remove::<u64, _>(&self.tm, self.sb.mapping_root, key, &refs).await?;
        self.sb.details_root = details_root;
        self.sb.mapping_root = mapping_root;
        self.sb_changed = true;
        self.devices.remove(&id);
        self.relieve().await?;
        self.usable = true;
        Ok(())
    }

    /// What is known of a device. Error: ENODATA.
    pub async fn details(&mut self, id: u32) -> Result<Details, ThinError> {
        Ok(self.device(id).await?.details)
    }

    /// All devices, by id.
    pub async fn devices(&mut self) -> Result<Vec<(u32, Details)>, ThinError> {
        let mut all = std::collections::BTreeMap::new();
        btree::walk(
            &self.tm,
            self.sb.details_root,
            0,
            u64::from(MAX_ID) + 1,
            |id, details: Details| {
                all.insert(id as u32, details);
            },
        )
        .await?;
        // Newer in core than on disk.
        all.extend(self.devices.iter().map(|(id, dev)| (*id, dev.details)));
        Ok(all.into_iter().collect())
    }

    /// Reads ahead what looking up, or inserting, mappings of these blocks of devices needs, many metadata blocks at a
    /// time. Nothing where the cache has had everything since the last call: then it only costs time.
    pub async fn fetch(&mut self, wanted: Vec<(u32, Range<u64>)>) {
        let misses = self.tm.cache_stats().misses;
        if wanted.is_empty() || std::mem::replace(&mut self.misses_seen, misses) == misses {
            return;
        }
        let mut of_trees = Vec::with_capacity(wanted.len());
        for (id, blocks) in wanted {
            // Why there is none is found out by who needs it.
            if let Ok(device) = self.device(id).await {
                of_trees.push((device.root, blocks));
            }
        }
        btree::fetch::<u64>(&self.tm, of_trees).await;
    }

    /// Fills `values` with the mappings of the blocks from `first` on as they are on disk:
    /// `data block << 24 | time`. What is not mapped is left as it is.
    ///
    /// Error: EINVAL where a mapping leads outside the data device.
    pub async fn lookup_range(
        &mut self,
        id: u32,
        first: u64,
        values: &mut [u64],
    ) -> Result<(), ThinError> {
        let root = self.device(id).await?.root;
        let end = first.saturating_add(values.len() as u64);
        let mut outside = None;
        btree::walk(&self.tm, root, first, end, |block, value: u64| {
            if outside.is_none() {
                outside = self.check_mapping(value).err();
            }
            if let Some(slot) = values.get_mut((block - first) as usize) {
                *slot = value;
            }
        })
        .await?;
        outside.map_or(Ok(()), Err)
    }

    /// The mapping of a block: data block and time. Error: as [`ThinMetadata::lookup_range`].
    pub async fn lookup(&mut self, id: u32, block: u64) -> Result<Option<(u64, u32)>, ThinError> {
        let root = self.device(id).await?.root;
        let Some(value) = btree::lookup::<u64>(&self.tm, root, block).await? else {
            return Ok(None);
        };
        self.check_mapping(value)?;
        Ok(Some((
            value >> TIME_BITS,
            (value & ((1 << TIME_BITS) - 1)) as u32,
        )))
    }

    /// What a block is mapped to, and whether that is shared. Errors: ENODATA for a hole, or without the
    /// device; as [`ThinMetadata::lookup_range`].
    pub async fn find_block(&mut self, id: u32, block: u64) -> Result<MappedBlock, FindError> {
        let snapshotted_time = self.device(id).await?.details.snapshotted_time;
        match self.lookup(id, block).await? {
            Some((data_block, time)) => Ok(MappedBlock {
                data_block,
                shared: snapshotted_time > time,
            }),
            None => Err(FindError::Hole { id, block }),
        }
    }

    /// The first run of mappings in `begin..end` (thin.md 3). Errors: ENODATA where all of it is a hole;
    /// else as [`ThinMetadata::find_block`].
    pub async fn find_mapped_range(
        &mut self,
        id: u32,
        begin: u64,
        end: u64,
    ) -> Result<MappedRange, FindError> {
        let first = self.next_mapped(id, begin).await?;
        let Some(first) = first.filter(|first| *first < end) else {
            return Err(FindError::Hole { id, block: begin });
        };
        let found = self.find_block(id, first).await?;
        let mut range = MappedRange {
            virtual_begin: first,
            data_begin: found.data_block,
            length: 1,
            shared: found.shared,
        };
        while range.length < end - first {
            let next = MappedBlock {
                data_block: found.data_block + range.length,
                ..found
            };
            match self.find_block(id, first + range.length).await {
                Ok(mapped) if mapped == next => range.length += 1,
                Ok(_) | Err(FindError::Hole { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(range)
    }

    /// Blocks that are mapped. Error: ENODATA.
    pub async fn mapped_count(&mut self, id: u32) -> Result<u64, ThinError> {
        Ok(self.details(id).await?.mapped_blocks)
    }

    /// Whether a device has been created, snapshotted, or had a mapping changed since the last commit, so
    /// that a FLUSH of it needs one (thin.md 7.3).
    pub fn changed_this_transaction(&self, id: u32) -> bool {
        self.devices.get(&id).is_some_and(Device::has_changes)
    }

    /// Whether an abort has taken changes of a device back since the metadata was opened: acknowledged
    /// writes may be lost, which its flushes have to report (thin.md 9).
    pub fn aborted_with_changes(&self, id: u32) -> bool {
        self.aborted.contains(&id)
    }

    fn check_mapping(&self, value: u64) -> Result<(), ThinError> {
        let (block, nr_blocks) = (value >> TIME_BITS, self.nr_data_blocks());
        match block < nr_blocks {
            true => Ok(()),
            false => Err(persistent_data::Error::OutOfRange { block, nr_blocks }.into()),
        }
    }

    /// The first mapped block from `from` on.
    pub async fn next_mapped(&mut self, id: u32, from: u64) -> Result<Option<u64>, ThinError> {
        let root = self.device(id).await?.root;
        let next: Option<(u64, u64)> = btree::next(&self.tm, root, from).await?;
        Ok(next.map(|(block, _)| block))
    }

    pub(super) async fn device_root(&mut self, id: u32) -> Result<u64, ThinError> {
        Ok(self.device(id).await?.root)
    }

    /// The last mapped block.
    pub async fn highest_mapped(&mut self, id: u32) -> Result<Option<u64>, ThinError> {
        let root = self.device(id).await?.root;
        Ok(btree::last_key::<u64>(&self.tm, root).await?)
    }

    /// Maps a block to a data block that was reserved for it. What was mapped there loses a
    /// reference.
    pub async fn insert(&mut self, id: u32, block: u64, data_block: u64) -> Result<(), ThinError> {
        self.device(id).await?;
        self.enter()?;
        let dev = self.writable_device(id).await?;
        self.data.map().claim_reserved(data_block);
        let value = data_block << TIME_BITS | u64::from(self.sb.time);
        let (root, is_new) =
            btree::insert(&self.tm, dev.root, block, value, &self.refs(None)).await?;
        self.changed_tree(id, &dev, root, i64::from(is_new)).await?;
        self.usable = true;
        Ok(())
    }

    /// Unmaps `begin..end`.
    pub async fn remove_range(
        &mut self,
        id: u32,
        begin: u64,
        end: u64,
    ) -> Result<Removed, ThinError> {
        let next = self.next_mapped(id, begin).await?;
        if next.is_none_or(|next| next >= end) {
            return Ok(Removed::default());
        }
        self.enter()?;
        let dev = self.writable_device(id).await?;
        let freed = RefCell::default();
        let refs = self.refs(Some(&freed));
        let (root, count) =
            btree::remove_range::<u64, _>(&self.tm, dev.root, begin, end, &refs, |_, _| {}).await?;
        self.changed_tree(id, &dev, root, -(count as i64)).await?;
        self.usable = true;
        Ok(Removed {
            count,
            freed: freed.into_inner(),
        })
    }
}
