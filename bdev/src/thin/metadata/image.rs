//! A pool's metadata as a tool sees it: read block by block, verified, never written.
//!
//! Unlike [`super::ThinMetadata`] this needs no space map and no sound trees, keeps no cache, and what
//! cannot be read is reported with the keys that are lost with it. Relies on nobody writing the
//! device meanwhile, or, with [`View::Snapshot`], only the metadata snapshot is looked at.

use super::ThinError;
use super::refs::{Details, TIME_BITS};
use super::superblock::Superblock;
use persistent_data::Error;
use persistent_data::block::Kind;
use persistent_data::btree::Value;
use persistent_data::device::{BLOCK_BYTES, BlockBytes, BlockDevice};
use persistent_data::node::{self, NODE};
use std::rc::Rc;

/// Deepest tree that is followed. 2^64 keys need 11 levels.
pub(super) const MAX_DEPTH: usize = 64;

/// Which state of the pool is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum View {
    /// The last commit.
    #[default]
    Current,
    /// The metadata snapshot that the superblock names.
    Snapshot,
    /// A metadata snapshot in this metadata block.
    SnapshotAt(u64),
}

/// A pool's metadata, to be read.
pub struct Image {
    device: Rc<dyn BlockDevice>,
}

impl Image {
    /// Looks at a device. Nothing is read yet.
    pub fn new(device: Rc<dyn BlockDevice>) -> Self {
        Image { device }
    }

    /// Metadata blocks of the device.
    pub fn nr_blocks(&self) -> u64 {
        self.device.nr_blocks()
    }

    /// A block as it is, whatever it contains.
    pub(super) async fn raw(&self, block: u64) -> Result<Box<BlockBytes>, Error> {
        if block >= self.device.nr_blocks() {
            return Err(Error::OutOfRange {
                block,
                nr_blocks: self.device.nr_blocks(),
            });
        }
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        self.device
            .read(block, &mut bytes)
            .await
            .map_err(|source| Error::Device { block, source })?;
        Ok(bytes)
    }

    /// A block that has been verified.
    pub(super) async fn block(
        &self,
        block: u64,
        kind: &'static Kind,
    ) -> Result<Box<BlockBytes>, Error> {
        let bytes = self.raw(block).await?;
        kind.verify(&bytes, block)?;
        Ok(bytes)
    }

    /// The superblock of a state. That of a metadata snapshot has no space maps.
    ///
    /// Errors: it is missing or damaged; the pool has features not known here; there is no metadata
    /// snapshot.
    pub async fn superblock(&self, view: View) -> Result<Superblock, ThinError> {
        let at = match view {
            View::Current => 0,
            View::SnapshotAt(block) => block,
            View::Snapshot => match Box::pin(self.superblock(View::Current)).await?.held_root {
                0 => return Err(ThinError::NoSnapHeld),
                block => block,
            },
        };
        let bytes = self.raw(at).await?;
        let sb = match Superblock::read(&bytes, at)? {
            Some(sb) => sb,
            None if at == 0 => return Err(ThinError::Blank),
            None => return Err(ThinError::NoSnapHeld),
        };
        if sb.incompat_flags != 0 {
            return Err(ThinError::Features {
                flags: sb.incompat_flags,
                what: "incompatible",
            });
        }
        Ok(sb)
    }

    /// Whether a block looks like a pool's superblock, sound or damaged.
    pub async fn has_superblock(&self) -> Result<bool, ThinError> {
        let bytes = self.raw(0).await?;
        Ok(!matches!(
            Superblock::read(&bytes, 0),
            Ok(None) | Err(ThinError::Foreign | ThinError::NotAPool)
        ))
    }

    /// Whether metadata block 0 is all zeroes.
    pub async fn is_blank(&self) -> Result<bool, ThinError> {
        Ok(self.raw(0).await?.iter().all(|byte| *byte == 0))
    }

