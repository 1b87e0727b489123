//! The on-disk state of a thin pool (thin.md 1 to 5, 9, 11.4).
//!
//! Callers serialise operations (`&mut self` sees to it) and flush the data device before
//! [`ThinMetadata::commit`], or between [`ThinMetadata::seal`] and [`Sealed::commit`]. After an error that is
//! not a refusal ([`ThinError::is_refusal`]) the transaction must be given up with [`ThinMetadata::abort`].

mod bulk;
pub mod check;
mod counts;
pub mod delta;
mod devices;
pub mod dump;
mod error;
pub mod image;
pub mod problem;
mod refs;
pub mod repair;
pub mod restore;
mod roots;
pub mod runs;
mod share;
mod shrink;
pub mod sink;
mod snap;
mod superblock;
mod survey;
mod tally;
mod transaction;
pub mod usage;
pub mod xml;

pub use devices::{FindError, MappedBlock, MappedRange};
pub use error::ThinError;
pub use refs::Details;
pub use shrink::Shrunk;
pub use superblock::Superblock;
pub use transaction::Sealed;

use persistent_data::btree;
use persistent_data::device::{BLOCK_BYTES, BlockDevice};
use persistent_data::space_map::MAX_METADATA_BLOCKS;
use persistent_data::tm::{DiskSpaceMap, TransactionManager, write_superblock};
use refs::{DataRefs, TIME_BITS};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use superblock::{SUPERBLOCK, VERSION};

/// Metadata blocks that one operation and a commit may take: paths through both levels of mappings and
/// the details with splits, a few bitmaps and the paths to them.
const OPERATION_BLOCKS: u64 = 24;

/// Sectors per metadata block, fixed by the format (thin.md 1).
pub const METADATA_BLOCK_SIZE_SECTORS: u32 = (BLOCK_BYTES / 512) as u32;

/// Sectors of a metadata device that the format can use: an index of 255 bitmaps (thin.md 11.7).
pub const MAX_METADATA_SECTORS: u64 = MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE_SECTORS as u64;

/// A metadata device of more sectors than this (16 GiB) gets a warning that the rest is not used. It is
/// more than [`MAX_METADATA_SECTORS`], so that a device of a round size gets none.
pub const MAX_METADATA_SECTORS_WARNING: u64 = 16 << 21;

/// Bits of the superblock's compat_flags that are known here.
pub const FEATURE_COMPAT_SUPPORTED: u32 = 0;

/// Bits of compat_ro_flags that are known here; others allow reading only.
pub const FEATURE_COMPAT_RO_SUPPORTED: u32 = 0;

/// Bits of incompat_flags that are known here; others are refused.
pub const FEATURE_INCOMPAT_SUPPORTED: u32 = 0;

/// How to open a pool's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Sectors per data block; must be the stored one.
    pub data_block_size_sectors: u32,
    /// Limit of the block cache.
    pub cache_bytes: usize,
    /// Format a device whose first block is all zeroes.
    pub may_format: bool,
    /// Nothing may be written.
    pub read_only: bool,
}

/// A device's state in core, kept until a transaction goes by without use of it.
#[derive(Debug, Clone, Copy)]
struct Device {
    root: u64,
    details: Details,
    details_changed: bool,
    /// It has changes that are not committed, or not yet surely.
    changed: bool,
    /// It has changes in the sealed transaction.
    sealed_changes: bool,
    /// It was looked at since the last commit; else it is forgotten at the next.
    used: bool,
    /// The path to its root has been shadowed in this transaction, so that references below are
    /// counted right (the path goes first: persistent-data.md 2.3, 2.7).
    path_shadowed: bool,
}

/// What [`ThinMetadata::remove_range`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Mappings removed.
    pub count: u64,
    /// Data blocks nobody refers to any more.
    pub freed: Vec<u64>,
}

