//! Where things are in a persistent exception store, and their bytes (snapshot.md 1).
//!
//! Pure arithmetic: nothing here reads or writes.

use crate::device::SECTOR_BYTES;

/// "SnAp", little-endian.
pub const MAGIC: u32 = 0x7041_6E53;
/// The one version there is.
pub const VERSION: u32 = 1;
/// Bytes of an entry of an area.
pub const ENTRY_BYTES: u64 = 16;
/// Chunk size where neither the table nor a header tells (snapshot.md 1, Loading).
pub const DEFAULT_CHUNK_SECTORS: u64 = 32;
/// Largest chunk size in sectors: the largest power of two below 2^22 (snapshot.md 3).
pub const MAX_CHUNK_SECTORS: u64 = 1 << 21;
/// Areas are read and written in pieces of at most so many bytes.
const MAX_UNIT_BYTES: u64 = 4096;

/// A chunk of the origin that is elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Exception {
    /// Chunk of the origin.
    pub old_chunk: u64,
    /// Chunk of the COW device.
    pub new_chunk: u64,
}

impl Exception {
    /// As stored.
    pub fn encode(self) -> [u8; ENTRY_BYTES as usize] {
        let mut bytes = [0; ENTRY_BYTES as usize];
        let (old, new) = bytes.split_at_mut(8);
        old.copy_from_slice(&self.old_chunk.to_le_bytes());
        new.copy_from_slice(&self.new_chunk.to_le_bytes());
        bytes
    }

    /// From storage. None: the end marker, whatever its old chunk.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let old_chunk = u64::from_le_bytes(*bytes.first_chunk()?);
        let new_chunk = u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
        (new_chunk != 0).then_some(Exception {
            old_chunk,
            new_chunk,
        })
    }
}

/// The header, chunk 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Zero for a COW device that is to become a store.
    pub magic: u32,
    /// 0: invalidated for ever.
    pub valid: u32,
    /// See [`VERSION`].
    pub version: u32,
    /// Chunk size.
    pub chunk_sectors: u32,
}

impl Header {
    /// The header of a store of such chunks.
    pub fn new(chunk_sectors: u64, valid: bool) -> Self {
        Header {
            magic: MAGIC,
            valid: u32::from(valid),
            version: VERSION,
            chunk_sectors: chunk_sectors as u32,
        }
    }

    /// As stored; the rest of the chunk is zero.
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let fields = [self.magic, self.valid, self.version, self.chunk_sectors];
        for (to, from) in bytes.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }

    /// From the first bytes of the device.
    pub fn decode(bytes: &[u8]) -> Self {
        let field = |at: usize| {
            let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
            found.map_or(0, |four| u32::from_le_bytes(*four))
        };
        Header {
            magic: field(0),
            valid: field(4),
            version: field(8),
            chunk_sectors: field(12),
        }
    }
}

/// Whether a chunk size is possible: a power of two up to [`MAX_CHUNK_SECTORS`] and a multiple of the
/// devices' logical blocks (snapshot.md 3).
pub fn is_chunk_size(chunk_sectors: u64, block_bytes: u32) -> bool {
    chunk_sectors.is_power_of_two()
        && chunk_sectors <= MAX_CHUNK_SECTORS
        && (chunk_sectors * SECTOR_BYTES).is_multiple_of(u64::from(block_bytes.max(1)))
}

/// A place in the sequence of entries: entry `index` of area `area`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Number of the area.
    pub area: u64,
    /// Entry within it; equal to the number of entries only for "after the last of a full area".
    pub index: u64,
}

/// The arithmetic of a chunk size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    chunk_sectors: u64,
}

impl Layout {
    /// For chunks of so many sectors, which [`is_chunk_size`] allows.
    pub fn new(chunk_sectors: u64) -> Self {
        Layout {
            chunk_sectors: chunk_sectors.clamp(1, MAX_CHUNK_SECTORS),
        }
    }

    /// Sectors of a chunk.
    pub fn chunk_sectors(&self) -> u64 {
        self.chunk_sectors
    }

