//! What RPCs and messages ask of an era target: checkpoints, metadata snapshots, which blocks were
//! written, growth, closing (era.md 4 to 6, 8).

use super::metadata::{EraError, EraMetadata, View};
use super::status::EraStatus;
use super::worker::{Era, EraTargetError};
use persistent_data::turn::yield_now;
use std::ops::Range;
use std::str::FromStr;
use tokio::sync::MutexGuard;

/// Blocks that are looked at in one go; between goes others get at the metadata.
const PAGE_BLOCKS: u64 = 1 << 14;

/// A message of device-mapper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A new era begins.
    Checkpoint,
    /// See [`Era::take_metadata_snap`].
    TakeMetadataSnap,
    /// See [`Era::drop_metadata_snap`].
    DropMetadataSnap,
}

impl FromStr for Message {
    type Err = String;

    /// One word in any case.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "checkpoint" => Ok(Message::Checkpoint),
            "take_metadata_snap" => Ok(Message::TakeMetadataSnap),
            "drop_metadata_snap" => Ok(Message::DropMetadataSnap),
            _ => Err(format!(
                "unknown message '{text}'; known are checkpoint, take_metadata_snap, drop_metadata_snap"
            )),
        }
    }
}

impl Era {
    fn error(&self, source: EraError) -> EraTargetError {
        EraTargetError::Metadata {
            era: self.config.name.clone(),
            source,
        }
    }

    fn check_open(&self) -> Result<(), EraTargetError> {
        match self.closed.get() {
            false => Ok(()),
            true => Err(EraTargetError::Closed {
                era: self.config.name.clone(),
            }),
        }
    }

