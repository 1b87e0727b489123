//! The bdevs of a chain's deltas: taken, made known on every core, and let go when they have left the chain.

use super::{OpenPloop, refuse, whose};
use crate::bases::{self, Base, BaseClosed};
use crate::devices::Buffers;
use crate::held_bdev::HeldBdev;
use crate::life;
use crate::registry::Registry;
use bdev::errno::Errno;
use bdev::ploop::messages::DeltaName;
use bdev::ploop::status::DeltaStatus;
use bdev::ploop::{PloopError, Source};
use bdev::target::BaseId;
use rpc::RpcError;
use rpc::params::PloopCreate;
use spdk::base::{Descriptor, IoKind};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The bdev of a delta in use.
pub struct DeltaBdev {
    name: String,
    /// The owner's way to it.
    pub device: Rc<HeldBdev>,
    /// The other cores'.
    pub desc: Descriptor,
    closed: BaseClosed,
}

impl DeltaBdev {
    /// As the engine takes it.
    pub fn source(&self, base: BaseId) -> Source {
        Source {
            name: self.name.clone(),
            device: self.device.clone(),
            base,
            flushes: self.desc.info().supports(IoKind::Flush),
        }
    }

    /// Nobody uses it any more.
    fn let_go(self) -> BaseClosed {
        self.device.detach();
        self.closed
    }
}

impl OpenPloop {
    /// Closes the engine, and waits until the bdevs are closed.
    pub(super) async fn close(&self, name: &str) -> Result<(), PloopError> {
        self.ploop.let_go();
        let alone = self.alone.lock().await;
        let closed = self.ploop.close().await;
        if let Err(error) = &closed {
            log::error!("{error}");
        }
        self.bases.close();
        let deltas = self.deltas.take();
        let closing = deltas.into_values().map(DeltaBdev::let_go).collect();
        drop(alone);
        bases::wait_closed(&whose(name), closing).await;
        closed
    }
}

fn delta_name(delta: &DeltaStatus) -> String {
    let name = DeltaName {
        bdev: delta.name.clone(),
        raw: delta.version.is_none(),
    };
    name.to_string()
}

impl Registry {
    /// Opens and claims the bdev of a delta, and follows what happens to it.
    pub(super) fn take_delta(
        self: &Rc<Self>,
        target: &str,
        bdev: &str,
        buffers: &Rc<Buffers>,
    ) -> Result<DeltaBdev, RpcError> {
        let (name, removed) = (target.to_owned(), bdev.to_owned());
        let resized = name.clone();
        let events = life::follow(
            self,
            move |registry| {
                let (name, bdev) = (name.clone(), removed.clone());
                async move { registry.delta_removed(&name, &bdev).await }
            },
            move |registry| {
                let name = resized.clone();
                async move { registry.delta_resized(&name).await }
            },
        );
        let Base {
            desc,
            channel,
            closed,
        } = bases::take(&whose(target), bdev, 512, events)?;
        Ok(DeltaBdev {
            name: bdev.to_owned(),
            device: HeldBdev::new(channel, buffers.clone()),
            desc,
            closed,
        })
    }

    /// The same for a bdev that is to come into the chain of an open target: it is made known on every core.
    pub(super) async fn attach_delta(
        self: &Rc<Self>,
        open: &OpenPloop,
        target: &str,
        bdev: &str,
    ) -> Result<Source, RpcError> {
        let number = open.ploop.free_base().map_err(refuse(target))?;
        let delta = self.take_delta(target, bdev, &open.buffers)?;
        let source = delta.source(number);
        let desc = delta.desc.clone();
        open.deltas.borrow_mut().insert(number.0, delta);
        open.bases.add(number, desc).await.map_err(|errno| {
            RpcError::new(
                errno,
                format!(
                    "{}: no I/O channel of bdev '{bdev}': out of memory",
                    whose(target)
                ),
            )
        })?;
        Ok(source)
    }

    /// Does something that may change the chain, to the end, while nothing else does. Afterwards the chain is
    /// recorded, and bdevs that are not in it are let go. Error: EBUSY during another such thing.
    pub(super) async fn change<R>(
        self: &Rc<Self>,
        target: &str,
        work: impl AsyncFnOnce(&OpenPloop) -> Result<R, RpcError>,
    ) -> Result<R, RpcError> {
        let open = self.use_ploop(target)?;
        let _alone = open.alone.try_lock().ok_or_else(|| {
            RpcError::new(
                Errno::EBUSY,
                format!(
                    "{}: another message is being carried out; try again later",
                    whose(target)
                ),
            )
        })?;
        let result = work(&open).await;
        self.settle(&open, target).await;
        result
    }

    async fn settle(&self, open: &OpenPloop, target: &str) {
        let status = open.ploop.status();
        if let Some(entry) = self.ploops.borrow_mut().get_mut(target) {
            let params: &mut PloopCreate = &mut entry.params;
            params.top_bdev = status.top.name.clone();
            params.lower_bdevs = status.lower.iter().map(delta_name).collect();
        }
        let chain = status.lower.iter().chain([&status.top]);
        let chain: Vec<u8> = chain.map(|delta| delta.base.0).collect();
        let left: BTreeMap<u8, DeltaBdev> = {
            let mut deltas = open.deltas.borrow_mut();
            let (stay, left) = std::mem::take(&mut *deltas)
                .into_iter()
                .partition(|(number, _)| chain.contains(number));
            *deltas = stay;
            left
        };
        let mut closing = Vec::with_capacity(left.len());
        for (number, delta) in left {
            // The engine has waited for what was sent there when the delta left.
            let drained = std::future::ready(());
            open.bases.take_away(BaseId(number), drained).await;
            closing.push(delta.let_go());
        }
        bases::wait_closed(&whose(target), closing).await;
    }
}
