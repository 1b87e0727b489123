//! `backup restore`: a full backup and those made since, into a new thin device, a new file or a bdev.

use super::sink::{Sink, apply};
use super::source::{Access, Open, Pool};
use super::stream::{Header, Reader};
use super::verify::verify_chain;
use super::{bdev_name, damaged};
use crate::Global;
use crate::dm::Server;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;
use crate::rpc_client::RpcClient;
use clap::Args;
use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

/// Arguments of `backup restore`.
#[derive(Args)]
pub struct RestoreArgs {
    /// The full backup, and then those made since, in their order
    #[arg(required = true, value_name = "FILE")]
    backups: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Id of the new thin device, with --pool
    #[arg(long, requires = "pool")]
    id: Option<u32>,
    /// Do not read the backups twice to see first that they are whole
    #[arg(long)]
    no_verify: bool,
    /// Print JSON of what was restored
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// Make a new thin device in this pool, with --id
    #[arg(long, requires = "id")]
    pool: Option<String>,
    /// Make a new file, sparse
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Overwrite this bdev: all of it
    #[arg(long, value_name = "NAME")]
    bdev: Option<String>,
}

/// What can go wrong on either side.
enum ApplyError {
    Backup(CliError),
    Place(io::Error),
}

impl ApplyError {
    /// For the user, with what a place that fails is called.
    fn at(self, place: impl FnOnce(io::Error) -> CliError) -> CliError {
        match self {
            ApplyError::Backup(error) => error,
            ApplyError::Place(source) => place(source),
        }
    }
}

impl RestoreArgs {
    /// Restores. Prints nothing but remarks, and JSON if that was asked for.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let headers = match self.no_verify {
            true => super::verify::chain_headers(&self.backups)?,
            false => verify_chain(&self.backups, global)?,
        };
        let Some(last) = headers.last() else {
            return Ok(false);
        };
        match (&self.place.file, &self.place.bdev, &self.place.pool) {
            (Some(path), ..) => self.to_file(path, last, global)?,
            (_, Some(bdev), _) => self.to_bdev(bdev, last, global)?,
            (.., Some(pool)) => self.to_pool(pool, last, global)?,
            _ => return Ok(false),
        }
        if self.json {
            let Place { pool, file, bdev } = &self.place;
            Output::open(None)?.json(&json!({
                "backup": last.uuid,
                "size_bytes": last.size_bytes,
                "pool": pool,
                "id": self.id,
                "file": file,
                "bdev": bdev,
            }))?;
        }
        Ok(true)
    }

    fn to_file(&self, path: &Path, last: &Header, global: Global) -> Result<(), CliError> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let mut file = file.map_err(CliError::io(path))?;
        let applied = file
            .set_len(last.size_bytes)
            .map_err(ApplyError::Place)
            .and_then(|()| self.apply(&mut file, last.size_bytes, global));
        applied.map_err(|error| error.at(CliError::io(path)))
    }

    fn to_bdev(&self, bdev: &str, last: &Header, global: Global) -> Result<(), CliError> {
        let mut client = self.server.connect()?;
        let mut access = Access::open(&mut client, bdev, true, self.server.socket())?;
        let restored = self.fill(&mut access, last, true, global);
        let closed = access.close(&mut client);
        restored.and(closed)
    }

    fn to_pool(&self, name: &str, last: &Header, global: Global) -> Result<(), CliError> {
        let mut client: RpcClient = self.server.connect()?;
        let mut pool = Pool::new(&mut client, name);
        let id = u64::from(self.id.unwrap_or_default());
        if pool.devices()?.iter().any(|device| device.id == id) {
            return Err(CliError::Usage(format!(
                "pool '{name}' has a thin device {id} already; nothing is overwritten: choose another id"
            )));
        }
        let sectors = last.size_bytes / 512;
        let what = Open {
            id,
            size_sectors: sectors,
            create: true,
            writable: true,
        };
        let mut access = pool.open(what, &bdev_name(&last.uuid), self.server.socket())?;
        let restored = self.fill(&mut access, last, false, global);
        let closed = pool.close(access);
        let done = restored.and(closed);
        if done.is_err() {
            eprintln!("spdk-dm: thin device {id} of pool '{name}' is not complete; thin_delete it");
        }
        done
    }

    fn fill(
        &self,
        access: &mut Access,
        last: &Header,
        clear: bool,
        global: Global,
    ) -> Result<(), CliError> {
        let size_bytes = access.data.export().size_bytes;
        if size_bytes < last.size_bytes {
            return Err(CliError::Usage(format!(
                "the bdev has {size_bytes} bytes, the backup {}; use a larger one",
                last.size_bytes
            )));
        }
        let cleared = match clear {
            true => access.data.zero(0, size_bytes).map_err(ApplyError::Place),
            false => Ok(()),
        };
        let applied = cleared.and_then(|()| self.apply(&mut access.data, last.size_bytes, global));
        applied.map_err(|error| error.at(|source| access.failed(source)))
    }

    fn apply(
        &self,
        sink: &mut impl Sink,
        size_bytes: u64,
        global: Global,
    ) -> Result<(), ApplyError> {
        for path in &self.backups {
            let progress = Progress::new(global.quiet, "restoring");
            let applied = apply_one(path, sink, size_bytes, &progress);
            progress.finish();
            applied?;
            // Writes under way keep no order, and the next backup may write to the same blocks.
            sink.finish().map_err(ApplyError::Place)?;
        }
        Ok(())
    }
}

fn apply_one(
    path: &Path,
    sink: &mut impl Sink,
    size_bytes: u64,
    progress: &Progress,
) -> Result<(), ApplyError> {
    let bad = |error| ApplyError::Backup(damaged(path)(error));
    let file = File::open(path).map_err(|error| ApplyError::Backup(CliError::io(path)(error)))?;
    let mut reader = Reader::begin(BufReader::with_capacity(1 << 20, file)).map_err(bad)?;
    let size = fs::metadata(path).map_or(0, |found| found.len());
    progress.expect(size);
    let mut done = 0;
    while let Some(piece) = reader.piece().map_err(bad)? {
        let block_bytes = reader.header().block_bytes;
        // A device may have been larger when an earlier backup of it was made.
        let written = apply(sink, &piece, block_bytes, size_bytes);
        written.map_err(ApplyError::Place)?;
        progress.advance(reader.good_bytes() - done);
        done = reader.good_bytes();
    }
    Ok(())
}