/// A pool's metadata, open.
pub struct ThinMetadata {
    device: Rc<dyn BlockDevice>,
    options: OpenOptions,
    tm: TransactionManager,
    data: DiskSpaceMap,
    /// As of the last commit, with what has changed since but for the maps' roots.
    sb: Superblock,
    /// As of the last commit.
    committed: Superblock,
    /// Of the transaction that is on its way to the disk.
    sealed: Option<Superblock>,
    devices: BTreeMap<u32, Device>,
    sb_changed: bool,
    /// False while something is being changed, and so after a change that failed or was dropped
    /// halfway: such a transaction is never committed.
    usable: bool,
    /// Devices whose changes an abort has taken back, since the metadata was opened.
    aborted: BTreeSet<u32>,
    /// Blocks that were not cached when they were needed, until [`ThinMetadata::fetch`] was last called.
    misses_seen: u64,
}

impl ThinMetadata {
    /// Opens the metadata of a pool, formatting the device if that is allowed and its first block is
    /// all zeroes.
    ///
    /// Errors: see [`ThinError`]; the checks are made in the order of thin.md 1.
    pub async fn open(
        device: Rc<dyn BlockDevice>,
        options: OpenOptions,
    ) -> Result<Self, ThinError> {
        if let Some(warning) = excess_warning(device.nr_blocks()) {
            log::warn!("{warning}");
        }
        match read_superblock(device.as_ref()).await? {
            Some(sb) => Self::load(device, options, sb).await,
            None if options.may_format && !options.read_only => Self::format(device, options).await,
            None => Err(ThinError::Unformatted),
        }
    }

    async fn load(
        device: Rc<dyn BlockDevice>,
        options: OpenOptions,
        sb: Superblock,
    ) -> Result<Self, ThinError> {
        if sb.data_block_size_sectors != options.data_block_size_sectors {
            return Err(ThinError::BlockSize {
                found: sb.data_block_size_sectors,
                wanted: options.data_block_size_sectors,
            });
        }
        // A larger time would spill into the data blocks of new mappings; no kernel looks at it.
        if sb.time >> TIME_BITS != 0 {
            return Err(ThinError::BadSuperblock("its time has more than 24 bits"));
        }
        if sb.incompat_flags & !FEATURE_INCOMPAT_SUPPORTED != 0 {
            return Err(ThinError::Features {
                flags: sb.incompat_flags,
                what: "incompatible",
            });
        }
        if !options.read_only {
            check_writable(&sb)?;
        }
        let tm =
            TransactionManager::open(device.clone(), options.cache_bytes, &sb.metadata_map).await?;
        let data = DiskSpaceMap::open(&tm, &sb.data_map).await?;
        Ok(ThinMetadata {
            device,
            options,
            tm,
            data,
            sb,
            committed: sb,
            sealed: None,
            devices: BTreeMap::new(),
            sb_changed: false,
            usable: true,
            aborted: BTreeSet::new(),
            misses_seen: 0,
        })
    }

    /// thin.md 4.
    async fn format(device: Rc<dyn BlockDevice>, options: OpenOptions) -> Result<Self, ThinError> {
        let tm = TransactionManager::create(device.clone(), options.cache_bytes).await?;
        let data = DiskSpaceMap::create(&tm).await?;
        let sb = Superblock {
            mapping_root: btree::empty::<u64>(&tm).await?,
            details_root: btree::empty::<Details>(&tm).await?,
            data_block_size_sectors: options.data_block_size_sectors,
            metadata_nr_blocks: tm.map().nr_blocks(),
            version: VERSION,
            ..Superblock::default()
        };
        let mut metadata = ThinMetadata {
            device,
            options,
            tm,
            data,
            sb,
            committed: sb,
            sealed: None,
            devices: BTreeMap::new(),
            sb_changed: true,
            usable: true,
            aborted: BTreeSet::new(),
            misses_seen: 0,
        };
        metadata.commit().await?;
        Ok(metadata)
    }

    fn refs<'a>(&'a self, freed: Option<&'a RefCell<Vec<u64>>>) -> DataRefs<'a> {
        DataRefs {
            map: &self.data,
            freed,
            released: Cell::new(0),
        }
    }

