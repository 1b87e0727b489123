//! `spdk-dm merge`.

use super::{Target, odd};
use crate::Global;
use crate::error::CliError;
use crate::progress::Progress;
use crate::rpc_client::RpcClient;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

const START: &str = "thin_merge_external";
const STATUS: &str = "thin_merge_external_status";

/// How often a merge is looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// Arguments.
#[derive(Args)]
pub struct MergeArgs {
    #[command(flatten)]
    server: Target,
    /// Name of the pool
    pool: String,
    /// Id of the thin device, which is active with an external origin
    id: u32,
    /// Most MiB merged per second; 0: as many as can be
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    mib_per_second: u64,
    /// Only begin it, and do not wait for the end
    #[arg(long)]
    detach: bool,
    /// Stop a merge that is under way; what is left is merged by the next one
    #[arg(long, conflicts_with_all = ["mib_per_second", "detach"])]
    stop: bool,
}

/// How a merge is: what `thin_merge_external_status` answers.
#[derive(Debug, Serialize, Deserialize)]
struct Merge {
    pool: String,
    id: u32,
    state: String,
    failure: Option<String>,
    merged_blocks: u64,
    mapped_blocks: u64,
}

impl MergeArgs {
    /// Merges, and waits for the end. False: it was stopped, or has failed.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let mut client = self.server.connect()?;
        let device = json!({ "pool": self.pool, "id": self.id });
        if self.stop {
            client.call("thin_merge_external_stop", device)?;
            return Ok(true);
        }
        let mut start = device.clone();
        start["mib_per_second"] = json!(self.mib_per_second);
        client.call(START, start)?;
        let merge = match self.detach {
            true => look(&mut client, &device)?,
            false => follow(
                &mut client,
                &device,
                &Progress::new(global.quiet, "merging"),
            )?,
        };
        let words = match (&*merge.state, &merge.failure) {
            (_, Some(failure)) => {
                return Err(CliError::Usage(format!(
                    "merging thin device {} of pool '{}' has failed: {failure}; what is left is still the device's, and merging again goes on",
                    merge.id, merge.pool
                )));
            }
            ("finished", _) => format!("merged {} blocks\n", merge.merged_blocks),
            (state, _) => format!("{state}, {} blocks are left\n", merge.mapped_blocks),
        };
        self.server.print(&merge, &words)?;
        Ok(self.detach || merge.state == "finished")
    }
}

fn look(client: &mut RpcClient, device: &serde_json::Value) -> Result<Merge, CliError> {
    let answer = client.call(STATUS, device.clone())?;
    serde_json::from_value(answer).map_err(|_| odd(STATUS))
}

/// Waits until it does not run any more.
fn follow(
    client: &mut RpcClient,
    device: &serde_json::Value,
    progress: &Progress,
) -> Result<Merge, CliError> {
    let merge = loop {
        let merge = look(client, device)?;
        progress.expect(merge.merged_blocks.saturating_add(merge.mapped_blocks));
        progress.at(merge.merged_blocks);
        if merge.state != "running" {
            break merge;
        }
        std::thread::sleep(PERIOD);
    };
    progress.finish();
    Ok(merge)
}
