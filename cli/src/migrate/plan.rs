//! Which devices move in which order, what of them, and whether it fits.

use super::state::{Moving, Phase};
use crate::backup::source::{BLOCK_BYTES, Device, Extent, Pool};
use crate::dm::odd;
use crate::error::CliError;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// A device is compared with at most so many that go before it.
const MOST_COMPARED: usize = 16;

/// So many mappings are in a metadata block at least: half of what it can hold.
const MAPPINGS_PER_BLOCK: u64 = 126;

/// Metadata blocks that are to be free beside those for mappings.
const SPARE_METADATA_BLOCKS: u64 = 64;

/// What is to be moved of a device at first.
#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    /// Its id.
    pub id: u64,
    /// Its id in the new pool.
    pub to_id: u64,
    /// Its bdev, if it is active.
    pub bdev_name: Option<String>,
    /// The device it shares most with among those that go before it.
    pub snapshot_of: Option<u64>,
    /// What is written to the new pool for it.
    pub bytes: u64,
    #[serde(skip)]
    time: u64,
    #[serde(skip)]
    mapped_blocks: u64,
}

/// What is to be moved.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// In this order.
    pub devices: Vec<Planned>,
    /// In all.
    pub bytes: u64,
    /// What is free in the new pool.
    pub free_bytes: u64,
    /// Both data and metadata have room.
    pub fits: bool,
    /// What has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub too_small: Option<String>,
}

/// Blocks of an extent that have contents.
pub fn data_blocks(extents: &[Extent]) -> u64 {
    let data = extents.iter().filter(|extent| extent.data);
    data.map(|extent| extent.count).sum()
}

/// Blocks of the new pool that extents take, each `per` blocks of 64 KiB.
fn target_blocks(extents: &[Extent], per: u64) -> u64 {
    let (mut count, mut next) = (0, 0);
    for extent in extents.iter().filter(|extent| extent.data) {
        let first = (extent.first / per).max(next);
        next = (extent.first + extent.count).div_ceil(per).max(first);
        count += next - first;
    }
    count
}

fn field(status: &Value, name: &str) -> Result<u64, CliError> {
    status[name].as_u64().ok_or_else(|| odd("thin_pool_status"))
}

impl Plan {
    /// For these devices, or with all that share blocks with them. They get `to_ids`, or the same ids.
    pub fn make(
        from: &mut Pool<'_>,
        to: &mut Pool<'_>,
        ids: &[u64],
        to_ids: &[u64],
        family: bool,
    ) -> Result<Plan, CliError> {
        let status = to.status()?;
        let block_bytes = field(&status, "data_block_size_sectors")? * 512;
        let per = (block_bytes / BLOCK_BYTES).max(1);
        let devices = from.devices()?;
        let (mut planned, mut needed) = from.with_metadata_snap(|from| {
            let chosen = chosen(from, &devices, ids, family)?;
            sizes(from, chosen, per)
        })?;
        if to_ids.len() > ids.len() {
            return Err(CliError::Usage(format!(
                "{} ids in --to-ids for {} devices",
                to_ids.len(),
                ids.len()
            )));
        }
        let taken: BTreeSet<u64> = to.devices()?.iter().map(|device| device.id).collect();
        let mut used = taken.clone();
        for planned in &mut planned {
            let named = ids.iter().zip(to_ids).find(|(id, _)| **id == planned.id);
            planned.to_id = named.map_or(planned.id, |(_, to_id)| *to_id);
            if !used.insert(planned.to_id) {
                return Err(CliError::Usage(format!(
                    "pool '{}' has a thin device {} already, or two are to get that id; give other ones with --to-ids",
                    to.name, planned.to_id
                )));
            }
        }
        needed *= block_bytes;
        let free = |what: &str| -> Result<u64, CliError> {
            let total = field(&status, &format!("total_{what}_blocks"))?;
            Ok(total.saturating_sub(field(&status, &format!("used_{what}_blocks"))?))
        };
        let (free_bytes, free_metadata) = (free("data")? * block_bytes, free("metadata")?);
        let mapped: u64 = planned.iter().map(|planned| planned.mapped_blocks).sum();
        let metadata = mapped.div_ceil(MAPPINGS_PER_BLOCK) + SPARE_METADATA_BLOCKS;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let too_small = if needed > free_bytes {
            Some(format!(
                "{} MiB are to be moved, and pool '{}' has {} MiB free; grow its data bdev",
                mib(needed),
                to.name,
                free_bytes >> 20
            ))
        } else if metadata > free_metadata {
            Some(format!(
                "up to {metadata} metadata blocks are needed, and pool '{}' has {free_metadata} free; grow its metadata bdev",
                to.name
            ))
        } else {
            None
        };
        Ok(Plan {
            devices: planned,
            bytes: needed,
            free_bytes,
            fits: too_small.is_none(),
            too_small,
        })
    }

