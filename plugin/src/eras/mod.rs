//! Era targets and their lives: waiting for base bdevs, open, going.
//!
//! An era target is one bdev of the same name. It is declared by RPC, and opens at once or, if it may
//! wait, when its base bdevs appear. When a base bdev goes, or SPDK ends, its bdev is unregistered; with
//! the last channel gone the target closes, and lets its base bdevs go before SPDK hears that the bdev is
//! gone. Unless it was deleted it stays declared, and opens again when the bdev comes back.

mod opening;
mod since;
mod snap;
mod vbdev;

use crate::bases::{self, BaseClosed};
use crate::life::{self, Life};
use crate::registry::{Registry, call};
use bdev::era::{Era, EraStatus, EraTargetError};
use bdev::errno::Errno;
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::EraCreate;
use rpc::status;
use serde_json::json;
use spdk::base::{self, Descriptor};
use spdk::vbdev::{Destructed, Vbdev};
use std::cell::Cell;
use std::rc::Rc;

/// An era target that is open.
pub struct OpenEra {
    /// The target.
    pub era: Rc<Era>,
    /// Its origin bdev.
    origin: Descriptor,
    /// Its metadata bdev.
    metadata: Descriptor,
    /// Who reads its metadata snapshot.
    readers: Cell<usize>,
    /// The metadata snapshot is being let go.
    dropping: Cell<bool>,
}

/// A declared era target.
pub struct EraEntry {
    /// As declared.
    pub params: EraCreate,
    life: Life<OpenEra>,
    /// It is not to be opened again.
    deleting: bool,
    /// While it is registered; taken by who unregisters it.
    vbdev: Option<Vbdev>,
}

impl EraEntry {
    /// Its size; 0 when that is the origin's, which is not known.
    pub fn nr_sectors(&self) -> u64 {
        let of_origin = || self.life.target().map(|open| nr_sectors(&open.origin));
        self.params.size_sectors.or_else(of_origin).unwrap_or(0)
    }

    fn can_open(&self) -> bool {
        self.life.is_waiting()
            && base::exists(&self.params.metadata_bdev)
            && base::exists(&self.params.origin_bdev)
    }
}

fn nr_sectors(bdev: &Descriptor) -> u64 {
    let info = bdev.info();
    info.nr_blocks * u64::from(info.block_bytes) / 512
}

fn refuse(error: &EraTargetError) -> RpcError {
    RpcError::new(error.errno(), error.to_string())
}

fn no_era(name: &str) -> RpcError {
    RpcError::new(
        Errno::ENODEV,
        format!("there is no era target '{name}'; see era_status"),
    )
}

fn whose(name: &str) -> String {
    format!("era '{name}'")
}

impl OpenEra {
    /// The target's state.
    pub async fn status(&self) -> Result<EraStatus, RpcError> {
        self.era.status().await.map_err(|error| refuse(&error))
    }
}

impl Registry {
    /// Declares an era target, and opens it unless it may wait for its base bdevs.
    pub async fn create_era(self: &Rc<Self>, params: EraCreate) -> Answer {
        let (name, wait) = (params.name.clone(), params.wait);
        self.check_free(&name)?;
        let entry = EraEntry {
            params,
            life: Life::default(),
            deleting: false,
            vbdev: None,
        };
        let ready = entry.can_open();
        self.eras.borrow_mut().insert(name.clone(), entry);
        if wait && !ready {
            return Ok(json!(name));
        }
        if let Err(error) = self.open_era(&name).await {
            self.eras.borrow_mut().remove(&name);
            return Err(error);
        }
        Ok(json!(name))
    }

    /// Closes an era target and forgets it. Error: also when its last era could not be recorded as ended;
    /// it is gone all the same.
    pub async fn delete_era(&self, name: &str) -> Result<(), RpcError> {
        let vbdev = {
            let mut eras = self.eras.borrow_mut();
            let entry = eras.get_mut(name).ok_or_else(|| no_era(name))?;
            if entry.life.is_waiting() {
                eras.remove(name);
                return Ok(());
            }
            let busy = || life::busy(&whose(name));
            entry.life.open().ok_or_else(busy)?;
            let vbdev = entry.vbdev.take().ok_or_else(busy)?;
            entry.life.set_closing(None);
            entry.deleting = true;
            vbdev
        };
        vbdev.unregister().await;
        let entry = self.eras.borrow_mut().remove(name);
        match entry.as_ref().and_then(|entry| entry.life.failure()) {
            Some(failure) => Err(RpcError::new(Errno::EIO, failure)),
            None => Ok(()),
        }
    }

    /// The target, if it is open.
    pub fn use_era(&self, name: &str) -> Result<Rc<OpenEra>, RpcError> {
        let eras = self.eras.borrow();
        let entry = eras.get(name).ok_or_else(|| no_era(name))?;
        entry.life.use_open(
            &whose(name),
            &format!(
                "bdevs '{}' and '{}'",
                entry.params.metadata_bdev, entry.params.origin_bdev
            ),
        )
    }

