//! What an era target lies on, held as it is at one moment: by a thin snapshot, or by a snapshot of an origin that
//! lasts for as long as the backup.

use super::header::Thin;
use super::source::{Access, Open, Pool};
use super::{bdev_name, is_bdev_name};
use crate::dm::odd;
use crate::error::CliError;
use crate::rpc_client::RpcClient;
use serde_json::{Value, json};
use std::path::Path;

/// What is copied to a COW bdev before it is overwritten: the kernel's default.
const CHUNK_SECTORS: u64 = 32;

/// How it can be done.
pub enum Way {
    /// The target lies on a thin device.
    Thin {
        /// The pool.
        pool: String,
        /// The device.
        id: u64,
    },
    /// The target lies on a snapshot-origin.
    Origin {
        /// Its name.
        origin: String,
        /// What is overwritten meanwhile goes here.
        cow: String,
    },
}

/// What is read.
pub enum Frozen {
    /// A thin snapshot.
    Thin(Thin),
    /// A snapshot of an origin.
    Origin {
        /// Its bdev.
        bdev: String,
        /// Its COW bdev.
        cow: String,
    },
}

fn array(client: &mut RpcClient, method: &str) -> Result<Vec<Value>, CliError> {
    match client.call(method, Value::Null)? {
        Value::Array(all) => Ok(all),
        _ => Err(odd(method)),
    }
}

impl Way {
    /// How an era target's data can be frozen. What a backup that was killed has left there is taken away, or
    /// reported where it can be gone on with.
    pub fn find(
        client: &mut RpcClient,
        era: &str,
        data_bdev: &str,
        cow: Option<&str>,
        socket: &Path,
    ) -> Result<Self, CliError> {
        for pool in array(client, "thin_pool_status")? {
            let (Some(name), Some("open")) = (pool["name"].as_str(), pool["state"].as_str()) else {
                continue;
            };
            let mut pool = Pool::new(client, name);
            let mut devices = pool.devices()?.into_iter();
            let Some(device) = devices.find(|device| device.bdev.as_deref() == Some(data_bdev))
            else {
                continue;
            };
            if cow.is_some() {
                return Err(CliError::Usage(format!(
                    "era '{era}' lies on thin device {} of pool '{name}', of which a snapshot is taken: leave --cow away",
                    device.id
                )));
            }
            pool.report_left_behind(socket)?;
            return Ok(Way::Thin {
                pool: name.to_owned(),
                id: device.id,
            });
        }
        for origin in array(client, "snapshot_status")? {
            if origin["name"].as_str() != Some(data_bdev) {
                continue;
            }
            let cow = cow.ok_or_else(|| {
                CliError::Usage(format!(
                    "era '{era}' lies on origin '{data_bdev}': give --cow BDEV, a bdev for what is overwritten while \
                     the backup is made; one as large as the origin and 1 % cannot fill"
                ))
            })?;
            clear(client, &origin, socket)?;
            return Ok(Way::Origin {
                origin: data_bdev.to_owned(),
                cow: cow.to_owned(),
            });
        }
        Err(CliError::Usage(format!(
            "era '{era}' lies on bdev '{data_bdev}', of which no snapshot can be taken: put a thin device or a \
             snapshot-origin (snapshot_origin_create) below it, and give --cow BDEV with the latter"
        )))
    }

    /// Freezes it.
    pub fn freeze(&self, client: &mut RpcClient, uuid: &str) -> Result<Frozen, CliError> {
        match self {
            Way::Thin { pool: name, id } => {
                let snapshot = Pool::new(client, name).snapshot(*id)?;
                Ok(Frozen::Thin(Thin {
                    pool: name.clone(),
                    device_id: *id as u32,
                    snapshot_id: snapshot.id as u32,
                    snapshot_time: snapshot.creation_time,
                }))
            }
            Way::Origin { origin, cow } => {
                let bdev = bdev_name(uuid);
                // In memory only: what the COW bdev holds from before does not matter.
                let params = json!({ "name": bdev, "origin": origin, "cow_bdev": cow, "store": "N", "chunk_size_sectors": CHUNK_SECTORS });
                client.call("snapshot_create", params)?;
                Ok(Frozen::Origin {
                    bdev,
                    cow: cow.clone(),
                })
            }
        }
    }
}

/// Deletes the snapshots that backups which were killed have left.
fn clear(client: &mut RpcClient, origin: &Value, socket: &Path) -> Result<(), CliError> {
    for snapshot in origin["snapshots"].as_array().into_iter().flatten() {
        let Some(bdev) = snapshot["name"].as_str().filter(|bdev| is_bdev_name(bdev)) else {
            continue;
        };
        if !Access::is_used(client, bdev, socket)? {
            Access::clear(client, bdev, socket)?;
            client.call("snapshot_delete", json!({ "name": bdev }))?;
            eprintln!(
                "spdk-dm: snapshot '{bdev}' was left by a backup that was cut off; it is deleted now"
            );
        }
    }
    Ok(())
}

impl Frozen {
    /// A way to its data.
    pub fn open(
        &self,
        client: &mut RpcClient,
        uuid: &str,
        size_bytes: u64,
        socket: &Path,
    ) -> Result<Access, CliError> {
        match self {
            Frozen::Thin(thin) => {
                let what = Open {
                    id: u64::from(thin.snapshot_id),
                    size_sectors: size_bytes / 512,
                    ..Open::default()
                };
                Pool::new(client, &thin.pool).open(what, &bdev_name(uuid), socket)
            }
            Frozen::Origin { bdev, .. } => Access::open(client, bdev, false, socket),
        }
    }

    /// Ends what [`Frozen::open`] began.
    pub fn close(&self, client: &mut RpcClient, access: Access) -> Result<(), CliError> {
        match self {
            Frozen::Thin(thin) => Pool::new(client, &thin.pool).close(access),
            Frozen::Origin { .. } => access.close(client),
        }
    }

    /// It is not needed any more.
    pub fn thaw(&self, client: &mut RpcClient) -> Result<(), CliError> {
        match self {
            Frozen::Thin(thin) => {
                let mut pool = Pool::new(client, &thin.pool);
                let snapshot = pool.snapshot_of(thin)?;
                pool.delete(snapshot.id)
            }
            Frozen::Origin { bdev, .. } => {
                client.call("snapshot_delete", json!({ "name": bdev }))?;
                Ok(())
            }
        }
    }

    /// The reason why reading has failed, if it is known better than from the error.
    pub fn explain(&self, client: &mut RpcClient, error: CliError) -> CliError {
        let Frozen::Origin { bdev, cow } = self else {
            return error;
        };
        let status = client.call("snapshot_status", json!({ "name": bdev }));
        match status {
            Ok(status) if status["condition"] == "invalid" => CliError::Usage(format!(
                "COW bdev '{cow}' is full or has failed, so the moment is lost; the disk goes on. Begin anew with a \
                 larger --cow"
            )),
            _ => error,
        }
    }
}
