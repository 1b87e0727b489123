//! Whether a thin device can be merged into its external origin: all it has must have a place there, and
//! nobody else may show it.

use super::cache::{PAGE_BLOCKS, UNMAPPED};
use super::error::PoolError;
use super::map::ThinDev;
use super::metadata::{ThinError, ThinMetadata};
use super::pages::TIME_BITS;
use super::pool::Pool;
use crate::device::DataDevice;
use persistent_data::turn::yield_now;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Pool {
    pub(super) fn active_to_merge(&self, id: u32) -> Result<Arc<ThinDev>, PoolError> {
        let found = self.active.borrow().get(&id).cloned();
        found
            .filter(|dev| !dev.leaving.load(Ordering::SeqCst) && !dev.closed.load(Ordering::SeqCst))
            .ok_or_else(|| PoolError::NotActive {
                pool: self.config.name.clone(),
                id,
            })
    }

    fn cannot_merge(&self, id: u32, why: &str) -> PoolError {
        PoolError::Invalid {
            pool: self.config.name.clone(),
            reason: format!("thin device {id} cannot be merged: {why}"),
        }
    }

    /// How many virtual blocks have a place in the external origin. Of a block that the origin ends in
    /// the rest must be beyond the end of the device.
    pub(super) fn mergeable_end(
        &self,
        dev: &ThinDev,
        target: &dyn DataDevice,
    ) -> Result<u64, PoolError> {
        let block_sectors = u64::from(self.config.data_block_size_sectors);
        let (origin, device) = (
            dev.origin_sectors(),
            dev.nr_logical_blocks * self.shared.sectors_per_logical(),
        );
        if origin == 0 {
            return Err(self.cannot_merge(dev.id, "it is active without an external origin"));
        }
        if target.nr_sectors() < origin || target.block_bytes() != self.data.block_bytes() {
            return Err(self.cannot_merge(
                dev.id,
                "its external origin is smaller than when the device was activated; deactivate it, and activate it again",
            ));
        }
        Ok(match device <= origin {
            true => origin.div_ceil(block_sectors),
            false => origin / block_sectors,
        })
    }

    /// Refuses a device that has blocks beyond the end of the origin, or relatives.
    pub(super) async fn check_merge(&self, id: u32, end: u64) -> Result<(), PoolError> {
        let highest = self.metadata.lock().await.highest_mapped(id).await?;
        if let Some(highest) = highest.filter(|highest| *highest >= end) {
            let why = format!(
                "its block {highest} is mapped, but the external origin ends after {end} blocks; grow that, or discard what is beyond its end"
            );
            return Err(self.cannot_merge(id, &why));
        }
        let mut from = 0;
        // A page of mappings at a time: others want the metadata, too.
        while let Some(page) = self.next_page(id, from).await? {
            let mut metadata = self.metadata.lock().await;
            let sharers = sharers(&mut metadata, id, page.clone()).await?;
            self.refuse_sharers(id, &sharers)?;
            drop(metadata);
            yield_now().await;
            from = page.end;
        }
        Ok(())
    }

    async fn next_page(&self, id: u32, from: u64) -> Result<Option<Range<u64>>, PoolError> {
        let mut metadata = self.metadata.lock().await;
        if metadata.details(id).await?.snapshotted_time == 0 {
            return Ok(None);
        }
        let first = metadata.next_mapped(id, from).await?;
        Ok(first.map(|first| first..first.saturating_add(PAGE_BLOCKS as u64)))
    }

    fn refuse_sharers(&self, id: u32, others: &[u32]) -> Result<(), PoolError> {
        if others.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = others
            .iter()
            .map(|other| format!("device {other}"))
            .collect();
        Err(PoolError::Related {
            pool: self.config.name.clone(),
            id,
            others: names.join(", "),
        })
    }
}

/// Devices that share a data block with this one in a page: its snapshots, and what it is one of.
async fn sharers(
    metadata: &mut ThinMetadata,
    id: u32,
    page: Range<u64>,
) -> Result<Vec<u32>, ThinError> {
    let snapshotted_time = metadata.details(id).await?.snapshotted_time;
    let mut own = [UNMAPPED; PAGE_BLOCKS];
    metadata.lookup_range(id, page.start, &mut own).await?;
    for value in &mut own {
        // Newer than the last snapshot: nobody else has it.
        if *value & ((1 << TIME_BITS) - 1) >= u64::from(snapshotted_time) {
            *value = UNMAPPED;
        }
    }
    let mut found = Vec::new();
    if own.iter().all(|value| *value == UNMAPPED) {
        return Ok(found);
    }
    for (other, _) in metadata.devices().await? {
        let mut values = [UNMAPPED; PAGE_BLOCKS];
        metadata
            .lookup_range(other, page.start, &mut values)
            .await?;
        let same = |(a, b): (&u64, &u64)| *a != UNMAPPED && *a >> TIME_BITS == *b >> TIME_BITS;
        if other != id && own.iter().zip(&values).any(same) {
            found.push(other);
        }
    }
    Ok(found)
}
