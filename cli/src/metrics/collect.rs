//! Asks a target for all that is measured.

use crate::dm::odd;
use crate::error::CliError;
use crate::replicate::report;
use crate::rpc_client::RpcClient;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Labels of an object, by name.
pub type Labels = Vec<(String, String)>;

/// An object of a target: who it is, and what it says of itself.
pub struct Object {
    /// Who.
    pub labels: Labels,
    /// What.
    pub status: Map<String, Value>,
}

/// All objects of a target.
#[derive(Default)]
pub struct Found {
    /// Pools.
    pub pools: Vec<Object>,
    /// Thin devices, active or not.
    pub thins: Vec<Object>,
    /// Era targets.
    pub eras: Vec<Object>,
    /// Origins.
    pub origins: Vec<Object>,
    /// Snapshots and merges.
    pub snapshots: Vec<Object>,
    /// All bdevs.
    pub bdevs: Vec<Object>,
}

/// A method's answer, as objects.
fn objects(method: &str, answer: Value) -> Result<Vec<Map<String, Value>>, CliError> {
    let Value::Array(list) = answer else {
        return Err(odd(method));
    };
    let objects = list.into_iter().map(|value| match value {
        Value::Object(object) => Ok(object),
        _ => Err(odd(method)),
    });
    objects.collect()
}

/// A word or number of an object as a label; nothing where there is none.
fn word(object: &Map<String, Value>, field: &str) -> String {
    match object.get(field) {
        Some(Value::String(word)) => word.clone(),
        Some(value @ Value::Number(_)) => value.to_string(),
        _ => String::new(),
    }
}

fn labels<const N: usize>(labels: [(&str, &str); N]) -> Labels {
    let labels = labels.into_iter();
    labels
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn named(kind: &str, list: Vec<Map<String, Value>>) -> Vec<Object> {
    let objects = list.into_iter().map(|status| Object {
        labels: labels([(kind, &word(&status, "name"))]),
        status,
    });
    objects.collect()
}

fn all(client: &mut RpcClient, kind: &str, method: &str) -> Result<Vec<Object>, CliError> {
    let answer = client.call(method, Value::Null)?;
    Ok(named(kind, objects(method, answer)?))
}

/// The thin devices of a pool; none, if it has gone meanwhile.
fn thins(client: &mut RpcClient, pool: &str) -> Result<Vec<Object>, CliError> {
    let answer = match client.call("thin_list", json!({ "pool": pool })) {
        Ok(answer) => answer,
        Err(error) if error.is_refusal() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let list = objects("thin_list", answer)?.into_iter();
    let thins = list.map(|status| {
        let (id, bdev) = (word(&status, "id"), word(&status, "bdev_name"));
        let labels = labels([("pool", pool), ("id", &id), ("bdev", &bdev)]);
        Object { labels, status }
    });
    Ok(thins.collect())
}

/// The snapshots of an origin, and what is merged into it.
fn snapshots(origin: &Object) -> Vec<Object> {
    let name = word(&origin.status, "name");
    let list = origin.status.get("snapshots").and_then(Value::as_array);
    let list = list.into_iter().flatten();
    let all = list.chain(origin.status.get("merge"));
    let snapshots = all.filter_map(Value::as_object).map(|status| Object {
        labels: labels([("origin", &name), ("snapshot", &word(status, "name"))]),
        status: status.clone(),
    });
    snapshots.collect()
}

/// What SPDK counts of the I/O of all bdevs, with times in seconds.
fn bdevs(client: &mut RpcClient) -> Result<Vec<Object>, CliError> {
    const METHOD: &str = "bdev_get_iostat";
    let mut answer = client.call(METHOD, Value::Null)?;
    let ticks_per_second = answer.get("tick_rate").and_then(Value::as_f64);
    let list = answer.get_mut("bdevs").map(Value::take);
    let mut list = objects(METHOD, list.ok_or_else(|| odd(METHOD))?)?;
    for bdev in &mut list {
        for what in ["read", "write", "unmap"] {
            let ticks = bdev.get(&format!("{what}_latency_ticks"));
            let ticks = ticks.and_then(Value::as_f64);
            if let (Some(ticks), Some(rate)) = (ticks, ticks_per_second.filter(|rate| *rate > 0.0))
            {
                bdev.insert(format!("{what}_seconds"), json!(ticks / rate));
            }
        }
    }
    Ok(named("bdev", list))
}

/// What is said of replications by those who see to them. It needs no target.
pub fn replications(socket: &Path) -> Result<Vec<Object>, CliError> {
    let reports = report::all(socket)?.into_iter();
    let objects = reports.map(|report| {
        let status = report.fields();
        let device = word(&status, "device");
        let chain = report.chain.get(..12).unwrap_or(&report.chain);
        let labels = labels([
            ("pool", &report.pool),
            ("device", &device),
            ("chain", chain),
        ]);
        Object { labels, status }
    });
    Ok(objects.collect())
}

impl Found {
    /// Asks.
    pub fn ask(client: &mut RpcClient) -> Result<Self, CliError> {
        let mut found = Found {
            pools: all(client, "pool", "thin_pool_status")?,
            eras: all(client, "era", "era_status")?,
            origins: all(client, "origin", "snapshot_status")?,
            ..Found::default()
        };
        for pool in &found.pools {
            if word(&pool.status, "state") == "open" {
                found
                    .thins
                    .extend(thins(client, &word(&pool.status, "name"))?);
            }
        }
        found.snapshots = found.origins.iter().flat_map(snapshots).collect();
        found.bdevs = bdevs(client)?;
        Ok(found)
    }
}
