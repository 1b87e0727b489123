//! A pool's contents as a stream, for `thin_dump`'s XML (thin.md 12) and for copying.

use super::image::{Device, Image, Leaf, Lost, Mapping, View, unpack};
use super::runs::{Run, Runs};
use super::share::Sharing;
use super::sink::{PoolInfo, Sink};
use super::superblock::Superblock;
use super::xml::{Layout, XmlWriter};
use super::{Details, ThinError, ThinMetadata};
use futures::FutureExt;
use persistent_data::btree;
use std::collections::BTreeMap;

/// What to dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpOptions {
    /// Which state.
    pub view: View,
    /// Only these devices; all, if empty.
    pub devices: Vec<u32>,
    /// Devices without their mappings.
    pub skip_mappings: bool,
    /// Mappings that devices share come once, before the devices.
    pub shared_once: bool,
}

/// Why a dump ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DumpError<E> {
    /// The pool cannot be read.
    #[error(transparent)]
    Metadata(#[from] ThinError),
    /// A device's mappings cannot be read.
    #[error("device {device}: {lost}")]
    Damaged {
        /// Which device.
        device: u64,
        /// What.
        lost: Lost,
    },
    /// Whoever takes the contents does not.
    #[error("{0}")]
    Sink(E),
}

impl<E> From<persistent_data::Error> for DumpError<E> {
    fn from(error: persistent_data::Error) -> Self {
        DumpError::Metadata(error.into())
    }
}

/// What a superblock says of the pool.
pub fn pool_info(sb: &Superblock) -> PoolInfo {
    PoolInfo {
        time: sb.time,
        transaction_id: sb.transaction_id,
        needs_check: sb.needs_check,
        data_block_size_sectors: sb.data_block_size_sectors,
        nr_data_blocks: sb.data_map.nr_blocks,
    }
}

/// Streams a pool's contents. Memory does not depend on how much is mapped, except, with `shared_once`,
/// for a few words per leaf.
pub async fn dump<S: Sink>(
    image: &Image,
    options: &DumpOptions,
    sink: &mut S,
) -> Result<(), DumpError<S::Error>> {
    let sb = image.superblock(options.view).await?;
    let mut devices = image.devices(&sb).await?;
    for id in &options.devices {
        if !devices.iter().any(|dev| dev.id == u64::from(*id)) {
            return Err(ThinError::NoDevice(*id).into());
        }
    }
    if !options.devices.is_empty() {
        devices.retain(|dev| options.devices.iter().any(|id| u64::from(*id) == dev.id));
    }
    let mut strict = Strict;
    let sharing = match options.shared_once && !options.skip_mappings {
        true => Sharing::of(image, &devices, &mut strict).await?,
        false => Sharing::default(),
    };
    if options.skip_mappings {
        sink.begin(&pool_info(&sb)).await.map_err(DumpError::Sink)?;
        for dev in devices {
            begin_device(&dev, sink).await?;
            sink.device_end().await.map_err(DumpError::Sink)?;
        }
        return sink.end().await.map_err(DumpError::Sink);
    }
    pour(
        image,
        &pool_info(&sb),
        &devices,
        &sharing,
        &mut strict,
        sink,
    )
    .await
}

/// What to do about parts that cannot be read and mappings that cannot be right.
pub(super) trait Policy {
    /// Part of a device is lost. Error: give up.
    fn lost(&mut self, device: u64, lost: Lost) -> Result<(), (u64, Lost)>;
    /// Whether to take this mapping; `device` is unknown for a shared one.
    fn keep(&mut self, device: Option<u64>, mapping: &Mapping) -> bool;
}

/// Everything must be as it should.
pub(super) struct Strict;

impl Policy for Strict {
    fn lost(&mut self, device: u64, lost: Lost) -> Result<(), (u64, Lost)> {
        Err((device, lost))
    }

    fn keep(&mut self, _: Option<u64>, _: &Mapping) -> bool {
        true
    }
}

impl<E> From<(u64, Lost)> for DumpError<E> {
    fn from((device, lost): (u64, Lost)) -> Self {
        DumpError::Damaged { device, lost }
    }
}

async fn begin_device<S: Sink>(dev: &Device, sink: &mut S) -> Result<(), DumpError<S::Error>> {
    let id = u32::try_from(dev.id).map_err(|_| ThinError::BadId(u32::MAX))?;
    let begun = sink.device_begin(id, &dev.details).await;
    begun.map_err(DumpError::Sink)
}

