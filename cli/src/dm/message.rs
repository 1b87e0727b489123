//! `spdk-dm message`.

use super::{Target, ask, device_name};
use crate::error::CliError;
use clap::Args;
use serde_json::json;

/// Arguments.
#[derive(Args)]
pub struct MessageArgs {
    #[command(flatten)]
    server: Target,
    /// Name of the device
    #[arg(value_parser = device_name)]
    name: String,
    /// Sector of the device the message is for: 0
    sector: u64,
    /// The message. To a pool: create_thin ID, create_snap ID ORIGIN, delete ID, set_transaction_id CURRENT NEW,
    /// reserve_metadata_snap, release_metadata_snap. To an era target: checkpoint, take_metadata_snap,
    /// drop_metadata_snap
    #[arg(required = true)]
    message: Vec<String>,
}

impl MessageArgs {
    /// Sends a message.
    pub fn run(self) -> Result<bool, CliError> {
        let message = self.message.join(" ");
        let (name, sector) = (self.name, self.sector);
        let params = json!({ "name": name, "sector": sector, "message": message });
        let result = ask(&mut self.server.connect()?, "dm_message", &name, params)?;
        let answer = json!({ "name": name, "message": message, "result": result });
        // Only an answer in words is worth a line, as with dmsetup.
        let line = result.as_str().map(|text| format!("{text}\n"));
        self.server.print(&answer, &line.unwrap_or_default())?;
        Ok(true)
    }
}