    /// The metadata of a target that is open: also one that was closed while this waited says no.
    async fn lock_open(&self) -> Result<MutexGuard<'_, EraMetadata>, EraTargetError> {
        self.check_open()?;
        let metadata = self.metadata.lock().await;
        self.check_open()?;
        Ok(metadata)
    }

    /// Carries out a message of device-mapper. Error: EINVAL for an unknown one.
    pub async fn message(&self, text: &str) -> Result<(), EraTargetError> {
        let message = text.parse().map_err(|reason| EraTargetError::Invalid {
            era: self.config.name.clone(),
            reason,
        })?;
        match message {
            Message::Checkpoint => self.checkpoint().await.map(|_| ()),
            Message::TakeMetadataSnap => self.take_metadata_snap().await.map(|_| ()),
            Message::DropMetadataSnap => self.drop_metadata_snap().await,
        }
    }

    /// Begins a new era and returns it once that is durable. Every write that was on its way before is
    /// over, and recorded in an era before; every one that reaches the origin after the answer is
    /// recorded in the new era or later. After an error the era may have advanced all the same.
    pub async fn checkpoint(&self) -> Result<u32, EraTargetError> {
        let mut metadata = self.lock_open().await?;
        self.roll_over(&mut metadata, None).await
    }

    /// From the old era to the new, perhaps with more blocks.
    ///
    /// With the marks gone from the published bitmap, writes come to the owner, and wait there for the
    /// metadata; the barrier waits for those that were mapped before. So between the two commits no
    /// write is on its way, and none is recorded in an era that is over.
    async fn roll_over(
        &self,
        metadata: &mut EraMetadata,
        nr_blocks: Option<u64>,
    ) -> Result<u32, EraTargetError> {
        // Where nothing can be recorded, marks are not given up in vain.
        self.make_usable(metadata)
            .await
            .map_err(|error| self.error(error))?;
        self.dev.marks.clear();
        self.channels.barrier().await;
        let era = self
            .change(metadata, async |metadata| {
                if let Some(nr_blocks) = nr_blocks {
                    metadata.resize(nr_blocks).await?;
                }
                metadata.rollover().await
            })
            .await
            .map_err(|error| self.error(error))?;
        self.start_digest();
        Ok(era)
    }

    /// Begins a new era and keeps the state of all before it readable. Returns the block of the
    /// metadata snapshot. Error: EINVAL while there is one.
    pub async fn take_metadata_snap(&self) -> Result<u64, EraTargetError> {
        let mut metadata = self.lock_open().await?;
        self.make_usable(&mut metadata)
            .await
            .map_err(|error| self.error(error))?;
        if metadata.metadata_snap().is_some() {
            return Err(self.error(EraError::SnapHeld));
        }
        self.roll_over(&mut metadata, None).await?;
        self.change(&mut metadata, async |metadata| {
            metadata.take_metadata_snap().await
        })
        .await
        .map_err(|error| self.error(error))
    }

    /// Lets the metadata snapshot go. Error: EINVAL without one.
    pub async fn drop_metadata_snap(&self) -> Result<(), EraTargetError> {
        let mut metadata = self.lock_open().await?;
        self.change(&mut metadata, async |metadata| {
            metadata.drop_metadata_snap().await
        })
        .await
        .map_err(|error| self.error(error))
    }

    /// Data blocks a view covers, and its current era. Error: EINVAL without a metadata snapshot.
    pub async fn extent(&self, view: View) -> Result<(u64, u32), EraTargetError> {
        let mut metadata = self.lock_open().await?;
        let result = match self.make_usable(&mut metadata).await {
            Ok(()) => metadata.extent(view).await,
            Err(error) => Err(error),
        };
        result.map_err(|error| self.error(error))
    }

    /// The blocks of `range` that were written in `era` or later, as ranges in ascending order that do
    /// not touch; for every block the answer is at least as new as the call. Writes go on meanwhile.
    ///
    /// Errors: EINVAL without a metadata snapshot, or when that is dropped meanwhile.
    pub async fn written_since(
        &self,
        view: View,
        era: u32,
        range: Range<u64>,
    ) -> Result<Vec<Range<u64>>, EraTargetError> {
        let (nr_blocks, held_era) = self.extent(view).await?;
        let end = range.end.min(nr_blocks);
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut from = range.start;
        while from < end {
            let until = end.min(from + PAGE_BLOCKS);
            for run in self.page(view, era, from..until, held_era).await? {
                match found.last_mut() {
                    Some(last) if last.end == run.start => last.end = run.end,
                    _ => found.push(run),
                }
            }
            from = until;
        }
        Ok(found)
    }

    async fn page(
        &self,
        view: View,
        era: u32,
        range: Range<u64>,
        held_era: u32,
    ) -> Result<Vec<Range<u64>>, EraTargetError> {
        // Who waits for the metadata since the page before gets it first: the lock alone is not fair.
        yield_now().await;
        let mut metadata = self.lock_open().await?;
        let result = async {
            self.make_usable(&mut metadata).await?;
            // Another snapshot is of another era.
            if view == View::Snapshot && metadata.extent(view).await?.1 != held_era {
                return Err(EraError::NoSnapHeld);
            }
            metadata.written_since(view, era, range).await
        };
        result.await.map_err(|error| self.error(error))
    }

    /// Takes up what the devices below have grown by. New blocks were never written; a larger origin
    /// begins a new era.
    pub async fn grow(&self) -> Result<(), EraTargetError> {
        let mut metadata = self.lock_open().await?;
        self.make_usable(&mut metadata)
            .await
            .map_err(|error| self.error(error))?;
        if metadata.metadata_device_has_grown() {
            self.change(&mut metadata, async |metadata| {
                metadata.resize_metadata().await
            })
            .await
            .map_err(|error| self.error(error))?;
        }
        let block_sectors = u64::from(self.config.block_size_sectors);
        let nr_blocks = self.origin.nr_sectors().div_ceil(block_sectors);
        if self.config.nr_sectors.is_none() && nr_blocks > metadata.nr_blocks() {
            self.roll_over(&mut metadata, Some(nr_blocks)).await?;
        }
        // Also when a growth that was answered with an error did happen.
        self.dev.marks.grow(metadata.nr_blocks());
        Ok(())
    }

    /// The target's state.
    pub async fn status(&self) -> Result<EraStatus, EraTargetError> {
        let mut metadata = self.lock_open().await?;
        let usable = self.make_usable(&mut metadata).await;
        Ok(EraStatus::gather(self, &metadata, usable.err()))
    }

    /// Ends the current era and the service. No I/O may be under way or come. The target is closed also
    /// when this fails: then the era found at the next opening is archived there.
    pub async fn close(&self) -> Result<(), EraTargetError> {
        self.check_open()?;
        self.closed.set(true);
        self.drain_tasks().await;
        self.channels.barrier().await;
        let mut metadata = self.metadata.lock().await;
        let archived = self
            .change(&mut metadata, async |metadata| metadata.archive().await)
            .await;
        self.end_service();
        archived.map_err(|error| self.error(error))
    }
}
