//! Makes new metadata from a stream of a pool's contents, as `thin_restore` does.
//!
//! Nothing is valid before [`Restore::end`]: the superblock is written last. Leaves are built in order
//! and written once; what is kept in memory is a few words per leaf and a byte per data block in use.

use super::bulk::{self, Built, share, tree_over, write_node};
use super::refs::{Details, TIME_BITS};
use super::runs::Run;
use super::sink::{PoolInfo, Sink};
use super::superblock::{SUPERBLOCK, Superblock, VERSION};
use super::{ThinError, tally::Tally};
use persistent_data::device::{BLOCK_BYTES, BlockDevice};
use persistent_data::node::{self, NODE};
use persistent_data::tm::TransactionManager;
use std::collections::HashMap;
use std::rc::Rc;

const CAPACITY: usize = node::capacity(8);
const MIN_FILL: usize = CAPACITY / 3;

/// Why a stream is no pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Writing failed.
    #[error(transparent)]
    Metadata(#[from] ThinError),
    /// The metadata device is full.
    #[error(
        "the output has room for {nr_blocks} metadata blocks, which is too little; give a larger one"
    )]
    TooSmall {
        /// Blocks of the output.
        nr_blocks: u64,
    },
    /// A block size the format does not allow.
    #[error("data block size {0}: must be 128 to 2097152 sectors, in steps of 128")]
    BlockSize(u32),
    /// The stream contradicts itself.
    #[error("{0}")]
    Invalid(String),
}

impl From<persistent_data::Error> for RestoreError {
    fn from(error: persistent_data::Error) -> Self {
        RestoreError::Metadata(error.into())
    }
}

fn invalid<T>(what: String) -> Result<T, RestoreError> {
    Err(RestoreError::Invalid(what))
}

/// What must be said about how to restore.
#[derive(Debug, Clone, Copy, Default)]
pub struct RestoreOptions {
    /// Limit of the block cache.
    pub cache_bytes: usize,
    /// Keep the flag that a check is needed, which `thin_restore` clears.
    pub keep_needs_check: bool,
}

/// A device or shared part that is being built.
#[derive(Default)]
struct Part {
    leaves: Vec<Built>,
    /// The last of `leaves` is another's, too.
    borrowed_last: bool,
    /// Not written yet; fewer than two leaves' worth.
    pending: Vec<(u64, u64)>,
    /// One more than the last virtual block.
    next: Option<u64>,
    mapped: u64,
}

/// A part that several devices share.
struct Shared {
    leaves: Vec<Built>,
    begin: u64,
    end: u64,
    mapped: u64,
}

/// Metadata in the making.
pub struct Restore {
    tm: TransactionManager,
    options: RestoreOptions,
    pool: Option<PoolInfo>,
    counts: Tally,
    part: Option<Part>,
    name: String,
    current: Option<(u32, Details)>,
    shared: HashMap<String, Shared>,
    devices: Vec<(u64, Details)>,
    roots: Vec<(u64, u64)>,
    corrected: Vec<(u32, u64, u64)>,
}

impl Restore {
    /// Begins new metadata. What the device held is gone from here on: first of all its superblock.
    pub async fn new(
        device: Rc<dyn BlockDevice>,
        options: RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let write = device.write(0, &[0; BLOCK_BYTES]).await;
        write.map_err(|source| persistent_data::Error::Device { block: 0, source })?;
        let flush = device.flush().await;
        flush.map_err(persistent_data::Error::Flush)?;
        let tm = TransactionManager::create(device, options.cache_bytes).await?;
        Ok(Restore {
            tm,
            options,
            pool: None,
            counts: Tally::default(),
            part: None,
            name: String::new(),
            current: None,
            shared: HashMap::new(),
            devices: Vec::new(),
            roots: Vec::new(),
            corrected: Vec::new(),
        })
    }

    /// Mappings of all devices so far.
    pub fn nr_mappings(&self) -> u64 {
        self.devices.iter().map(|(_, d)| d.mapped_blocks).sum()
    }

    /// Devices whose mapped blocks were not as many as was said: id, said, found. The new metadata has
    /// what was found.
    pub fn corrected(&self) -> &[(u32, u64, u64)] {
        &self.corrected
    }

    /// No space: says so in terms of the output.
    fn space<T>(&self, result: Result<T, RestoreError>) -> Result<T, RestoreError> {
        match result {
            Err(RestoreError::Metadata(ThinError::Metadata(persistent_data::Error::NoSpace))) => {
                Err(RestoreError::TooSmall {
                    nr_blocks: self.tm.map().nr_blocks(),
                })
            }
            result => result,
        }
    }

