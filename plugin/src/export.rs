//! A pool's metadata bdev as a read-only bdev, so that tools on other hosts read the metadata snapshot
//! while the pool is in use.
//!
//! There is at most one per pool. While it is there the metadata snapshot cannot be released: readers
//! that nobody here knows of would see blocks change. It goes before the pool closes.

use crate::registry::{OpenPool, Registry, call, registry};
use bdev::errno::Errno;
use futures::channel::oneshot;
use rpc::RpcError;
use rpc::params::ThinMetadataSnapExport;
use spdk::base::{self, BaseChannel, Descriptor, IoKind};
use spdk::vbdev::{BdevIo, Destructed, Driver, Params, Vbdev};
use std::rc::Rc;

/// An exported metadata snapshot.
pub struct ExportEntry {
    bdev_name: String,
    /// Taken by who unregisters it.
    vbdev: Option<Vbdev>,
    /// Dropped when it is gone.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Registry {
    /// The bdev that exports a pool's metadata snapshot.
    pub fn exported(&self, pool: &str) -> Option<String> {
        let exports = self.exports.borrow();
        Some(exports.get(pool)?.bdev_name.clone())
    }

    /// Registers the bdev. Returns its name.
    pub async fn export(
        self: &Rc<Self>,
        params: &ThinMetadataSnapExport,
    ) -> Result<String, RpcError> {
        if params.wait {
            self.wait_opening(&params.pool).await;
        }
        match self.try_export(params).await {
            // What was saved with a configuration should not keep a target from starting.
            Err(error) if params.wait => {
                log::warn!(
                    "bdev '{}' is not there: {}",
                    params.bdev_name(),
                    error.message
                );
                Ok(params.bdev_name())
            }
            result => result,
        }
    }

    async fn try_export(
        self: &Rc<Self>,
        params: &ThinMetadataSnapExport,
    ) -> Result<String, RpcError> {
        let (readers, metadata) = {
            let open = self.open_entry(&params.pool)?;
            (open.readers.clone(), open.metadata.clone())
        };
        // A reader, so that the snapshot is not released before the export is known.
        let export = async |_| self.register_export(params, metadata);
        readers.read("thin_metadata_snap_export", export).await
    }

    fn register_export(
        &self,
        params: &ThinMetadataSnapExport,
        metadata: Descriptor,
    ) -> Result<String, RpcError> {
        let bdev_name = params.bdev_name();
        if let Some(there) = self.exported(&params.pool) {
            return Err(RpcError::new(
                Errno::EEXIST,
                format!(
                    "the metadata snapshot of pool '{}' is exported already, as bdev '{there}'",
                    params.pool
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
                product_name: "spdk-dm thin metadata snapshot".to_owned(),
                block_bytes: info.block_bytes,
                nr_blocks: info.nr_blocks,
                optimal_boundary_blocks: 0,
                write_cache: false,
                uuid: [0; 16],
            },
            ExportDriver {
                metadata,
                params: ThinMetadataSnapExport {
                    bdev_name: Some(bdev_name.clone()),
                    wait: true,
                    ..params.clone()
                },
            },
        )
        .map_err(|errno| match Errno(errno) {
            Errno::EEXIST => taken(),
            errno => RpcError::new(errno, format!("bdev '{bdev_name}' cannot be registered")),
        })?;
        self.exports.borrow_mut().insert(
            params.pool.clone(),
            ExportEntry {
                bdev_name: bdev_name.clone(),
                vbdev: Some(vbdev),
                waiting: Vec::new(),
            },
        );
        Ok(bdev_name)
    }

    /// Unregisters the bdev and waits until it is gone. False: there is none.
    pub async fn unexport(&self, pool: &str) -> bool {
        let (vbdev, gone) = {
            let mut exports = self.exports.borrow_mut();
            let Some(entry) = exports.get_mut(pool) else {
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

    /// Lets the metadata snapshot of a pool go, unless somebody may be reading it.
    pub async fn release_metadata_snap(&self, pool: &str) -> Result<(), RpcError> {
        let open: Rc<OpenPool> = self.open_entry(pool)?;
        let readers = open.readers.clone();
        drop(open);
        if let Some(bdev) = self.exported(pool) {
            return Err(RpcError::new(
                Errno::EBUSY,
                format!(
                    "the metadata snapshot of pool '{pool}' is exported as bdev '{bdev}'; thin_metadata_snap_unexport it first"
                ),
            ));
        }
        readers.release().await
    }
}

/// The bdev as SPDK sees it.
struct ExportDriver {
    metadata: Descriptor,
    params: ThinMetadataSnapExport,
}

impl Driver for ExportDriver {
    type Channel = BaseChannel;

    fn create_channel(&self) -> Option<BaseChannel> {
        self.metadata.channel()
    }

    fn submit(channel: &BaseChannel, io: BdevIo, kind: IoKind, offset: u64, _: u64) {
        match kind {
            IoKind::Read => io.forward(channel, channel.descriptor(), offset, 0),
            // A reset, too: it would reach the pool's own I/O.
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
        let pool = self.params.pool.clone();
        let Some(registry) = registry() else {
            return drop(done);
        };
        spdk::executor::spawn(async move {
            // Closes the driver's descriptor of the metadata bdev, so before anybody is told.
            drop(done);
            registry.exports.borrow_mut().remove(&pool);
            registry.close_idle_pools();
        });
    }

    fn info(&self) -> (&'static str, String) {
        let info = serde_json::json!({ "pool": self.params.pool });
        ("thin_metadata_snap", info.to_string())
    }

    fn config(&self) -> String {
        call("thin_metadata_snap_export", &self.params)
    }
}