    /// From here on nothing is written: every change, [`ThinMetadata::commit`] of earlier ones, and
    /// [`ThinMetadata::set_needs_check`] fail with EPERM. Reading goes on.
    pub fn set_read_only(&mut self) {
        self.options.read_only = true;
    }

    /// The opposite of [`ThinMetadata::set_read_only`]. Error: EINVAL where features of the pool that are
    /// not known here allow reading only.
    pub fn set_read_write(&mut self) -> Result<(), ThinError> {
        check_writable(&self.sb)?;
        self.options.read_only = false;
        Ok(())
    }

    /// Whether nothing may be written.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    /// Records that a check is needed, durably, beside the state of the last commit: nothing
    /// uncommitted gets to the disk with it. Error: EPERM where the metadata is open read-only.
    pub async fn set_needs_check(&mut self) -> Result<(), ThinError> {
        if self.options.read_only {
            return Err(ThinError::ReadOnly);
        }
        self.sb.needs_check = true;
        self.committed.needs_check = true;
        let mut bytes = self.committed.to_bytes();
        Ok(write_superblock(self.device.as_ref(), &SUPERBLOCK, &mut bytes).await?)
    }

    /// Whether a check is needed before anything may change.
    pub fn needs_check(&self) -> bool {
        self.sb.needs_check
    }

    /// The snapshot counter.
    pub fn time(&self) -> u32 {
        self.sb.time
    }

    /// The userspace transaction id.
    pub fn transaction_id(&self) -> u64 {
        self.sb.transaction_id
    }

    /// Sets the transaction id where it is `current`.
    pub fn set_transaction_id(&mut self, current: u64, new: u64) -> Result<(), ThinError> {
        if self.sb.transaction_id != current {
            return Err(ThinError::TransactionId {
                expected: current,
                found: self.sb.transaction_id,
            });
        }
        self.enter()?;
        self.sb.transaction_id = new;
        self.sb_changed = true;
        self.usable = true;
        Ok(())
    }

    /// Sectors per data block.
    pub fn data_block_size_sectors(&self) -> u32 {
        self.sb.data_block_size_sectors
    }

    /// Blocks of the data device as recorded.
    pub fn nr_data_blocks(&self) -> u64 {
        self.data.map().nr_blocks()
    }

    /// Free data blocks. Those freed in this transaction count, held ones do not.
    pub fn nr_free_data(&self) -> u64 {
        let map = self.data.map();
        map.nr_free().saturating_sub(map.nr_held())
    }

    /// Blocks of the metadata device in use by the format.
    pub fn nr_metadata_blocks(&self) -> u64 {
        self.tm.map().nr_blocks()
    }

    /// Free metadata blocks, the reserve among them.
    pub fn nr_free_metadata(&self) -> u64 {
        self.tm.map().nr_free()
    }

    /// Metadata blocks that are never reported as free (thin.md 6).
    pub fn metadata_reserve(&self) -> u64 {
        (self.nr_metadata_blocks() / 10).min(4096)
    }

    /// Free metadata at which an event is due (thin.md 6).
    pub fn metadata_low_water(&self) -> u64 {
        (self.nr_metadata_blocks() / 4).min(1024)
    }

    /// Whether the metadata device is larger than what is in use of it, as far as the format goes.
    pub fn metadata_device_has_grown(&self) -> bool {
        self.device.nr_blocks().min(MAX_METADATA_BLOCKS) > self.nr_metadata_blocks()
    }

    /// Whether free metadata is so low that a transaction should end: that frees what it has shadowed,
    /// and with what is left any one operation and the commit after it still fit.
    pub fn is_metadata_tight(&self) -> bool {
        self.tm.map().nr_available() <= self.metadata_reserve() + OPERATION_BLOCKS
    }

    /// Bytes of cached metadata.
    pub fn cache_used_bytes(&self) -> u64 {
        self.tm.cache_stats().used_bytes
    }