    /// The leaves of a tree whose values have this size.
    pub(super) fn leaves<V: Value>(&self, root: u64) -> Leaves<'_> {
        Leaves::new(self, root, V::SIZE, 0)
    }

    /// A leaf of mappings that a walk has come across.
    pub(super) async fn leaf(&self, block: u64) -> Result<Leaf, Error> {
        let bytes = self.block(block, &NODE).await?;
        if !node::is_leaf(&bytes) || node::value_size(&bytes) != u64::SIZE {
            return Err(Error::Corrupt {
                block,
                what: "it has changed while it was read",
            });
        }
        Ok(Leaf { block, bytes })
    }

    /// Every entry of a small tree. Error: the first one found.
    pub(super) async fn entries<V: Value>(&self, root: u64) -> Result<Vec<(u64, V)>, Error> {
        let mut found = Vec::new();
        let mut leaves = self.leaves::<V>(root);
        while let Some(leaf) = leaves.next().await {
            let leaf = leaf.map_err(|lost| lost.error)?;
            found.extend(leaf.entries::<V>());
        }
        Ok(found)
    }

    /// The devices of a state with their details and the roots of their mappings, by id.
    ///
    /// Error: a block that cannot be read, or a device that only one of the trees knows.
    pub async fn devices(&self, sb: &Superblock) -> Result<Vec<Device>, Error> {
        let details = self.entries::<Details>(sb.details_root).await?;
        let roots = self.entries::<u64>(sb.mapping_root).await?;
        if !details.iter().map(|d| d.0).eq(roots.iter().map(|r| r.0)) {
            return Err(Error::Corrupt {
                block: sb.details_root,
                what: "details and mappings are of different devices",
            });
        }
        Ok(details
            .into_iter()
            .zip(roots)
            .map(|((id, details), (_, root))| Device { id, details, root })
            .collect())
    }

    /// The first entry of a tree at or after a key.
    async fn entry_from<V: Value>(&self, root: u64, key: u64) -> Result<Option<(u64, V)>, Error> {
        let mut leaves = Leaves::new(self, root, V::SIZE, key);
        while let Some(leaf) = leaves.next().await {
            let leaf = leaf.map_err(|lost| lost.error)?;
            if let Some(found) = leaf.entries::<V>().find(|entry| entry.0 >= key) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The first device of a state with this id or a higher one. Error: as of [`Image::devices`].
    pub async fn device_from(&self, sb: &Superblock, id: u64) -> Result<Option<Device>, Error> {
        let details = self.entry_from::<Details>(sb.details_root, id).await?;
        let root = self.entry_from::<u64>(sb.mapping_root, id).await?;
        match (details, root) {
            (None, None) => Ok(None),
            (Some((id, details)), Some((same, root))) if id == same => {
                Ok(Some(Device { id, details, root }))
            }
            _ => Err(Error::Corrupt {
                block: sb.details_root,
                what: "details and mappings are of different devices",
            }),
        }
    }

    /// A device's mappings, one by one.
    pub fn mappings(&self, root: u64) -> Mappings<'_> {
        self.mappings_from(root, 0)
    }

    /// A device's mappings from a virtual block on, one by one.
    pub fn mappings_from(&self, root: u64, begin: u64) -> Mappings<'_> {
        Mappings {
            leaves: Leaves::new(self, root, u64::SIZE, begin),
            leaf: None,
            next: 0,
        }
    }
}

/// A thin device as the trees describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its id; at most 24 bits in a sound pool.
    pub id: u64,
    /// What the details tree says.
    pub details: Details,
    /// Root of its mappings.
    pub root: u64,
}

/// Part of a tree that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Lost {
    /// The block that cannot be read.
    pub block: u64,
    /// First key that may have been there.
    pub begin: u64,
    /// First key after it; None: all from `begin` on.
    pub end: Option<u64>,
    /// Why.
    pub error: Error,
}

/// A leaf, verified.
pub(super) struct Leaf {
    pub block: u64,
    pub bytes: Box<BlockBytes>,
}

impl Leaf {
    pub fn len(&self) -> usize {
        node::nr_entries(&self.bytes)
    }

    pub fn entry<V: Value>(&self, i: usize) -> (u64, V) {
        let value = V::get(node::value(&self.bytes, i));
        (node::key(&self.bytes, i), value)
    }

    pub fn entries<V: Value>(&self) -> impl Iterator<Item = (u64, V)> + '_ {
        (0..self.len()).map(|i| self.entry(i))
    }
}

/// A mapping from its key and value (thin.md 2).
pub(super) fn unpack(virtual_block: u64, value: u64) -> Mapping {
    Mapping {
        virtual_block,
        data_block: value >> TIME_BITS,
        time: (value & ((1 << TIME_BITS) - 1)) as u32,
    }
}