    /// Writes a leaf, counting what it refers to.
    async fn write_leaf(&mut self, entries: &[(u64, u64)]) -> Result<Built, RestoreError> {
        for (_, value) in entries {
            self.counts.add(value >> TIME_BITS);
        }
        Ok(write_node(&self.tm, true, entries).await?)
    }

    /// Writes what is pending but for what a last leaf may need.
    async fn drain(&mut self, part: &mut Part, all: bool) -> Result<(), RestoreError> {
        let keep = if all { 0 } else { 2 * CAPACITY };
        let mut done = 0;
        while part.pending.len() - done > keep {
            let count = share(part.pending.len() - done, CAPACITY);
            let entries = part.pending.get(done..done + count).unwrap_or_default();
            let built = self.write_leaf(entries).await?;
            part.leaves.push(built);
            part.borrowed_last = false;
            done += count;
        }
        part.pending.drain(..done);
        Ok(())
    }

    /// The entries of a leaf that is written already.
    async fn entries_of(&self, leaf: Built) -> Result<Vec<(u64, u64)>, RestoreError> {
        let block = self.tm.read(leaf.block, &NODE).await?;
        let bytes = block.bytes();
        Ok((0..node::nr_entries(&bytes))
            .map(|i| (node::key(&bytes, i), node::child(&bytes, i)))
            .collect())
    }

    /// Adds the leaves of a shared part. Its first leaves are copied where what was pending would
    /// else be too little for a leaf.
    async fn refer(&mut self, part: &mut Part, leaves: &[Built]) -> Result<(), RestoreError> {
        for &leaf in leaves {
            let entries = self.entries_of(leaf).await?;
            let fits = part.pending.is_empty() || part.pending.len() >= MIN_FILL;
            if fits && entries.len() >= MIN_FILL {
                self.drain(part, true).await?;
                self.tm.inc(leaf.block)?;
                part.leaves.push(leaf);
                part.borrowed_last = true;
            } else {
                part.pending.extend(entries);
                self.drain(part, false).await?;
            }
        }
        Ok(())
    }

    /// The last leaves. A remainder too small for a leaf of its own is joined by the leaf before.
    async fn finish(&mut self, part: &mut Part) -> Result<(), RestoreError> {
        if part.pending.len() < MIN_FILL
            && !part.pending.is_empty()
            && part.borrowed_last
            && let Some(last) = part.leaves.pop()
        {
            let mut entries = self.entries_of(last).await?;
            self.tm.dec(last.block).await?;
            entries.append(&mut part.pending);
            part.pending = entries;
        }
        self.drain(part, true).await
    }

    async fn commit(&mut self, pool: PoolInfo) -> Result<(), RestoreError> {
        for shared in std::mem::take(&mut self.shared).into_values() {
            for leaf in shared.leaves {
                if self.tm.count(leaf.block).await? == 1 {
                    // Nobody took it as it is.
                    let entries = self.entries_of(leaf).await?;
                    for (_, value) in entries {
                        self.counts.remove(value >> TIME_BITS);
                    }
                }
                self.tm.dec(leaf.block).await?;
            }
        }
        let data_map = bulk::data_map(&self.tm, &self.counts, pool.nr_data_blocks).await?;
        let details_root = bulk::tree_of(&self.tm, &self.devices).await?;
        let mapping_root = bulk::tree_of(&self.tm, &self.roots).await?;
        let metadata_map = self.tm.pre_commit().await?;
        let sb = Superblock {
            needs_check: pool.needs_check && self.options.keep_needs_check,
            time: pool.time,
            transaction_id: pool.transaction_id,
            data_map,
            metadata_map,
            mapping_root,
            details_root,
            data_block_size_sectors: pool.data_block_size_sectors,
            metadata_nr_blocks: metadata_map.nr_blocks,
            version: VERSION,
            ..Superblock::default()
        };
        self.tm.commit(&SUPERBLOCK, &mut sb.to_bytes()).await?;
        Ok(())
    }

    async fn add_run(&mut self, part: &mut Part, run: &Run) -> Result<(), RestoreError> {
        let pool = self.pool.unwrap_or_default();
        let (Some(virtual_end), Some(data_end)) = (
            run.virtual_begin.checked_add(run.length),
            run.data_begin.checked_add(run.length),
        ) else {
            return invalid(format!("mapping of block {}: too long", run.virtual_begin));
        };
        if run.length == 0 {
            return invalid(format!("mapping of block {}: empty", run.virtual_begin));
        }
        if part.next.is_some_and(|next| run.virtual_begin < next) {
            return invalid(format!(
                "mapping of block {}: not in ascending order",
                run.virtual_begin
            ));
        }
        if data_end > pool.nr_data_blocks || data_end > 1 << (64 - TIME_BITS) {
            return invalid(format!(
                "mapping of block {}: data block {} is outside the data device of {} blocks",
                run.virtual_begin,
                data_end - 1,
                pool.nr_data_blocks
            ));
        }
        if run.time >> TIME_BITS != 0 {
            return invalid(format!(
                "mapping of block {}: time {} has more than 24 bits",
                run.virtual_begin, run.time
            ));
        }
        part.next = Some(virtual_end);
        part.mapped += run.length;
        for (key, data) in (run.virtual_begin..virtual_end).zip(run.data_begin..) {
            part.pending
                .push((key, data << TIME_BITS | u64::from(run.time)));
            if part.pending.len() >= 8 * CAPACITY {
                self.drain(part, false).await?;
            }
        }
        Ok(())
    }
}

