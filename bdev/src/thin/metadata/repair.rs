//! Copies what is readable of damaged metadata into a sink, and says what is lost.
//!
//! Where the superblock or the root of a tree is lost, module `roots` looks for them among all blocks.
//! The damaged metadata is only read.

use super::ThinError;
use super::dump::{DumpError, Policy, pool_info, pour};
use super::image::{Device, Image, Lost, Mapping, View};
use super::refs::Details;
use super::roots;
use super::share::Sharing;
use super::sink::{PoolInfo, Sink};
use super::superblock::Superblock;
use persistent_data::btree::Value;
use std::collections::BTreeMap;
use std::fmt;

/// What the metadata says wrongly or not at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Userspace transaction id.
    pub transaction_id: Option<u64>,
    /// Sectors per data block.
    pub data_block_size_sectors: Option<u32>,
    /// Blocks of the data device.
    pub nr_data_blocks: Option<u64>,
}

/// What could not be copied, or had to be made up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// The superblock was not readable.
    Superblock(ThinError),
    /// The trees were found by a search; a commit may be missing.
    Searched {
        /// Root of the mappings.
        mapping_root: u64,
        /// Root of the details.
        details_root: u64,
    },
    /// Part of the list of devices.
    Devices(Lost),
    /// Part of the devices' details.
    Details(Lost),
    /// Part of a device's mappings.
    Mappings {
        /// Which device.
        device: u64,
        /// What.
        lost: Lost,
    },
    /// A device's mappings are lost altogether.
    Device(u64),
    /// A device's details are made up.
    MadeUp(u64),
    /// Mappings to data blocks outside the data device.
    Outside(u64),
    /// The size of the data device is unknown, and as small as possible.
    DataSize(u64),
    /// Something was said of more than fits in here.
    AndMore(u64),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = |lost: &Lost| match lost.end {
            Some(end) => format!("{} to {}", lost.begin, end.saturating_sub(1)),
            None => format!("from {} on", lost.begin),
        };
        match self {
            Loss::Superblock(error) => write!(f, "superblock: {error}"),
            Loss::Searched {
                mapping_root,
                details_root,
            } => write!(
                f,
                "the newest trees that were found begin in metadata blocks {mapping_root} (mappings) \
                 and {details_root} (details); what was committed after them is lost"
            ),
            Loss::Devices(lost) => {
                write!(f, "devices with ids {}: mappings lost: {lost}", keys(lost))
            }
            Loss::Details(lost) => {
                write!(f, "devices with ids {}: details lost: {lost}", keys(lost))
            }
            Loss::Mappings { device, lost } => write!(
                f,
                "device {device}: mappings of blocks {} lost: {lost}",
                keys(lost)
            ),
            Loss::Device(id) => write!(f, "device {id}: lost, nothing refers to its mappings"),
            Loss::MadeUp(id) => write!(
                f,
                "device {id}: its transaction id and times are lost; set to 0 and the pool's time"
            ),
            Loss::Outside(count) => write!(
                f,
                "{count} mappings to blocks outside the data device are left out"
            ),
            Loss::DataSize(blocks) => write!(
                f,
                "the size of the data device is lost; set to {blocks} blocks, the least possible"
            ),
            Loss::AndMore(count) => write!(f, "and {count} more losses"),
        }
    }
}

/// Losses that are told one by one.
const MAX_LOSSES: usize = 10_000;

#[derive(Default)]
struct Losses {
    told: Vec<Loss>,
    untold: u64,
}

impl Losses {
    fn push(&mut self, loss: Loss) {
        if self.told.len() < MAX_LOSSES {
            self.told.push(loss);
        } else {
            self.untold += 1;
        }
    }
}

/// What to copy.
pub struct Salvage {
    /// The pool as far as it is known.
    pub pool: PoolInfo,
    devices: Vec<Device>,
    losses: Losses,
}

impl Salvage {
    /// How many devices there are.
    pub fn nr_devices(&self) -> usize {
        self.devices.len()
    }

    /// How many mappings their details say there are.
    pub fn nr_mapped_blocks(&self) -> u64 {
        let mapped = self.devices.iter().map(|dev| dev.details.mapped_blocks);
        mapped.fold(0, u64::saturating_add)
    }
}

/// Takes what can be read, and remembers what cannot.
struct Lenient<'a> {
    losses: &'a mut Losses,
    nr_data_blocks: u64,
    outside: u64,
    /// Parts that are lost are met twice.
    told: bool,
}

impl Policy for Lenient<'_> {
    fn lost(&mut self, device: u64, lost: Lost) -> Result<(), (u64, Lost)> {
        if !self.told {
            self.losses.push(Loss::Mappings { device, lost });
        }
        Ok(())
    }

    fn keep(&mut self, _: Option<u64>, mapping: &Mapping) -> bool {
        let inside = mapping.data_block < self.nr_data_blocks;
        self.outside += u64::from(!inside);
        inside
    }
}

async fn readable<V: Value>(image: &Image, root: u64) -> (BTreeMap<u64, V>, Vec<Lost>) {
    let (mut found, mut losses) = (BTreeMap::new(), Vec::new());
    let mut leaves = image.leaves::<V>(root);
    while let Some(leaf) = leaves.next().await {
        match leaf {
            Ok(leaf) => found.extend(leaf.entries::<V>()),
            Err(lost) => losses.push(lost),
        }
    }
    (found, losses)
}

