//! What is known of a migration, in a file: enough to go on after anything was cut off.
//!
//! Whatever is made in a pool is noted before, with its id, and confirmed afterwards, with what tells it from
//! another device of that id. So nothing is deleted that is not the migration's own.

use crate::error::CliError;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The version of the file's format.
const VERSION: u32 = 1;

/// A pool of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// The target's RPC socket.
    pub socket: PathBuf,
    /// The pool's name.
    pub pool: String,
}

/// A snapshot of a device that is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: u64,
    /// When it was made, in the pool's own counting.
    pub time: u64,
}

/// A pass under way: what makes the new device equal to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// Id of the snapshot.
    pub id: u64,
    /// When it was made. None: perhaps it was not.
    pub time: Option<u64>,
    /// What is before this block of 64 KiB is done, and durable.
    pub next_block: u64,
}

/// How far a device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The old device is the one in use.
    Copying,
    /// That is not known.
    Switching,
    /// The new device is the one in use.
    Switched,
    /// And the old one is dealt with.
    Done,
}

/// A device that is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// Its id.
    pub id: u64,
    /// When it was made, in the old pool's own counting.
    pub time: u64,
    /// Its id in the new pool.
    pub to_id: u64,
    /// Its bdev, if it has one.
    pub bdev: Option<String>,
    /// The device it is made a snapshot of in the new pool, by its id in the old one.
    pub parent: Option<u64>,
    /// The new device is being made.
    pub making: bool,
    /// The new device is there, and was made at this time in its pool's counting.
    pub to_time: Option<u64>,
    /// The snapshot the new device is equal to, if no pass is under way.
    pub base: Option<Snapshot>,
    /// The pass under way.
    pub pass: Option<Pass>,
    /// How far it has come.
    pub phase: Phase,
    /// Passes that are over.
    pub passes: u32,
    /// Blocks of 64 KiB that were written.
    pub moved_blocks: u64,
    /// How long its I/O had to wait.
    pub pause_ms: Option<u64>,
}

/// A migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Tells its bdevs from those of others.
    pub uuid: String,
    /// Where the devices come from.
    pub from: Side,
    /// Where they go.
    pub to: Side,
    /// The old devices stay.
    pub keep_source: bool,
    /// A metadata snapshot of the old pool is held for a moment.
    pub metadata_snap: bool,
    /// A bdev that is made wait for a moment.
    pub suspended: Option<String>,
    /// In the order in which they are moved.
    pub devices: Vec<Moving>,
    /// Snapshots in the old pool that are of no use any more.
    pub stale: Vec<Snapshot>,
}

impl State {
    /// Of a migration that begins.
    pub fn new(uuid: String, from: Side, to: Side, devices: Vec<Moving>) -> Self {
        State {
            version: VERSION,
            uuid,
            from,
            to,
            keep_source: false,
            metadata_snap: false,
            suspended: None,
            devices,
            stale: Vec::new(),
        }
    }
}

/// The file of a migration, while this process carries it out.
pub struct Journal {
    path: PathBuf,
    _lock: File,
    /// What is in it, when it was saved.
    pub state: State,
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(what);
    PathBuf::from(name)
}

/// The lock of a migration. None: another process carries it out.
fn lock(path: &Path, wait: bool) -> Result<Option<File>, CliError> {
    let path = beside(path, ".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(CliError::io(&path))?;
    if wait {
        file.lock().map_err(CliError::io(&path))?;
        return Ok(Some(file));
    }
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(CliError::io(&path)(error)),
    }
}

fn take(path: &Path) -> Result<File, CliError> {
    lock(path, false)?.ok_or_else(|| {
        CliError::Usage(format!(
            "{}: another spdk-dm carries this migration out; --cancel stops it",
            path.display()
        ))
    })
}

fn read(path: &Path) -> Result<State, CliError> {
    let text = fs::read(path).map_err(CliError::io(path))?;
    let state: State = serde_json::from_slice(&text)
        .map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))?;
    if state.version != VERSION {
        return Err(CliError::Usage(format!(
            "{}: of version {}, which this spdk-dm does not know; use the one that began the migration",
            path.display(),
            state.version
        )));
    }
    Ok(state)
}

impl Journal {
    /// Of a migration that begins. There must be none; but one that was cut off while it was planned does not
    /// count. True: there was such a one.
    pub fn begin(path: &Path, state: State) -> Result<(Self, bool), CliError> {
        let lock = take(path)?;
        let was_planned = path.exists();
        if was_planned && !read(path)?.devices.is_empty() {
            return Err(CliError::Usage(format!(
                "{}: a migration between these pools was begun; --resume goes on with it, --abort ends it",
                path.display()
            )));
        }
        let mut journal = Journal {
            path: path.to_owned(),
            _lock: lock,
            state,
        };
        journal.save()?;
        Ok((journal, was_planned))
    }

    /// Of one that was begun.
    pub fn open(path: &Path) -> Result<Self, CliError> {
        if !path.exists() {
            return Err(CliError::Usage(format!(
                "{}: is not there: no migration between these pools was begun",
                path.display()
            )));
        }
        let lock = take(path)?;
        let state = read(path)?;
        Ok(Journal {
            path: path.to_owned(),
            _lock: lock,
            state,
        })
    }

    /// Makes what is known durable.
    pub fn save(&mut self) -> Result<(), CliError> {
        let new = beside(&self.path, ".new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            serde_json::to_writer_pretty(&mut file, &self.state)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            let folder = self.path.parent().filter(|path| *path != Path::new(""));
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(CliError::io(&self.path))
    }

    /// The migration is over, one way or the other.
    pub fn end(self) -> Result<(), CliError> {
        fs::remove_file(&self.path).map_err(CliError::io(&self.path))?;
        // Nobody else has it, and nobody needs it.
        let _ = fs::remove_file(beside(&self.path, ".cancel"));
        let _ = fs::remove_file(beside(&self.path, ".lock"));
        Ok(())
    }

    /// Whether somebody wants it to stop. That is then forgotten.
    pub fn is_cancelled(&self) -> bool {
        fs::remove_file(beside(&self.path, ".cancel")).is_ok()
    }
}

/// Has a migration stop that another process carries out, and waits until it has. False: there is none.
pub fn cancel(path: &Path) -> Result<bool, CliError> {
    if !path.exists() || lock(path, false)?.is_some() {
        return Ok(false);
    }
    let asked = beside(path, ".cancel");
    File::create(&asked).map_err(CliError::io(&asked))?;
    lock(path, true)?;
    // It may have ended before it saw that.
    let _ = fs::remove_file(&asked);
    if !path.exists() {
        let _ = fs::remove_file(beside(path, ".lock"));
    }
    Ok(true)
}
