//! A target's metadata bdev as a read-only bdev, so that tools on other hosts read the metadata snapshot
//! while the target is in use.
//!
//! There is at most one per target. While it is there the metadata snapshot cannot be let go: readers
//! that nobody here knows of would see blocks change. It goes before the target closes. Pools and era
//! targets have names of their own each, so a name says whose export it is.

use crate::registry::{Registry, call, registry};
use bdev::errno::Errno;
use futures::channel::oneshot;
use rpc::RpcError;
use rpc::params::ThinMetadataSnapExport;
use spdk::base::{self, BaseChannel, Descriptor, IoKind};
use spdk::vbdev::{BdevIo, Destructed, Driver, Params, Vbdev};
use std::rc::Rc;

/// Of what kind of target a metadata snapshot is, in words for users.
pub struct ExportKind {
    target: &'static str,
    product_name: &'static str,
    info: &'static str,
    unexport: &'static str,
}

/// Pools.
pub static POOL: ExportKind = ExportKind {
    target: "pool",
    product_name: "spdk-dm thin metadata snapshot",
    info: "thin_metadata_snap",
    unexport: "thin_metadata_snap_unexport",
};

/// Era targets.
pub static ERA: ExportKind = ExportKind {
    target: "era",
    product_name: "spdk-dm era metadata snapshot",
    info: "era_metadata_snap",
    unexport: "era_metadata_snap_unexport",
};

/// What is to be exported.
pub struct Export<'a> {
    /// Of what kind the target is.
    pub kind: &'static ExportKind,
    /// The target's name.
    pub target: &'a str,
    /// Name of the bdev.
    pub bdev_name: String,
    /// The target's metadata bdev.
    pub metadata: Descriptor,
    /// The call that makes the bdev again.
    pub config: String,
}

/// The result of an export: what was saved with a configuration (`wait`) should not keep an SPDK target
/// from starting.
pub fn exported_or_warned(
    wait: bool,
    bdev_name: String,
    result: Result<(), RpcError>,
) -> Result<String, RpcError> {
    match result {
        Err(error) if wait => {
            log::warn!("bdev '{bdev_name}' is not there: {}", error.message);
            Ok(bdev_name)
        }
        result => result.map(|()| bdev_name),
    }
}

/// An exported metadata snapshot.
pub struct ExportEntry {
    bdev_name: String,
    /// Taken by who unregisters it.
    vbdev: Option<Vbdev>,
    /// Dropped when it is gone.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Registry {
    /// The bdev that exports a target's metadata snapshot.
    pub fn exported(&self, target: &str) -> Option<String> {
        let exports = self.exports.borrow();
        Some(exports.get(target)?.bdev_name.clone())
    }

    /// Registers the bdev of a pool. Returns its name.
    pub async fn export(
        self: &Rc<Self>,
        params: &ThinMetadataSnapExport,
    ) -> Result<String, RpcError> {
        if params.wait {
            self.wait_opening(&params.pool).await;
        }
        let result = self.try_export(params).await;
        exported_or_warned(params.wait, params.bdev_name(), result)
    }

    async fn try_export(self: &Rc<Self>, params: &ThinMetadataSnapExport) -> Result<(), RpcError> {
        let (readers, metadata) = {
            let open = self.open_entry(&params.pool)?;
            (open.readers.clone(), open.metadata.clone())
        };
        let saved = ThinMetadataSnapExport {
            bdev_name: Some(params.bdev_name()),
            wait: true,
            ..params.clone()
        };
        let export = Export {
            kind: &POOL,
            target: &params.pool,
            bdev_name: params.bdev_name(),
            metadata,
            config: call("thin_metadata_snap_export", &saved),
        };
        // A reader, so that the snapshot is not released before the export is known.
        let export = async |_| self.register_export(export);
        readers.read("thin_metadata_snap_export", export).await
    }

