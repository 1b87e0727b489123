//! The header of an image and the geometry that follows from it (ploop.md, Header).

use super::problem::Problem;

/// Bytes that are read and written of header and BAT at a time: a BAT page.
pub const PAGE_BYTES: usize = 4096;

/// 32-bit words of a page. Those of the header count as entries that are nobody's.
pub const PAGE_SLOTS: u64 = PAGE_BYTES as u64 / 4;

/// Words of the header.
pub const HEADER_SLOTS: u64 = HEADER_BYTES as u64 / 4;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;

const SECTOR_BYTES: u64 = crate::device::SECTOR_BYTES;
const SIGNATURE_V1: &[u8; 16] = b"WithoutFreeSpace";
const SIGNATURE_V2: &[u8; 16] = b"WithouFreSpacExt";
const TYPE: u32 = 2;
const HEADS: u32 = 16;

/// Largest cluster, in sectors: 128 MiB.
pub const MAX_CLUSTER_SECTORS: u32 = 1 << 18;

/// What the BAT's entries count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `WithoutFreeSpace`: sectors.
    V1,
    /// `WithouFreSpacExt`: clusters.
    V2,
}

/// Who has written the image last (offset 44).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InUse {
    /// Somebody has it open, or did not close it.
    Open,
    /// Closed; the format extension is as new as the data.
    Closed,
    /// Closed by software that does not know of format extensions, so that one may be out of date.
    ClosedByOld,
}

impl InUse {
    const OPEN: u32 = 0x746F_6E59;
    const CLOSED: u32 = 0x312E_3276;

    fn decode(raw: u32) -> Self {
        match raw {
            Self::OPEN => InUse::Open,
            Self::CLOSED => InUse::Closed,
            _ => InUse::ClosedByOld,
        }
    }

    fn encode(self) -> u32 {
        match self {
            InUse::Open => Self::OPEN,
            InUse::Closed => Self::CLOSED,
            InUse::ClosedByOld => 0,
        }
    }
}

/// A header that makes sense in itself and on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What entries count.
    pub version: Version,
    /// Kept as found; nothing depends on it.
    pub heads: u32,
    /// Kept as found; nothing depends on it.
    pub cylinders: u32,
    /// Cluster size.
    pub cluster_sectors: u32,
    /// BAT entries.
    pub nr_entries: u32,
    /// Size of the disk in the image.
    pub nr_sectors: u64,
    /// Who has it open.
    pub in_use: InUse,
    /// Where data begins, never 0; on disk a v1 header may have 0 for the end of the BAT.
    pub data_sectors: u32,
    /// Bit 0: the image was empty when it was closed.
    pub flags: u32,
    /// Where the format extension is, in sectors; 0: there is none.
    pub extension_sectors: u64,
}

