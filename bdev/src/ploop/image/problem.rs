//! What can be wrong with an image.

/// Something wrong with an image. Offsets are in sectors of 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not an image.
    #[error("this is no ploop image: it begins with no known signature")]
    Signature,
    /// Of another kind.
    #[error("image type {0} is not known, only 2")]
    Type(u32),
    /// Of no use.
    #[error("a cluster size of {0} sectors is not possible: 1 to 262144 are")]
    ClusterSize(u32),
    /// Sizes and offsets must be whole logical blocks.
    #[error(
        "clusters of {cluster_sectors} sectors from sector {data_sectors} on do not fit a device with logical blocks of {block_bytes} bytes; use one with smaller blocks"
    )]
    BlockSize {
        /// The image's.
        cluster_sectors: u32,
        /// Where data begins.
        data_sectors: u32,
        /// The device's.
        block_bytes: u32,
    },
    /// The data area overlaps the BAT, or begins nowhere.
    #[error("data cannot begin at sector {0}")]
    DataOffset(u64),
    /// The device is too short for the BAT.
    #[error(
        "the BAT ends at sector {bat_end}, the device has {device_sectors}; is it the whole file?"
    )]
    BatOutside {
        /// First sector behind the BAT.
        bat_end: u64,
        /// Size of the device.
        device_sectors: u64,
    },
    /// The disk is larger than what the BAT maps.
    #[error("{nr_entries} BAT entries are too few for {nr_sectors} sectors")]
    TooFewEntries {
        /// Entries.
        nr_entries: u32,
        /// Size of the disk.
        nr_sectors: u64,
    },
    /// More than the format can name.
    #[error(
        "{nr_sectors} sectors are too many for clusters of {cluster_sectors}; use larger clusters"
    )]
    TooManyEntries {
        /// Size of the disk.
        nr_sectors: u64,
        /// Cluster size.
        cluster_sectors: u32,
    },
    /// An entry that names no cluster.
    #[error("the BAT entry {entry:#x} of cluster {cluster} names sector {sector}, which {why}")]
    Entry {
        /// Guest cluster.
        cluster: u64,
        /// As on disk.
        entry: u32,
        /// What it would be.
        sector: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two entries name the same cluster.
    #[error("the BAT entry of cluster {cluster} names sector {sector}, which is in use already")]
    Duplicate {
        /// Guest cluster.
        cluster: u64,
        /// Where.
        sector: u64,
    },
    /// The format extension.
    #[error("format extension at sector {sector}: {what}")]
    Extension {
        /// Where it is.
        sector: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A feature that must be understood to use the image.
    #[error(
        "format extension at sector {sector}: feature {magic:#018x} is necessary and not known here"
    )]
    UnknownFeature {
        /// Where the extension is.
        sector: u64,
        /// Which.
        magic: u64,
    },
    /// The device could not be read.
    #[error("reading sector {sector}: {errno}")]
    Unreadable {
        /// Where.
        sector: u64,
        /// How it failed.
        errno: crate::errno::Errno,
    },
    /// Memory for a map of the file's clusters.
    #[error("no memory for a map of {0} clusters; use larger clusters")]
    NoMemory(u64),
}
