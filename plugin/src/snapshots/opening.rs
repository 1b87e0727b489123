//! Opening an origin with all that was declared of it, and closing it.

use super::bdevs::{SnapshotDriver, Whose};
use super::{Cow, OpenOrigin, OriginEntry, What, no_snapshot, nr_sectors, whose};
use crate::bases::{self, Base, MAX_CACHE_MIB};
use crate::devices::Buffers;
use crate::held_bdev::HeldBdev;
use crate::host::SpdkRuntime;
use crate::life::{self, Life};
use crate::moving_bases::MovingBases;
use crate::registry::Registry;
use bdev::errno::Errno;
use bdev::snapshot::map::ORIGIN;
use bdev::snapshot::{Origin, OriginConfig, SnapshotEvent};
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::SnapshotOriginCreate;
use serde_json::json;
use spdk::base::IoKind;
use spdk::vbdev::{Params, Vbdev};
use std::collections::BTreeMap;
use std::rc::Rc;

impl Registry {
    /// Declares an origin target, and opens it unless it may wait for its bdevs.
    pub async fn create_origin(self: &Rc<Self>, params: SnapshotOriginCreate) -> Answer {
        let (name, wait) = (params.name.clone(), params.wait);
        self.check_free(&name)?;
        if params.exceptions_cache_mib > MAX_CACHE_MIB {
            return Err(RpcError::invalid(format!(
                "origin '{name}': a cache of more than {MAX_CACHE_MIB} MiB"
            )));
        }
        let entry = OriginEntry {
            params,
            life: Life::default(),
            half_open: None,
            deleting: false,
            vbdev: None,
            registered: false,
            closed: None,
            snapshots: BTreeMap::new(),
            unregistering: None,
            alone: Rc::default(),
        };
        let ready = entry.can_open();
        self.origins.borrow_mut().insert(name.clone(), entry);
        if wait && !ready {
            return Ok(json!(name));
        }
        if let Err(error) = self.open_snapshot_origin(&name).await {
            self.origins.borrow_mut().remove(&name);
            return Err(error);
        }
        Ok(json!(name))
    }

    /// Opens a declared origin that is waiting; any other is left alone.
    pub async fn open_snapshot_origin(self: &Rc<Self>, name: &str) -> Result<(), RpcError> {
        let lock = self.origin_lock(name)?;
        let alone = lock.lock().await;
        let params = {
            let mut origins = self.origins.borrow_mut();
            let entry = origins.get_mut(name).ok_or_else(|| no_snapshot(name))?;
            if !entry.life.begin_opening() {
                return Ok(());
            }
            entry.params.clone()
        };
        let mut result = self.open_all(&params).await;
        let mut unwanted = None;
        {
            let mut origins = self.origins.borrow_mut();
            let entry = origins.get_mut(name).ok_or_else(|| no_snapshot(name))?;
            match &result {
                Ok(open) if !entry.life.is_to_close() => {
                    entry.half_open = None;
                    drop(entry.life.opened(open.clone(), Vec::new()));
                }
                Ok(_) => {
                    result = Err(life::removed_meanwhile(&whose(name)));
                    unwanted = entry.life.failure().map(str::to_owned);
                }
                Err(_) => entry.life.note_closing(),
            }
        }
        if let Err(error) = &result {
            // Everything that was opened so far.
            self.unregister_all(name).await;
            self.close_all(name).await;
            let failure = unwanted.unwrap_or_else(|| error.message.clone());
            if let Some(entry) = self.origins.borrow_mut().get_mut(name) {
                entry.life.closed(Some(failure));
            }
        }
        drop(alone);
        self.finish_if_closed();
        result.map(drop)
    }

    async fn open_all(
        self: &Rc<Self>,
        params: &SnapshotOriginCreate,
    ) -> Result<Rc<OpenOrigin>, RpcError> {
        let name = &params.name;
        let open = self.take_origin(params)?;
        let declared: Vec<String> = {
            let mut origins = self.origins.borrow_mut();
            let entry = origins.get_mut(name).ok_or_else(|| no_snapshot(name))?;
            entry.half_open = Some(open.clone());
            let declared = entry.snapshots.iter().filter(|(_, s)| s.is_declared());
            // A merge comes last: the others must not miss what it changes.
            let (mut snapshots, merges): (Vec<_>, Vec<_>) =
                declared.partition(|(_, snapshot)| matches!(snapshot.what, What::Snapshot(_)));
            snapshots.extend(merges);
            snapshots
                .into_iter()
                .map(|(name, _)| name.clone())
                .collect()
        };
        for snapshot in &declared {
            self.bring_up(&open, name, snapshot).await?;
        }
        let vbdev = register_origin(params, &open)?;
        {
            let mut origins = self.origins.borrow_mut();
            let entry = origins.get_mut(name).ok_or_else(|| no_snapshot(name))?;
            entry.vbdev = Some(vbdev);
            entry.registered = true;
        }
        for snapshot in &declared {
            self.register_snapshot(&open, name, snapshot)?;
        }
        log::info!("origin '{name}' is open");
        Ok(open)
    }

