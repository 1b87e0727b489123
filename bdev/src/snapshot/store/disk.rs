//! Header and areas of a persistent store, as they are read from and written to a COW device
//! (snapshot.md 1).

use super::super::error::SnapshotError;
use super::super::layout::{
    ENTRY_BYTES, Exception, Header, Layout, MAGIC, Position, VERSION, is_chunk_size,
};
use crate::device::{ByteDeviceRef, SECTOR_BYTES};

pub(super) const READ_AREA: &str = "reading an area of the COW device";
pub(super) const WRITE_AREA: &str = "writing an area of the COW device";
const HEADER: &str = "the header of the COW device";

pub(super) fn check_chunk_size(chunk_sectors: u64, block_bytes: u32) -> Result<(), SnapshotError> {
    match is_chunk_size(chunk_sectors, block_bytes) {
        true => Ok(()),
        false => Err(SnapshotError::ChunkSize {
            chunk_sectors,
            block_bytes,
        }),
    }
}

/// What the header of a store says of its chunks.
pub(super) fn check_header(header: Header, block_bytes: u32) -> Result<Layout, SnapshotError> {
    if header.magic != MAGIC {
        return Err(SnapshotError::Foreign(header.magic));
    }
    if header.version != VERSION {
        return Err(SnapshotError::Version(header.version));
    }
    let chunk_sectors = u64::from(header.chunk_sectors);
    check_chunk_size(chunk_sectors, block_bytes)?;
    Ok(Layout::new(chunk_sectors))
}

/// Bytes that can be read or written at once and contain the header.
fn header_bytes(device: &ByteDeviceRef) -> Vec<u8> {
    vec![0; device.block_bytes().max(SECTOR_BYTES as u32) as usize]
}

pub(super) async fn read_header(device: &ByteDeviceRef) -> Result<Header, SnapshotError> {
    let mut bytes = header_bytes(device);
    let read = device.read_bytes(0, &mut bytes).await;
    read.map_err(SnapshotError::device(HEADER))?;
    Ok(Header::decode(&bytes))
}

pub(super) async fn write_header(
    device: &ByteDeviceRef,
    layout: Layout,
    valid: bool,
) -> Result<(), SnapshotError> {
    let mut bytes = header_bytes(device);
    let header = Header::new(layout.chunk_sectors(), valid).encode();
    for (to, from) in bytes.iter_mut().zip(header) {
        *to = from;
    }
    let failed = SnapshotError::device(HEADER);
    device.write_bytes(0, &bytes).await.map_err(&failed)?;
    device.flush().await.map_err(&failed)
}

/// A new store. The header comes last, so that no old bytes are ever taken for exceptions.
pub(super) async fn format(device: &ByteDeviceRef, layout: Layout) -> Result<(), SnapshotError> {
    let sectors = 2 * layout.chunk_sectors();
    if device.nr_sectors() < sectors {
        return Err(SnapshotError::TooShort { chunk: 1 });
    }
    let failed = SnapshotError::device("making an exception store");
    device.zero(0, sectors).await.map_err(&failed)?;
    device.flush().await.map_err(&failed)?;
    write_header(device, layout, true).await
}

pub(super) async fn read_unit(
    device: &ByteDeviceRef,
    layout: Layout,
    area: u64,
    unit: u64,
) -> Result<Vec<u8>, SnapshotError> {
    let chunk = layout.area_chunk(area);
    if chunk >= layout.chunks_on(device.nr_sectors()) {
        return Err(SnapshotError::TooShort { chunk });
    }
    let mut bytes = vec![0; layout.unit_bytes() as usize];
    let read = device
        .read_bytes(layout.unit_sector(area, unit), &mut bytes)
        .await;
    read.map_err(SnapshotError::device(READ_AREA))?;
    Ok(bytes)
}

/// Entries of a unit; none for an end marker.
pub(super) fn decode(bytes: &[u8]) -> impl Iterator<Item = Option<Exception>> {
    bytes
        .chunks_exact(ENTRY_BYTES as usize)
        .map(Exception::decode)
}

/// Tells the exceptions of an area up to its end marker, and where that is; none: it is full.
pub(super) async fn read_area(
    device: &ByteDeviceRef,
    layout: Layout,
    area: u64,
    mut found: impl FnMut(Position, Exception) -> Result<(), SnapshotError>,
) -> Result<Option<u64>, SnapshotError> {
    for unit in 0..layout.units_per_area() {
        let bytes = read_unit(device, layout, area, unit).await?;
        for (index, entry) in (unit * layout.entries_per_unit()..).zip(decode(&bytes)) {
            match entry {
                None => return Ok(Some(index)),
                Some(exception) => found(Position { area, index }, exception)?,
            }
        }
    }
    Ok(None)
}
