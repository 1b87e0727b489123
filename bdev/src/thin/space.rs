//! What a pool does when it runs out of data or metadata space (thin.md 6).

use super::events::PoolEvent;
use super::map::{PoolMode, Thin};
use super::metadata::ThinMetadata;
use super::pool::Pool;
use crate::channel::Deferred;
use crate::errno::Errno;
use std::rc::Rc;
use std::sync::atomic::Ordering;

impl Pool {
    pub(super) fn update_space_modes(&self, metadata: &ThinMetadata) {
        self.check_low_metadata(metadata);
        if metadata.nr_free_metadata() <= metadata.metadata_reserve() {
            // Nothing could be committed any more: what has been changed meanwhile is, first. Metadata is tight,
            // so the next change commits.
            if metadata.changed() {
                return;
            }
            if !self.shared.mode().refuses_changes() {
                log::error!(
                    "pool '{}': out of metadata space, now read-only; grow the metadata bdev and reload the pool",
                    self.config.name
                );
                self.change_mode(PoolMode::OutOfMetadataSpace);
                self.fail_no_space(Errno::EIO, |_| true);
            }
        } else if self.shared.mode() == PoolMode::OutOfDataSpace && metadata.nr_free_data() > 0 {
            log::info!("pool '{}': data space is available again", self.config.name);
            self.change_mode(PoolMode::Write);
            self.no_space_errors.set(false);
            for waiting in self.no_space.take() {
                self.channels.retry(&waiting);
            }
        }
    }

    pub(super) fn out_of_data_space(&self) {
        if self.shared.mode() != PoolMode::Write {
            return;
        }
        log::error!(
            "pool '{}': out of data space; discard, delete devices, or grow the data bdev",
            self.config.name
        );
        self.change_mode(PoolMode::OutOfDataSpace);
        self.no_space_round.set(self.no_space_round.get() + 1);
    }

    /// Parks a write until there is space, or fails it where that is the pool's rule.
    pub(super) fn wait_for_space(&self, deferred: Deferred<Thin>) {
        self.count(|counters| counters.no_space += 1);
        match self.shared.mode() {
            PoolMode::Write => self.channels.retry(&deferred),
            PoolMode::OutOfDataSpace
                if self.config.error_if_no_space
                    || self.no_space_errors.get()
                    || deferred.volume.leaving.load(Ordering::Acquire) =>
            {
                self.channels.complete(&deferred, Err(Errno::ENOSPC));
            }
            PoolMode::OutOfDataSpace => {
                self.no_space.borrow_mut().push(deferred);
            }
            _ => self.channels.complete(&deferred, Err(Errno::EIO)),
        }
    }

    /// Fails those of the writes waiting for space that `which` picks.
    pub(super) fn fail_no_space(&self, errno: Errno, which: impl Fn(&Deferred<Thin>) -> bool) {
        let (failing, waiting) = self.no_space.take().into_iter().partition(&which);
        self.no_space.replace(waiting);
        let failing: Vec<Deferred<Thin>> = failing;
        for deferred in failing {
            self.channels.complete(&deferred, Err(errno));
        }
    }

    /// Fails the writes that wait for space when they have waited long enough (thin.md 6).
    pub(super) async fn watch_no_space(self: Rc<Self>) {
        let tick = self.config.no_space_timeout / 60;
        let mut seen = (0, 0);
        while !self.closed.get() && !tick.is_zero() {
            self.runtime.sleep(tick).await;
            let round = self.no_space_round.get();
            if self.shared.mode() != PoolMode::OutOfDataSpace || seen.0 != round {
                seen = (round, 0);
            } else if seen.1 < 60 {
                seen.1 += 1;
            } else if !self.no_space_errors.replace(true) {
                log::error!(
                    "pool '{}': no data space for {} s, failing queued writes",
                    self.config.name,
                    self.config.no_space_timeout.as_secs()
                );
                self.emit(PoolEvent::NoSpaceTimeout);
                self.fail_no_space(Errno::ENOSPC, |_| true);
            }
        }
    }
}