    /// Begins a new era and returns it.
    pub async fn checkpoint(&self, name: &str) -> Result<u32, RpcError> {
        let open = self.use_era(name)?;
        open.era.checkpoint().await.map_err(|error| refuse(&error))
    }

    /// A target's state, in any state.
    pub async fn era_status(&self, name: &str) -> Answer {
        let mut answer = {
            let eras = self.eras.borrow();
            let entry = eras.get(name).ok_or_else(|| no_era(name))?;
            json!({
                "name": name,
                "state": entry.life.word(),
                "metadata_bdev": entry.params.metadata_bdev,
                "origin_bdev": entry.params.origin_bdev,
                "failure": entry.life.failure(),
            })
        };
        if let Ok(open) = self.use_era(name) {
            let found = status::era_json(name, &open.status().await?);
            if let (Some(answer), serde_json::Value::Object(found)) =
                (answer.as_object_mut(), found)
            {
                answer.remove("failure");
                answer.extend(found);
            }
            answer["exported_as"] = json!(self.exported(name));
        }
        Ok(answer)
    }

    /// Declared targets whose base bdevs are there.
    pub fn eras_ready(&self) -> Vec<String> {
        let eras = self.eras.borrow();
        let ready = eras.iter().filter(|(_, entry)| entry.can_open());
        ready.map(|(name, _)| name.clone()).collect()
    }

    /// Whether none is open, or on its way to or from it.
    pub fn eras_are_closed(&self) -> bool {
        let eras = self.eras.borrow();
        eras.values().all(|entry| entry.life.is_waiting())
    }

    /// The calls that declare those again that are not open; the others are written with the bdevs, after
    /// those they need.
    pub fn waiting_eras_config(&self) -> Vec<String> {
        let eras = self.eras.borrow();
        let waiting = eras.values().filter(|entry| entry.life.target().is_none());
        waiting
            .map(|entry| call("era_create", &saved(&entry.params)))
            .collect()
    }

    /// A base bdev is going away: so does the target's bdev, until it comes back.
    async fn era_base_removed(self: Rc<Self>, name: &str, bdev: &str) {
        let vbdev = {
            let mut eras = self.eras.borrow_mut();
            let Some(entry) = eras.get_mut(name) else {
                return;
            };
            if !entry.life.base_removed(&whose(name), bdev) {
                return;
            }
            entry.vbdev.take()
        };
        if let Some(vbdev) = vbdev {
            vbdev.unregister().await;
        }
    }

    /// A base bdev has another size.
    async fn era_base_resized(self: Rc<Self>, name: &str) {
        // A target that is not open looks at the sizes when it opens.
        let Ok(open) = self.use_era(name) else { return };
        if let Err(error) = open.era.grow().await {
            log::error!("{error}; it does not follow the size of its bdevs");
            return;
        }
        let eras = self.eras.borrow();
        let Some(entry) = eras.get(name) else { return };
        if entry.params.size_sectors.is_none()
            && let Some(vbdev) = &entry.vbdev
            && let Err(errno) = vbdev.resize(open.origin.info().nr_blocks)
        {
            log::error!("bdev '{name}' keeps its size: {}", Errno(errno));
        }
    }

    /// Called when all channels of the target's bdev are gone, whoever unregistered it.
    async fn era_destructed(self: Rc<Self>, name: String, done: Destructed) {
        let (open, bases) = {
            let mut eras = self.eras.borrow_mut();
            let Some(entry) = eras.get_mut(&name) else {
                return drop(done);
            };
            entry.vbdev = None;
            match entry.life.begin_closing() {
                Some(closing) => closing,
                None => {
                    // It will find out that it is not wanted.
                    entry.life.note_closing();
                    return drop(done);
                }
            }
        };
        self.unexport(&name).await;
        let closed = close(&name, open, bases).await;
        let again = {
            let mut eras = self.eras.borrow_mut();
            match eras.get_mut(&name) {
                Some(entry) => {
                    entry
                        .life
                        .closed(closed.err().map(|error| error.to_string()));
                    entry.can_open() && !entry.deleting
                }
                None => false,
            }
        };
        log::info!("era '{name}' is closed");
        drop(done);
        self.finish_if_closed();
        // The bdev it was closed for has come back already.
        if again
            && !self.is_stopping()
            && let Err(error) = self.open_era(&name).await
        {
            log::error!("era '{name}' cannot open: {}", error.message);
        }
    }
}

/// Closes a target and waits until its base bdevs are closed.
async fn close(
    name: &str,
    open: Rc<OpenEra>,
    bases: Vec<BaseClosed>,
) -> Result<(), EraTargetError> {
    let closed = open.era.close().await;
    if let Err(error) = &closed {
        log::error!("{error}");
    }
    drop(open);
    bases::wait_closed(&whose(name), bases).await;
    closed
}

/// As it is saved in configurations.
fn saved(params: &EraCreate) -> EraCreate {
    EraCreate {
        wait: true,
        ..params.clone()
    }
}
