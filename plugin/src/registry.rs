//! The targets and bdevs of this process, and the lives of pools: waiting for base bdevs, open, going.
//!
//! Lives on the app thread. A pool is declared by RPC; it opens at once or, if it may wait, when its
//! base bdevs appear. When a base bdev goes, the pool's bdevs are unregistered and the pool closes; it
//! stays declared, and opens again when the bdev comes back.

use crate::bases;
use crate::eras::EraEntry;
use crate::export::ExportEntry;
use crate::gate::Gate;
use crate::host::PoolChannel;
use crate::life::Life;
use crate::linear::LinearEntry;
use crate::nbd::NbdExport;
use crate::ploops::PloopEntry;
use crate::readers::Readers;
use crate::snapshots::OriginEntry;
use crate::switching::Suspension;
use bdev::errno::Errno;
use bdev::ploop::PloopEvent;
use bdev::snapshot::SnapshotEvent;
use bdev::thin::{Pool, PoolEvent};
use rpc::RpcError;
use rpc::params::{ThinActivate, ThinPoolCreate};
use spdk::base::{self, Descriptor};
use spdk::io_device::IoDevice;
use spdk::module::{ExamineDone, FiniDone, Module};
use spdk::thread::ThreadBound;
use spdk::vbdev::Vbdev;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

/// A pool that is open.
pub struct OpenPool {
    /// The pool.
    pub pool: Rc<Pool>,
    /// Its channels on all cores.
    pub channels: Arc<IoDevice<PoolChannel>>,
    /// Its data bdev.
    pub data: Descriptor,
    /// Its metadata bdev.
    pub metadata: Descriptor,
    /// Who reads its metadata snapshot.
    pub readers: Rc<Readers>,
}

impl OpenPool {
    /// Size of the data bdev.
    pub fn nr_data_sectors(&self) -> u64 {
        let info = self.data.info();
        info.nr_blocks * u64::from(info.block_bytes) / 512
    }
}

/// A declared pool.
pub struct PoolEntry {
    /// As declared.
    pub params: ThinPoolCreate,
    /// Where it is in its life.
    pub life: Life<OpenPool>,
}

impl PoolEntry {
    fn can_open(&self) -> bool {
        self.life.is_waiting()
            && base::exists(&self.params.metadata_bdev)
            && base::exists(&self.params.data_bdev)
    }
}

/// A declared thin bdev.
pub struct ThinEntry {
    /// As declared.
    pub params: ThinActivate,
    /// While it is registered; taken by who unregisters it.
    pub vbdev: Option<Vbdev>,
    /// Registered, or on its way out.
    pub registered: bool,
    /// Comes back when the pool and its external origin do.
    pub keep: bool,
    /// Its way to the pool, while it is registered.
    pub gate: Option<Arc<Gate>>,
    /// Its I/O waits.
    pub suspension: Option<Suspension>,
}

/// All pools and thin bdevs.
#[derive(Default)]
pub struct Registry {
    /// By name.
    pub pools: RefCell<BTreeMap<String, PoolEntry>>,
    /// By bdev name.
    pub thins: RefCell<BTreeMap<String, ThinEntry>>,
    /// Era targets, by name.
    pub eras: RefCell<BTreeMap<String, EraEntry>>,
    /// Origins with their snapshots, by name.
    pub origins: RefCell<BTreeMap<String, OriginEntry>>,
    /// Ploop targets, by name.
    pub ploops: RefCell<BTreeMap<String, PloopEntry>>,
    /// Linear bdevs, by name.
    pub linears: RefCell<BTreeMap<String, LinearEntry>>,
    /// What they are on, by name: open and claimed.
    pub linear_bases: RefCell<BTreeMap<String, Descriptor>>,
    /// Exported metadata snapshots, by pool or era target.
    pub exports: RefCell<BTreeMap<String, ExportEntry>>,
    /// Bdevs served over NBD, by path.
    pub nbd_exports: RefCell<BTreeMap<String, NbdExport>>,
    stopping: Cell<bool>,
    stopped: RefCell<Vec<FiniDone>>,
}

static REGISTRY: OnceLock<ThreadBound<Rc<Registry>>> = OnceLock::new();

/// The registry, on the app thread.
pub fn registry() -> Option<Rc<Registry>> {
    REGISTRY.get().and_then(|registry| registry.get().cloned())
}

/// The module's entry points.
pub struct DmModule;

