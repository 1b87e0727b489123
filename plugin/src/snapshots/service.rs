//! Snapshots and merges in service: their COW bdevs are taken and let go, their bdevs registered.

use super::bdevs::{SnapshotDriver, Whose};
use super::opening::taken;
use super::{Cow, OpenOrigin, What, config, refuse};
use crate::bases::{self, Base};
use crate::held_bdev::HeldBdev;
use crate::registry::Registry;
use bdev::device::ByteDeviceRef;
use bdev::errno::Errno;
use bdev::snapshot::{SnapshotConfig, StoreKind};
use bdev::target::BaseId;
use rpc::RpcError;
use rpc::params::SnapshotMerge;
use serde_json::json;
use spdk::base::{Event, IoKind};
use spdk::vbdev::{Params, Vbdev};
use std::rc::Rc;

impl Registry {
    /// Takes a declared snapshot or merge into service.
    pub(super) async fn bring_up(
        self: &Rc<Self>,
        open: &Rc<OpenOrigin>,
        origin: &str,
        name: &str,
    ) -> Result<(), RpcError> {
        enum Wanted {
            Snapshot(SnapshotConfig),
            Merge(SnapshotConfig, SnapshotMerge),
        }
        let size = open.origin.nr_sectors();
        let (wanted, cow_bdev, missed) = self.with_snapshot(origin, name, |entry| {
            let wanted = match &entry.what {
                What::Snapshot(params) => Wanted::Snapshot(config(params, size)?),
                What::Merge(params) => {
                    let config = SnapshotConfig {
                        name: params.name.clone(),
                        store: StoreKind::Persistent { overflow: false },
                        chunk_sectors: params.chunk_size_sectors.unwrap_or(0),
                        discards: Default::default(),
                        nr_sectors: Some(params.size_sectors.unwrap_or(size)),
                    };
                    Wanted::Merge(config, params.clone())
                }
            };
            Ok((wanted, entry.cow_bdev.clone(), entry.missed))
        })??;
        let number = open.origin.free_base().map_err(refuse(name))?;
        let (device, flushes) = self.attach(open, origin, name, &cow_bdev, number).await?;
        let device: ByteDeviceRef = device;
        let brought = match wanted {
            Wanted::Snapshot(config) => {
                let nr_sectors = config.nr_sectors;
                let made = open.origin.create_snapshot(config, number, device, flushes);
                made.await.map(|_| {
                    let _ = self.with_snapshot(origin, name, |entry| {
                        if let What::Snapshot(params) = &mut entry.what {
                            params.size_sectors = nr_sectors;
                        }
                    });
                })
            }
            Wanted::Merge(config, params) => {
                open.origin.set_merge_rate(params.mib_per_second << 20);
                open.origin
                    .merge_store(config, number, device, flushes)
                    .await
            }
        };
        if let Err(error) = brought {
            self.detach(open, origin, name).await;
            let mut refused = refuse(name)(error);
            refused.message += &format!(" (COW bdev '{cow_bdev}')");
            return Err(refused);
        }
        if missed {
            let reason = "writes of the origin were not kept from it while its COW bdev was away";
            open.origin
                .invalidate_snapshot(name, reason)
                .map_err(refuse(name))?;
        }
        Ok(())
    }

    /// Opens and claims a COW bdev and makes it known on every core.
    pub(super) async fn attach(
        self: &Rc<Self>,
        open: &Rc<OpenOrigin>,
        origin: &str,
        name: &str,
        cow_bdev: &str,
        number: BaseId,
    ) -> Result<(Rc<HeldBdev>, bool), RpcError> {
        let registry = Rc::downgrade(self);
        let (target, removed) = (origin.to_owned(), cow_bdev.to_owned());
        let events = move |event| {
            if event == Event::Remove
                && let Some(registry) = registry.upgrade()
            {
                let (target, bdev) = (target.clone(), removed.clone());
                spdk::executor::spawn(async move {
                    registry.cow_bdev_removed(&target, &bdev).await;
                });
            }
        };
        let owner = format!("snapshot '{name}'");
        let Base {
            desc,
            channel,
            closed,
        } = bases::take(&owner, cow_bdev, 512, events)?;
        let info = desc.info();
        let device = self.with_snapshot(origin, name, |entry| {
            let cow = entry.cow.get_or_insert_with(|| Cow {
                number,
                device: HeldBdev::new(channel.clone(), open.buffers.clone()),
                closed: None,
            });
            cow.closed = Some(closed);
            cow.device.clone()
        })?;
        device.attach(channel);
        if open.bases.add(number, desc).await.is_err() {
            self.detach(open, origin, name).await;
            return Err(RpcError::new(
                Errno::ENOMEM,
                format!("snapshot '{name}': no I/O channel of bdev '{cow_bdev}': out of memory"),
            ));
        }
        Ok((device, info.supports(IoKind::Flush)))
    }

    /// Lets a COW bdev go, which nothing may be mapped to any more, and waits until it is closed.
    pub(super) async fn detach(&self, open: &Rc<OpenOrigin>, origin: &str, name: &str) {
        let cow = self.with_snapshot(origin, name, |entry| entry.cow.take());
        if let Ok(Some(mut cow)) = cow {
            self.let_go(open, &mut cow, name).await;
        }
    }

    /// Ends all I/O to a COW bdev and closes it.
    pub(super) async fn let_go(&self, open: &Rc<OpenOrigin>, cow: &mut Cow, name: &str) {
        let number = cow.number;
        let drained = open.origin.drain();
        open.bases.take_away(number, drained).await;
        cow.device.detach();
        let closed = cow.closed.take().into_iter().collect();
        bases::wait_closed(&format!("snapshot '{name}'"), closed).await;
    }

    /// Registers the bdev of a snapshot that is in service; a merge has none.
    pub(super) fn register_snapshot(
        &self,
        open: &Rc<OpenOrigin>,
        origin: &str,
        name: &str,
    ) -> Result<(), RpcError> {
        let Some(snapshot) = open.origin.snapshot(name) else {
            return Ok(());
        };
        let block_bytes = open.device.block_bytes();
        let chunk_blocks = snapshot.status().chunk_sectors * 512 / u64::from(block_bytes);
        let config = snapshot.config();
        let cow_bdev = self.with_snapshot(origin, name, |entry| entry.cow_bdev.clone())?;
        let info = json!({
            "origin": origin,
            "cow_bdev": cow_bdev,
            "store": config.store.to_string(),
            "chunk_size_sectors": snapshot.status().chunk_sectors,
        });
        let vbdev = Vbdev::register(
            &Params {
                name: name.to_owned(),
                product_name: "spdk-dm snapshot".to_owned(),
                block_bytes,
                nr_blocks: snapshot.volume().nr_logical_blocks(),
                optimal_boundary_blocks: u32::try_from(chunk_blocks).unwrap_or(0),
                write_cache: true,
                uuid: [0; 16],
                divides_at_blocks: 1,
            },
            SnapshotDriver::new(
                snapshot.volume().clone(),
                open.bases.channels(),
                taken(config.discards.zeroes_cow),
                Whose {
                    origin: origin.to_owned(),
                    snapshot: Some(name.to_owned()),
                    info: info.to_string(),
                },
            ),
        );
        let vbdev = vbdev.map_err(|errno| {
            RpcError::new(
                Errno(errno),
                format!("bdev '{name}' cannot be registered; is there one of this name?"),
            )
        })?;
        self.with_snapshot(origin, name, |entry| {
            entry.vbdev = Some(vbdev);
            entry.registered = true;
        })
    }
}
