//! An era bdev as SPDK sees it.

use super::saved;
use crate::host::EraChannel;
use crate::registry::{call, registry};
use bdev::channel::{ToOwner, VolumeHandle};
use bdev::era::{Era, EraDev, EraTarget};
use bdev::errno::Errno;
use bdev::target::{IoKind as Kind, Request};
use futures::channel::mpsc::UnboundedSender;
use rpc::params::EraCreate;
use spdk::base::{Descriptor, IoKind};
use spdk::vbdev::{BdevIo, Destructed, Driver};
use std::rc::Rc;
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
            io_kinds: of_origin
                | IoKind::Read.bit()
                | IoKind::Write.bit()
                | IoKind::Flush.bit()
                | IoKind::Reset.bit()
                | IoKind::Abort.bit(),
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
            dev: Rc::new(self.dev.clone()),
            target: EraChannel::new(&origin, self.owner.clone())?,
        })
    }

    #[inline]
    fn submit(channel: &EraBdevChannel, io: BdevIo, kind: IoKind, offset: u64, nr_blocks: u64) {
        let kind = match kind {
            IoKind::Read => Kind::Read,
            IoKind::Write => Kind::Write,
            IoKind::Flush => Kind::Flush,
            IoKind::Unmap => Kind::Discard,
            IoKind::WriteZeroes => Kind::WriteZeroes,
            IoKind::Reset => Kind::Reset,
            IoKind::Abort => {
                let aborted = channel.target.engine.abort(io.id_to_abort());
                // Not parked: it is on its way, and will end by itself.
                return io.complete(if aborted { 0 } else { Errno::EIO.0 });
            }
            IoKind::Other => return io.complete(Errno::EOPNOTSUPP.0),
        };
        let request = Request {
            kind,
            offset_blocks: offset,
            nr_blocks,
        };
        channel.target.engine.submit(&channel.dev, request, io);
    }

    #[inline]
    fn forwarded(channel: &EraBdevChannel, io: BdevIo, ticket: u64, ok: bool) {
        let result = if ok { Ok(()) } else { Err(Errno::EIO) };
        let ticket = bdev::channel::Ticket::from_raw(ticket);
        channel.target.engine.forwarded(io, ticket, result);
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
