//! The bdevs of an origin and its snapshots as SPDK sees them.

use super::host::SnapshotChannel;
use crate::host::ALWAYS_TAKEN;
use crate::registry::registry;
use bdev::channel::VolumeHandle;
use bdev::snapshot::{SnapshotTarget, Volume};
use spdk::base::IoKind;
use spdk::io_device::{IoChannel, IoDevice};
use spdk::vbdev::{BdevIo, Destructed, Driver};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whose bdev it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    /// The origin target.
    pub origin: String,
    /// The snapshot, if it is one's.
    pub snapshot: Option<String>,
}

/// The bdev.
pub struct SnapshotDriver {
    volume: Arc<Volume>,
    /// Let go before SPDK hears that the bdev is gone.
    channels: Mutex<Option<Arc<IoDevice<SnapshotChannel>>>>,
    discards: bool,
    whose: Whose,
    info: String,
    config: String,
}

impl SnapshotDriver {
    /// Of an open target. `info`: what `bdev_get_bdevs` shows, as JSON;
    /// `config`: its call in configurations.
    pub fn new(
        volume: Arc<Volume>,
        channels: Arc<IoDevice<SnapshotChannel>>,
        discards: bool,
        whose: Whose,
        info: String,
        config: String,
    ) -> Self {
        SnapshotDriver {
            volume,
            channels: Mutex::new(Some(channels)),
            discards,
            whose,
            info,
            config,
        }
    }

    fn channels(&self) -> MutexGuard<'_, Option<Arc<IoDevice<SnapshotChannel>>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bdev's channel: the target's of this core.
pub struct SnapshotBdevChannel {
    dev: VolumeHandle<SnapshotTarget>,
    target: IoChannel<SnapshotChannel>,
}

impl Driver for SnapshotDriver {
    type Channel = SnapshotBdevChannel;

    fn create_channel(&self) -> Option<SnapshotBdevChannel> {
        let channels = self.channels().clone()?;
        Some(SnapshotBdevChannel {
            dev: Rc::new(self.volume.clone()),
            target: channels.channel()?,
        })
    }

    #[inline]
    fn submit(
        channel: &SnapshotBdevChannel,
        io: BdevIo,
        kind: IoKind,
        offset: u64,
        nr_blocks: u64,
    ) {
        let dev = &channel.dev;
        channel.target.submit(dev, io, kind, offset, nr_blocks);
    }

    #[inline]
    fn forwarded(channel: &SnapshotBdevChannel, io: BdevIo, ticket: u64, ok: bool) {
        channel.target.forwarded(io, ticket, ok);
    }

    /// Zeroes come as writes, as in the kernel: SPDK makes them, in pieces.
    fn io_kinds(&self) -> u32 {
        match self.discards {
            true => ALWAYS_TAKEN | IoKind::Unmap.bit(),
            false => ALWAYS_TAKEN,
        }
    }

    fn destruct(&self, done: Destructed) {
        drop(self.channels().take());
        match registry() {
            Some(registry) => {
                let whose = self.whose.clone();
                spdk::executor::spawn(registry.snapshot_bdev_gone(whose, done));
            }
            None => drop(done),
        }
    }

    fn info(&self) -> (&'static str, String) {
        let name = match self.whose.snapshot {
            Some(_) => "snapshot",
            None => "snapshot_origin",
        };
        (name, self.info.clone())
    }

    /// Origins and snapshots are in the module's configuration: they must all be declared before the first
    /// of their bdevs comes, so that an origin is not written to without its snapshots.
    fn config(&self) -> String {
        self.config.clone()
    }
}