    /// The devices at the beginning of a migration.
    pub fn moving(&self) -> Vec<Moving> {
        let moving = |planned: &Planned| Moving {
            id: planned.id,
            time: planned.time,
            to_id: planned.to_id,
            bdev: planned.bdev_name.clone(),
            parent: planned.snapshot_of,
            making: false,
            to_time: None,
            base: None,
            pass: None,
            phase: Phase::Copying,
            passes: 0,
            moved_blocks: 0,
            pause_ms: None,
        };
        self.devices.iter().map(moving).collect()
    }
}

/// The devices to be moved, oldest first.
fn chosen(
    from: &mut Pool<'_>,
    devices: &[Device],
    ids: &[u64],
    family: bool,
) -> Result<Vec<Device>, CliError> {
    let mut chosen: BTreeSet<u64> = BTreeSet::new();
    for id in ids {
        if devices.iter().all(|device| device.id != *id) {
            return Err(CliError::Usage(format!(
                "pool '{}' has no thin device {id}; see thin_list",
                from.name
            )));
        }
        if !chosen.insert(*id) {
            return Err(CliError::Usage(format!("thin device {id} is named twice")));
        }
    }
    let mut to_ask: Vec<u64> = if family { ids.to_vec() } else { Vec::new() };
    while let Some(member) = to_ask.pop() {
        for device in devices {
            if !chosen.contains(&device.id) && from.share(member, device.id)? {
                chosen.insert(device.id);
                to_ask.push(device.id);
            }
        }
    }
    let is_chosen = |device: &&Device| chosen.contains(&device.id);
    let mut found: Vec<Device> = devices.iter().filter(is_chosen).cloned().collect();
    found.sort_by_key(|device| (device.creation_time, device.id));
    Ok(found)
}

/// Each device, compared with those before it; and the blocks of the new pool that all take.
fn sizes(
    from: &mut Pool<'_>,
    devices: Vec<Device>,
    per: u64,
) -> Result<(Vec<Planned>, u64), CliError> {
    let (mut planned, mut needed): (Vec<Planned>, u64) = (Vec::new(), 0);
    for device in devices {
        let mut extents = from.extents_held(device.id, None, u64::MAX)?;
        let mut snapshot_of = None;
        let earlier: Vec<u64> = planned.iter().map(|planned| planned.id).collect();
        for id in earlier.into_iter().rev().take(MOST_COMPARED) {
            let found = from.extents_held(device.id, Some(id), u64::MAX)?;
            if data_blocks(&found) < data_blocks(&extents) {
                (extents, snapshot_of) = (found, Some(id));
            }
        }
        needed += target_blocks(&extents, per);
        planned.push(Planned {
            id: device.id,
            to_id: device.id,
            bdev_name: device.bdev.clone(),
            snapshot_of,
            bytes: data_blocks(&extents) * BLOCK_BYTES,
            time: device.creation_time,
            mapped_blocks: device.mapped_blocks,
        });
    }
    Ok((planned, needed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Extents take the blocks they touch, each once.
    #[test]
    fn blocks_of_the_new_pool() {
        let extent = |first, count, data| Extent { first, count, data };
        let extents = [
            extent(0, 3, true),
            extent(3, 1, true),
            extent(5, 2, true),
            extent(9, 1, false),
            extent(15, 2, true),
        ];
        assert_eq!(target_blocks(&extents, 1), 8);
        assert_eq!(target_blocks(&extents, 4), 4);
        assert_eq!(data_blocks(&extents), 8);
    }
}
