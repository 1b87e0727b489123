//! Thin bdevs: what the registry does with them, and what SPDK sees of them.

use crate::backend::refuse;
use crate::devices::DataBdev;
use crate::gate::{Gate, Side, Way};
use crate::host::ALWAYS_TAKEN;
use crate::registry::{OpenPool, Registry, ThinEntry, call, registry};
use bdev::device::DataDeviceRef;
use bdev::errno::Errno;
use bdev::thin::PoolError;
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::ThinActivate;
use serde_json::json;
use spdk::base::{self, Descriptor, Event, IoKind};
use spdk::io_device::IoChannel;
use spdk::passage::Course;
use spdk::vbdev::{BdevIo, Destructed, Driver, Params, Vbdev};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

impl Registry {
    /// Registers the bdev of a thin device of an open pool.
    pub async fn activate(self: &Rc<Self>, params: &ThinActivate) -> Result<(), RpcError> {
        let open = self.open_entry(&params.pool)?;
        let name = params.bdev_name();
        let taken = self
            .thins
            .borrow()
            .get(&name)
            .is_some_and(|thin| thin.registered);
        if taken || base::exists(&name) {
            return Err(RpcError::new(
                Errno::EEXIST,
                format!("there is a bdev '{name}' already; choose another bdev_name"),
            ));
        }
        self.check_origin_is_still(params)?;
        let nr_sectors = params.nr_sectors()?;
        let refuse = |error: PoolError| {
            RpcError::new(error.errno(), format!("pool '{}': {error}", params.pool))
        };
        if params.create {
            match open.pool.create_thin(params.id).await {
                Err(error) if error.errno() != Errno::EEXIST => return Err(refuse(error)),
                _ => {}
            }
        }
        let origin = match &params.origin_bdev {
            Some(bdev) => Some(self.open_origin(params, bdev)?),
            None => None,
        };
        let device = match &origin {
            Some(origin) => Some(origin_device(params, origin)?),
            None => None,
        };
        let dev = open
            .pool
            .activate(params.id, nr_sectors, device)
            .await
            .map_err(refuse)?;
        if let Err(error) = self.check_origin_is_still(params) {
            let _ = open.pool.deactivate(params.id).await;
            return Err(error);
        }
        let info = open.data.info();
        let shared = open.pool.shared();
        let boundary = u32::try_from(shared.logical_per_block()).unwrap_or(0);
        let has_origin = origin.is_some();
        let params = ThinActivate {
            bdev_name: Some(name.clone()),
            create: false,
            wait: true,
            ..params.clone()
        };
        let way = Way {
            dev: dev.clone(),
            channels: open.channels.clone(),
            params: params.clone(),
        };
        let Some(gate) = Gate::new(&name, way, origin) else {
            let _ = open.pool.deactivate(params.id).await;
            return Err(RpcError::new(Errno::ENOMEM, "out of memory"));
        };
        let registered = Vbdev::register(
            &Params {
                name: name.clone(),
                product_name: "spdk-dm thin".to_owned(),
                block_bytes: info.block_bytes,
                nr_blocks: dev.nr_logical_blocks,
                // What an origin is to be asked for is never divided by us; everything else goes on as one as
                // far as the blocks follow each other.
                optimal_boundary_blocks: if has_origin { boundary } else { 0 },
                write_cache: true,
                uuid: [0; 16],
                divides_at_blocks: if has_origin { 0 } else { boundary },
            },
            ThinDriver {
                gate: gate.clone(),
                discards: !open.pool.config().ignore_discard,
            },
        );
        match registered {
            Ok(vbdev) => {
                self.thins.borrow_mut().insert(
                    name.clone(),
                    ThinEntry {
                        params,
                        vbdev: Some(vbdev),
                        registered: true,
                        keep: false,
                        gate: Some(gate),
                        suspension: None,
                    },
                );
                Ok(())
            }
            Err(errno) => {
                let _ = open.pool.deactivate(params.id).await;
                Err(RpcError::new(
                    Errno(errno),
                    format!("bdev '{name}' cannot be registered"),
                ))
            }
        }
    }

