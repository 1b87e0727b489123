//! The on-disk state of an era target (era.md 1, 2, 6, 8).
//!
//! Callers serialise operations (`&mut self` sees to it). After an error that is not a refusal
//! ([`EraError::is_refusal`]) the transaction must be given up with [`EraMetadata::recover`].

pub mod check;
mod digest;
pub mod dump;
mod error;
pub mod restore;
mod since;
mod snap;
mod superblock;
mod writesets;
pub mod xml;

pub use digest::Step;
pub use error::EraError;
pub use since::View;
pub use superblock::{SUPERBLOCK, Superblock};
pub use writesets::{Writeset, WritesetRefs};

use digest::Digest;
use persistent_data::device::{BLOCK_BYTES, BlockDevice};
use persistent_data::space_map::MAX_METADATA_BLOCKS;
use persistent_data::tm::{TransactionManager, write_superblock};
use persistent_data::{array, bitset, btree};
use std::ops::Range;
use std::rc::Rc;

/// Data blocks are numbered below this.
pub const MAX_BLOCKS: u64 = (1 << 31) - 1;

/// How to open era metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Sectors per data block; must be the stored one.
    pub data_block_size_sectors: u32,
    /// Limit of the block cache.
    pub cache_bytes: usize,
    /// Format a device whose first block is all zeroes.
    pub may_format: bool,
}

/// Era metadata, open.
pub struct EraMetadata {
    device: Rc<dyn BlockDevice>,
    options: OpenOptions,
    tm: TransactionManager,
    /// As of the last commit, with what has changed since but for the map's root.
    sb: Superblock,
    sb_changed: bool,
    /// How far the oldest archived writeset is digested.
    digest: Option<Digest>,
    /// False while something is being changed, and so after a change that failed or was dropped
    /// halfway: such a transaction is never committed.
    usable: bool,
}

impl EraMetadata {
    /// Opens era metadata, formatting the device if that is allowed and its first block is all zeroes.
    ///
    /// Errors: see [`EraError`]; the checks are made in the order of era.md 1.
    pub async fn open(device: Rc<dyn BlockDevice>, options: OpenOptions) -> Result<Self, EraError> {
        match read_superblock(device.as_ref()).await? {
            Some(sb) => Self::load(device, options, sb).await,
            None if options.may_format => Self::format(device, options).await,
            None => Err(EraError::Blank),
        }
    }

    /// Opens era metadata for tools, which do not know its block size; never formats.
    pub async fn open_any(
        device: Rc<dyn BlockDevice>,
        cache_bytes: usize,
    ) -> Result<Self, EraError> {
        let sb = read_superblock(device.as_ref()).await?;
        let sb = sb.ok_or(EraError::Blank)?;
        let options = OpenOptions {
            data_block_size_sectors: sb.data_block_size_sectors,
            cache_bytes,
            may_format: false,
        };
        Self::load(device, options, sb).await
    }

    async fn load(
        device: Rc<dyn BlockDevice>,
        options: OpenOptions,
        sb: Superblock,
    ) -> Result<Self, EraError> {
        if sb.data_block_size_sectors != options.data_block_size_sectors {
            return Err(EraError::BlockSize {
                found: sb.data_block_size_sectors,
                wanted: options.data_block_size_sectors,
            });
        }
        if u64::from(sb.nr_blocks) > MAX_BLOCKS || u64::from(sb.writeset_bits) > MAX_BLOCKS {
            return Err(EraError::BadSuperblock("it counts more blocks than can be"));
        }
        let tm =
            TransactionManager::open(device.clone(), options.cache_bytes, &sb.metadata_map).await?;
        Ok(EraMetadata {
            device,
            options,
            tm,
            sb,
            sb_changed: false,
            digest: None,
            usable: true,
        })
    }

    /// Era 0, no writeset, no blocks (era.md 5.1).
    async fn format(device: Rc<dyn BlockDevice>, options: OpenOptions) -> Result<Self, EraError> {
        let mut metadata = Self::format_uncommitted(device, options).await?;
        metadata.commit().await?;
        Ok(metadata)
    }

    async fn format_uncommitted(
        device: Rc<dyn BlockDevice>,
        options: OpenOptions,
    ) -> Result<Self, EraError> {
        let tm = TransactionManager::create(device.clone(), options.cache_bytes).await?;
        let sb = Superblock {
            data_block_size_sectors: options.data_block_size_sectors,
            writeset_tree_root: btree::empty::<Writeset>(&tm).await?,
            era_array_root: array::create(&tm, 0, 0u32).await?,
            ..Superblock::default()
        };
        Ok(EraMetadata {
            device,
            options,
            tm,
            sb,
            sb_changed: true,
            digest: None,
            usable: true,
        })
    }

    /// Begins a change. Who gets to its end sets `usable` again.
    fn enter(&mut self) -> Result<(), EraError> {
        match self.usable {
            true => {
                self.usable = false;
                Ok(())
            }
            false => Err(EraError::Unusable),
        }
    }

    /// Commits the transaction: when this returns, everything done before is durable.
    pub async fn commit(&mut self) -> Result<(), EraError> {
        if !self.usable {
            return Err(EraError::Unusable);
        }
        if !self.changed() {
            return Ok(());
        }
        self.enter()?;
        self.sb.metadata_map = self.tm.pre_commit().await?;
        self.tm.commit(&SUPERBLOCK, &mut self.sb.to_bytes()).await?;
        self.sb_changed = false;
        self.usable = true;
        Ok(())
    }

    /// Whether there is anything to commit.
    pub fn changed(&self) -> bool {
        self.sb_changed || self.tm.is_changed()
    }

