//! A store changes hands (snapshot.md 8), and what else changes while an origin is in service.
//!
//! Whoever had the store is Invalid from then on and answers with errors; the header stays valid.

use super::error::SnapshotError;
use super::layout::Layout;
use super::map::State;
use super::owner::{Origin, Snapshot, SnapshotConfig};
use super::table::StoreKind;
use crate::device::{DataDevice, SECTOR_BYTES};
use std::rc::Rc;

impl Origin {
    /// Ends a snapshot's service while all I/O of the origin waits at the closed gate; says how it was.
    pub(super) async fn retire(&self, snapshot: &Rc<Snapshot>) -> State {
        self.gate.close();
        self.publish_view(true, None);
        snapshot.gone.set(true);
        self.channels.barrier().await;
        snapshot.tasks.drained().await;
        while snapshot.draining.get() {
            let _ = snapshot.drained.heard().await;
        }
        let was = snapshot.state();
        snapshot.set_state(State::Invalid);
        self.channels.barrier().await;
        was
    }

    /// Gives the store of a snapshot to another one, of the same length, with its own options; the chunk
    /// size is the store's. How the snapshot was, Invalid and Overflow too, goes along. Nothing is read.
    pub async fn hand_over(
        &self,
        from: &str,
        config: SnapshotConfig,
    ) -> Result<Rc<Snapshot>, SnapshotError> {
        let _alone = self.reconfigure.lock().await;
        self.check_open()?;
        if self.snapshot(&config.name).is_some() {
            return Err(SnapshotError::Exists(config.name));
        }
        let Some(source) = self.snapshot(from) else {
            return Err(SnapshotError::NoSnapshot(from.to_owned()));
        };
        if source.gone.get() {
            return Err(SnapshotError::Handover);
        }
        let is_transient = |config: &SnapshotConfig| config.store == StoreKind::Transient;
        if is_transient(&config) != is_transient(&source.config) {
            return Err(SnapshotError::Invalid(format!(
                "snapshot '{}': the store of '{from}' is of kind {}",
                config.name, source.config.store
            )));
        }
        let nr_logical = source.volume.nr_logical_blocks();
        if self.length(&config)? / self.sectors_per_logical() != nr_logical {
            return Err(SnapshotError::Invalid(format!(
                "snapshot '{}': it must be as long as '{from}', which hands its store over: {} sectors",
                config.name,
                nr_logical * self.sectors_per_logical()
            )));
        }
        let was = self.retire(&source).await;
        let heir = self.new_snapshot(config, source.cow.clone(), was, nr_logical);
        self.add(&heir);
        if source.header_unsure.get() {
            self.invalidate_header_later(&heir);
        }
        self.gate.open();
        self.publish_view(false, None);
        Ok(heir)
    }

    /// A chunk of the store that lies partly behind the snapshotted part would bring foreign bytes there.
    pub(super) fn check_mergeable(
        &self,
        config: &SnapshotConfig,
        layout: Layout,
    ) -> Result<(), SnapshotError> {
        let length = self.length(config)?;
        let fits = length == self.nr_sectors() || length.is_multiple_of(layout.chunk_sectors());
        match fits {
            true => Ok(()),
            false => Err(SnapshotError::Invalid(format!(
                "snapshot '{}': its last chunk ends behind its {length} sectors, and the origin is longer: it cannot be merged",
                config.name
            ))),
        }
    }

    /// Takes a larger size of the origin device over; sectors of the origin now. Existing snapshots keep
    /// their length. Error: a snapshot whose last chunk ends behind the old size keeps the origin from it.
    pub async fn grow(&self) -> Result<u64, SnapshotError> {
        let _alone = self.reconfigure.lock().await;
        self.check_open()?;
        let (old, now) = (self.nr_sectors(), self.device.nr_sectors());
        if now <= old {
            return Ok(old);
        }
        let unfit = |layout: Layout| !old.is_multiple_of(layout.chunk_sectors());
        let of_snapshot = self
            .snapshots
            .borrow()
            .iter()
            .find(|snapshot| unfit(snapshot.cow.layout()))
            .map(|snapshot| snapshot.config.name.clone());
        let of_merge = self
            .merge()
            .filter(|merge| merge.shown().is_some() && unfit(merge.cow.layout()))
            .map(|merge| merge.name().to_owned());
        if let Some(name) = of_snapshot.or(of_merge) {
            return Err(SnapshotError::Invalid(format!(
                "origin '{}' keeps its {old} sectors: they are no whole number of chunks of snapshot '{name}'; delete it, or let its merge end",
                self.config.name
            )));
        }
        if let Some(dev) = self.origin_dev() {
            let nr_logical = now * SECTOR_BYTES / u64::from(self.device.block_bytes());
            dev.set_nr_logical(nr_logical);
            let view = dev.view();
            if !view.passes {
                // Room for marks of the new part.
                self.publish_view(view.held, Some(view.shift));
            }
        }
        Ok(now)
    }

    /// Whether a merge has not ended: the origin shows the content of its store.
    pub fn is_merging(&self) -> bool {
        self.merge().is_some_and(|merge| merge.shown().is_some())
    }

    /// Most bytes merged per second from now on; 0: as many as can be.
    pub fn set_merge_rate(&self, bytes_per_second: u64) {
        self.merge_bytes_per_second.set(bytes_per_second);
    }

    /// Declares a snapshot unusable: its COW device has missed something.
    pub fn invalidate_snapshot(&self, name: &str, reason: &str) -> Result<(), SnapshotError> {
        let snapshot = self
            .snapshot(name)
            .ok_or_else(|| SnapshotError::NoSnapshot(name.to_owned()))?;
        self.invalidate(&snapshot, reason.to_owned());
        Ok(())
    }

    /// Completes when all I/O that was sent to any device before is over.
    pub async fn drain(&self) {
        self.channels.barrier().await;
    }
}