impl Module for DmModule {
    fn init(&self) -> Result<(), i32> {
        let registry = ThreadBound::new(Rc::new(Registry::default())).ok_or(22)?;
        let of_origins = SnapshotEvent::NAMES.into_iter();
        for name in PoolEvent::NAMES
            .into_iter()
            .chain(of_origins)
            .chain(PloopEvent::NAMES)
        {
            spdk::logging::register_notification(name)?;
        }
        REGISTRY.set(registry).map_err(|_| 17)
    }

    fn fini_start(&self) {
        if let Some(registry) = registry() {
            registry.stopping.set(true);
            registry.nbd_exports.take();
            registry.let_ploops_go();
            registry.let_thins_go();
            registry.close_idle_pools();
        }
    }

    fn fini(&self, done: FiniDone) {
        if let Some(registry) = registry() {
            registry.stopped.borrow_mut().push(done);
            registry.close_idle_pools();
            registry.finish_if_closed();
        }
    }

    fn config(&self) -> Vec<String> {
        registry().map_or_else(Vec::new, |registry| registry.config())
    }

    fn examine(&self, _: &str, done: ExamineDone) {
        let Some(registry) = registry() else { return };
        let ready: Vec<String> = registry
            .pools
            .borrow()
            .iter()
            .filter(|(_, entry)| entry.can_open())
            .map(|(name, _)| name.clone())
            .collect();
        let origins_came = registry.thins_ready();
        let eras = registry.eras_ready();
        let (origins, cows_of) = (registry.origins_ready(), registry.cows_ready());
        let linears = registry.linears_ready();
        let nothing =
            ready.is_empty() && linears.is_empty() && origins_came.is_empty() && eras.is_empty();
        let ploops = registry.ploops_ready();
        let nothing = nothing && origins.is_empty() && cows_of.is_empty() && ploops.is_empty();
        if nothing || registry.stopping.get() {
            return;
        }
        spdk::executor::spawn(async move {
            for name in linears {
                registry.register_linear_and_log(&name);
            }
            for thin in origins_came {
                if let Err(error) = registry.activate(&thin).await {
                    log::error!("{}", error.message);
                }
            }
            for name in ready {
                registry.open_and_log(&name).await;
            }
            for name in eras {
                if let Err(error) = registry.open_era(&name).await {
                    log::error!("era '{name}' cannot open: {}", error.message);
                }
            }
            for name in origins {
                if let Err(error) = registry.open_snapshot_origin(&name).await {
                    log::error!("origin '{name}' cannot open: {}", error.message);
                }
            }
            for name in cows_of {
                registry.cows_came_back(&name).await;
            }
            for name in ploops {
                registry.open_ploop_and_log(&name).await;
            }
            drop(done);
        });
    }
}

/// A call of a configuration file.
pub fn call(method: &str, params: &impl serde::Serialize) -> String {
    serde_json::json!({ "method": method, "params": params }).to_string()
}

impl Registry {
    /// Pools come first and wait for their bdevs; thin bdevs that are registered are written with the
    /// bdevs, after those they need.
    fn config(&self) -> Vec<String> {
        let pools = self.pools.borrow();
        let thins = self.thins.borrow();
        let pools = pools.values().map(|entry| {
            let params = ThinPoolCreate {
                wait: true,
                ..entry.params.clone()
            };
            call("thin_pool_create", &params)
        });
        let waiting = thins.values().filter(|entry| !entry.registered);
        pools
            .chain(waiting.map(|entry| call("thin_activate", &entry.params)))
            .chain(self.waiting_linears_config())
            .chain(self.waiting_eras_config())
            .chain(self.origins_config())
            .chain(self.ploops_config())
            .collect()
    }

    /// The pool's state, if it is open.
    pub fn open_entry(&self, name: &str) -> Result<Rc<OpenPool>, RpcError> {
        let pools = self.pools.borrow();
        let entry = pools.get(name).ok_or_else(|| no_pool(name))?;
        entry.life.use_open(
            &format!("pool '{name}'"),
            &format!(
                "bdevs '{}' and '{}'",
                entry.params.metadata_bdev, entry.params.data_bdev
            ),
        )
    }

