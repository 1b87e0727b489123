//! Growing a device while it is in use (ploop.md, Messages, resize).
//!
//! First the clusters in the way of a longer BAT move, one by one; when the disk names none of them any
//! more, the new part of the BAT is cleared; then the header says so. A crash in between leaves the image as
//! it was, with some clusters elsewhere.

use super::error::PloopError;
use super::events::PloopEvent;
use super::image::header::{HEADER_SLOTS, PAGE_SLOTS, bat_end_sectors};
use super::image::{Header, Version};
use super::map::Place;
use super::owner::Ploop;
use crate::errno::Errno;

impl Ploop {
    /// Grows the device to so many sectors: a whole number of clusters. What is new reads as zeroes, or as a
    /// lower delta has it. Errors: EINVAL, EBUSY, ENOSPC when there is no room for clusters in the way.
    pub async fn resize(&self, nr_sectors: u64) -> Result<(), PloopError> {
        let _message = self.begin_change()?;
        let top = self.top();
        let Some(header) = top.header() else {
            return Err(self.invalid("the top delta is raw"));
        };
        if nr_sectors == header.nr_sectors {
            // An attempt to grow that failed may be on the disk all the same.
            let sure = match top.is_sick() {
                true => self.make_durable().await,
                false => Ok(()),
            };
            return sure.map_err(self.device_error("writing the header"));
        }
        let new = self.larger(&header, nr_sectors)?;
        if top.has_extension() {
            return Err(self.invalid(
                "the image has a format extension, whose bitmaps are of its size; convert it to one without ('spdk-dm ploop convert')",
            ));
        }
        if self.is_suspended() {
            return Err(self.busy("it is suspended; resume it first"));
        }
        if new.data_sectors != header.data_sectors {
            if new.data() > top.source.device.nr_sectors() {
                return Err(PloopError::NoSpace(top.source.name.clone()));
            }
            self.clear_the_way(new.data()).await?;
        }
        let prepared = self.clear_new_entries(&header, &new).await;
        prepared.map_err(self.device_error("clearing the new part of the BAT"))?;
        let held = self.hold().await;
        let written = top.write_header(new).await;
        if written.is_ok() {
            let before = self.nr_clusters();
            self.dev
                .set_nr_logical_blocks(nr_sectors / self.block_sectors());
            self.note_changed(before..self.nr_clusters());
            // A lower delta may have clusters there.
            self.cache.forget(&self.dev, &self.channels).await;
        } else {
            self.note_sick();
        }
        self.serve_again(held);
        written.map_err(self.device_error("writing the header"))?;
        self.emit(PloopEvent::Resized { nr_sectors });
        Ok(())
    }

    fn invalid(&self, why: &str) -> PloopError {
        PloopError::Invalid(format!("ploop '{}': {why}", self.config.name))
    }

    /// The header of the larger image.
    fn larger(&self, header: &Header, nr_sectors: u64) -> Result<Header, PloopError> {
        let cluster = header.cluster();
        if nr_sectors < header.nr_sectors || !nr_sectors.is_multiple_of(cluster) {
            return Err(self.invalid(&format!(
                "a size of {nr_sectors} sectors is not possible: it must be a multiple of {cluster}, and not less than {}",
                header.nr_sectors
            )));
        }
        let nr_entries = nr_sectors / cluster;
        let v1_ends = header.version == Version::V1 && nr_sectors > u64::from(u32::MAX);
        if nr_entries > self.capacity || v1_ends {
            return Err(self.invalid(&format!(
                "it cannot grow to {nr_sectors} sectors while it is in service; close it and open it again, or convert it"
            )));
        }
        let nr_entries = u32::try_from(nr_entries)
            .unwrap_or(u32::MAX)
            .max(header.nr_entries);
        // Clusters stay aligned to where data begins.
        let more = bat_end_sectors(nr_entries).saturating_sub(header.data());
        let data = header.data() + more.next_multiple_of(cluster);
        let data_sectors = u32::try_from(data)
            .map_err(|_| self.invalid("the BAT would be too long; use larger clusters"))?;
        Ok(Header {
            nr_entries,
            nr_sectors,
            data_sectors,
            ..*header
        })
    }

    /// Moves everything that lies before a sector, durably; nothing comes there any more.
    async fn clear_the_way(&self, end: u64) -> Result<(), PloopError> {
        // Nobody is between taking a cluster and having the BAT name it.
        let held = self.hold().await;
        let mended = self.mend().await;
        if mended.is_ok()
            && let Some(space) = &mut *self.top().space.borrow_mut()
        {
            space.set_floor(end);
        }
        self.serve_again(held);
        mended.map_err(self.device_error("writing the BAT"))?;
        let top = self.top();
        for page in 0..top.nr_pages() {
            let places = {
                let _locked = top.lock_page(page).await;
                top.places(page).await
            };
            let places = places.map_err(self.device_error("reading the BAT"))?;
            for (slot, place) in (page * PAGE_SLOTS..).zip(places) {
                if let Some(cluster) = slot.checked_sub(HEADER_SLOTS)
                    && place.is_some_and(|place| place < end)
                {
                    self.relocate(cluster, end)
                        .await
                        .map_err(|errno| match errno {
                            Errno::ENOSPC => PloopError::NoSpace(top.source.name.clone()),
                            errno => self.device_error("moving a cluster")(errno),
                        })?;
                }
            }
        }
        let durable = self.make_durable().await;
        durable.map_err(self.device_error("flushing"))
    }

    /// Moves a cluster of the top delta, if it lies before a sector.
    async fn relocate(&self, cluster: u64, end: u64) -> Result<(), Errno> {
        let _locked = self.clusters.lock_block(0, cluster).await;
        let top = self.top();
        let old = self.resolve(cluster).await?;
        let Place::At { block, shadows, .. } = old else {
            return Ok(());
        };
        let from = block * self.block_sectors();
        if !self.is_in(&top, old) || from >= end {
            return Ok(());
        }
        let frozen = self.freeze(vec![cluster]).await;
        let moved = async {
            let to = self.allocate(&top)?;
            let filled = self.fill(&top, to, old, 0..0).await;
            self.link(&top, cluster, to, Place::Hole, filled).await?;
            Ok(to)
        };
        match moved.await {
            Ok(to) => {
                self.count(|counters| counters.moved += 1);
                top.free(from);
                frozen.thaw(&[(cluster, self.place_in(&top, to, shadows))]);
                Ok(())
            }
            Err(errno) => {
                frozen.thaw(&[(cluster, old)]);
                Err(errno)
            }
        }
    }

    /// Everything between the present BAT and the new data area reads as holes.
    async fn clear_new_entries(&self, header: &Header, new: &Header) -> Result<(), Errno> {
        let top = self.top();
        self.note_unsettled();
        let errors = top.nr_flush_errors();
        let last = header.nr_pages().saturating_sub(1);
        {
            // Behind the last entry there may be anything.
            let _locked = top.lock_page(last).await;
            let written = top.write_entries(last, &[]).await;
            if written.is_err() {
                self.note_sick();
            }
            written.map_err(|error| error.errno())?;
        }
        let block = self.block_sectors();
        let first = bat_end_sectors(header.nr_entries).next_multiple_of(block);
        let end = bat_end_sectors(new.nr_entries).next_multiple_of(block);
        if first < end {
            top.source.device.zero(first, end - first).await?;
        }
        self.flush_delta(&top).await?;
        // What another flush has lost this one does not tell.
        match errors == top.nr_flush_errors() {
            true => Ok(()),
            false => Err(Errno::EIO),
        }
    }
}