    /// Opens a thin bdev's external origin for reading. It goes with the thin bdev: when the origin is
    /// removed, the thin bdev is unregistered until the origin is back.
    fn open_origin(
        self: &Rc<Self>,
        params: &ThinActivate,
        bdev: &str,
    ) -> Result<Descriptor, RpcError> {
        let registry = Rc::downgrade(self);
        let (name, origin) = (params.bdev_name(), bdev.to_owned());
        Descriptor::open(bdev, false, move |event| {
            if event == Event::Remove
                && let Some(registry) = registry.upgrade()
            {
                log::warn!("bdev '{name}' goes until its external origin '{origin}' is back");
                let name = name.clone();
                spdk::executor::spawn(async move {
                    // An error: it is being removed already.
                    let _ = registry.deactivate(&name, true).await;
                });
            }
        })
        .map_err(|errno| {
            RpcError::new(
                Errno(errno),
                format!(
                    "bdev '{}': its external origin '{bdev}' cannot be opened; create that bdev first",
                    params.bdev_name()
                ),
            )
        })
    }

    /// Declared thin bdevs whose pool is open and whose external origin is there.
    pub fn thins_ready(&self) -> Vec<ThinActivate> {
        let pools = self.pools.borrow();
        let is_open = |pool: &str| {
            let entry = pools.get(pool);
            entry.is_some_and(|entry| entry.life.target().is_some())
        };
        self.thins
            .borrow()
            .values()
            .filter(|thin| !thin.registered && is_open(&thin.params.pool))
            .filter(|thin| {
                let origin = thin.params.origin_bdev.as_deref();
                origin.is_some_and(base::exists)
            })
            .map(|thin| thin.params.clone())
            .collect()
    }

    /// Unregisters a thin bdev and waits until it is gone.
    pub async fn deactivate(&self, bdev_name: &str, keep: bool) -> Result<(), RpcError> {
        let (vbdev, pool, id, suspended) = {
            let mut thins = self.thins.borrow_mut();
            let Some(thin) = thins.get_mut(bdev_name) else {
                return Err(RpcError::new(
                    Errno::ENODEV,
                    format!("there is no thin bdev '{bdev_name}'; see thin_list"),
                ));
            };
            thin.keep = keep;
            if !thin.registered {
                thins.remove(bdev_name);
                return Ok(());
            }
            let vbdev = thin.vbdev.take().ok_or_else(|| {
                RpcError::new(Errno::EBUSY, format!("bdev '{bdev_name}' is being removed"))
            })?;
            let suspended = thin.suspension.take().and(thin.gate.clone());
            (vbdev, thin.params.pool.clone(), thin.params.id, suspended)
        };
        if let Some(gate) = suspended {
            // Its users could not let go of the bdev otherwise. Not sent on: who has suspended it may have the
            // contents elsewhere by now.
            gate.fail().await;
        }
        if let Some(open) = self.open_pool_of(&pool) {
            open.pool.begin_deactivation(id);
        }
        vbdev.unregister().await;
        Ok(())
    }

    /// A pool that is open, also when it is to close.
    pub fn open_pool_of(&self, pool: &str) -> Option<Rc<OpenPool>> {
        let pools = self.pools.borrow();
        pools.get(pool)?.life.target().cloned()
    }

    /// Called when all channels of a thin bdev are gone, whoever unregistered it.
    async fn destructed(self: Rc<Self>, params: ThinActivate, done: Destructed) {
        let name = params.bdev_name();
        if let Some(open) = self.open_pool_of(&params.pool)
            && let Err(error) = open.pool.deactivate(params.id).await
        {
            log::error!("bdev '{name}': {error}");
        }
        {
            let mut thins = self.thins.borrow_mut();
            if let Some(thin) = thins.get_mut(&name) {
                thin.registered = false;
                thin.vbdev = None;
                thin.gate = None;
                thin.suspension = None;
                if !thin.keep {
                    thins.remove(&name);
                }
            }
        }
        // Releases the driver, and with it the pool's channels.
        drop(done);
        self.close_idle_pools();
    }