/// Finds what is to be copied. Nothing is written yet.
///
/// Errors: neither superblock nor trees can be found; the data block size is unknown.
pub async fn find(image: &Image, overrides: Overrides) -> Result<Salvage, ThinError> {
    let mut losses = Losses::default();
    let (mut sb, intact) = match image.superblock(View::Current).await {
        Ok(sb) => (sb, true),
        Err(error @ (ThinError::Blank | ThinError::Features { .. })) => return Err(error),
        Err(error) => {
            // Unless it is something else altogether, most of it may still be right.
            let hint = match &error {
                ThinError::BadSuperblock(_) | ThinError::WrongLocation(_) => {
                    Superblock::fields(image.raw(0).await?.as_ref())
                }
                _ => Superblock::default(),
            };
            losses.push(Loss::Superblock(error));
            (hint, false)
        }
    };
    if let Some(id) = overrides.transaction_id {
        sb.transaction_id = id;
    }
    if let Some(size) = overrides.data_block_size_sectors {
        sb.data_block_size_sectors = size;
    }
    if sb.data_block_size_sectors == 0 {
        return Err(ThinError::BadSuperblock(
            "the data block size is lost; give it with --data-block-size",
        ));
    }
    let mut details = readable::<Details>(image, sb.details_root).await;
    let mut roots = readable::<u64>(image, sb.mapping_root).await;
    let root_lost = |lost: &[Lost], root| lost.iter().any(|lost| lost.block == root);
    // A superblock with a bad checksum may still name the trees; they must fit together.
    let fit = details.1.is_empty() && roots.1.is_empty() && details.0.keys().eq(roots.0.keys());
    let trusted = intact || (fit && !roots.0.is_empty());
    let known = roots::Known {
        details_root: (trusted && !root_lost(&details.1, sb.details_root))
            .then_some(sb.details_root),
        mapping_root: (trusted && !root_lost(&roots.1, sb.mapping_root)).then_some(sb.mapping_root),
    };
    let all_known = known.details_root.is_some() && known.mapping_root.is_some();
    if !all_known && let Some(pair) = roots::search(image, known).await? {
        losses.push(Loss::Searched {
            mapping_root: pair.mapping_root,
            details_root: pair.details_root,
        });
        sb.mapping_root = pair.mapping_root;
        sb.details_root = pair.details_root;
        details = readable::<Details>(image, sb.details_root).await;
        roots = readable::<u64>(image, sb.mapping_root).await;
    }
    losses.told.extend(details.1.into_iter().map(Loss::Details));
    losses.told.extend(roots.1.into_iter().map(Loss::Devices));
    let (details, roots) = (details.0, roots.0);
    if roots.is_empty() && !intact {
        return Err(ThinError::BadSuperblock(
            "and no mappings are found in any metadata block",
        ));
    }
    for id in details.keys().filter(|id| !roots.contains_key(id)) {
        losses.push(Loss::Device(*id));
    }
    let times = details.values().map(|d| d.snapshotted_time);
    if !losses.told.is_empty() {
        sb.time = times.chain([sb.time]).max().unwrap_or_default();
    }
    let mut devices = Vec::new();
    for (&id, &root) in roots.iter().filter(|(id, _)| **id >> 24 == 0) {
        let details = details.get(&id).copied().unwrap_or_else(|| {
            losses.push(Loss::MadeUp(id));
            Details {
                // Everything counts as shared, which is always safe.
                snapshotted_time: sb.time,
                ..Details::default()
            }
        });
        devices.push(Device { id, details, root });
    }
    let mut pool = pool_info(&sb);
    if let Some(blocks) = overrides.nr_data_blocks {
        pool.nr_data_blocks = blocks;
    } else if pool.nr_data_blocks == 0 || !intact {
        let least = least_data_blocks(image, &devices).await;
        if pool.nr_data_blocks < least {
            pool.nr_data_blocks = least;
            losses.push(Loss::DataSize(least));
        }
    }
    Ok(Salvage {
        pool,
        devices,
        losses,
    })
}

/// One more than the highest data block that is mapped.
async fn least_data_blocks(image: &Image, devices: &[Device]) -> u64 {
    let mut least = 0;
    for dev in devices {
        let mut mappings = image.mappings(dev.root);
        while let Some(mapping) = mappings.next().await {
            least = least.max(mapping.map_or(0, |m| m.data_block + 1));
        }
    }
    least
}

/// Copies it. Returns what is lost.
pub async fn copy<S: Sink>(
    image: &Image,
    salvage: Salvage,
    sink: &mut S,
) -> Result<Vec<Loss>, DumpError<S::Error>> {
    let Salvage {
        pool,
        devices,
        mut losses,
    } = salvage;
    let mut policy = Lenient {
        losses: &mut losses,
        nr_data_blocks: pool.nr_data_blocks,
        outside: 0,
        told: false,
    };
    let sharing = Sharing::of(image, &devices, &mut policy).await?;
    policy.told = true;
    pour(image, &pool, &devices, &sharing, &mut policy, sink).await?;
    let outside = policy.outside;
    if outside > 0 {
        losses.push(Loss::Outside(outside));
    }
    let Losses { mut told, untold } = losses;
    if untold > 0 {
        told.push(Loss::AndMore(untold));
    }
    Ok(told)
}
