//! `spdk-dm backup`: thin devices, era and ploop targets into files and back, all or only what has changed.
//!
//! A backup is of one moment: `thin` reads a snapshot, `era` a snapshot of what the target lies on (`freeze`), `ploop`
//! the disk itself, of which no part is overwritten before it was read. What has changed since the one before (`base`)
//! is known from the pool's metadata, from the eras, and from what the ploop target has recorded. Data is read over
//! NBD beside the RPC socket (`access`).

mod access;
mod base;
pub mod copy;
mod create;
mod era;
mod freeze;
pub mod header;
mod output;
mod ploop;
mod pushed;
mod ranges;
mod restore;
pub mod sink;
pub mod source;
mod stop;
pub mod stream;
mod thin;
mod verify;

use crate::Global;
use crate::error::CliError;
use clap::Subcommand;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use stream::StreamError;

/// What can be done with backups.
#[derive(Subcommand)]
pub enum Verb {
    /// Back up a thin device, an era target or a ploop target: all that is in use
    Full(create::FullArgs),
    /// Back up what has changed since another backup
    Incr(create::IncrArgs),
    /// Restore backups into a new thin device, a new file or a bdev
    Restore(restore::RestoreArgs),
    /// See that backups are whole and follow each other; nothing is printed if they do
    Verify(verify::VerifyArgs),
    /// List backups, and what they were made since
    List(verify::ListArgs),
}

impl Verb {
    /// Does it.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        match self {
            Verb::Full(args) => args.run(global),
            Verb::Incr(args) => args.run(global),
            Verb::Restore(args) => args.run(global),
            Verb::Verify(args) => args.run(global),
            Verb::List(args) => args.run(),
        }
    }
}

/// What is wrong with this backup.
fn damaged(path: &Path) -> impl Fn(StreamError) -> CliError {
    let path = path.to_owned();
    move |error| match error {
        StreamError::Io(source) => CliError::io(&path)(source),
        error => CliError::Usage(format!("{}: {error}", path.display())),
    }
}

/// The bdev by which a backup's data is reached.
fn bdev_name(uuid: &str) -> String {
    format!("{BDEV_PREFIX}{}", uuid.get(..12).unwrap_or(uuid))
}

/// What the names of such bdevs begin with.
const BDEV_PREFIX: &str = "backup-";

/// Whether a bdev is named like one of those.
fn is_bdev_name(name: &str) -> bool {
    let digits = name.strip_prefix(BDEV_PREFIX);
    digits.is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Bytes nobody can guess.
pub fn random<const N: usize>() -> Result<[u8; N], CliError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; N];
    File::open(path)
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(CliError::io(path))?;
    Ok(bytes)
}

/// A random identity.
pub fn new_uuid() -> Result<String, CliError> {
    let bytes = random::<16>()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Now.
pub fn now_unix_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