    /// Whether operations work: false after one has failed, until [`EraMetadata::recover`].
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Gives the transaction up: everything is as of a commit, the last one or the one that failed.
    ///
    /// Which of them is made certain first. A superblock may have reached the device's cache although
    /// the flush after it failed; going on from it, blocks of the state before would be overwritten
    /// while that still is what a power cut brings back.
    pub async fn recover(&mut self) -> Result<(), EraError> {
        self.usable = false;
        let sb = read_superblock(self.device.as_ref())
            .await?
            .ok_or(EraError::Blank)?;
        write_superblock(self.device.as_ref(), &SUPERBLOCK, &mut sb.to_bytes()).await?;
        *self = Self::load(self.device.clone(), self.options, sb).await?;
        Ok(())
    }

    /// The era now; 0: never activated.
    pub fn current_era(&self) -> u32 {
        self.sb.current_era
    }

    /// Data blocks covered.
    pub fn nr_blocks(&self) -> u64 {
        u64::from(self.sb.nr_blocks)
    }

    /// Blocks of the metadata device in use by the format.
    pub fn nr_metadata_blocks(&self) -> u64 {
        self.tm.map().nr_blocks()
    }

    /// Metadata blocks that are not free.
    pub fn nr_used_metadata(&self) -> u64 {
        let map = self.tm.map();
        map.nr_blocks().saturating_sub(map.nr_free())
    }

    /// Bytes of cached metadata.
    pub fn cache_used_bytes(&self) -> u64 {
        self.tm.cache_stats().used_bytes
    }

    /// Whether the metadata device is larger than what is in use of it, as far as the format goes.
    pub fn metadata_device_has_grown(&self) -> bool {
        self.device.nr_blocks().min(MAX_METADATA_BLOCKS) > self.nr_metadata_blocks()
    }

    /// Enlarges the metadata device's map to the device, if that has grown.
    pub async fn resize_metadata(&mut self) -> Result<(), EraError> {
        self.enter()?;
        if self.metadata_device_has_grown() {
            self.tm.extend().await?;
            self.sb_changed = true;
        }
        self.usable = true;
        Ok(())
    }

    /// Makes the era array as long as the origin: new blocks were never written, those past the end are
    /// dropped. The current writeset stays as it is, so a rollover must follow before blocks are marked.
    ///
    /// Error: EINVAL for more than [`MAX_BLOCKS`].
    pub async fn resize(&mut self, nr_blocks: u64) -> Result<(), EraError> {
        let new = u32::try_from(nr_blocks)
            .ok()
            .filter(|_| nr_blocks <= MAX_BLOCKS)
            .ok_or(EraError::TooManyBlocks(nr_blocks))?;
        self.enter()?;
        if new != self.sb.nr_blocks {
            self.sb.era_array_root = array::resize(
                &self.tm,
                self.sb.era_array_root,
                self.nr_blocks(),
                nr_blocks,
                0u32,
            )
            .await?;
            self.sb.nr_blocks = new;
            self.sb_changed = true;
            // Blocks that came into reach may be in what was digested already.
            self.digest = None;
        }
        self.usable = true;
        Ok(())
    }

    /// Begins the next era with an empty writeset; the one until now is archived (era.md 6). Returns
    /// the new era, which has begun once that is committed.
    pub async fn rollover(&mut self) -> Result<u32, EraError> {
        let era = self
            .sb
            .current_era
            .checked_add(1)
            .ok_or(EraError::TooManyEras)?;
        self.archive().await?;
        self.enter()?;
        self.sb.writeset_root = bitset::create(&self.tm, self.nr_blocks()).await?;
        self.sb.writeset_bits = self.sb.nr_blocks;
        self.sb.current_era = era;
        self.sb_changed = true;
        self.usable = true;
        Ok(era)
    }

    /// Moves the current writeset, if there is one, to the tree of archived ones: all there is to do
    /// before the target goes away.
    pub async fn archive(&mut self) -> Result<(), EraError> {
        self.enter()?;
        if self.sb.writeset_root != 0 {
            let writeset = Writeset {
                nr_bits: self.sb.writeset_bits,
                root: self.sb.writeset_root,
            };
            let (root, _) = btree::insert(
                &self.tm,
                self.sb.writeset_tree_root,
                u64::from(self.sb.current_era),
                writeset,
                &WritesetRefs,
            )
            .await?;
            self.sb.writeset_tree_root = root;
            self.sb.writeset_root = 0;
            self.sb_changed = true;
        }
        self.usable = true;
        Ok(())
    }

    /// Records that blocks are written in the current era: ranges in ascending order that do not
    /// overlap. Errors: EINVAL for blocks past the end, and without a current writeset.
    pub async fn mark(&mut self, ranges: &[Range<u64>]) -> Result<(), EraError> {
        let nr_blocks = self.nr_blocks().min(u64::from(self.sb.writeset_bits));
        if self.sb.writeset_root == 0 {
            return Err(EraError::Inactive);
        }
        if let Some(range) = ranges.iter().find(|range| range.end > nr_blocks) {
            return Err(EraError::NoBlock {
                block: range.end,
                nr_blocks,
            });
        }
        self.enter()?;
        self.sb.writeset_root = bitset::set(&self.tm, self.sb.writeset_root, ranges).await?;
        self.sb_changed = true;
        self.usable = true;
        Ok(())
    }
}

async fn read_superblock(device: &dyn BlockDevice) -> Result<Option<Superblock>, EraError> {
    let mut bytes = [0; BLOCK_BYTES];
    device
        .read(0, &mut bytes)
        .await
        .map_err(|source| persistent_data::Error::Device { block: 0, source })?;
    Superblock::read(&bytes, 0)
}