fn word(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|part| part.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// First sector behind header and BAT.
pub fn bat_end_sectors(nr_entries: u32) -> u64 {
    (HEADER_BYTES as u64 + u64::from(nr_entries) * 4).div_ceil(SECTOR_BYTES)
}

impl Header {
    /// A header for an empty v2 image.
    ///
    /// # Errors
    /// The size needs more entries, or the BAT more room, than the format has.
    pub fn new(nr_sectors: u64, cluster_sectors: u32) -> Result<Self, Problem> {
        if cluster_sectors == 0 || cluster_sectors > MAX_CLUSTER_SECTORS {
            return Err(Problem::ClusterSize(cluster_sectors));
        }
        let too_large = || Problem::TooManyEntries {
            nr_sectors,
            cluster_sectors,
        };
        let cluster = u64::from(cluster_sectors);
        let nr_entries = u32::try_from(nr_sectors.div_ceil(cluster)).map_err(|_| too_large())?;
        let data = bat_end_sectors(nr_entries).next_multiple_of(cluster);
        Ok(Header {
            version: Version::V2,
            heads: HEADS,
            cylinders: u32::try_from(nr_sectors / u64::from(HEADS) / 32).unwrap_or(u32::MAX),
            cluster_sectors,
            nr_entries,
            nr_sectors,
            in_use: InUse::ClosedByOld,
            data_sectors: u32::try_from(data).map_err(|_| too_large())?,
            flags: 1,
            extension_sectors: 0,
        })
    }

    /// Reads a header of an image on a device of `device_sectors`.
    ///
    /// # Errors
    /// The bytes are no header, or one that cannot be used, and why.
    pub fn decode(bytes: &[u8; HEADER_BYTES], device_sectors: u64) -> Result<Self, Problem> {
        let version = match bytes.first_chunk::<16>() {
            Some(SIGNATURE_V1) => Version::V1,
            Some(SIGNATURE_V2) => Version::V2,
            _ => return Err(Problem::Signature),
        };
        if word(bytes, 16) != TYPE {
            return Err(Problem::Type(word(bytes, 16)));
        }
        let cluster_sectors = word(bytes, 28);
        if cluster_sectors == 0 || cluster_sectors > MAX_CLUSTER_SECTORS {
            return Err(Problem::ClusterSize(cluster_sectors));
        }
        let nr_entries = word(bytes, 32);
        let nr_sectors = match version {
            Version::V1 => u64::from(word(bytes, 36)),
            Version::V2 => long(bytes, 36),
        };
        let bat_end = bat_end_sectors(nr_entries);
        let data = match word(bytes, 48) {
            0 if version == Version::V1 => bat_end,
            found => u64::from(found),
        };
        let is_aligned = version == Version::V1 || data.is_multiple_of(u64::from(cluster_sectors));
        let Ok(data_sectors) = u32::try_from(data) else {
            return Err(Problem::DataOffset(data));
        };
        if data < bat_end || !is_aligned {
            return Err(Problem::DataOffset(data));
        }
        if bat_end > device_sectors {
            return Err(Problem::BatOutside {
                bat_end,
                device_sectors,
            });
        }
        if nr_sectors.div_ceil(u64::from(cluster_sectors)) > u64::from(nr_entries) {
            return Err(Problem::TooFewEntries {
                nr_entries,
                nr_sectors,
            });
        }
        Ok(Header {
            version,
            heads: word(bytes, 20),
            cylinders: word(bytes, 24),
            cluster_sectors,
            nr_entries,
            nr_sectors,
            in_use: InUse::decode(word(bytes, 44)),
            data_sectors,
            flags: word(bytes, 52),
            extension_sectors: long(bytes, 56),
        })
    }

    /// As on disk.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, part: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(part) {
                *to = *from;
            }
        };
        put(
            0,
            match self.version {
                Version::V1 => SIGNATURE_V1,
                Version::V2 => SIGNATURE_V2,
            },
        );
        put(16, &TYPE.to_le_bytes());
        put(20, &self.heads.to_le_bytes());
        put(24, &self.cylinders.to_le_bytes());
        put(28, &self.cluster_sectors.to_le_bytes());
        put(32, &self.nr_entries.to_le_bytes());
        put(36, &self.nr_sectors.to_le_bytes());
        put(44, &self.in_use.encode().to_le_bytes());
        // What a v1 header says by default it does not say.
        let is_default =
            self.version == Version::V1 && self.data() == bat_end_sectors(self.nr_entries);
        let data = if is_default { 0 } else { self.data_sectors };
        put(48, &data.to_le_bytes());
        put(52, &self.flags.to_le_bytes());
        put(56, &self.extension_sectors.to_le_bytes());
        bytes
    }

    /// Cluster size in sectors.
    pub fn cluster(&self) -> u64 {
        u64::from(self.cluster_sectors)
    }

    /// Where data begins.
    pub fn data(&self) -> u64 {
        u64::from(self.data_sectors)
    }

    /// Sector of a cluster that an entry of the BAT names; none for a hole.
    ///
    /// # Errors
    /// The entry does not name a cluster of the data area of a device of `device_sectors`.
    pub fn place(
        &self,
        cluster: u64,
        raw: u32,
        device_sectors: u64,
    ) -> Result<Option<u64>, Problem> {
        if raw == 0 {
            return Ok(None);
        }
        let sector = match self.version {
            Version::V1 => u64::from(raw),
            Version::V2 => u64::from(raw) * self.cluster(),
        };
        let is_inside =
            sector >= self.data() && sector.saturating_add(self.cluster()) <= device_sectors;
        let is_aligned = is_inside && (sector - self.data()).is_multiple_of(self.cluster());
        match is_aligned {
            true => Ok(Some(sector)),
            false => Err(Problem::Entry {
                cluster,
                entry: raw,
                sector,
                why: match is_inside {
                    false => "is outside the data area",
                    true => "is not where a cluster begins",
                },
            }),
        }
    }

    /// The entry for a cluster at this sector. None: the format cannot name it.
    pub fn entry(&self, sector: u64) -> Option<u32> {
        let raw = match self.version {
            Version::V1 => sector,
            Version::V2 => sector / self.cluster(),
        };
        u32::try_from(raw).ok()
    }

    /// Pages of header and BAT.
    pub fn nr_pages(&self) -> u64 {
        (HEADER_SLOTS + u64::from(self.nr_entries)).div_ceil(PAGE_SLOTS)
    }

    /// Where a page begins and how long it is, in sectors; the last one may be shorter than the others,
    /// so that data behind the BAT is not touched. Logical blocks have `block_sectors`.
    pub fn page_extent(&self, page: u64, block_sectors: u64) -> (u64, u64) {
        let per_page = PAGE_BYTES as u64 / SECTOR_BYTES;
        let first = page * per_page;
        let end = bat_end_sectors(self.nr_entries).next_multiple_of(block_sectors.max(1));
        (first, end.saturating_sub(first).min(per_page))
    }
}

/// The slot of a cluster's entry among the words of header and BAT.
#[inline]
pub fn slot(cluster: u64) -> u64 {
    cluster + HEADER_SLOTS
}