/// What makes a node unusable (persistent-data.md 2): without these rules a walk could go in circles or
/// see keys twice.
pub(super) fn node_fault(
    bytes: &BlockBytes,
    value_size: usize,
    low: Option<u64>,
    high: Option<u64>,
) -> Option<&'static str> {
    let nr = node::nr_entries(bytes);
    if node::is_leaf(bytes) && node::value_size(bytes) != value_size {
        return Some("leaf with values of another size");
    }
    if (1..nr).any(|i| node::key(bytes, i - 1) >= node::key(bytes, i)) {
        return Some("keys are not ascending");
    }
    let last = nr.checked_sub(1)?;
    let (first, last) = (node::key(bytes, 0), node::key(bytes, last));
    (low.is_some_and(|low| first < low) || high.is_some_and(|high| last >= high))
        .then_some("keys outside what the parent says")
}

struct Frame {
    bytes: Box<BlockBytes>,
    next: usize,
    high: Option<u64>,
}

struct Child {
    block: u64,
    low: Option<u64>,
    high: Option<u64>,
}

/// The leaves of a tree in the order of their keys. After a part that is lost it goes on with the next.
///
/// Every node's keys lie strictly within its parent's, so a walk ends even if the tree's blocks form a
/// circle.
pub(super) struct Leaves<'a> {
    image: &'a Image,
    value_size: usize,
    root: Option<Child>,
    stack: Vec<Frame>,
    leaf_depth: Option<usize>,
    /// Leaves whose keys are all below this are left out.
    begin: u64,
}

impl<'a> Leaves<'a> {
    fn new(image: &'a Image, root: u64, value_size: usize, begin: u64) -> Self {
        Leaves {
            image,
            value_size,
            root: Some(Child {
                block: root,
                low: None,
                high: None,
            }),
            stack: Vec::new(),
            leaf_depth: None,
            begin,
        }
    }

    fn next_child(&mut self) -> Option<Child> {
        if let Some(root) = self.root.take() {
            return Some(root);
        }
        loop {
            let frame = self.stack.last_mut()?;
            let i = frame.next;
            let nr = node::nr_entries(&frame.bytes);
            if i >= nr {
                self.stack.pop();
                continue;
            }
            frame.next += 1;
            let high = match i + 1 < nr {
                true => Some(node::key(&frame.bytes, i + 1)),
                false => frame.high,
            };
            if high.is_some_and(|high| high <= self.begin) {
                continue;
            }
            return Some(Child {
                block: node::child(&frame.bytes, i),
                low: Some(node::key(&frame.bytes, i)),
                high,
            });
        }
    }

    pub async fn next(&mut self) -> Option<Result<Leaf, Lost>> {
        loop {
            let Child { block, low, high } = self.next_child()?;
            let lost = |error| {
                Some(Err(Lost {
                    block,
                    begin: low.unwrap_or_default(),
                    end: high,
                    error,
                }))
            };
            let bytes = match self.image.block(block, &NODE).await {
                Ok(bytes) => bytes,
                Err(error) => return lost(error),
            };
            let mut fault = node_fault(&bytes, self.value_size, low, high);
            let depth = self.stack.len();
            let leaf = node::is_leaf(&bytes);
            if leaf && *self.leaf_depth.get_or_insert(depth) != depth {
                fault = Some("leaves at different depths");
            }
            if !leaf && depth >= MAX_DEPTH {
                fault = Some("tree is too deep, or goes in circles");
            }
            if let Some(what) = fault {
                return lost(Error::Corrupt { block, what });
            }
            if leaf {
                return Some(Ok(Leaf { block, bytes }));
            }
            self.stack.push(Frame {
                bytes,
                next: 0,
                high,
            });
        }
    }
}

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Block of the thin device.
    pub virtual_block: u64,
    /// Block of the data device.
    pub data_block: u64,
    /// When it was made.
    pub time: u32,
}

/// A device's mappings, in order.
pub struct Mappings<'a> {
    leaves: Leaves<'a>,
    leaf: Option<Leaf>,
    next: usize,
}

impl Mappings<'_> {
    /// The next one, or a part that cannot be read, after which it goes on.
    pub async fn next(&mut self) -> Option<Result<Mapping, Lost>> {
        loop {
            if let Some(leaf) = self.leaf.as_ref().filter(|leaf| self.next < leaf.len()) {
                let (virtual_block, value) = leaf.entry::<u64>(self.next);
                self.next += 1;
                if virtual_block < self.leaves.begin {
                    continue;
                }
                return Some(Ok(unpack(virtual_block, value)));
            }
            self.next = 0;
            self.leaf = None;
            match self.leaves.next().await? {
                Ok(leaf) => self.leaf = Some(leaf),
                Err(lost) => return Some(Err(lost)),
            }
        }
    }
}