    /// A base bdev is going away: so do the pool's bdevs, and the pool until it comes back.
    pub async fn base_removed(self: Rc<Self>, pool: &str, bdev: &str) {
        {
            let mut pools = self.pools.borrow_mut();
            let Some(entry) = pools.get_mut(pool) else {
                return;
            };
            if !entry.life.base_removed(&format!("pool '{pool}'"), bdev) {
                return;
            }
        }
        let bdevs: Vec<String> = self
            .thins
            .borrow()
            .iter()
            .filter(|(_, thin)| thin.params.pool == pool && thin.registered)
            .map(|(name, _)| name.clone())
            .collect();
        let gone = bdevs.iter().map(|name| self.deactivate(name, true));
        futures::future::join(futures::future::join_all(gone), self.unexport(pool)).await;
        self.close_idle_pools();
    }

    /// Closes a pool without active devices, and waits until its base bdevs are closed: callers that are
    /// still being answered and channels of other cores have them open a little longer.
    pub async fn close_pool(self: &Rc<Self>, name: &str) -> Result<(), RpcError> {
        let (open, bases) = {
            let mut pools = self.pools.borrow_mut();
            let entry = pools.get_mut(name).ok_or_else(|| no_pool(name))?;
            match entry.life.begin_closing() {
                Some(closing) => closing,
                None => return Ok(()),
            }
        };
        self.unexport(name).await;
        open.readers.close().await;
        let closed = open.pool.close().await;
        if let Err(error) = &closed {
            log::error!("closing pool '{name}': {error}");
        }
        drop(open);
        bases::wait_closed(&format!("pool '{name}'"), bases).await;
        let again = match self.pools.borrow_mut().get_mut(name) {
            Some(entry) => {
                let was_to_close = entry.life.is_to_close();
                entry.life.closed(None);
                was_to_close && entry.can_open()
            }
            None => false,
        };
        log::info!("pool '{name}' is closed");
        self.finish_if_closed();
        if again && !self.is_stopping() {
            // The bdev it was closed for has come back already.
            let (registry, name) = (self.clone(), name.to_owned());
            spdk::executor::spawn(async move { registry.open_and_log(&name).await });
        }
        closed.map_err(|error| RpcError::new(error.errno(), error.to_string()))
    }

    /// Closes the pools that should close and have no bdev left.
    pub fn close_idle_pools(self: &Rc<Self>) {
        let idle: Vec<String> = self
            .pools
            .borrow()
            .iter()
            .filter(|(name, entry)| match entry.life.target() {
                Some(open) => {
                    (entry.life.is_to_close() || self.stopping.get())
                        && open.pool.active_ids().is_empty()
                        && self.exported(name).is_none()
                }
                None => false,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in idle {
            let registry = self.clone();
            spdk::executor::spawn(async move {
                // Logged there.
                let _ = registry.close_pool(&name).await;
            });
        }
    }

    /// Whether SPDK is about to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Lets SPDK end, if it wants to, when nothing is open.
    pub fn finish_if_closed(&self) {
        let pools = self.pools.borrow();
        let pools_closed = pools.values().all(|entry| entry.life.is_waiting());
        if pools_closed
            && self.eras_are_closed()
            && self.origins_are_closed()
            && self.ploops_are_closed()
        {
            self.stopped.borrow_mut().clear();
        }
    }

    fn has_target(&self, name: &str) -> bool {
        self.pools.borrow().contains_key(name)
            || self.eras.borrow().contains_key(name)
            || self.has_origin(name)
            || self.origin_of(name).is_some()
            || self.has_ploop(name)
    }

    /// Refuses the name of a target and its bdev that something has already.
    pub fn check_free(&self, name: &str) -> Result<(), RpcError> {
        match self.has_target(name) || base::exists(name) {
            false => Ok(()),
            true => Err(taken(name)),
        }
    }

    /// Declares a pool that is not open yet.
    pub fn declare(&self, params: ThinPoolCreate) -> Result<(), RpcError> {
        if self.has_target(&params.name) {
            return Err(taken(&params.name));
        }
        let mut pools = self.pools.borrow_mut();
        pools.insert(
            params.name.clone(),
            PoolEntry {
                params,
                life: Life::default(),
            },
        );
        Ok(())
    }
}

fn taken(name: &str) -> RpcError {
    RpcError::new(
        Errno::EEXIST,
        format!(
            "there is a bdev, pool, era target, origin, snapshot or ploop target '{name}' already; choose another name"
        ),
    )
}

/// The refusal for an unknown pool.
pub fn no_pool(name: &str) -> RpcError {
    RpcError::new(
        Errno::ENODEV,
        format!("there is no pool '{name}'; see thin_pool_status"),
    )
}
