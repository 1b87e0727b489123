//! LVM's metadata: what a volume group's thin pools are made of, as a configuration of SPDK.
//!
//! - [`text`]: the format's words and braces.
//! - [`group`]: volumes, segments, pools.
//! - `config`: the calls that serve a pool.
//! - `import`: the command.
//!
//! Made from the manual pages lvm(8), lvmthin(7), vgcfgbackup(8) and from what the real tools write.

mod config;
pub mod group;
mod import;
pub mod text;

use crate::Global;
use crate::error::CliError;
use clap::Subcommand;

/// What can be imported.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// A thin pool of LVM: prints the configuration with which an SPDK target serves it
    Lvm(import::LvmArgs),
}

impl Verb {
    /// Does it.
    pub(crate) fn run(self, global: Global) -> Result<bool, CliError> {
        match self {
            Verb::Lvm(args) => args.run(global),
        }
    }
}
