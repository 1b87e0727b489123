//! The format extension: which clusters it takes, so that nothing else is put there (ploop.md, Extension).
//!
//! Its content is never changed. Software that understands bitmaps sees by the in-use mark that they may
//! be out of date.

use super::header::Header;
use super::problem::Problem;
use md5::{Digest, Md5};

const MAGIC: u64 = 0xAB23_4CEF_23DC_EA87;
const BITMAP: u64 = 0x2038_5FAE_252C_B34A;
const NECESSARY: u64 = 1;

/// Offset of what the digest is of: behind magic and digest.
const BODY: usize = 24;
const FEATURE_BYTES: usize = 24;
const BITMAP_BYTES: usize = 32;

/// A dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Size of what it is of.
    pub nr_sectors: u64,
    /// Its name.
    pub id: [u8; 16],
    /// What a bit is for.
    pub granularity_sectors: u32,
    /// First sectors of the clusters with its bits.
    pub places: Vec<u64>,
}

/// What is known of an extension.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extension {
    /// Its dirty bitmaps.
    pub bitmaps: Vec<Bitmap>,
    /// Features that are not known here, and need not be.
    pub unknown: Vec<u64>,
}

impl Extension {
    /// All clusters it takes, by first sector, with that of the extension itself.
    pub fn places(&self, header: &Header) -> impl Iterator<Item = u64> {
        let of_bitmaps = self.bitmaps.iter().flat_map(|b| b.places.iter().copied());
        std::iter::once(header.extension_sectors).chain(of_bitmaps)
    }

    /// Reads the cluster of an extension, on a device of `device_sectors`.
    ///
    /// # Errors
    /// It is damaged, or has a feature without which the image cannot be used.
    pub fn decode(cluster: &[u8], header: &Header, device_sectors: u64) -> Result<Self, Problem> {
        let sector = header.extension_sectors;
        let wrong = |what| Problem::Extension { sector, what };
        if long(cluster, 0) != Some(MAGIC) {
            return Err(wrong("has not the magic of one"));
        }
        let body = cluster.get(BODY..).ok_or_else(|| wrong("is too short"))?;
        if cluster.get(8..BODY) != Some(&Md5::digest(body)[..]) {
            return Err(wrong("does not match its checksum"));
        }
        let mut found = Extension::default();
        let mut at = BODY;
        // Each feature takes room of the cluster, so this ends.
        loop {
            let (Some(magic), Some(flags), Some(size)) = (
                long(cluster, at),
                long(cluster, at + 8),
                word(cluster, at + 16),
            ) else {
                return Err(wrong("ends without an end"));
            };
            if magic == 0 {
                return Ok(found);
            }
            let data_at = at + FEATURE_BYTES;
            let data = cluster
                .get(data_at..)
                .and_then(|rest| rest.get(..size as usize))
                .ok_or_else(|| wrong("has a feature that is longer than the cluster"))?;
            if magic == BITMAP {
                found.bitmaps.push(bitmap(data, header, device_sectors)?);
            } else if flags & NECESSARY != 0 {
                return Err(Problem::UnknownFeature { sector, magic });
            } else {
                found.unknown.push(magic);
            }
            at = data_at + (size as usize).next_multiple_of(8);
        }
    }
}

fn bitmap(data: &[u8], header: &Header, device_sectors: u64) -> Result<Bitmap, Problem> {
    let wrong = |what| Problem::Extension {
        sector: header.extension_sectors,
        what,
    };
    let short = || wrong("has a bitmap that is too short");
    let nr_sectors = long(data, 0).ok_or_else(short)?;
    let id = data.get(8..24).and_then(|id| id.try_into().ok());
    let id = id.ok_or_else(short)?;
    let granularity_sectors = word(data, 24).ok_or_else(short)?;
    let nr_l1 = word(data, 28).ok_or_else(short)? as usize;
    let l1 = data
        .get(BITMAP_BYTES..)
        .and_then(|rest| rest.get(..nr_l1.checked_mul(8)?));
    let mut places = Vec::new();
    for entry in l1.ok_or_else(short)?.as_chunks::<8>().0 {
        let place = u64::from_le_bytes(*entry);
        // All clear, all set.
        if place <= 1 {
            continue;
        }
        let ends = place.saturating_add(header.cluster());
        if place < header.data()
            || ends > device_sectors
            || !(place - header.data()).is_multiple_of(header.cluster())
        {
            return Err(wrong("has a bitmap that names no cluster of the data area"));
        }
        places.push(place);
    }
    Ok(Bitmap {
        nr_sectors,
        id,
        granularity_sectors,
        places,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*part))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let part = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*part))
}
