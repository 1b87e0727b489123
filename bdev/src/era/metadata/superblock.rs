//! The superblock of era metadata (era.md 1).

use super::error::EraError;
use persistent_data::block::{Kind, get_u32, get_u64, no_rules, put_u32, put_u64};
use persistent_data::device::{BLOCK_BYTES, BlockBytes};
use persistent_data::space_map::SpaceMapRoot;

const MAGIC: u64 = 2_126_579_579;
/// The only version there is.
const VERSION: u32 = 1;
const METADATA_BLOCK_SECTORS: u32 = (BLOCK_BYTES / 512) as u32;

/// An era superblock.
pub static SUPERBLOCK: Kind = Kind {
    name: "era superblock",
    xor: 146_538_381,
    blocknr_offset: 8,
    validate: no_rules,
};

/// What a superblock says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Superblock {
    /// Counts of the metadata device.
    pub metadata_map: SpaceMapRoot,
    /// Sectors per data block.
    pub data_block_size_sectors: u32,
    /// Data blocks covered by the era array.
    pub nr_blocks: u32,
    /// The era now; 0: never activated.
    pub current_era: u32,
    /// Bits of the current writeset.
    pub writeset_bits: u32,
    /// Root of the current writeset; 0: there is none.
    pub writeset_root: u64,
    /// Root of the tree of archived writesets.
    pub writeset_tree_root: u64,
    /// Root of the era array.
    pub era_array_root: u64,
    /// Block of the metadata snapshot, 0 = none.
    pub metadata_snap: u64,
}

impl Superblock {
    /// Reads and checks block 0 (`block` is its location, other for a metadata snapshot). None: all
    /// zeroes, so not formatted. Errors in the order of era.md 1.
    pub fn read(bytes: &BlockBytes, block: u64) -> Result<Option<Self>, EraError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if get_u64(bytes, 8) != block {
            return Err(match get_u64(bytes, 32) == MAGIC {
                true => EraError::WrongLocation(get_u64(bytes, 8)),
                false => EraError::Foreign,
            });
        }
        if get_u64(bytes, 32) != MAGIC {
            return Err(EraError::NotEra);
        }
        if SUPERBLOCK.verify(bytes, block).is_err() {
            return Err(EraError::BadSuperblock("bad checksum"));
        }
        match get_u32(bytes, 40) {
            VERSION => Ok(Some(Superblock::fields(bytes))),
            version => Err(EraError::Version(version)),
        }
    }

    fn fields(bytes: &BlockBytes) -> Self {
        Superblock {
            metadata_map: SpaceMapRoot::get(&bytes[44..]),
            data_block_size_sectors: get_u32(bytes, 172),
            nr_blocks: get_u32(bytes, 180),
            current_era: get_u32(bytes, 184),
            writeset_bits: get_u32(bytes, 188),
            writeset_root: get_u64(bytes, 192),
            writeset_tree_root: get_u64(bytes, 200),
            era_array_root: get_u64(bytes, 208),
            metadata_snap: get_u64(bytes, 216),
        }
    }

    /// The bytes, to be sealed when they are written.
    pub fn to_bytes(self) -> BlockBytes {
        let mut bytes = [0; BLOCK_BYTES];
        put_u64(&mut bytes, 32, MAGIC);
        put_u32(&mut bytes, 40, VERSION);
        self.metadata_map.put(&mut bytes[44..]);
        put_u32(&mut bytes, 172, self.data_block_size_sectors);
        put_u32(&mut bytes, 176, METADATA_BLOCK_SECTORS);
        put_u32(&mut bytes, 180, self.nr_blocks);
        put_u32(&mut bytes, 184, self.current_era);
        put_u32(&mut bytes, 188, self.writeset_bits);
        put_u64(&mut bytes, 192, self.writeset_root);
        put_u64(&mut bytes, 200, self.writeset_tree_root);
        put_u64(&mut bytes, 208, self.era_array_root);
        put_u64(&mut bytes, 216, self.metadata_snap);
        bytes
    }
}
