//! Block types and their checksums (persistent-data.md 1).

use crate::device::BlockBytes;
use crate::error::{Error, Result};

/// A type of checksummed block.
#[derive(Debug)]
pub struct Kind {
    /// For messages.
    pub name: &'static str,
    /// XORed into the checksum, so that types cannot be mistaken for each other.
    pub xor: u32,
    /// Where the block's own number is stored.
    pub blocknr_offset: usize,
    /// What else must hold for a block of this type.
    pub validate: fn(&BlockBytes) -> std::result::Result<(), &'static str>,
}

/// Accepts anything.
pub fn no_rules(_: &BlockBytes) -> std::result::Result<(), &'static str> {
    Ok(())
}

/// Reads a little-endian u32. Offsets are constants of the format, inside the block.
pub fn get_u32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// Reads a little-endian u64.
pub fn get_u64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Writes a little-endian u32.
pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Writes a little-endian u64.
pub fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

impl Kind {
    fn checksum(&self, bytes: &BlockBytes) -> u32 {
        // The library inverts at the end, the format does not.
        !crc32c::crc32c(&bytes[4..]) ^ self.xor
    }

    /// Fills in location and checksum, just before the block goes to disk.
    pub fn seal(&self, bytes: &mut BlockBytes, block: u64) {
        put_u64(bytes, self.blocknr_offset, block);
        let sum = self.checksum(bytes);
        put_u32(bytes, 0, sum);
    }

    /// Checks a block that came from disk.
    pub fn verify(&self, bytes: &BlockBytes, block: u64) -> Result<()> {
        let found = get_u64(bytes, self.blocknr_offset);
        if found != block {
            return Err(Error::WrongLocation { block, found });
        }
        if get_u32(bytes, 0) != self.checksum(bytes) {
            return Err(Error::Checksum {
                block,
                kind: self.name,
            });
        }
        (self.validate)(bytes).map_err(|what| Error::Corrupt { block, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the format: raw register, no final inversion.
    #[test]
    fn checksum_vectors() {
        assert_eq!(!crc32c::crc32c(b"123456789"), 0x1CF9_6D7C);
        let plain = Kind {
            name: "test",
            xor: 0,
            blocknr_offset: 8,
            validate: no_rules,
        };
        assert_eq!(plain.checksum(&[0; 4096]), 0x58CD_A791);
    }

    /// Every single-byte change of a sealed block is noticed.
    #[test]
    fn any_changed_byte_is_noticed() {
        let mut bytes = [7; 4096];
        crate::node::NODE.seal(&mut bytes, 3);
        for at in 0..4096 {
            let mut changed = bytes;
            changed[at] ^= 0x40;
            assert!(crate::node::NODE.verify(&changed, 3).is_err(), "byte {at}");
        }
    }
}