    /// Enlarges the data device's map. A map never shrinks: ENOSPC where blocks in use would be lost,
    /// EINVAL where all of them would still be there; nothing changes then.
    pub async fn resize_data(&mut self, nr_blocks: u64) -> Result<(), ThinError> {
        let found = self.nr_data_blocks();
        if nr_blocks < found {
            let used = found.saturating_sub(self.data.map().nr_free());
            let mut lost = used > nr_blocks;
            for block in nr_blocks..found {
                lost = lost || self.data_count(block).await? > 0;
                if lost {
                    return Err(ThinError::NoDataSpace);
                }
            }
            return Err(ThinError::Shrunk {
                found,
                wanted: nr_blocks,
            });
        }
        if nr_blocks > found {
            self.enter()?;
            self.data.extend(&self.tm, nr_blocks).await?;
            self.sb_changed = true;
            self.usable = true;
        }
        Ok(())
    }

    /// Enlarges the metadata device's map to the device, if that has grown.
    pub async fn resize_metadata(&mut self) -> Result<(), ThinError> {
        let before = self.nr_metadata_blocks();
        if let Some(warning) = excess_warning(self.device.nr_blocks()) {
            log::warn!("{warning}");
        }
        self.enter()?;
        self.tm.extend().await?;
        self.sb_changed |= self.nr_metadata_blocks() != before;
        self.usable = true;
        Ok(())
    }

    /// Reserves a free data block. It is counted only when it is mapped
    /// ([`ThinMetadata::insert`]), so a commit and a crash in between leak nothing.
    pub async fn alloc_data_block(&mut self) -> Result<u64, ThinError> {
        match self.data.map().reserve(&self.tm).await {
            Err(persistent_data::Error::NoSpace) => Err(ThinError::NoDataSpace),
            result => Ok(result?),
        }
    }

    /// Reserves so many free data blocks, as [`ThinMetadata::alloc_data_block`] does; fewer, perhaps none,
    /// when that fails.
    pub async fn alloc_data_blocks(&mut self, wanted: usize) -> Vec<u64> {
        self.data.map().reserve_some(&self.tm, wanted).await
    }

    /// Gives back a reserved data block that got no mapping.
    pub fn free_data_block(&mut self, block: u64) {
        self.data.map().unhold(block);
    }

    /// Data blocks that are held: reserved and not mapped, or kept from being allocated.
    pub fn nr_held_data(&self) -> u64 {
        self.data.map().nr_held()
    }

    /// References to a data block.
    pub async fn data_count(&self, block: u64) -> Result<u32, ThinError> {
        Ok(self.data.map().count(&self.tm, block).await?)
    }

    /// Keeps a data block from being allocated.
    pub fn hold_data_block(&mut self, block: u64) {
        self.data.map().hold(block);
    }

    /// The opposite of [`ThinMetadata::hold_data_block`].
    pub fn unhold_data_block(&mut self, block: u64) {
        self.data.map().unhold(block);
    }
}

/// What to tell the user of a metadata device of this size, of which the format cannot use all.
fn excess_warning(nr_blocks: u64) -> Option<String> {
    let sectors = nr_blocks.saturating_mul(METADATA_BLOCK_SIZE_SECTORS.into());
    (sectors > MAX_METADATA_SECTORS_WARNING).then(|| {
        format!(
            "the metadata device is larger than {MAX_METADATA_SECTORS_WARNING} sectors: what is beyond sector {MAX_METADATA_SECTORS} will not be used"
        )
    })
}

fn check_writable(sb: &Superblock) -> Result<(), ThinError> {
    match sb.compat_ro_flags & !FEATURE_COMPAT_RO_SUPPORTED {
        0 => Ok(()),
        _ => Err(ThinError::Features {
            flags: sb.compat_ro_flags,
            what: "read-only compatible",
        }),
    }
}

async fn read_superblock(device: &dyn BlockDevice) -> Result<Option<Superblock>, ThinError> {
    let mut bytes = [0; BLOCK_BYTES];
    device
        .read(0, &mut bytes)
        .await
        .map_err(|source| persistent_data::Error::Device { block: 0, source })?;
    Superblock::read(&bytes, 0)
}
