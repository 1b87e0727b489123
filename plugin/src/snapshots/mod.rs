//! Origins, their snapshots and merges, and their lives: waiting for base bdevs, open, going.
//!
//! An origin, its snapshots and its merge are one target: they are declared one by one and open together,
//! when the origin bdev and the COW bdevs of all that were declared are there, because the origin must not
//! be written to without its snapshots. For the same reason a snapshot whose bdev goes only because SPDK
//! ends stays in service until the origin's bdev is gone, too.
//!
//! When the origin bdev goes, everything closes and comes back with it. When a COW bdev goes, the origin
//! goes on; the snapshot is invalid when it misses something (`removal`).
//!
//! What changes an origin's snapshots is done one at a time, under [`OriginEntry`]'s lock.

mod bdevs;
mod creating;
mod deleting;
mod merging;
mod opening;
mod removal;
mod service;
mod status;

use crate::bases::BaseClosed;
use crate::devices::Buffers;
use crate::held_bdev::HeldBdev;
use crate::life::Life;
use crate::moving_bases::MovingBases;
use crate::registry::{Registry, call};
use bdev::errno::Errno;
use bdev::snapshot::{Origin, SnapshotConfig, SnapshotError, SnapshotTarget, StoreKind};
use bdev::target::BaseId;
use futures::lock::Mutex;
use rpc::RpcError;
use rpc::params::{SnapshotCreate, SnapshotMerge, SnapshotOriginCreate};
use spdk::base::{self, Descriptor};
use spdk::vbdev::Vbdev;
use std::collections::BTreeMap;
use std::rc::Rc;

/// An origin target that is open.
pub struct OpenOrigin {
    origin: Rc<Origin>,
    device: Rc<HeldBdev>,
    base: Descriptor,
    bases: MovingBases<SnapshotTarget>,
    /// For copies.
    buffers: Rc<Buffers>,
}

/// What a COW bdev is used for.
enum What {
    Snapshot(SnapshotCreate),
    /// The merge of a snapshot, which may still have its bdev, that answers with errors.
    Merge(SnapshotMerge),
}

/// A COW bdev in use.
struct Cow {
    number: BaseId,
    device: Rc<HeldBdev>,
    /// While it is there.
    closed: Option<BaseClosed>,
}

/// A declared snapshot or merge.
struct SnapEntry {
    what: What,
    cow_bdev: String,
    /// While the origin is open; None for one that has handed its store over.
    cow: Option<Cow>,
    /// It has handed its store over to another snapshot.
    handed_over: bool,
    /// Its COW bdev was removed while the origin was open, and is not back.
    lost: bool,
    /// It has missed something and must not be believed, whatever the header says.
    missed: bool,
    /// Its bdev, while registered; taken by who unregisters it.
    vbdev: Option<Vbdev>,
    registered: bool,
}

impl SnapEntry {
    fn new(what: What, cow_bdev: &str) -> Self {
        SnapEntry {
            what,
            cow_bdev: cow_bdev.to_owned(),
            cow: None,
            handed_over: false,
            lost: false,
            missed: false,
            vbdev: None,
            registered: false,
        }
    }

    fn is_transient(&self) -> bool {
        match &self.what {
            What::Snapshot(params) => params.store_kind() == Ok(StoreKind::Transient),
            What::Merge(_) => false,
        }
    }

    /// Whether it takes part when the origin opens.
    fn is_declared(&self) -> bool {
        !self.handed_over
    }

    fn saved(&self) -> Option<String> {
        match &self.what {
            // It would be another snapshot, of another moment.
            _ if self.handed_over || self.is_transient() => None,
            What::Snapshot(params) => Some(call(
                "snapshot_create",
                &SnapshotCreate {
                    wait: true,
                    ..params.clone()
                },
            )),
            What::Merge(params) => Some(call(
                "snapshot_merge",
                &SnapshotMerge {
                    wait: true,
                    ..params.clone()
                },
            )),
        }
    }
}

/// A declared origin target.
pub struct OriginEntry {
    params: SnapshotOriginCreate,
    life: Life<OpenOrigin>,
    /// What is open so far while it is being opened.
    half_open: Option<Rc<OpenOrigin>>,
    /// It is not to be opened again.
    deleting: bool,
    vbdev: Option<Vbdev>,
    registered: bool,
    closed: Option<BaseClosed>,
    snapshots: BTreeMap<String, SnapEntry>,
    /// The snapshot whose bdev is being unregistered by whoever has the lock.
    unregistering: Option<String>,
    /// Held while snapshots come and go.
    alone: Rc<Mutex<()>>,
}