    /// `thin_list`.
    pub async fn list_thins(&self, pool: &str) -> Answer {
        let open = self.open_entry(pool)?;
        let devices = open.pool.list().await.map_err(refuse)?;
        let thins = self.thins.borrow();
        let of_pool = thins.iter().filter(|(_, thin)| thin.params.pool == pool);
        let bdevs: BTreeMap<_, _> = of_pool.map(|found| (found.1.params.id, found)).collect();
        let list = devices.into_iter().map(|(id, details)| {
            let bdev = bdevs.get(&id);
            json!({
                "id": id,
                "mapped_blocks": details.mapped_blocks,
                "transaction_id": details.transaction_id,
                "creation_time": details.creation_time,
                "snapshotted_time": details.snapshotted_time,
                "bdev_name": bdev.map(|(name, _)| name),
                "size_sectors": bdev.and_then(|(_, thin)| thin.params.nr_sectors().ok()),
            })
        });
        Ok(list.collect())
    }

    /// Declares a thin bdev of a pool that is not open.
    pub fn declare_thin(&self, params: ThinActivate) {
        self.thins.borrow_mut().insert(
            params.bdev_name(),
            ThinEntry {
                params,
                vbdev: None,
                registered: false,
                keep: true,
                gate: None,
                suspension: None,
            },
        );
    }
}

/// The owner's way to an external origin.
pub fn origin_device(
    params: &ThinActivate,
    origin: &Descriptor,
) -> Result<DataDeviceRef, RpcError> {
    let info = origin.info();
    let refuse = |errno: Errno, what: &str| {
        RpcError::new(
            errno,
            format!(
                "bdev '{}': its external origin '{}' {what}",
                params.bdev_name(),
                params.origin_bdev.as_deref().unwrap_or_default()
            ),
        )
    };
    if info.metadata_bytes != 0 || info.dif_type != 0 {
        return Err(refuse(
            Errno::EINVAL,
            "has metadata or DIF, which is not supported",
        ));
    }
    let channel = origin
        .channel()
        .ok_or_else(|| refuse(Errno::ENOMEM, "has no I/O channel: out of memory"))?;
    Ok(Rc::new(DataBdev::new(channel)))
}

/// A thin bdev as SPDK sees it.
struct ThinDriver {
    gate: Arc<Gate>,
    discards: bool,
}

impl Driver for ThinDriver {
    type Channel = IoChannel<Side>;

    fn create_channel(&self) -> Option<IoChannel<Side>> {
        self.gate.side()
    }

    const ASKS: bool = true;

    #[inline(always)]
    fn plain(side: &IoChannel<Side>, kind: IoKind, offset: u64, nr: u64) -> Option<Course> {
        side.plain(kind, offset, nr)
    }

    #[inline]
    fn submit(side: &IoChannel<Side>, io: BdevIo, kind: IoKind, offset: u64, nr_blocks: u64) {
        side.submit(io, kind, offset, nr_blocks);
    }

    #[inline]
    fn forwarded(side: &IoChannel<Side>, io: BdevIo, ticket: u64, ok: bool) {
        side.forwarded(io, ticket, ok);
    }

    fn io_kinds(&self) -> u32 {
        let discard = if self.discards {
            IoKind::Unmap.bit()
        } else {
            0
        };
        ALWAYS_TAKEN | IoKind::WriteZeroes.bit() | discard
    }

    fn destruct(&self, done: Destructed) {
        match registry().zip(self.gate.end()) {
            Some((registry, params)) => {
                spdk::executor::spawn(registry.destructed(params, done));
            }
            None => drop(done),
        }
    }

    fn info(&self) -> (&'static str, String) {
        let params = self.gate.params();
        let info = params.map(|params| json!({ "pool": params.pool, "id": params.id }));
        ("thin", info.unwrap_or_default().to_string())
    }

    fn config(&self) -> String {
        let params = self.gate.params();
        params.map_or_else(String::new, |params| call("thin_activate", &params))
    }
}
