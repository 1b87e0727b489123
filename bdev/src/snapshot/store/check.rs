//! A check of a persistent store on its COW device (snapshot.md 1). Writes nothing.

use super::super::error::SnapshotError;
use super::super::layout::Layout;
use super::disk::{check_header, read_area, read_header};
use super::seen::Seen;
use crate::device::ByteDeviceRef;
use rustc_hash::FxHashSet;

/// Something that must not be in a store.
pub type Finding = SnapshotError;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// The header's chunk size.
    pub chunk_sectors: u64,
    /// False: invalidated; nothing more was looked at.
    pub valid: bool,
    /// Exceptions up to the end marker.
    pub nr_exceptions: u64,
    /// Chunks were handed out in the order of the entries, without holes: as every writer but very old
    /// kernels leaves them.
    pub in_order: bool,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Checks the store on a COW device. At most 1000 findings are told.
///
/// Errors: no store is there, or its header cannot be; a device error.
pub async fn check(device: ByteDeviceRef) -> Result<CheckReport, SnapshotError> {
    let header = read_header(&device).await?;
    let layout: Layout = check_header(header, device.block_bytes())?;
    let mut report = CheckReport {
        chunk_sectors: layout.chunk_sectors(),
        valid: header.valid != 0,
        nr_exceptions: 0,
        in_order: true,
        findings: Vec::new(),
    };
    if !report.valid {
        return Ok(report);
    }
    let mut seen = Seen::new(layout.chunks_on(device.nr_sectors()))?;
    let mut old_chunks = FxHashSet::default();
    let mut next = 2;
    for area in 0.. {
        let end = read_area(&device, layout, area, |at, exception| {
            report.nr_exceptions += 1;
            report.in_order &= exception.new_chunk == next;
            next = layout.data_chunk_from(exception.new_chunk.saturating_add(1).min(1 << 62));
            let is_first = old_chunks.insert(exception.old_chunk);
            if let Err(finding) = seen.admit(layout, at, exception, is_first)
                && report.findings.len() < 1000
            {
                report.findings.push(finding);
            }
            Ok(())
        })
        .await;
        match end {
            Ok(None) => {}
            Ok(Some(_)) => break,
            Err(error @ SnapshotError::TooShort { .. }) => {
                report.findings.push(error);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(report)
}
