//! The thin device in which a side's state stands: found, made, read and written.
//!
//! It maps one block, far beyond the end of any ordinary device, so that nobody who only writes to a device of
//! theirs can make one that looks like it. While a process works with it a lock beside the RPC socket keeps
//! others away; the system takes it back when the process dies.

use super::state::{Purpose, Role, STATE_BYTES, Snapshot, State, Taking, Work};
use crate::backup::new_uuid;
use crate::backup::source::{Access, Device, Open, Pool};
use crate::error::CliError;
use nbd::Kind;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the state stands in its device.
const STATE_AT_BYTES: u64 = 16 << 40;

/// How often and how long others that hold a lock are waited for.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);

/// A side's state, open.
pub struct Head {
    /// To be changed and then saved.
    pub state: State,
    sequence: u64,
    access: Access,
    socket: PathBuf,
    lock: File,
}

/// What a look at a pool has found.
pub struct Seen {
    /// States that nobody is working with.
    pub states: Vec<State>,
    /// States that somebody is working with, as they were when he began.
    pub busy: Vec<State>,
}

/// The bdev as which a device of a pool is opened for replication. It has to be the same each time: what a killed
/// process has left is found by it.
pub fn bdev_name(pool: &str, id: u64) -> String {
    format!("repl-{:08x}-{id}", crc32c::crc32c(pool.as_bytes()))
}

/// A file beside the RPC socket, of this kind and about this.
pub fn beside(socket: &Path, about: &str) -> PathBuf {
    let folder = socket.parent().unwrap_or(Path::new("/var/tmp"));
    let target = socket.file_stem().unwrap_or_default().to_string_lossy();
    folder.join(format!("spdk-dm-{target}-{about}"))
}

/// Writes into a lock what it is of.
fn say(lock: &File, state: &State) {
    let text = serde_json::to_vec(state).unwrap_or_default();
    // Written over what was said before, which mostly was the same. Who cannot read it waits.
    let written = lock.write_all_at(&text, 0);
    let _ = written.and_then(|()| lock.set_len(text.len() as u64));
}

