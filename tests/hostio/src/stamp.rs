//! What a sector holds after a write: who wrote it, where, and when, to the last byte.

/// Bytes of a sector, the unit of all stamps whatever the bdev's block size.
pub const SECTOR_BYTES: usize = 512;

const MAGIC: u64 = 0x7364_6d73_7472_6573;

/// What was found in a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing but zeroes.
    Zeroes,
    /// The whole stamp of the write with this sequence number.
    Write(u64),
}

/// A word that depends on all that came before (splitmix64's finisher).
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Writes the stamp of write `sequence` to sector `sector` of the bdev.
pub fn put(data: &mut [u8], sector: u64, sequence: u64) {
    let mut noise = mix(sector) ^ sequence;
    let mut words = data.chunks_exact_mut(8);
    for (word, bytes) in [MAGIC, sector, sequence].into_iter().zip(words.by_ref()) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    for bytes in words {
        noise = mix(noise.wrapping_add(0x9e37_79b9_7f4a_7c15));
        bytes.copy_from_slice(&noise.to_le_bytes());
    }
}

/// Tells what sector `sector` of the bdev holds; the error says what is wrong with it.
pub fn look(data: &[u8], sector: u64) -> Result<Found, String> {
    if data.iter().all(|byte| *byte == 0) {
        return Ok(Found::Zeroes);
    }
    let word = |at: usize| {
        let bytes = data.get(at * 8..at * 8 + 8);
        bytes
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    if word(0) != MAGIC || word(1) != sector {
        return Err(format!(
            "foreign data {:x} {:x} {:x}",
            word(0),
            word(1),
            word(2)
        ));
    }
    let sequence = word(2);
    let mut expected = [0; SECTOR_BYTES];
    put(&mut expected, sector, sequence);
    match expected.iter().zip(data).position(|(a, b)| a != b) {
        None => Ok(Found::Write(sequence)),
        Some(at) => Err(format!("write {sequence} is torn at byte {at}")),
    }
}
