//! Verbs for the devices of a running target, in the words of `dmsetup`.
//!
//! Everything is asked of the target by its JSON-RPC socket; nothing is known here of formats. A device is a pool, a
//! thin bdev, an era target, an origin or a snapshot, and is known by its name.

mod create;
mod devices;
mod line;
mod merge;
mod message;
mod remove;
mod show;
mod wait;

use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use crate::rpc_client::{RpcClient, RpcError};
use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What can be done with the devices of a running target.
#[derive(Subcommand)]
pub enum Verb {
    /// List the devices of a running target: pools, thin bdevs, era targets, origins, snapshots
    Ls(show::LsArgs),
    /// Show the status of devices, in the kernel's line
    Status(show::StatusArgs),
    /// Show the tables of devices
    Table(show::TableArgs),
    /// Create a device from a table line
    Create(create::CreateArgs),
    /// Send a message to a device, e.g. to a pool: create_thin 0
    Message(message::MessageArgs),
    /// Remove devices; what is on their bdevs stays
    Remove(remove::RemoveArgs),
    /// Wait for an event of a device
    Wait(wait::WaitArgs),
    /// Merge a thin device back into its external origin
    Merge(merge::MergeArgs),
}

impl Verb {
    /// Does it. False: part of it could not be done, and that has been said.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        match self {
            Verb::Ls(args) => args.run(),
            Verb::Status(args) => args.run(),
            Verb::Table(args) => args.run(),
            Verb::Create(args) => args.run(),
            Verb::Message(args) => args.run(),
            Verb::Remove(args) => args.run(),
            Verb::Wait(args) => args.run(global),
            Verb::Merge(args) => args.run(global),
        }
    }
}

/// Where the target is.
#[derive(Args)]
pub struct Server {
    /// RPC socket of the target
    #[arg(short, long, value_name = "PATH", default_value = "/var/tmp/spdk.sock")]
    socket: PathBuf,
    /// How long the target may take to answer a call, in seconds
    #[arg(short, long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

impl Server {
    /// The target's RPC socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects to it.
    pub fn connect(&self) -> Result<RpcClient, CliError> {
        self.connect_to(&self.socket)
    }

    /// Connects to another target, of which the same is expected.
    pub fn connect_to(&self, socket: &Path) -> Result<RpcClient, CliError> {
        let limit = Duration::from_secs(self.timeout);
        Ok(RpcClient::connect(socket, limit)?)
    }
}

/// Where the target is, and how its answers are shown.
#[derive(Args)]
struct Target {
    #[command(flatten)]
    server: Server,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Target {
    /// Connects to it.
    fn connect(&self) -> Result<RpcClient, CliError> {
        self.server.connect()
    }

    /// Prints a result: as JSON if that was asked for, else as lines.
    fn print(&self, json: &impl serde::Serialize, lines: &str) -> Result<(), CliError> {
        let mut output = Output::open(None)?;
        if self.json {
            return output.json(json);
        }
        let written = output.out.write_all(lines.as_bytes());
        written
            .and_then(|()| output.out.flush())
            .map_err(CliError::io(&output.path))
    }
}

/// The name of a device, which may be given as the kernel's path to it.
fn device_name(word: &str) -> Result<String, std::convert::Infallible> {
    Ok(word.strip_prefix("/dev/mapper/").unwrap_or(word).to_owned())
}

/// Calls a method for a device, which a refusal then names.
fn ask(
    client: &mut RpcClient,
    method: &str,
    name: &str,
    params: serde_json::Value,
) -> Result<serde_json::Value, CliError> {
    client.call(method, params).map_err(|error| match error {
        RpcError::Refused { code, message } if !message.contains(name) => {
            let message = format!("{name}: {message}");
            CliError::Rpc(RpcError::Refused { code, message })
        }
        error => CliError::Rpc(error),
    })
}

/// An answer that is not what the method is documented to give.
pub fn odd(method: &str) -> CliError {
    CliError::Usage(format!(
        "{method}: the answer is not as expected; are spdk-dm and the plugin of the same version?"
    ))
}

/// Something that went wrong with one of several devices.
fn complain(error: &CliError) {
    // As the others are printed.
    let _ = io::stdout().flush();
    eprintln!("spdk-dm: {error}");
}
