//! Ploop targets and their lives: waiting for the bdevs of their deltas, open, going.
//!
//! A ploop target is one bdev of the same name over a chain of deltas. It opens when all of them are there,
//! closes when one of them goes, and opens again when that is back. Its chain changes while it is open: the
//! engine says what it is, and what is declared follows it (`chain`), so that a target that opens again, and
//! a configuration that is saved, have the chain as it was last.
//!
//! Messages that change the chain are carried out one at a time, under [`OpenPloop`]'s lock, and to the end.

mod backups;
mod chain;
mod check;
mod messages;
mod opening;
mod status;

use crate::devices::Buffers;
use crate::life::{self, Life};
use crate::moving_bases::MovingBases;
use crate::registry::{Registry, call};
use crate::volume::Identity;
use bdev::errno::Errno;
use bdev::ploop::{Ploop, PloopError, PloopTarget};
use chain::DeltaBdev;
use futures::lock::Mutex;
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::{PloopCreate, PloopStatusOf};
use serde_json::json;
use spdk::base;
use spdk::vbdev::{Destructed, Vbdev};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A ploop target that is open.
pub struct OpenPloop {
    ploop: Rc<Ploop>,
    bases: MovingBases<PloopTarget>,
    /// By their number.
    deltas: RefCell<BTreeMap<u8, DeltaBdev>>,
    /// For copies.
    buffers: Rc<Buffers>,
    /// Held while the chain changes.
    alone: Mutex<()>,
}

/// A declared ploop target.
pub struct PloopEntry {
    /// As declared, with the chain as it is now.
    params: PloopCreate,
    life: Life<OpenPloop>,
    /// It is not to be opened again.
    deleting: bool,
    /// While it is registered; taken by who unregisters it.
    vbdev: Option<Vbdev>,
}

impl PloopEntry {
    /// The bdevs of its deltas.
    fn bdevs(&self) -> Vec<String> {
        // The names were looked at when it was declared.
        let lower = self.params.lower().unwrap_or_default();
        let top = std::iter::once(self.params.top_bdev.clone());
        top.chain(lower.into_iter().map(|delta| delta.bdev))
            .collect()
    }

    fn missing(&self) -> Vec<String> {
        let mut bdevs = self.bdevs();
        bdevs.retain(|bdev| !base::exists(bdev));
        bdevs
    }

    fn can_open(&self) -> bool {
        self.life.is_waiting() && !self.deleting && self.missing().is_empty()
    }

    fn saved(&self) -> PloopCreate {
        PloopCreate {
            wait: true,
            ..self.params.clone()
        }
    }
}

fn whose(name: &str) -> String {
    format!("ploop '{name}'")
}

fn no_ploop(name: &str) -> RpcError {
    RpcError::new(
        Errno::ENODEV,
        format!("there is no ploop target '{name}'; see ploop_status"),
    )
}

fn refuse(name: &str) -> impl Fn(PloopError) -> RpcError {
    move |error| {
        let text = match &error {
            PloopError::Nothing(_) => format!("{}: {error}", whose(name)),
            PloopError::InUse(image) => format!(
                "{error}: ploop_check '{image}' with repair does so once, force with ploop_create whenever it opens"
            ),
            _ => error.to_string(),
        };
        RpcError::new(error.errno(), text)
    }
}

/// The bdev of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PloopBdev {
    name: String,
}

impl Identity for PloopBdev {
    fn info(&self) -> (&'static str, String) {
        let chain = crate::registry::registry().and_then(|registry| {
            let ploops = registry.ploops.borrow();
            let params = &ploops.get(&self.name)?.params;
            Some(json!({ "top_bdev": params.top_bdev, "lower_bdevs": params.lower_bdevs }))
        });
        ("ploop", chain.unwrap_or_default().to_string())
    }

    /// The target is in the module's configuration: its chain may have bdevs that came after this one. What
    /// follows may need it.
    fn config(&self) -> String {
        call(
            "ploop_status",
            &PloopStatusOf {
                name: Some(self.name.clone()),
                wait: true,
            },
        )
    }

    fn gone(self, registry: Rc<Registry>, done: Destructed) -> impl Future<Output = ()> + 'static {
        registry.ploop_gone(self.name, done)
    }
}

impl Registry {
    /// Declares a ploop target, and opens it unless it may wait for its bdevs.
    pub async fn create_ploop(self: &Rc<Self>, params: PloopCreate) -> Answer {
        let (name, wait) = (params.name.clone(), params.wait);
        self.check_free(&name)?;
        let entry = PloopEntry {
            params,
            life: Life::default(),
            deleting: false,
            vbdev: None,
        };
        let ready = entry.can_open();
        self.ploops.borrow_mut().insert(name.clone(), entry);
        if wait && !ready {
            return Ok(json!(name));
        }
        if let Err(error) = self.open_ploop(&name).await {
            self.ploops.borrow_mut().remove(&name);
            return Err(error);
        }
        Ok(json!(name))
    }