impl OriginEntry {
    fn missing(&self) -> Vec<&str> {
        let declared = self.snapshots.values().filter(|entry| entry.is_declared());
        let cows = declared.map(|entry| entry.cow_bdev.as_str());
        std::iter::once(self.params.origin_bdev.as_str())
            .chain(cows)
            .filter(|bdev| !base::exists(bdev))
            .collect()
    }

    fn can_open(&self) -> bool {
        self.life.is_waiting() && !self.deleting && self.missing().is_empty()
    }

    fn is_any_registered(&self) -> bool {
        self.registered || self.snapshots.values().any(|entry| entry.registered)
    }

    fn open(&self) -> Option<&Rc<OpenOrigin>> {
        self.life.open()
    }
}

fn nr_sectors(bdev: &Descriptor) -> u64 {
    let info = bdev.info();
    info.nr_blocks * u64::from(info.block_bytes) / 512
}

fn refuse(name: &str) -> impl Fn(SnapshotError) -> RpcError {
    move |error| RpcError::new(error.errno(), format!("snapshot '{name}': {error}"))
}

fn no_snapshot(name: &str) -> RpcError {
    RpcError::new(
        Errno::ENODEV,
        format!("there is no origin or snapshot '{name}'; see snapshot_status"),
    )
}

fn whose(name: &str) -> String {
    format!("origin '{name}'")
}

/// A snapshot as the engine wants it. Its length is given, so that it stays when the origin grows.
fn config(params: &SnapshotCreate, nr_sectors: u64) -> Result<SnapshotConfig, RpcError> {
    Ok(SnapshotConfig {
        name: params.name.clone(),
        store: params.store_kind()?,
        chunk_sectors: params.chunk_size_sectors,
        discards: params.discards(),
        nr_sectors: Some(params.size_sectors.unwrap_or(nr_sectors)),
    })
}

impl Registry {
    /// The origin a snapshot or merge belongs to.
    pub fn origin_of(&self, snapshot: &str) -> Option<String> {
        let origins = self.origins.borrow();
        let found = origins
            .iter()
            .find(|(_, entry)| entry.snapshots.contains_key(snapshot));
        found.map(|(name, _)| name.clone())
    }

    /// Whether there is an origin target of this name.
    pub fn has_origin(&self, name: &str) -> bool {
        self.origins.borrow().contains_key(name)
    }

    /// The origin target on a bdev, for table lines, which name that.
    pub fn origin_on(&self, origin_bdev: &str) -> Option<String> {
        let origins = self.origins.borrow();
        let found = origins
            .iter()
            .find(|(_, entry)| entry.params.origin_bdev == origin_bdev);
        found.map(|(name, _)| name.clone())
    }

    fn origin_lock(&self, name: &str) -> Result<Rc<Mutex<()>>, RpcError> {
        let origins = self.origins.borrow();
        let entry = origins.get(name).ok_or_else(|| no_snapshot(name))?;
        Ok(entry.alone.clone())
    }

    /// The origin target, if it is open.
    fn use_origin(&self, name: &str) -> Result<Rc<OpenOrigin>, RpcError> {
        let origins = self.origins.borrow();
        let entry = origins.get(name).ok_or_else(|| no_snapshot(name))?;
        let waits_for = format!("its bdevs ({})", entry.missing().join(", "));
        entry.life.use_open(&whose(name), &waits_for)
    }

    /// Declared origins whose base bdevs are all there.
    pub fn origins_ready(&self) -> Vec<String> {
        let origins = self.origins.borrow();
        let ready = origins.iter().filter(|(_, entry)| entry.can_open());
        ready.map(|(name, _)| name.clone()).collect()
    }

    /// Whether none is open, or on its way to or from it.
    pub fn origins_are_closed(&self) -> bool {
        let origins = self.origins.borrow();
        origins.values().all(|entry| entry.life.is_waiting())
    }

    /// The calls that declare origins, snapshots and merges again.
    pub fn origins_config(&self) -> Vec<String> {
        let origins = self.origins.borrow();
        let mut calls = Vec::new();
        for entry in origins.values() {
            let params = SnapshotOriginCreate {
                wait: true,
                ..entry.params.clone()
            };
            calls.push(call("snapshot_origin_create", &params));
            calls.extend(entry.snapshots.values().filter_map(SnapEntry::saved));
        }
        calls
    }

    fn with_snapshot<R>(
        &self,
        origin: &str,
        name: &str,
        work: impl FnOnce(&mut SnapEntry) -> R,
    ) -> Result<R, RpcError> {
        let mut origins = self.origins.borrow_mut();
        let entry = origins.get_mut(origin).ok_or_else(|| no_snapshot(origin))?;
        let snapshot = entry.snapshots.get_mut(name);
        snapshot.map(work).ok_or_else(|| no_snapshot(name))
    }
}
