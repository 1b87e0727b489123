//! `spdk-dm ls`, `status`, `table`.

use super::devices::{Device, OPEN, list};
use super::line::TableLine;
use super::{Target, ask, complain, device_name, odd};
use crate::error::CliError;
use crate::rpc_client::RpcClient;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;

/// Arguments.
#[derive(Args)]
pub struct LsArgs {
    #[command(flatten)]
    server: Target,
    /// Only devices of this type: thin-pool, thin, era, snapshot-origin, snapshot, snapshot-merge or ploop
    #[arg(long, value_name = "TYPE")]
    target: Option<String>,
    /// For who means the file.
    #[arg(hide = true)]
    file: Option<String>,
}

/// Which devices.
#[derive(Args)]
struct Which {
    /// Names of devices (default: all)
    #[arg(value_name = "NAME", value_parser = device_name)]
    names: Vec<String>,
    /// Only devices of this type
    #[arg(long, value_name = "TYPE")]
    target: Option<String>,
}

/// Arguments.
#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    which: Which,
    /// As dmsetup takes it; here status never writes anything
    #[arg(long)]
    noflush: bool,
}

/// Arguments.
#[derive(Args)]
pub struct TableArgs {
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    which: Which,
}

/// A table line with its device's name.
#[derive(Serialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    line: TableLine,
}

impl LsArgs {
    /// Lists devices.
    pub fn run(self) -> Result<bool, CliError> {
        if let Some(file) = self.file {
            return Err(CliError::Usage(format!(
                "ls lists the devices of a running target; 'spdk-dm thin ls {file}' lists the thin devices in metadata"
            )));
        }
        let devices = list(&mut self.server.connect()?, self.target.as_deref())?;
        let mut lines = String::new();
        for Device { name, target, .. } in &devices {
            let _ = writeln!(lines, "{name}\t({target})");
        }
        if devices.is_empty() {
            lines.push_str("No devices found\n");
        }
        self.server.print(&devices, &lines)?;
        Ok(true)
    }
}

impl Which {
    /// The devices to ask about, and whether one may have gone since: one that was asked for by its name must be there,
    /// and one that is not open says why.
    fn choose(&self, client: &mut RpcClient) -> Result<Vec<(String, bool)>, CliError> {
        let named = self.names.iter().cloned();
        let Some(target) = &self.target else {
            if !self.names.is_empty() {
                return Ok(named.map(|name| (name, false)).collect());
            }
            let all = list(client, None)?.into_iter();
            return Ok(all
                .map(|device| (device.name, device.state == OPEN))
                .collect());
        };
        let (of_type, others): (Vec<_>, Vec<_>) = list(client, None)?
            .into_iter()
            .partition(|device| device.target == target);
        if self.names.is_empty() {
            let of_type = of_type.into_iter();
            return Ok(of_type
                .map(|device| (device.name, device.state == OPEN))
                .collect());
        }
        let is_other = |name: &String| others.iter().any(|device| device.name == *name);
        Ok(named
            .filter(|name| !is_other(name))
            .map(|name| (name, false))
            .collect())
    }

    /// Asks about each device, and returns what was found, with its line. What some of all devices
    /// refuse is said, and the others are shown.
    fn each<T>(
        &self,
        client: &mut RpcClient,
        look: impl Fn(&mut RpcClient, &str) -> Result<(String, T), CliError>,
    ) -> Result<(Vec<T>, String, bool), CliError> {
        let (mut all, mut lines, mut well) = (Vec::new(), String::new(), true);
        for (name, may_go) in self.choose(client)? {
            match look(client, &name) {
                Ok((line, found)) => {
                    let _ = match self.names.len() {
                        1 => writeln!(lines, "{line}"),
                        _ => writeln!(lines, "{name}: {line}"),
                    };
                    all.push(found);
                }
                // It went while the others were looked at.
                Err(CliError::Rpc(error)) if may_go && error.is_no_device() => {}
                Err(error @ CliError::Rpc(_)) => {
                    complain(&error);
                    well = false;
                }
                Err(error) => return Err(error),
            }
        }
        if all.is_empty() && well && self.names.is_empty() {
            lines.push_str("No devices found\n");
        }
        Ok((all, lines, well))
    }
}

/// A device's table line.
pub fn table_of(client: &mut RpcClient, name: &str) -> Result<TableLine, CliError> {
    let answer = ask(client, "dm_table", name, json!({ "name": name }))?;
    let line = answer.as_str().and_then(TableLine::parse);
    line.ok_or_else(|| odd("dm_table"))
}

fn status_of(client: &mut RpcClient, name: &str) -> Result<(String, Value), CliError> {
    let mut status = ask(client, "dm_status", name, json!({ "name": name }))?;
    let table = table_of(client, name)?;
    let field = |field| status.get(field).and_then(Value::as_str);
    let (Some(target), Some(line)) = (field("target"), field("line")) else {
        return Err(odd("dm_status"));
    };
    let line = format!("{} {} {target} {line}", table.start, table.length);
    status["start"] = json!(table.start);
    status["length"] = json!(table.length);
    Ok((line, status))
}

impl StatusArgs {
    /// Shows the status of devices. False: not of all.
    pub fn run(self) -> Result<bool, CliError> {
        let mut client = self.server.connect()?;
        let (all, lines, well) = self.which.each(&mut client, status_of)?;
        self.server.print(&all, &lines)?;
        Ok(well)
    }
}

impl TableArgs {
    /// Shows the tables of devices. False: not of all.
    pub fn run(self) -> Result<bool, CliError> {
        let mut client = self.server.connect()?;
        let (all, lines, well) = self.which.each(&mut client, |client, name| {
            let line = table_of(client, name)?;
            let name = name.to_owned();
            Ok((line.to_string(), Named { name, line }))
        })?;
        self.server.print(&all, &lines)?;
        Ok(well)
    }
}