    /// Closes a target and forgets it. Error: also when its image could not be closed well; it is gone all
    /// the same.
    pub async fn delete_ploop(&self, name: &str) -> Result<(), RpcError> {
        let vbdev = {
            let mut ploops = self.ploops.borrow_mut();
            let entry = ploops.get_mut(name).ok_or_else(|| no_ploop(name))?;
            if entry.life.is_waiting() {
                ploops.remove(name);
                return Ok(());
            }
            let busy = || life::busy(&whose(name));
            let open = entry.life.open().cloned().ok_or_else(busy)?;
            let vbdev = entry.vbdev.take().ok_or_else(busy)?;
            entry.life.set_closing(None);
            entry.deleting = true;
            open.ploop.let_go();
            vbdev
        };
        vbdev.unregister().await;
        let entry = self.ploops.borrow_mut().remove(name);
        match entry.as_ref().and_then(|entry| entry.life.failure()) {
            Some(failure) => Err(RpcError::new(Errno::EIO, failure)),
            None => Ok(()),
        }
    }

    /// The target, if it is open.
    pub fn use_ploop(&self, name: &str) -> Result<Rc<OpenPloop>, RpcError> {
        let ploops = self.ploops.borrow();
        let entry = ploops.get(name).ok_or_else(|| no_ploop(name))?;
        let waits_for = format!("its bdevs ({})", entry.missing().join(", "));
        entry.life.use_open(&whose(name), &waits_for)
    }

    /// Declared targets whose bdevs are all there.
    pub fn ploops_ready(&self) -> Vec<String> {
        let ploops = self.ploops.borrow();
        let ready = ploops.iter().filter(|(_, entry)| entry.can_open());
        ready.map(|(name, _)| name.clone()).collect()
    }

    /// Whether none is open, or on its way to or from it.
    pub fn ploops_are_closed(&self) -> bool {
        let ploops = self.ploops.borrow();
        ploops.values().all(|entry| entry.life.is_waiting())
    }

    /// The calls that declare them again.
    pub fn ploops_config(&self) -> Vec<String> {
        let ploops = self.ploops.borrow();
        ploops
            .values()
            .map(|entry| call("ploop_create", &entry.saved()))
            .collect()
    }

    /// SPDK ends: no I/O may wait any more for somebody to tell it to go on.
    pub fn let_ploops_go(&self) {
        for entry in self.ploops.borrow().values() {
            if let Some(open) = entry.life.target() {
                open.ploop.let_go();
            }
        }
    }

    /// The bdev of a delta is going away: so does the target's, until it comes back.
    async fn delta_removed(self: Rc<Self>, name: &str, bdev: &str) {
        let vbdev = {
            let mut ploops = self.ploops.borrow_mut();
            let Some(entry) = ploops.get_mut(name) else {
                return;
            };
            if !entry.life.base_removed(&whose(name), bdev) {
                return;
            }
            if let Some(open) = entry.life.target() {
                open.ploop.let_go();
            }
            entry.vbdev.take()
        };
        if let Some(vbdev) = vbdev {
            vbdev.unregister().await;
        }
    }

    /// The bdev of a delta has another size.
    async fn delta_resized(self: Rc<Self>, name: &str) {
        // A target that is not open looks at the sizes when it opens.
        if let Ok(open) = self.use_ploop(name)
            && let Err(error) = open.ploop.grow()
        {
            log::error!("{error}; {} does not use the room", whose(name));
        }
    }

    /// Called when all channels of the target's bdev are gone, whoever unregistered it.
    async fn ploop_gone(self: Rc<Self>, name: String, done: Destructed) {
        let open = {
            let mut ploops = self.ploops.borrow_mut();
            let Some(entry) = ploops.get_mut(&name) else {
                return drop(done);
            };
            entry.vbdev = None;
            match entry.life.begin_closing() {
                Some((open, _)) => open,
                None => {
                    // It will find out that it is not wanted.
                    entry.life.note_closing();
                    return drop(done);
                }
            }
        };
        let closed = open.close(&name).await;
        drop(open);
        let again = {
            let mut ploops = self.ploops.borrow_mut();
            match ploops.get_mut(&name) {
                Some(entry) => {
                    entry
                        .life
                        .closed(closed.err().map(|error| error.to_string()));
                    entry.can_open()
                }
                None => false,
            }
        };
        log::info!("{} is closed", whose(&name));
        drop(done);
        self.finish_if_closed();
        // The bdev it was closed for has come back already.
        if again && !self.is_stopping() {
            self.open_ploop_and_log(&name).await;
        }
    }
}
