//! What a check finds, and how bad it is.

use persistent_data::Error;
use std::fmt;

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Odd, but harmless: no kernel and no tool minds.
    Warning,
    /// Space that cannot be used; nothing is in danger.
    Leak,
    /// The pool must not be written, and may have lost data.
    Damage,
}

/// One of a pool's two devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Metadata blocks.
    Metadata,
    /// Data blocks.
    Data,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Area::Metadata => "metadata",
            Area::Data => "data",
        })
    }
}

/// What a tree with damage is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Details of all devices.
    Details,
    /// Roots of all devices' mappings.
    Devices,
    /// Mappings of a device.
    Mappings(u64),
    /// Index of the data space map.
    DataIndex,
    /// Counts from 3 up.
    Counts(Area),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Details => f.write_str("the details of devices"),
            Owner::Devices => f.write_str("the mappings of devices"),
            Owner::Mappings(id) => write!(f, "device {id}: mappings of blocks"),
            Owner::DataIndex => f.write_str("the data space map: bitmaps"),
            Owner::Counts(area) => write!(f, "the {area} space map: counts of blocks"),
        }
    }
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Block 0, or the copy that is the metadata snapshot.
    Superblock {
        /// Which metadata block.
        block: u64,
        /// What is wrong.
        what: String,
    },
    /// A metadata block that cannot be used.
    Unusable {
        /// Why; it names the block.
        error: Error,
        /// What of.
        owner: Owner,
        /// First key it may have had.
        begin: u64,
        /// First key after it.
        end: Option<u64>,
    },
    /// A node breaks a rule without being unusable.
    Rule {
        /// Which metadata block.
        block: u64,
        /// Which rule.
        what: &'static str,
        /// Whether Linux has written such nodes.
        harmless: bool,
    },
    /// A space map's own blocks.
    SpaceMap {
        /// Whose.
        area: Area,
        /// Why; it names the block.
        error: Error,
    },
    /// Reference counts are not the number of references.
    Count {
        /// Of which device's blocks.
        area: Area,
        /// First block.
        begin: u64,
        /// How many blocks.
        length: u64,
        /// References each has.
        found: u32,
        /// References it should have according to the space map.
        said: u32,
    },
    /// The total of a space map is wrong.
    Allocated {
        /// Whose.
        area: Area,
        /// Blocks with a count.
        found: u64,
        /// What the root says.
        said: u64,
    },
    /// Referred to, but outside the device.
    Outside {
        /// Which device.
        area: Area,
        /// First block of a run.
        begin: u64,
        /// How many.
        length: u64,
    },
    /// A device is in one of the trees only.
    Devices {
        /// Which device.
        id: u64,
        /// Whether it is its details that are there.
        has_details: bool,
    },
    /// A device's number of mappings is not what its details say.
    Mapped {
        /// Which device.
        id: u64,
        /// Root of its mappings.
        root: u64,
        /// Mappings there are.
        found: u64,
        /// Mappings there should be.
        said: u64,
    },
}

impl Problem {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Problem::Rule { harmless: true, .. } | Problem::Allocated { .. } => Severity::Warning,
            Problem::Count { found, said, .. } if found < said => Severity::Leak,
            _ => Severity::Damage,
        }
    }

    /// The block it concerns, of the device that [`Problem::area`] says.
    pub fn block(&self) -> u64 {
        match self {
            Problem::Superblock { block, .. }
            | Problem::Rule { block, .. }
            | Problem::Mapped { root: block, .. } => *block,
            Problem::Unusable { error, .. } | Problem::SpaceMap { error, .. } => {
                error.block().unwrap_or_default()
            }
            Problem::Count { begin, .. } | Problem::Outside { begin, .. } => *begin,
            Problem::Allocated { .. } | Problem::Devices { .. } => 0,
        }
    }

    /// Of which device [`Problem::block`] is.
    pub fn area(&self) -> Area {
        match self {
            Problem::Count { area, .. } | Problem::Outside { area, .. } => *area,
            _ => Area::Metadata,
        }
    }
}

/// "block 5" or "blocks 5 to 9".
fn blocks(begin: u64, length: u64) -> String {
    match length {
        0 | 1 => format!("block {begin}"),
        _ => format!("blocks {begin} to {}", begin.saturating_add(length - 1)),
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Superblock { block, what } => write!(f, "metadata block {block}: {what}"),
            Problem::Unusable {
                error,
                owner,
                begin,
                end,
            } => {
                match error {
                    Error::OutOfRange { block, nr_blocks } => write!(
                        f,
                        "metadata block {block} is referred to, but the device has {nr_blocks}"
                    )?,
                    error => write!(f, "{error}")?,
                }
                match end {
                    Some(end) => write!(f, " ({owner} {begin} to {})", end.saturating_sub(1)),
                    None => write!(f, " ({owner} from {begin} on)"),
                }
            }
            Problem::Rule { block, what, .. } => write!(f, "metadata block {block}: {what}"),
            Problem::SpaceMap { area, error } => write!(f, "{error} (the {area} space map)"),
            Problem::Count {
                area,
                begin,
                length,
                found,
                said,
            } => write!(
                f,
                "{area} {}: {found} references, the space map says {said}",
                blocks(*begin, *length)
            ),
            Problem::Allocated { area, found, said } => write!(
                f,
                "the {area} space map has {found} blocks allocated, its root says {said}"
            ),
            Problem::Outside {
                area,
                begin,
                length,
            } => write!(
                f,
                "{area} {} used, but outside the device",
                blocks(*begin, *length)
            ),
            Problem::Devices {
                id,
                has_details: true,
            } => write!(f, "device {id} has details but no mappings"),
            Problem::Devices {
                id,
                has_details: false,
            } => write!(f, "device {id} has mappings but no details"),
            Problem::Mapped {
                id,
                root,
                found,
                said,
            } => write!(
                f,
                "device {id} has {found} mappings, its details say {said} (metadata block {root})"
            ),
        }
    }
}

/// What has been found so far. Keeps so many, counts all.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub kept: Vec<Problem>,
    pub counts: [u64; 3],
    pub keep: usize,
}

impl Problems {
    pub fn new(keep: usize) -> Self {
        Problems {
            keep,
            ..Problems::default()
        }
    }

    pub fn push(&mut self, problem: Problem) {
        match problem.severity() {
            Severity::Warning => self.counts[0] += 1,
            Severity::Leak => self.counts[1] += 1,
            Severity::Damage => self.counts[2] += 1,
        }
        if self.kept.len() < self.keep {
            self.kept.push(problem);
        }
    }
}
