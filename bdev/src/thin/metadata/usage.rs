//! What each device uses, and who uses a region of the data device (thin.md 12: thin_ls, thin_rmap).

use super::dump::DumpError;
use super::image::{Device, Image, Lost, View};
use super::superblock::Superblock;
use super::tally::Tally;
use std::convert::Infallible;
use std::ops::Range;

/// What a device uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The device.
    pub device: Device,
    /// Mapped blocks whose data blocks no other device has, if that was asked for.
    pub exclusive_blocks: Option<u64>,
    /// The highest virtual block that is mapped, if that was asked for and there is one.
    pub highest_block: Option<u64>,
}

/// Why something could not be listed.
pub type UsageError = DumpError<Infallible>;

fn damaged(device: &Device, lost: Lost) -> UsageError {
    DumpError::Damaged {
        device: device.id,
        lost,
    }
}

/// Lists the devices. `mappings`: look at them all, for what is exclusive and highest. Memory is a byte
/// per data block in use.
pub async fn usage(
    image: &Image,
    view: View,
    mappings: bool,
) -> Result<(Superblock, Vec<Usage>), UsageError> {
    let sb = image.superblock(view).await?;
    let mut list: Vec<Usage> = image
        .devices(&sb)
        .await?
        .into_iter()
        .map(|device| Usage {
            device,
            exclusive_blocks: None,
            highest_block: None,
        })
        .collect();
    if !mappings {
        return Ok((sb, list));
    }
    let mut users = Tally::default();
    for usage in &mut list {
        let mut mappings = image.mappings(usage.device.root);
        while let Some(mapping) = mappings.next().await {
            let mapping = mapping.map_err(|lost| damaged(&usage.device, lost))?;
            users.add(mapping.data_block);
            usage.highest_block = Some(mapping.virtual_block);
        }
    }
    for usage in &mut list {
        let mut exclusive = 0;
        let mut mappings = image.mappings(usage.device.root);
        while let Some(mapping) = mappings.next().await {
            let mapping = mapping.map_err(|lost| damaged(&usage.device, lost))?;
            exclusive += u64::from(users.get(mapping.data_block) == 1);
        }
        usage.exclusive_blocks = Some(exclusive);
    }
    Ok((sb, list))
}

/// Consecutive data blocks that belong to consecutive blocks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owned {
    /// First data block.
    pub data_begin: u64,
    /// Which device.
    pub device: u64,
    /// First block of the device.
    pub virtual_begin: u64,
    /// Blocks.
    pub length: u64,
}

/// Who uses these data blocks: per region, by data block and device. Memory grows with what is found.
pub async fn owners(
    image: &Image,
    view: View,
    regions: &[Range<u64>],
) -> Result<Vec<Vec<Owned>>, UsageError> {
    let sb = image.superblock(view).await?;
    let mut found: Vec<Vec<Owned>> = regions.iter().map(|_| Vec::new()).collect();
    for device in image.devices(&sb).await? {
        let mut mappings = image.mappings(device.root);
        while let Some(mapping) = mappings.next().await {
            let mapping = mapping.map_err(|lost| damaged(&device, lost))?;
            for (region, list) in regions.iter().zip(&mut found) {
                if !region.contains(&mapping.data_block) {
                    continue;
                }
                match list.last_mut() {
                    Some(last)
                        if last.device == device.id
                            && last.data_begin + last.length == mapping.data_block
                            && last.virtual_begin + last.length == mapping.virtual_block =>
                    {
                        last.length += 1;
                    }
                    _ => list.push(Owned {
                        data_begin: mapping.data_block,
                        device: device.id,
                        virtual_begin: mapping.virtual_block,
                        length: 1,
                    }),
                }
            }
        }
    }
    for list in &mut found {
        list.sort_unstable();
    }
    Ok(found)
}