/// What a lock of somebody else's is of.
fn said(pool: &str, id: u64, socket: &Path) -> Option<State> {
    let path = beside(socket, &format!("{}.lock", bdev_name(pool, id)));
    let mut text = Vec::new();
    let file = File::open(path).ok()?;
    file.take(STATE_BYTES as u64).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Locks a device of a pool. None: somebody else has it.
fn lock(pool: &str, id: u64, socket: &Path) -> Result<Option<(File, PathBuf)>, CliError> {
    let path = beside(socket, &format!("{}.lock", bdev_name(pool, id)));
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(CliError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some((file, path))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(CliError::io(&path)(error)),
    }
}

fn open(pool: &mut Pool<'_>, id: u64, create: bool, socket: &Path) -> Result<Access, CliError> {
    let what = Open {
        id,
        size_sectors: (STATE_AT_BYTES + STATE_BYTES as u64) / 512,
        create,
        writable: true,
    };
    let bdev = bdev_name(&pool.name, id);
    pool.open(what, &bdev, socket)
}

/// What of a pool might be such a device.
fn candidates(pool: &mut Pool<'_>) -> Result<Vec<Device>, CliError> {
    let mut devices = pool.devices()?;
    let name = pool.name.clone();
    devices.retain(|device| {
        let free = match &device.bdev {
            Some(bdev) => *bdev == bdev_name(&name, device.id),
            None => true,
        };
        free && device.mapped_blocks == 1
    });
    // They have high ids.
    devices.reverse();
    Ok(devices)
}

/// Opens a device that might be one. None: it is not.
fn open_candidate(
    pool: &mut Pool<'_>,
    device: &Device,
    lock: File,
    socket: &Path,
) -> Result<Option<Head>, CliError> {
    let mut access = open(pool, device.id, false, socket)?;
    let read = access
        .data
        .call(Kind::Read, STATE_AT_BYTES, STATE_BYTES as u32, &[]);
    let found = match read {
        Ok(slots) => State::decode(&slots),
        Err(source) => {
            let error = access.failed(source);
            pool.close(access)?;
            return Err(error);
        }
    };
    let own = |state: &State| (state.id, state.creation_time) == (device.id, device.creation_time);
    match found.filter(|(_, state)| own(state)) {
        Some((sequence, state)) => {
            say(&lock, &state);
            Ok(Some(Head {
                state,
                sequence,
                access,
                socket: socket.to_owned(),
                lock,
            }))
        }
        None => {
            pool.close(access)?;
            Ok(None)
        }
    }
}

/// All states in a pool, without waiting for anybody.
pub fn look(pool: &mut Pool<'_>, socket: &Path) -> Result<Seen, CliError> {
    let mut seen = Seen {
        states: Vec::new(),
        busy: Vec::new(),
    };
    for device in candidates(pool)? {
        let Some((lock, path)) = lock(&pool.name, device.id, socket)? else {
            // Whoever has it may have to find out first.
            let said = || said(&pool.name, device.id, socket);
            let heard = (0..10).find_map(|_| {
                said().or_else(|| {
                    std::thread::sleep(PAUSE / 10);
                    None
                })
            });
            seen.busy.extend(heard);
            continue;
        };
        match open_candidate(pool, &device, lock, socket)? {
            Some(head) => {
                seen.states.push(head.state.clone());
                pool.close(head.access)?;
            }
            // Nobody needs it.
            None => drop(fs::remove_file(path)),
        }
    }
    Ok(seen)
}

impl Head {
    /// The state that is wanted, with all that was interrupted brought to an end. None: there is none.
    pub fn find(
        pool: &mut Pool<'_>,
        socket: &Path,
        wanted: impl Fn(&State) -> bool,
    ) -> Result<Option<Head>, CliError> {
        for last in (0..TRIES).rev() {
            let mut busy = false;
            let mut devices = candidates(pool)?;
            // What a lock said last is mostly still so, and saves looks into others.
            devices.sort_by_cached_key(|device| {
                let said = said(&pool.name, device.id, socket);
                !said.is_some_and(|state| wanted(&state))
            });
            for device in devices {
                let Some((lock, path)) = lock(&pool.name, device.id, socket)? else {
                    // Whoever has it says what it is; while he says nothing it may be what is wanted.
                    let said = said(&pool.name, device.id, socket);
                    busy |= said.is_none_or(|state| wanted(&state));
                    continue;
                };
                match open_candidate(pool, &device, lock, socket)? {
                    Some(mut head) if wanted(&head.state) => {
                        return match head.settle(pool) {
                            Ok(()) => Ok(Some(head)),
                            Err(error) => {
                                let _ = head.close(pool);
                                Err(error)
                            }
                        };
                    }
                    Some(head) => head.close(pool)?,
                    None => drop(fs::remove_file(path)),
                }
            }
            if !busy {
                return Ok(None);
            }
            if last > 0 {
                std::thread::sleep(PAUSE);
            }
        }
        Err(CliError::Usage(format!(
            "another spdk-dm is replicating pool '{}'; wait for it, or end it, and try again",
            pool.name
        )))
    }

    /// Makes a new one.
    pub fn create(
        pool: &mut Pool<'_>,
        socket: &Path,
        chain: Option<String>,
        role: Role,
        device: Option<u64>,
    ) -> Result<Head, CliError> {
        let chain = match chain {
            Some(chain) => chain,
            None => new_uuid()?,
        };
        let id = pool.free_id()?;
        let Some((lock, _)) = lock(&pool.name, id, socket)? else {
            return Err(CliError::Usage(format!(
                "another spdk-dm is beginning a replication in pool '{}'; try again",
                pool.name
            )));
        };
        let creation_time = pool.create(id)?.creation_time;
        let opened = open(pool, id, false, socket);
        let access = match opened {
            Ok(access) => access,
            Err(error) => {
                let _ = pool.delete(id);
                return Err(error);
            }
        };
        let mut head = Head {
            state: State {
                chain,
                id,
                creation_time,
                role,
                device,
                snapshots: Vec::new(),
                work: None,
                receiving: None,
                taking: None,
                discard: None,
                last_success_unix_s: None,
            },
            sequence: 0,
            access,
            socket: socket.to_owned(),
            lock,
        };
        // All of it: what was in the block before is not to be taken for a slot.
        let mut slots = vec![0; STATE_BYTES];
        let made = match head.state.encode(0) {
            Some((at, slot)) => {
                slots[at as usize..][..slot.len()].copy_from_slice(&slot);
                head.write(STATE_AT_BYTES, &slots)
            }
            None => Err(head.too_large()),
        };
        match made {
            Ok(()) => {
                say(&head.lock, &head.state);
                Ok(head)
            }
            Err(error) => {
                if pool.close(head.access).is_ok() {
                    let _ = pool.delete(id);
                }
                Err(error)
            }
        }
    }

    fn too_large(&self) -> CliError {
        CliError::Usage(format!(
            "replication {} has too many snapshots; --keep fewer",
            self.state.chain
        ))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), CliError> {
        let length = bytes.len() as u32;
        let data = &mut self.access.data;
        let written = data.call(Kind::Write, at, length, bytes);
        let flushed = written.and_then(|_| data.call(Kind::Flush, 0, 0, &[]));
        flushed
            .map(drop)
            .map_err(|source| self.access.failed(source))
    }

    /// Has the state reach the disk.
    pub fn save(&mut self) -> Result<(), CliError> {
        let sequence = self.sequence + 1;
        let (at, slot) = self
            .state
            .encode(sequence)
            .ok_or_else(|| self.too_large())?;
        self.write(STATE_AT_BYTES + at, &slot)?;
        self.sequence = sequence;
        Ok(())
    }

    /// Ends work with it.
    pub fn close(self, pool: &mut Pool<'_>) -> Result<(), CliError> {
        pool.close(self.access)
    }

    /// Deletes it. Devices of which it knows stay.
    pub fn delete(self, pool: &mut Pool<'_>) -> Result<(), CliError> {
        let id = self.state.id;
        pool.close(self.access)?;
        pool.delete(id)
    }

    /// Deletes a device of which only this replication knows; it may be open by what was killed.
    pub fn delete_device(&self, pool: &mut Pool<'_>, id: u64) -> Result<(), CliError> {
        if pool.delete(id).is_ok() {
            return Ok(());
        }
        pool.clear(&bdev_name(&pool.name, id), &self.socket)?;
        pool.delete(id)
    }

    /// Takes a snapshot. At any moment either it is there, and what it is will be known, or it is not.
    pub fn take(
        &mut self,
        pool: &mut Pool<'_>,
        origin: u64,
        taking: Taking,
    ) -> Result<Snapshot, CliError> {
        let id = taking.snapshot.id;
        self.state.taking = Some(taking);
        self.save()?;
        let device = pool.snapshot_as(id, origin)?;
        let snapshot = self.taken(&device);
        self.save()?;
        snapshot.ok_or_else(|| self.too_large())
    }

    /// Makes ready to take a snapshot that is known by `uuid`: what is not said here is that of `like`.
    pub fn taking(
        pool: &mut Pool<'_>,
        purpose: Purpose,
        id: Option<u64>,
        like: Snapshot,
    ) -> Result<Taking, CliError> {
        let id = match id {
            Some(id) => id,
            None => pool.free_id()?,
        };
        let times = pool.devices()?.into_iter();
        let times = times.map(|device| device.creation_time);
        Ok(Taking {
            purpose,
            snapshot: Snapshot {
                id,
                creation_time: times.max().unwrap_or(0),
                ..like
            },
        })
    }

    /// Notes that what was to be taken has been.
    fn taken(&mut self, device: &Device) -> Option<Snapshot> {
        let Taking { purpose, snapshot } = self.state.taking.take()?;
        let snapshot = Snapshot {
            creation_time: device.creation_time,
            ..snapshot
        };
        match purpose {
            Purpose::Replicate => {
                if let Some(work) = &mut self.state.work {
                    work.holds = Some(snapshot.uuid.clone());
                }
                self.state.receiving = None;
                self.state.snapshots.push(snapshot.clone());
            }
            Purpose::Promote => {
                self.state.role = Role::Source;
                self.state.device = Some(snapshot.id);
                self.state.receiving = None;
            }
        }
        Some(snapshot)
    }

    /// Brings to an end what was interrupted, and forgets what is not there any more.
    fn settle(&mut self, pool: &mut Pool<'_>) -> Result<(), CliError> {
        let before = self.state.clone();
        let devices = pool.devices()?;
        let device = |id: u64| devices.iter().find(|device| device.id == id);
        if let Some(Taking { snapshot, .. }) = &self.state.taking {
            match device(snapshot.id) {
                Some(device) if device.creation_time > snapshot.creation_time => {
                    self.taken(device);
                }
                _ => self.state.taking = None,
            }
        }
        self.state.snapshots.retain(|snapshot| {
            let found = device(snapshot.id).map(|device| device.creation_time);
            found == Some(snapshot.creation_time)
        });
        let work = self.state.work.clone();
        let usable = |work: &Work| {
            let found = device(work.id).map(|device| device.creation_time);
            found.is_some() && found == work.creation_time
        };
        let keep = self.state.role == Role::Replica && work.as_ref().is_some_and(usable);
        if let (Some(work), false) = (&work, keep) {
            // It was being made, or is not needed.
            let ours = work.creation_time.is_none() || usable(work);
            if ours && device(work.id).is_some() {
                self.delete_device(pool, work.id)?;
            }
            self.state.work = None;
            self.state.receiving = None;
        }
        if let Some(id) = self.state.discard {
            if device(id).is_some() {
                self.delete_device(pool, id)?;
            }
            self.state.discard = None;
        }
        match self.state == before {
            true => Ok(()),
            false => self.save(),
        }
    }

    /// Deletes snapshots; false of `keep`: those. One that cannot be deleted now stays known.
    pub fn delete_snapshots(
        &mut self,
        pool: &mut Pool<'_>,
        keep: impl Fn(&Snapshot) -> bool,
    ) -> Result<(), CliError> {
        let snapshots = self.state.snapshots.clone();
        for snapshot in snapshots.iter().filter(|snapshot| !keep(snapshot)) {
            match self.delete_device(pool, snapshot.id) {
                Ok(()) => {
                    let others = &mut self.state.snapshots;
                    others.retain(|other| other.uuid != snapshot.uuid);
                }
                Err(error) => log::warn!("snapshot {} stays: {error}", snapshot.number),
            }
        }
        match self.state.snapshots == snapshots {
            true => Ok(()),
            false => self.save(),
        }
    }
}
