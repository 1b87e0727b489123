//! An era bdev as SPDK sees it.

use super::saved;
use crate::host::{ALWAYS_TAKEN, EraChannel, SpdkHost};
use crate::registry::{call, registry};
use bdev::channel::{OnCore, ToOwner, VolumeHandle};
use bdev::era::{Era, EraDev, EraTarget};
use futures::channel::mpsc::UnboundedSender;
use rpc::params::EraCreate;
use spdk::base::{Descriptor, IoKind};
use spdk::passage::{Course, Passage};
use spdk::vbdev::{BdevIo, Destructed, Driver};
use std::sync::{Arc, Mutex, PoisonError};

/// The bdev.
pub struct EraDriver {
    dev: Arc<EraDev>,
    owner: UnboundedSender<ToOwner<EraTarget>>,
    /// Let go before SPDK hears that the bdev is gone.
    origin: Mutex<Option<Descriptor>>,
    io_kinds: u32,
    params: EraCreate,
}

impl EraDriver {
    /// Of an open target.
    pub fn new(params: &EraCreate, era: &Era, origin: Descriptor) -> Self {
        let info = origin.info();
        // What the origin does not know is not offered: SPDK makes writes of it, which are recorded, too.
        let of_origin = [IoKind::Unmap, IoKind::WriteZeroes]
            .into_iter()
            .filter(|kind| info.supports(*kind))
            .fold(0, |kinds, kind| kinds | kind.bit());
        EraDriver {
            dev: era.dev().clone(),
            owner: era.owner_queue(),
            origin: Mutex::new(Some(origin)),
            io_kinds: of_origin | ALWAYS_TAKEN,
            params: params.clone(),
        }
    }

    fn origin(&self) -> std::sync::MutexGuard<'_, Option<Descriptor>> {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bdev's channel.
pub struct EraBdevChannel {
    dev: VolumeHandle<EraTarget>,
    target: EraChannel,
}

impl Driver for EraDriver {
    type Channel = EraBdevChannel;

    fn create_channel(&self) -> Option<EraBdevChannel> {
        let origin = self.origin().clone()?;
        Some(EraBdevChannel {
            dev: OnCore::new(self.dev.clone()),
            target: EraChannel::new(SpdkHost::new(&origin)?, self.owner.clone())?,
        })
    }

    const ASKS: bool = true;

    #[inline(always)]
    fn plain(channel: &EraBdevChannel, kind: IoKind, offset: u64, nr: u64) -> Option<Course> {
        channel.target.plain(&channel.dev, kind, offset, nr)
    }

    #[inline]
    fn submit(channel: &EraBdevChannel, io: BdevIo, kind: IoKind, offset: u64, nr_blocks: u64) {
        let dev = &channel.dev;
        channel.target.submit(dev, io, kind, offset, nr_blocks);
    }

    fn passage(channel: &EraBdevChannel) -> Option<Passage> {
        channel.target.passage(&channel.dev)
    }

    #[inline]
    fn forwarded(channel: &EraBdevChannel, io: BdevIo, ticket: u64, ok: bool) {
        channel.target.forwarded(io, ticket, ok);
    }

    fn io_kinds(&self) -> u32 {
        self.io_kinds
    }

    fn destruct(&self, done: Destructed) {
        drop(self.origin().take());
        match registry() {
            Some(registry) => {
                spdk::executor::spawn(registry.era_destructed(self.params.name.clone(), done));
            }
            None => drop(done),
        }
    }

    fn info(&self) -> (&'static str, String) {
        let info = serde_json::json!({
            "metadata_bdev": self.params.metadata_bdev,
            "origin_bdev": self.params.origin_bdev,
            "block_size_sectors": self.params.block_size_sectors,
        });
        ("era", info.to_string())
    }

    fn config(&self) -> String {
        call("era_create", &saved(&self.params))
    }
}