    /// Registers the bdev of a metadata snapshot that the caller keeps from being let go meanwhile.
    pub fn register_export(&self, export: Export<'_>) -> Result<(), RpcError> {
        let Export {
            kind,
            target,
            bdev_name,
            metadata,
            config,
        } = export;
        if let Some(there) = self.exported(target) {
            return Err(RpcError::new(
                Errno::EEXIST,
                format!(
                    "the metadata snapshot of {} '{target}' is exported already, as bdev '{there}'",
                    kind.target
                ),
            ));
        }
        let taken = || {
            RpcError::new(
                Errno::EEXIST,
                format!("there is a bdev '{bdev_name}' already; choose another bdev_name"),
            )
        };
        if base::exists(&bdev_name) {
            return Err(taken());
        }
        let info = metadata.info();
        let vbdev = Vbdev::register(
            &Params {
                name: bdev_name.clone(),
                product_name: kind.product_name.to_owned(),
                block_bytes: info.block_bytes,
                nr_blocks: info.nr_blocks,
                optimal_boundary_blocks: 0,
                write_cache: false,
                uuid: [0; 16],
                divides_at_blocks: 0,
            },
            ExportDriver {
                metadata,
                kind,
                target: target.to_owned(),
                config,
            },
        )
        .map_err(|errno| match Errno(errno) {
            Errno::EEXIST => taken(),
            errno => RpcError::new(errno, format!("bdev '{bdev_name}' cannot be registered")),
        })?;
        self.exports.borrow_mut().insert(
            target.to_owned(),
            ExportEntry {
                bdev_name,
                vbdev: Some(vbdev),
                waiting: Vec::new(),
            },
        );
        Ok(())
    }

    /// Unregisters the bdev and waits until it is gone. False: there is none.
    pub async fn unexport(&self, target: &str) -> bool {
        let (vbdev, gone) = {
            let mut exports = self.exports.borrow_mut();
            let Some(entry) = exports.get_mut(target) else {
                return false;
            };
            let (tx, rx) = oneshot::channel();
            entry.waiting.push(tx);
            (entry.vbdev.take(), rx)
        };
        if let Some(vbdev) = vbdev {
            vbdev.unregister().await;
        }
        // Ends when the sender is dropped.
        let _ = gone.await;
        true
    }

    /// Unregisters the bdev at a user's wish.
    pub async fn unexport_or_refuse(
        &self,
        kind: &'static ExportKind,
        target: &str,
    ) -> Result<(), RpcError> {
        match self.unexport(target).await {
            true => Ok(()),
            false => Err(RpcError::new(
                Errno::ENODEV,
                format!(
                    "the metadata snapshot of {} '{target}' is not exported",
                    kind.target
                ),
            )),
        }
    }

    /// EBUSY while there is the bdev.
    pub fn check_not_exported(
        &self,
        kind: &'static ExportKind,
        target: &str,
    ) -> Result<(), RpcError> {
        match self.exported(target) {
            None => Ok(()),
            Some(bdev) => Err(RpcError::new(
                Errno::EBUSY,
                format!(
                    "the metadata snapshot of {} '{target}' is exported as bdev '{bdev}'; {} it first",
                    kind.target, kind.unexport
                ),
            )),
        }
    }

    /// Lets the metadata snapshot of a pool go, unless somebody may be reading it.
    pub async fn release_metadata_snap(&self, pool: &str) -> Result<(), RpcError> {
        let readers = self.open_entry(pool)?.readers.clone();
        self.check_not_exported(&POOL, pool)?;
        readers.release().await
    }
}

/// The bdev as SPDK sees it.
struct ExportDriver {
    metadata: Descriptor,
    kind: &'static ExportKind,
    target: String,
    config: String,
}

impl Driver for ExportDriver {
    type Channel = BaseChannel;

    fn create_channel(&self) -> Option<BaseChannel> {
        self.metadata.channel()
    }

    fn submit(channel: &BaseChannel, io: BdevIo, kind: IoKind, offset: u64, _: u64) {
        match kind {
            IoKind::Read => io.forward(channel, offset, 0),
            // A reset, too: it would reach the target's own I/O.
            _ => io.complete(Errno::EOPNOTSUPP.0),
        }
    }

    fn forwarded(_: &BaseChannel, io: BdevIo, _: u64, ok: bool) {
        io.complete(if ok { 0 } else { Errno::EIO.0 });
    }

    fn io_kinds(&self) -> u32 {
        IoKind::Read.bit()
    }

    fn destruct(&self, done: Destructed) {
        let target = self.target.clone();
        let Some(registry) = registry() else {
            return drop(done);
        };
        spdk::executor::spawn(async move {
            // Closes the driver's descriptor of the metadata bdev, so before anybody is told.
            drop(done);
            registry.exports.borrow_mut().remove(&target);
            registry.close_idle_pools();
        });
    }

    fn info(&self) -> (&'static str, String) {
        let info = serde_json::json!({ self.kind.target: self.target });
        (self.kind.info, info.to_string())
    }

    fn config(&self) -> String {
        self.config.clone()
    }
}
