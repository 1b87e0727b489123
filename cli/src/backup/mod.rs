//! `spdk-dm backup`: thin devices of a running target into files and back, all or only what has changed.
//!
//! A backup is of a snapshot, which nobody writes to while it is read; the pool's metadata says what is mapped
//! or differs, so only that is read, over NBD beside the RPC socket. The snapshot of the last backup stays
//! in the pool, for the next one to be compared with.

pub mod copy;
mod create;
mod restore;
pub mod sink;
pub mod source;
pub mod stream;
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
    /// Back up a thin device: all that is mapped
    Full(create::FullArgs),
    /// Back up what has changed in a thin device since another backup
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
    format!("backup-{}", uuid.get(..12).unwrap_or(uuid))
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