    fn take_origin(
        self: &Rc<Self>,
        params: &SnapshotOriginCreate,
    ) -> Result<Rc<OpenOrigin>, RpcError> {
        let name = &params.name;
        let (target, removed) = (name.clone(), params.origin_bdev.clone());
        let resized = name.clone();
        let events = life::follow(
            self,
            move |registry| {
                let (target, bdev) = (target.clone(), removed.clone());
                async move { registry.origin_bdev_removed(&target, &bdev).await }
            },
            move |registry| {
                let target = resized.clone();
                async move { registry.origin_resized(&target).await }
            },
        );
        let Base {
            desc,
            channel,
            closed,
        } = bases::take(&whose(name), &params.origin_bdev, 512, events)?;
        let info = desc.info();
        if let Some(sectors) = params.size_sectors
            && (sectors > nr_sectors(&desc)
                || !(sectors * 512).is_multiple_of(u64::from(info.block_bytes)))
        {
            return Err(RpcError::invalid(format!(
                "origin '{name}': a size of {sectors} sectors does not fit bdev '{}', which has {}, in blocks of {} bytes",
                params.origin_bdev,
                nr_sectors(&desc),
                info.block_bytes
            )));
        }
        let buffers = Rc::<Buffers>::default();
        let device = HeldBdev::new(channel, buffers.clone());
        let config = OriginConfig {
            exceptions_cache_bytes: params.exceptions_cache_mib << 20,
            ..OriginConfig::new(name)
        };
        let flushes = info.supports(IoKind::Flush);
        let origin = Origin::open(config, SpdkRuntime::new(), device.clone(), flushes)
            .map_err(|error| RpcError::new(error.errno(), format!("origin '{name}': {error}")))?;
        let bases = MovingBases::new(name, origin.owner_queue(), [(ORIGIN, desc.clone())])
            .ok_or_else(|| RpcError::new(Errno::ENOMEM, "out of memory"))?;
        let target = name.clone();
        origin
            .watch(move |event| spdk::logging::notify(event.name(), &notification(&target, event)));
        if let Some(entry) = self.origins.borrow_mut().get_mut(name) {
            entry.closed = Some(closed);
        }
        Ok(Rc::new(OpenOrigin {
            origin,
            device,
            base: desc,
            bases,
            buffers,
        }))
    }

    /// Unregisters the bdevs of an origin and its snapshots.
    pub(super) async fn unregister_all(&self, name: &str) {
        let bdevs: Vec<Vbdev> = {
            let mut origins = self.origins.borrow_mut();
            let Some(entry) = origins.get_mut(name) else {
                return;
            };
            let of_snapshots = entry.snapshots.values_mut();
            let bdevs: Vec<_> = of_snapshots
                .filter_map(|entry| entry.vbdev.take())
                .collect();
            entry.vbdev.take().into_iter().chain(bdevs).collect()
        };
        futures::future::join_all(bdevs.into_iter().map(Vbdev::unregister)).await;
    }

