//! `spdk-dm wait`: events are SPDK's notifications.
//!
//! A target keeps its notifications in one ring, numbered from 0. The number of an event of a device is that of its
//! notification, plus one; so numbers of a device grow, with gaps, and 0 comes before all of them.

use super::show::table_of;
use super::{Target, device_name, odd};
use crate::Global;
use crate::error::CliError;
use crate::rpc_client::RpcClient;
use clap::Args;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// Arguments.
#[derive(Args)]
pub struct WaitArgs {
    #[command(flatten)]
    server: Target,
    /// Name of the device
    #[arg(value_parser = device_name)]
    name: String,
    /// Wait for an event with a larger number (default: for the next)
    event_nr: Option<u64>,
    /// Print the event and its number, which the next wait may be given
    #[arg(short, long)]
    verbose: bool,
    /// As dmsetup takes it
    #[arg(long, hide = true)]
    noflush: bool,
}

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// Notifications asked for at a time.
const PAGE: u64 = 256;

/// A notification, as `notify_get_notifications` has it.
#[derive(Debug, Clone, Deserialize)]
struct Notification {
    #[serde(rename = "type")]
    kind: String,
    ctx: String,
    id: u64,
}

impl Notification {
    /// Whether it is an event of this device. The words after its name may be anything.
    fn is_of(&self, name: &str) -> bool {
        let is_first = |text: &str| {
            let rest = text.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        match self.kind.as_str() {
            kind if kind.starts_with("thin_pool_") => is_first(&self.ctx),
            // The origin, then the snapshot.
            kind if kind.starts_with("snapshot_") => {
                let snapshot = self.ctx.split_once(' ').map(|(_, rest)| rest);
                is_first(&self.ctx) || snapshot.is_some_and(is_first)
            }
            _ => false,
        }
    }
}

/// All notifications from this number on that there are now.
fn notifications(client: &mut RpcClient, mut from: u64) -> Result<Vec<Notification>, CliError> {
    const METHOD: &str = "notify_get_notifications";
    let mut all: Vec<Notification> = Vec::new();
    loop {
        let page = client.call(METHOD, json!({ "id": from, "max": PAGE }))?;
        let page: Vec<Notification> = serde_json::from_value(page).map_err(|_| odd(METHOD))?;
        // Old ones may be gone from the ring, so numbers may jump.
        let Some(last) = page.last().filter(|last| last.id >= from) else {
            return Ok(all);
        };
        from = last.id.saturating_add(1);
        all.extend(page);
    }
}

impl WaitArgs {
    /// Waits. False: the device has gone.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let mut client = self.server.connect()?;
        table_of(&mut client, &self.name)?;
        let mut from = match self.event_nr {
            Some(event_nr) => event_nr,
            None => match notifications(&mut client, 0)?.last() {
                Some(last) => last.id.saturating_add(1),
                None => 0,
            },
        };
        loop {
            for found in notifications(&mut client, from)? {
                from = found.id.saturating_add(1);
                if found.is_of(&self.name) {
                    return self.report(&found);
                }
            }
            match table_of(&mut client, &self.name) {
                Ok(_) => {}
                Err(CliError::Rpc(error)) if error.is_no_device() => {
                    if !global.quiet {
                        eprintln!("spdk-dm: device '{}' has been removed", self.name);
                    }
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
            std::thread::sleep(INTERVAL);
        }
    }

    fn report(&self, found: &Notification) -> Result<bool, CliError> {
        let event_nr = found.id.saturating_add(1);
        let json = json!({
            "name": self.name,
            "event_nr": event_nr,
            "event": found.kind,
            "context": found.ctx,
        });
        let line = match self.verbose {
            true => format!("{event_nr} {} {}\n", found.kind, found.ctx),
            false => String::new(),
        };
        self.server.print(&json, &line)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events are of the devices they name, and of no other whose name begins alike.
    #[test]
    fn whose_event() {
        let event = |kind: &str, ctx: &str| Notification {
            kind: kind.to_owned(),
            ctx: ctx.to_owned(),
            id: 0,
        };
        let mode = event("thin_pool_mode", "pool ro");
        assert!(mode.is_of("pool") && !mode.is_of("poo") && !mode.is_of("ro"));
        assert!(event("thin_pool_no_space_timeout", "pool").is_of("pool"));
        let merged = event("snapshot_merge_finished", "base snap");
        assert!(merged.is_of("base") && merged.is_of("snap") && !merged.is_of("sna"));
        assert!(!event("bdev_register", "pool").is_of("pool"));
    }
}
