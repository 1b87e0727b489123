//! Which devices a target has.

use super::odd;
use crate::error::CliError;
use crate::rpc_client::RpcClient;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its type in device-mapper's word.
    pub target: &'static str,
    /// open, or what keeps it from that: waiting, opening, closing.
    pub state: String,
}

/// What the status methods say of a pool, an era or a ploop target.
#[derive(Deserialize)]
struct Named {
    name: String,
    state: String,
}

#[derive(Deserialize)]
struct Thin {
    bdev_name: Option<String>,
}

#[derive(Deserialize)]
struct Snapshot {
    name: String,
}

#[derive(Deserialize)]
struct Origin {
    name: String,
    state: String,
    snapshots: Vec<Snapshot>,
    merge: Option<Snapshot>,
}

impl Origin {
    /// The names of its snapshots, and of what is merged into it.
    fn names(&self) -> impl Iterator<Item = String> {
        let all = self.snapshots.iter().chain(&self.merge);
        all.map(|snapshot| snapshot.name.clone())
    }
}

/// The state of a device that works.
pub const OPEN: &str = "open";

fn ask<T: serde::de::DeserializeOwned>(
    client: &mut RpcClient,
    method: &str,
    params: Value,
) -> Result<T, CliError> {
    let answer = client.call(method, params)?;
    serde_json::from_value(answer).map_err(|_| odd(method))
}

/// The names of a pool's active thin devices; one that is not open has none. None: there is no such pool.
pub fn thins(client: &mut RpcClient, pool: &str) -> Result<Option<Vec<String>>, CliError> {
    match ask::<Vec<Thin>>(client, "thin_list", json!({ "pool": pool })) {
        Ok(list) => Ok(Some(
            list.into_iter().filter_map(|thin| thin.bdev_name).collect(),
        )),
        Err(CliError::Rpc(error)) if error.is_no_device() => Ok(None),
        Err(CliError::Rpc(error)) if error.is_refusal() => Ok(Some(Vec::new())),
        Err(error) => Err(error),
    }
}

/// The names of an origin's snapshots, and of what is merged into it. None: there is no such origin.
pub fn snapshots(client: &mut RpcClient, origin: &str) -> Result<Option<Vec<String>>, CliError> {
    let all: Vec<Origin> = ask(client, "snapshot_status", Value::Null)?;
    let found = all.into_iter().find(|found| found.name == origin);
    Ok(found.map(|found| found.names().collect()))
}

/// All devices, or those of one type, by name.
pub fn list(client: &mut RpcClient, target: Option<&str>) -> Result<Vec<Device>, CliError> {
    let mut devices = Vec::new();
    for pool in ask::<Vec<Named>>(client, "thin_pool_status", Value::Null)? {
        if pool.state == OPEN {
            let thins = thins(client, &pool.name)?.unwrap_or_default();
            devices.extend(thins.into_iter().map(|name| Device {
                name,
                target: "thin",
                state: OPEN.to_owned(),
            }));
        }
        devices.push(Device {
            name: pool.name,
            target: "thin-pool",
            state: pool.state,
        });
    }
    for (target, method) in [("era", "era_status"), ("ploop", "ploop_status")] {
        for found in ask::<Vec<Named>>(client, method, Value::Null)? {
            devices.push(Device {
                name: found.name,
                target,
                state: found.state,
            });
        }
    }
    for origin in ask::<Vec<Origin>>(client, "snapshot_status", Value::Null)? {
        devices.extend(origin.names().map(|name| Device {
            name,
            target: "snapshot",
            state: origin.state.clone(),
        }));
        devices.push(Device {
            name: origin.name,
            target: match origin.merge {
                Some(_) => "snapshot-merge",
                None => "snapshot-origin",
            },
            state: origin.state,
        });
    }
    devices.retain(|device| target.is_none_or(|target| target == device.target));
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(devices)
}
