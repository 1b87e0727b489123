//! `spdk-dm remove`.

use super::devices::{snapshots, thins};
use super::{Target, ask, complain, device_name};
use crate::error::CliError;
use crate::rpc_client::RpcClient;
use clap::Args;
use serde_json::json;

/// Arguments.
#[derive(Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    server: Target,
    /// Names of the devices
    #[arg(required = true, value_name = "NAME", value_parser = device_name)]
    names: Vec<String>,
    /// Remove first what is on a device: the thin devices of a pool, the snapshots of an origin
    #[arg(short, long)]
    force: bool,
}

impl RemoveArgs {
    /// Removes devices. False: not all of them.
    pub fn run(self) -> Result<bool, CliError> {
        let mut client = self.server.connect()?;
        let (mut removed, mut well) = (Vec::new(), true);
        for name in &self.names {
            let done = match self.force {
                true => remove_with_all(&mut client, name, &mut removed),
                false => remove(&mut client, name, &mut removed),
            };
            if let Err(error) = done {
                complain(&error);
                well = false;
            }
        }
        self.server.print(&json!({ "removed": removed }), "")?;
        Ok(well)
    }
}

fn remove(client: &mut RpcClient, name: &str, removed: &mut Vec<String>) -> Result<(), CliError> {
    ask(client, "dm_remove", name, json!({ "name": name }))?;
    removed.push(name.to_owned());
    Ok(())
}

fn remove_with_all(
    client: &mut RpcClient,
    name: &str,
    removed: &mut Vec<String>,
) -> Result<(), CliError> {
    let above = match thins(client, name)? {
        Some(thins) => thins,
        None => snapshots(client, name)?.unwrap_or_default(),
    };
    for device in above {
        remove(client, &device, removed)?;
    }
    remove(client, name, removed)
}
