//! `spdk-dm create`.

use super::line::table_line;
use super::{Target, ask, device_name};
use crate::error::CliError;
use clap::Args;
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Args)]
pub struct CreateArgs {
    #[command(flatten)]
    server: Target,
    /// Name of the new device
    #[arg(value_parser = device_name)]
    name: String,
    /// The table line with names of bdevs for devices, e.g. '0 2097152 thin-pool META DATA 128 0',
    /// '0 2097152 thin POOL 0', '0 2097152 era META ORIGIN 128'
    #[arg(long)]
    table: Option<String>,
    /// File with the table, instead of --table (default: standard input)
    #[arg(conflicts_with = "table")]
    table_file: Option<PathBuf>,
}

impl CreateArgs {
    /// Creates a device.
    pub fn run(self) -> Result<bool, CliError> {
        let text = match (self.table, self.table_file) {
            // dmsetup takes the name of a file there, too.
            (Some(text), _) if text.trim_start().starts_with(|c: char| c.is_ascii_digit()) => text,
            (Some(text), _) if !Path::new(&text).exists() => text,
            (Some(file), _) => read(Path::new(&file))?,
            (None, Some(file)) => read(&file)?,
            (None, None) => {
                let mut text = String::new();
                let read = std::io::stdin().read_to_string(&mut text);
                read.map_err(CliError::io(Path::new("standard input")))?;
                text
            }
        };
        let name = self.name;
        let table =
            table_line(&text).map_err(|error| CliError::Usage(format!("{name}: {error}")))?;
        let mut client = self.server.connect()?;
        let params = json!({ "name": name, "table": table });
        ask(&mut client, "dm_create", &name, params)?;
        self.server
            .print(&json!({ "created": name, "table": table }), "")?;
        Ok(true)
    }
}

fn read(file: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(file).map_err(CliError::io(file))
}