/// Streams devices with their mappings into a sink.
pub(super) async fn pour<S: Sink>(
    image: &Image,
    pool: &PoolInfo,
    devices: &[Device],
    sharing: &Sharing,
    policy: &mut impl Policy,
    sink: &mut S,
) -> Result<(), DumpError<S::Error>> {
    sink.begin(pool).await.map_err(DumpError::Sink)?;
    for run in sharing.runs() {
        let name = run.first().copied().unwrap_or_default().to_string();
        sink.shared_begin(&name).await.map_err(DumpError::Sink)?;
        let mut runs = Runs::default();
        for &block in run {
            let leaf = image.leaf(block).await?;
            pour_leaf(&leaf, None, &mut runs, policy, sink).await?;
        }
        pour_run(runs.finish(), sink).await?;
        sink.shared_end().await.map_err(DumpError::Sink)?;
    }
    for dev in devices {
        begin_device(dev, sink).await?;
        let mut runs = Runs::default();
        let mut leaves = image.leaves::<u64>(dev.root);
        while let Some(leaf) = leaves.next().await {
            let leaf = match leaf {
                Ok(leaf) => leaf,
                Err(lost) => {
                    policy.lost(dev.id, lost)?;
                    continue;
                }
            };
            let Some(first) = sharing.run_of(leaf.block) else {
                pour_leaf(&leaf, Some(dev.id), &mut runs, policy, sink).await?;
                continue;
            };
            pour_run(runs.finish(), sink).await?;
            if first == leaf.block {
                let name = first.to_string();
                sink.shared(&name).await.map_err(DumpError::Sink)?;
            }
        }
        pour_run(runs.finish(), sink).await?;
        sink.device_end().await.map_err(DumpError::Sink)?;
    }
    sink.end().await.map_err(DumpError::Sink)
}

async fn pour_run<S: Sink>(run: Option<Run>, sink: &mut S) -> Result<(), DumpError<S::Error>> {
    match run {
        Some(run) => sink.run(&run).await.map_err(DumpError::Sink),
        None => Ok(()),
    }
}

async fn pour_leaf<S: Sink>(
    leaf: &Leaf,
    device: Option<u64>,
    runs: &mut Runs,
    policy: &mut impl Policy,
    sink: &mut S,
) -> Result<(), DumpError<S::Error>> {
    for (virtual_block, value) in leaf.entries::<u64>() {
        let mapping = unpack(virtual_block, value);
        if policy.keep(device, &mapping)
            && let Some(run) = runs.push(mapping)
        {
            sink.run(&run).await.map_err(DumpError::Sink)?;
        }
    }
    Ok(())
}

/// A device with its mappings: virtual block to data block and time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpedDevice {
    /// Its details.
    pub details: Details,
    /// Its mappings.
    pub mappings: BTreeMap<u64, (u64, u32)>,
}

impl ThinMetadata {
    /// Everything that is mapped, by device id. Keeps all of it in memory: for tools and tests.
    pub async fn dump(&mut self) -> Result<BTreeMap<u32, DumpedDevice>, ThinError> {
        let mut dumped = BTreeMap::new();
        for (id, details) in self.devices().await? {
            let root = self.device_root(id).await?;
            let mut mappings = BTreeMap::new();
            btree::walk(&self.tm, root, 0, u64::MAX, |block, value: u64| {
                let mapping = unpack(block, value);
                mappings.insert(block, (mapping.data_block, mapping.time));
            })
            .await?;
            dumped.insert(id, DumpedDevice { details, mappings });
        }
        Ok(dumped)
    }

    /// [`ThinMetadata::dump`] as XML that `thin_restore` reads, laid out as `thin_dump` 0.9 does.
    pub async fn dump_xml(&mut self) -> Result<String, ThinError> {
        let mut xml = XmlWriter::new(Vec::new(), Layout::V0);
        let pool = PoolInfo {
            nr_data_blocks: self.nr_data_blocks(),
            ..pool_info(&self.sb)
        };
        let dumped = self.dump().await?;
        // Writing to memory neither waits nor fails.
        let _ = write_dumped(&mut xml, &pool, dumped).now_or_never();
        Ok(String::from_utf8_lossy(&xml.into_inner()).into_owned())
    }
}

async fn write_dumped<S: Sink>(
    sink: &mut S,
    pool: &PoolInfo,
    dumped: BTreeMap<u32, DumpedDevice>,
) -> Result<(), S::Error> {
    sink.begin(pool).await?;
    for (id, dev) in dumped {
        sink.device_begin(id, &dev.details).await?;
        let mut runs = Runs::default();
        for (virtual_block, (data_block, time)) in dev.mappings {
            if let Some(run) = runs.push(Mapping {
                virtual_block,
                data_block,
                time,
            }) {
                sink.run(&run).await?;
            }
        }
        if let Some(run) = runs.finish() {
            sink.run(&run).await?;
        }
        sink.device_end().await?;
    }
    sink.end().await
}