    /// Closes what is open of an origin, whose bdevs are gone, and waits until its base bdevs are closed.
    pub(super) async fn close_all(&self, name: &str) {
        let (open, closed, cows) = {
            let mut origins = self.origins.borrow_mut();
            let Some(entry) = origins.get_mut(name) else {
                return;
            };
            let before = entry.life.begin_closing();
            let was_open = before.is_some();
            if !was_open {
                entry.life.give_up();
            }
            let open = before.map(|(open, _)| open).or(entry.half_open.take());
            entry.snapshots.retain(|_, snapshot| !snapshot.handed_over);
            for (snapshot_name, snapshot) in &mut entry.snapshots {
                // What it has missed by now must not be forgotten.
                snapshot.missed |= open.as_ref().is_some_and(|open| {
                    let status = open.origin.snapshot(snapshot_name).map(|s| s.status());
                    status.is_some_and(|status| status.header_unsure)
                });
                snapshot.lost = false;
            }
            let cows = entry.snapshots.values_mut();
            let cows: Vec<Cow> = cows.filter_map(|entry| entry.cow.take()).collect();
            // In memory only, and so gone. One that was never made stays for the next attempt.
            if was_open {
                entry
                    .snapshots
                    .retain(|_, snapshot| !snapshot.is_transient());
            }
            (open, entry.closed.take(), cows)
        };
        if let Some(open) = open {
            if let Err(error) = open.origin.close().await {
                log::error!("{error}");
            }
            open.device.detach();
            open.bases.close();
        }
        let mut bases: Vec<_> = closed.into_iter().collect();
        for cow in cows {
            cow.device.detach();
            bases.extend(cow.closed);
        }
        bases::wait_closed(&whose(name), bases).await;
        if let Some(entry) = self.origins.borrow_mut().get_mut(name) {
            entry.life.closed(None);
        }
        log::info!("origin '{name}' is closed");
    }

    /// Waits while an origin is being opened.
    pub async fn wait_origin_opening(&self, name: &str) {
        let is_opening = {
            let origins = self.origins.borrow();
            let entry = origins.get(name);
            entry.is_some_and(|entry| entry.life.is_opening())
        };
        if is_opening && let Ok(lock) = self.origin_lock(name) {
            drop(lock.lock().await);
        }
    }

    /// Opens origins whose bdevs are all there, or waits until they have opened: SPDK tells of a new bdev
    /// before that is done.
    pub async fn open_ready_origins(self: &Rc<Self>) {
        let names: Vec<String> = self.origins.borrow().keys().cloned().collect();
        for name in names {
            self.wait_origin_opening(&name).await;
            let ready = self.origins_ready().contains(&name);
            if ready && let Err(error) = self.open_snapshot_origin(&name).await {
                log::error!("origin '{name}' cannot open: {}", error.message);
            }
        }
    }
}

fn register_origin(
    params: &SnapshotOriginCreate,
    open: &Rc<OpenOrigin>,
) -> Result<Vbdev, RpcError> {
    let info = open.base.info();
    let sectors = params.size_sectors.unwrap_or(open.origin.nr_sectors());
    Vbdev::register(
        &Params {
            name: params.name.clone(),
            product_name: "spdk-dm snapshot-origin".to_owned(),
            block_bytes: info.block_bytes,
            nr_blocks: sectors * 512 / u64::from(info.block_bytes),
            // Writes are not cut: the owner makes all exceptions one needs. While a snapshot is merged the
            // target divides I/O itself.
            optimal_boundary_blocks: 0,
            write_cache: true,
            uuid: [0; 16],
            divides_at_blocks: 1,
        },
        SnapshotDriver::new(
            open.origin.volume().clone(),
            open.bases.channels(),
            // Zeroes come as writes, as in the kernel: SPDK makes them, in pieces.
            taken(info.supports(IoKind::Unmap)),
            Whose {
                origin: params.name.clone(),
                snapshot: None,
                info: json!({ "origin_bdev": params.origin_bdev }).to_string(),
            },
        ),
    )
    .map_err(|errno| {
        RpcError::new(
            Errno(errno),
            format!("bdev '{}' cannot be registered", params.name),
        )
    })
}

/// The kinds of I/O a bdev takes beside what all do.
pub(super) fn taken(discards: bool) -> u32 {
    match discards {
        true => IoKind::Unmap.bit(),
        false => 0,
    }
}

/// A notification's context: the origin, the snapshot, and what there is to say.
fn notification(origin: &str, event: &SnapshotEvent) -> String {
    match event {
        SnapshotEvent::Invalidated { snapshot, reason }
        | SnapshotEvent::MergeFailed { snapshot, reason } => {
            format!("{origin} {snapshot} {reason}")
        }
        SnapshotEvent::Overflow { snapshot } | SnapshotEvent::MergeFinished { snapshot } => {
            format!("{origin} {snapshot}")
        }
    }
}

/// While an origin is on its way.
pub(super) fn check_settled(entry: &OriginEntry) -> Result<(), RpcError> {
    match entry.life.is_waiting() || entry.life.open().is_some() {
        true => Ok(()),
        false => Err(life::busy(&whose(&entry.params.name))),
    }
}