impl Sink for Restore {
    type Error = RestoreError;

    async fn begin(&mut self, pool: &PoolInfo) -> Result<(), RestoreError> {
        let size = pool.data_block_size_sectors;
        if !(128..=2_097_152).contains(&size) || !size.is_multiple_of(128) {
            return Err(RestoreError::BlockSize(size));
        }
        if pool.time >> TIME_BITS != 0 {
            return invalid(format!("time {} has more than 24 bits", pool.time));
        }
        self.pool = Some(*pool);
        Ok(())
    }

    async fn shared_begin(&mut self, name: &str) -> Result<(), RestoreError> {
        if self.part.is_some() || self.shared.contains_key(name) {
            return invalid(format!(
                "def \"{name}\": in a wrong place, or defined twice"
            ));
        }
        self.name = name.to_owned();
        self.part = Some(Part::default());
        Ok(())
    }

    async fn shared_end(&mut self) -> Result<(), RestoreError> {
        let Some(mut part) = self.part.take() else {
            return invalid("the end of a def without a beginning".to_owned());
        };
        let result = self.finish(&mut part).await;
        self.space(result)?;
        let shared = Shared {
            begin: part.leaves.first().map_or(0, |leaf| leaf.first),
            end: part.next.unwrap_or_default(),
            leaves: part.leaves,
            mapped: part.mapped,
        };
        self.shared.insert(std::mem::take(&mut self.name), shared);
        Ok(())
    }

    async fn device_begin(&mut self, id: u32, details: &Details) -> Result<(), RestoreError> {
        if id >> 24 != 0 {
            return Err(ThinError::BadId(id).into());
        }
        if self.part.is_some() || self.pool.is_none() {
            return invalid(format!("device {id}: in a wrong place"));
        }
        if self
            .devices
            .last()
            .is_some_and(|(last, _)| *last >= u64::from(id))
        {
            return invalid(format!("device {id}: ids must be in ascending order"));
        }
        self.part = Some(Part::default());
        self.current = Some((id, *details));
        Ok(())
    }

    async fn run(&mut self, run: &Run) -> Result<(), RestoreError> {
        let Some(mut part) = self.part.take() else {
            return invalid("a mapping outside of a device".to_owned());
        };
        let result = self.add_run(&mut part, run).await;
        self.part = Some(part);
        self.space(result)
    }

    async fn shared(&mut self, name: &str) -> Result<(), RestoreError> {
        let (Some(mut part), Some(shared)) = (self.part.take(), self.shared.remove(name)) else {
            return invalid(format!("ref \"{name}\": not defined, or in a wrong place"));
        };
        if part
            .next
            .is_some_and(|next| shared.mapped > 0 && shared.begin < next)
        {
            return invalid(format!("ref \"{name}\": not in ascending order"));
        }
        let result = self.refer(&mut part, &shared.leaves).await;
        if shared.mapped > 0 {
            part.next = Some(shared.end);
            part.mapped += shared.mapped;
        }
        self.shared.insert(name.to_owned(), shared);
        self.part = Some(part);
        self.space(result)
    }

    async fn device_end(&mut self) -> Result<(), RestoreError> {
        let (Some(mut part), Some((id, mut details))) = (self.part.take(), self.current.take())
        else {
            return invalid("the end of a device without a beginning".to_owned());
        };
        let result = self.finish(&mut part).await;
        self.space(result)?;
        if details.mapped_blocks != part.mapped {
            self.corrected
                .push((id, details.mapped_blocks, part.mapped));
        }
        details.mapped_blocks = part.mapped;
        let root = tree_over::<u64>(&self.tm, part.leaves).await;
        let root = self.space(root.map_err(RestoreError::from))?;
        self.devices.push((u64::from(id), details));
        self.roots.push((u64::from(id), root));
        Ok(())
    }

    async fn end(&mut self) -> Result<(), RestoreError> {
        let Some(pool) = self.pool.take() else {
            return invalid("no superblock".to_owned());
        };
        let result = self.commit(pool).await;
        self.space(result)
    }
}