    /// Entries of an area.
    pub fn entries_per_area(&self) -> u64 {
        self.chunk_sectors * SECTOR_BYTES / ENTRY_BYTES
    }

    /// Chunks from one area to the next.
    pub fn stride(&self) -> u64 {
        self.entries_per_area() + 1
    }

    /// The chunk of an area; saturates, and is then on no device.
    pub fn area_chunk(&self, area: u64) -> u64 {
        area.saturating_mul(self.stride()).saturating_add(1)
    }

    /// Whether a chunk is an area.
    pub fn is_area(&self, chunk: u64) -> bool {
        chunk % self.stride() == 1
    }

    /// Whether a chunk may hold data.
    pub fn is_data(&self, chunk: u64) -> bool {
        chunk != 0 && !self.is_area(chunk)
    }

    /// The first chunk from `chunk` on that may hold data.
    pub fn data_chunk_from(&self, chunk: u64) -> u64 {
        let chunk = chunk.max(2);
        chunk + u64::from(self.is_area(chunk))
    }

    /// First sector of a chunk; saturates.
    pub fn sector(&self, chunk: u64) -> u64 {
        chunk.saturating_mul(self.chunk_sectors)
    }

    /// Whole chunks on a device.
    pub fn chunks_on(&self, nr_sectors: u64) -> u64 {
        nr_sectors / self.chunk_sectors
    }

    /// Bytes in which areas are read and written: a divisor of the chunk.
    pub fn unit_bytes(&self) -> u64 {
        (self.chunk_sectors * SECTOR_BYTES).min(MAX_UNIT_BYTES)
    }

    /// Entries of a unit.
    pub fn entries_per_unit(&self) -> u64 {
        self.unit_bytes() / ENTRY_BYTES
    }

    /// Units of an area.
    pub fn units_per_area(&self) -> u64 {
        self.entries_per_area() / self.entries_per_unit()
    }

    /// First sector of a unit of an area; saturates.
    pub fn unit_sector(&self, area: u64, unit: u64) -> u64 {
        self.sector(self.area_chunk(area))
            .saturating_add(unit * (self.unit_bytes() / SECTOR_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The figures of snapshot.md 1.
    #[test]
    fn areas() {
        for (sectors, entries, chunks) in [
            (8, 256, [1, 258, 515]),
            (16, 512, [1, 514, 1027]),
            (32, 1024, [1, 1026, 2051]),
        ] {
            let layout = Layout::new(sectors);
            assert_eq!(layout.entries_per_area(), entries);
            assert_eq!([0, 1, 2].map(|area| layout.area_chunk(area)), chunks);
            assert!(chunks.iter().all(|chunk| layout.is_area(*chunk)));
        }
    }

    proptest! {
        /// Every chunk is the header, an area or data; each area is followed by its data chunks.
        #[test]
        fn every_chunk_is_one_thing(shift in 0..22u32, chunk in 0..u64::MAX / 2) {
            let layout = Layout::new(1 << shift);
            let area = (chunk.max(1) - 1) / layout.stride();
            prop_assert_eq!(layout.is_area(chunk), chunk == layout.area_chunk(area));
            prop_assert_eq!(layout.is_data(chunk), chunk != 0 && !layout.is_area(chunk));
            let next = layout.data_chunk_from(chunk);
            prop_assert!(next >= chunk && next <= chunk.max(2) + 1 && layout.is_data(next));
            prop_assert_eq!(layout.units_per_area() * layout.entries_per_unit(), layout.entries_per_area());
        }

        /// What is encoded is decoded.
        #[test]
        fn entries(old_chunk: u64, new_chunk in 1..u64::MAX) {
            let exception = Exception { old_chunk, new_chunk };
            prop_assert_eq!(Exception::decode(&exception.encode()), Some(exception));
            prop_assert_eq!(Exception::decode(&Exception { old_chunk, new_chunk: 0 }.encode()), None);
        }
    }
}
