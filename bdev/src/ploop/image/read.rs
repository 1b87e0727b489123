//! Reading header and BAT from a device.

use super::header::{HEADER_BYTES, HEADER_SLOTS, Header, PAGE_BYTES, PAGE_SLOTS};
use super::problem::Problem;
use crate::device::{ByteDevice, SECTOR_BYTES};

/// Bytes of a page, also where the device has fewer.
pub(in crate::ploop) type Page = [u8; PAGE_BYTES];

/// Sectors of a logical block.
fn block_sectors(device: &dyn ByteDevice) -> u64 {
    (u64::from(device.block_bytes()) / SECTOR_BYTES).max(1)
}

/// Reads and checks the header.
///
/// # Errors
/// There is none, or none that makes sense.
pub async fn read_header(device: &dyn ByteDevice) -> Result<Header, Problem> {
    let nr_sectors = device.nr_sectors();
    let block = block_sectors(device);
    if nr_sectors < block {
        return Err(Problem::Signature);
    }
    let mut bytes = vec![0; device.block_bytes() as usize];
    let read = device.read_bytes(0, &mut bytes).await;
    read.map_err(|errno| Problem::Unreadable { sector: 0, errno })?;
    let raw = bytes.first_chunk::<HEADER_BYTES>();
    let header = Header::decode(raw.ok_or(Problem::Signature)?, nr_sectors)?;
    let fits = |sectors: u64| sectors.is_multiple_of(block);
    match fits(header.cluster()) && fits(header.data()) && fits(header.extension_sectors) {
        true => Ok(header),
        false => Err(Problem::BlockSize {
            cluster_sectors: header.cluster_sectors,
            data_sectors: header.data_sectors,
            block_bytes: device.block_bytes(),
        }),
    }
}

/// Reads a page of header and BAT; what is not of the BAT any more is zero.
pub(in crate::ploop) async fn read_page(
    device: &dyn ByteDevice,
    header: &Header,
    page: u64,
) -> Result<Box<Page>, Problem> {
    let mut bytes = Box::new([0; PAGE_BYTES]);
    let (first, len) = header.page_extent(page, block_sectors(device));
    let part = bytes.get_mut(..(len * SECTOR_BYTES) as usize);
    let part = part.filter(|part| !part.is_empty());
    if let Some(part) = part {
        let read = device.read_bytes(first, part).await;
        read.map_err(|errno| Problem::Unreadable {
            sector: first,
            errno,
        })?;
    }
    let used = (HEADER_SLOTS + u64::from(header.nr_entries)).saturating_sub(page * PAGE_SLOTS);
    if let Some(rest) = bytes.get_mut(PAGE_BYTES.min(used as usize * 4)..) {
        rest.fill(0);
    }
    Ok(bytes)
}

/// The guest clusters of a page with their entries.
pub(in crate::ploop) fn page_entries(
    header: &Header,
    page: u64,
    bytes: &Page,
) -> impl Iterator<Item = (u64, u32)> {
    let nr_entries = u64::from(header.nr_entries);
    let words = bytes.as_chunks::<4>().0.iter();
    (page * PAGE_SLOTS..)
        .zip(words)
        .filter_map(|(slot, word)| Some((slot.checked_sub(HEADER_SLOTS)?, word)))
        .take_while(move |(cluster, _)| *cluster < nr_entries)
        .map(|(cluster, word)| (cluster, u32::from_le_bytes(*word)))
}
