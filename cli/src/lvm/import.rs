//! `spdk-dm import lvm`.

use super::config::{Bdevs, config};
use super::group::Group;
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use clap::Args;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// The texts of a volume group are far shorter; of a disk only its beginning is read.
const MOST_BYTES: u64 = 64 << 20;

/// Arguments.
#[derive(Args)]
pub(crate) struct LvmArgs {
    /// What vgcfgbackup -f FILE wrote; or the beginning of a physical volume, of which the youngest text is taken
    metadata: PathBuf,
    /// Only this thin pool (default: all)
    #[arg(long, value_name = "LV")]
    pool: Option<String>,
    /// Use this bdev for a physical volume, which is given by its name in the text (pv0) or by its path, in place of
    /// an AIO bdev on its path
    #[arg(long = "bdev", value_name = "PV=BDEV", value_parser = pair)]
    bdevs: Vec<(String, String)>,
    /// Logical block size of AIO bdevs
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    block_size: u32,
    /// Write to this file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, bdev) = text.split_once('=').ok_or("it is not PV=BDEV")?;
    Ok((name.to_owned(), bdev.to_owned()))
}

impl LvmArgs {
    /// Prints the configuration.
    pub(crate) fn run(self, global: Global) -> Result<bool, CliError> {
        let io = |source| CliError::Io {
            path: self.metadata.clone(),
            source,
        };
        let mut bytes = Vec::new();
        let file = File::open(&self.metadata).map_err(io)?;
        file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(io)?;
        let refuse = |error| CliError::Usage(format!("{}: {error}", self.metadata.display()));
        let group = Group::read(&bytes).map_err(refuse)?;
        let existing: BTreeMap<String, String> = self.bdevs.iter().cloned().collect();
        let known = |name: &String| {
            let mut all = group.physical();
            all.any(|physical| physical.name == *name || physical.device == *name)
        };
        if let Some(name) = existing.keys().find(|name| !known(name)) {
            return Err(CliError::Usage(format!(
                "{}: there is no physical volume {name}",
                self.metadata.display()
            )));
        }
        let bdevs = Bdevs {
            existing,
            block_bytes: self.block_size,
        };
        let made = config(&group, self.pool.as_deref(), &bdevs).map_err(refuse)?;
        if !global.quiet {
            for pool in group.thin_pools(self.pool.as_deref()).map_err(refuse)? {
                for volume in group.thin_volumes(&pool.name).map_err(refuse)? {
                    if volume.read_only {
                        eprintln!(
                            "spdk-dm: {} is read-only in LVM; its bdev can be written to",
                            volume.name
                        );
                    }
                }
            }
        }
        Output::open(self.output.as_deref())?.json(&made)?;
        Ok(true)
    }
}
