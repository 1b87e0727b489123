//! The superblock of a pool (thin.md 1).

use super::error::ThinError;
use persistent_data::block::{Kind, get_u32, get_u64, no_rules, put_u32, put_u64};
use persistent_data::device::{BLOCK_BYTES, BlockBytes};
use persistent_data::space_map::SpaceMapRoot;

const MAGIC: u64 = 27_022_010;
/// What new metadata gets.
pub const VERSION: u32 = 2;
const NEEDS_CHECK: u32 = 1;

/// A pool's superblock.
pub static SUPERBLOCK: Kind = Kind {
    name: "thin superblock",
    xor: 160_774,
    blocknr_offset: 8,
    validate: no_rules,
};

/// What a superblock says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Superblock {
    /// A check is needed before anything may change.
    pub needs_check: bool,
    /// Snapshot counter.
    pub time: u32,
    /// Userspace transaction id.
    pub transaction_id: u64,
    /// Block of the metadata snapshot, 0 = none.
    pub held_root: u64,
    /// Counts of the data device.
    pub data_map: SpaceMapRoot,
    /// Counts of the metadata device.
    pub metadata_map: SpaceMapRoot,
    /// Root of the mapping tree.
    pub mapping_root: u64,
    /// Root of the details tree.
    pub details_root: u64,
    /// Sectors per data block.
    pub data_block_size_sectors: u32,
    /// Size of the metadata device when it was formatted.
    pub metadata_nr_blocks: u64,
    /// Never used; kept as it is.
    pub uuid: [u8; 16],
    /// Checked by nobody; kept as it is.
    pub version: u32,
    /// Features that need not be known; kept as they are.
    pub compat_flags: u32,
    /// Features an implementation that does not know them may read, not write.
    pub compat_ro_flags: u32,
    /// Features an implementation must know.
    pub incompat_flags: u32,
}

impl Superblock {
    /// Reads and checks block 0 (`block` is its location, other for a metadata snapshot). None: all
    /// zeroes, so not formatted.
    pub fn read(bytes: &BlockBytes, block: u64) -> Result<Option<Self>, ThinError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if get_u64(bytes, 8) != block {
            return Err(match get_u64(bytes, 32) == MAGIC {
                true => ThinError::WrongLocation(get_u64(bytes, 8)),
                false => ThinError::Foreign,
            });
        }
        if get_u64(bytes, 32) != MAGIC {
            return Err(ThinError::NotAPool);
        }
        if SUPERBLOCK.verify(bytes, block).is_err() {
            return Err(ThinError::BadSuperblock("bad checksum"));
        }
        Ok(Some(Superblock::fields(bytes)))
    }

    /// What the bytes say, whether or not they are a superblock.
    pub(super) fn fields(bytes: &BlockBytes) -> Self {
        Superblock {
            needs_check: get_u32(bytes, 4) & NEEDS_CHECK != 0,
            time: get_u32(bytes, 44),
            transaction_id: get_u64(bytes, 48),
            held_root: get_u64(bytes, 56),
            data_map: SpaceMapRoot::get(&bytes[64..]),
            metadata_map: SpaceMapRoot::get(&bytes[192..]),
            mapping_root: get_u64(bytes, 320),
            details_root: get_u64(bytes, 328),
            data_block_size_sectors: get_u32(bytes, 336),
            metadata_nr_blocks: get_u64(bytes, 344),
            uuid: bytes
                .get(16..32)
                .and_then(|uuid| uuid.try_into().ok())
                .unwrap_or_default(),
            version: get_u32(bytes, 40),
            compat_flags: get_u32(bytes, 352),
            compat_ro_flags: get_u32(bytes, 356),
            incompat_flags: get_u32(bytes, 360),
        }
    }

    /// The bytes, to be sealed when they are written.
    pub fn to_bytes(self) -> BlockBytes {
        let mut bytes = [0; BLOCK_BYTES];
        put_u32(&mut bytes, 4, u32::from(self.needs_check) * NEEDS_CHECK);
        put_u64(&mut bytes, 32, MAGIC);
        bytes[16..32].copy_from_slice(&self.uuid);
        put_u32(&mut bytes, 40, self.version);
        put_u32(&mut bytes, 44, self.time);
        put_u64(&mut bytes, 48, self.transaction_id);
        put_u64(&mut bytes, 56, self.held_root);
        self.data_map.put(&mut bytes[64..]);
        self.metadata_map.put(&mut bytes[192..]);
        put_u64(&mut bytes, 320, self.mapping_root);
        put_u64(&mut bytes, 328, self.details_root);
        put_u32(&mut bytes, 336, self.data_block_size_sectors);
        put_u32(&mut bytes, 340, (BLOCK_BYTES / 512) as u32);
        put_u64(&mut bytes, 344, self.metadata_nr_blocks);
        put_u32(&mut bytes, 352, self.compat_flags);
        put_u32(&mut bytes, 356, self.compat_ro_flags);
        put_u32(&mut bytes, 360, self.incompat_flags);
        bytes
    }
}
