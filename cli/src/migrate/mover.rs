//! Passes: what makes a new device equal to a snapshot of the old one.
//!
//! The first pass writes all that is mapped, or what differs from another device that was moved before and of
//! which the new device then begins as a snapshot; each following one what has changed since the last. A pass that
//! was begun is always ended before another begins: the new device has part of what its snapshot holds.

use super::state::{Journal, Moving, Pass, Snapshot};
use crate::backup::copy::{CopyError, Limit, What, read_pieces};
use crate::backup::sink::{Sink, apply};
use crate::backup::source::{Access, BLOCK_BYTES, Extent, Open, Pool};
use crate::backup::stream::Piece;
use crate::error::CliError;
use crate::progress::Progress;
use crate::rpc_client::RpcClient;
use serde_json::json;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How much may have to be written again when a pass is cut off.
const DURABLE_BYTES: u64 = 256 << 20;

/// After such a time what is done is noted, if it is less.
const DURABLE_EVERY: Duration = Duration::from_secs(1);

/// How often the file is looked for by which a migration is cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A migration that this process carries out.
pub struct Mover {
    /// The target that has the old pool.
    pub from: RpcClient,
    /// The target that has the new one; it may be the same.
    pub to: RpcClient,
    /// What is known.
    pub journal: Journal,
    /// Most MiB to read in a second.
    pub limit_mib: Option<u64>,
    /// No bars.
    pub quiet: bool,
    /// Somebody has asked this process to end.
    pub interrupted: Arc<AtomicBool>,
    /// The id that is noted for the snapshot of the next pass, which is not made yet.
    pub chosen: Option<u64>,
}

/// Why a migration ends before its end.
pub const STOPPED: &str = "stopped; what is done is kept: --resume goes on, --abort ends it";

fn stopped() -> CliError {
    CliError::Usage(STOPPED.to_owned())
}

/// A device of a pool that is not as it was left.
fn not_ours(pool: &str, id: u64) -> CliError {
    CliError::Usage(format!(
        "thin device {id} of pool '{pool}' is not the one of this migration any more; end it with --abort and begin it again"
    ))
}

impl Mover {
    /// The old pool.
    pub fn old(&mut self) -> Pool<'_> {
        Pool::new(&mut self.from, &self.journal.state.from.pool)
    }

    /// The new pool.
    pub fn new_pool(&mut self) -> Pool<'_> {
        Pool::new(&mut self.to, &self.journal.state.to.pool)
    }

    /// The bdevs by which data is reached: of a snapshot in the old pool, and of a device in the new one.
    fn bdev_names(&self) -> (String, String) {
        let uuid = &self.journal.state.uuid;
        let short = uuid.get(..12).unwrap_or(uuid);
        (
            format!("migrate-{short}-from"),
            format!("migrate-{short}-to"),
        )
    }

    /// A device and what is known of it.
    pub fn moving(&mut self, at: usize) -> &mut Moving {
        &mut self.journal.state.devices[at]
    }

    /// Ends here if somebody wants that.
    pub fn go_on(&self) -> Result<(), CliError> {
        match self.interrupted.load(Ordering::Relaxed) || self.journal.is_cancelled() {
            true => Err(stopped()),
            false => Ok(()),
        }
    }

    /// Takes away what an attempt that was killed has left beside devices.
    pub fn clear(&mut self) -> Result<(), CliError> {
        let (from_bdev, to_bdev) = self.bdev_names();
        let (from_socket, to_socket) = self.sockets();
        self.old().clear(&from_bdev, &from_socket)?;
        self.new_pool().clear(&to_bdev, &to_socket)?;
        if let Some(bdev) = self.journal.state.suspended.take() {
            // Its time may be over.
            let _ = self.from.call("thin_resume", json!({ "bdev_name": bdev }));
            self.journal.save()?;
        }
        if self.journal.state.metadata_snap {
            // It may have been released since.
            let _ = self.old().release_metadata_snap();
            self.journal.state.metadata_snap = false;
            self.journal.save()?;
        }
        Ok(())
    }

    fn sockets(&self) -> (PathBuf, PathBuf) {
        let state = &self.journal.state;
        (state.from.socket.clone(), state.to.socket.clone())
    }

    /// Deletes a snapshot of the old pool, if it is the one that is meant.
    pub fn delete_snapshot(&mut self, snapshot: Snapshot) -> Result<(), CliError> {
        let mut old = self.old();
        let is_it = |id, time| (id, time) == (snapshot.id, snapshot.time);
        let there = old.devices()?.into_iter();
        match { there }.any(|device| is_it(device.id, device.creation_time)) {
            true => old.delete(snapshot.id),
            false => Ok(()),
        }
    }

    /// Deletes the snapshots that are of no use any more.
    pub fn sweep(&mut self) -> Result<(), CliError> {
        while let Some(snapshot) = self.journal.state.stale.last().copied() {
            self.delete_snapshot(snapshot)?;
            self.journal.state.stale.pop();
            self.journal.save()?;
        }
        Ok(())
    }

    /// Ends the pass of a device, or does one from now. `patient`: nothing waits for it, so it can be stopped,
    /// goes by the limit and is noted on the way; otherwise the caller saves what is known. Returns the blocks of 64 KiB that were written.
    pub fn pass(&mut self, at: usize, patient: bool) -> Result<u64, CliError> {
        let pass = self.begin(at)?;
        if patient {
            self.journal.state.metadata_snap = true;
            self.journal.save()?;
            self.make_new_device(at)?;
        }
        let moving = self.moving(at);
        let (to_id, base, parent) = (moving.to_id, moving.base, moving.parent);
        let since = match parent {
            Some(parent) if base.is_none() => self.base_of(parent),
            _ => base,
        };
        if let (Some(since), true) = (since, patient) {
            let there = self.old().device(since.id)?;
            if there.creation_time != since.time {
                return Err(not_ours(&self.journal.state.from.pool, since.id));
            }
        }
        let extents = self
            .old()
            .extents(pass.id, since.map(|since| since.id), u64::MAX)?;
        if patient || !extents.is_empty() {
            // The snapshot must be known as soon as the new device has part of it.
            self.journal.state.metadata_snap = false;
            self.journal.save()?;
        }
        let written = match extents.is_empty() {
            true => 0,
            false => self.copy(at, pass, to_id, &extents, patient)?,
        };
        let moving = self.moving(at);
        let time = pass.time.unwrap_or_default();
        let old = moving.base.replace(Snapshot { id: pass.id, time });
        moving.pass = None;
        moving.passes += 1;
        moving.moved_blocks += written;
        self.journal.state.stale.extend(old);
        self.journal.state.metadata_snap = false;
        if patient {
            self.journal.save()?;
        }
        Ok(written)
    }

    /// The snapshot another device of this migration is equal to.
    fn base_of(&self, id: u64) -> Option<Snapshot> {
        let mut devices = self.journal.state.devices.iter();
        devices.find(|moving| moving.id == id)?.base
    }

    /// The pass that was begun, or a new one.
    fn begin(&mut self, at: usize) -> Result<Pass, CliError> {
        let pool = self.journal.state.from.pool.clone();
        let begun = self.moving(at).pass;
        match begun {
            Some(pass) if pass.time.is_some() => {
                let there = self.old().device(pass.id)?;
                return match Some(there.creation_time) == pass.time {
                    true => Ok(pass),
                    false => Err(not_ours(&pool, pass.id)),
                };
            }
            Some(pass) if self.chosen.is_none() && self.old().device(pass.id).is_ok() => {
                eprintln!(
                    "spdk-dm: thin device {} of pool '{pool}' may be a snapshot this migration made and lost sight of; if nobody knows it, thin_delete it",
                    pass.id
                );
            }
            _ => {}
        }
        let id = match self.chosen.take() {
            Some(id) => id,
            None => self.choose(at)?,
        };
        let origin = self.moving(at).id;
        let time = self.old().snapshot_as(id, origin)?.creation_time;
        let pass = Pass {
            id,
            time: Some(time),
            next_block: 0,
        };
        self.moving(at).pass = Some(pass);
        Ok(pass)
    }

    /// Notes that a bdev is about to wait and what the next pass makes for itself, so that this needs no time then.
    pub fn prepare(&mut self, at: usize, bdev: &str) -> Result<(), CliError> {
        if self.moving(at).pass.is_some_and(|pass| pass.time.is_some()) {
            // The next one must be of a snapshot that is made while the bdev waits.
            self.pass(at, true)?;
        }
        self.journal.state.suspended = Some(bdev.to_owned());
        self.chosen = Some(self.choose(at)?);
        Ok(())
    }

    fn choose(&mut self, at: usize) -> Result<u64, CliError> {
        let id = self.old().free_id()?;
        self.moving(at).pass = Some(Pass {
            id,
            time: None,
            next_block: 0,
        });
        // So that one is not held for ever if this is cut off while differences are asked for.
        self.journal.state.metadata_snap = true;
        self.journal.save()?;
        Ok(id)
    }

    /// The new device is there afterwards, equal to its parent's or empty.
    fn make_new_device(&mut self, at: usize) -> Result<(), CliError> {
        let moving = self.moving(at);
        let (to_id, was_making, time, parent) =
            (moving.to_id, moving.making, moving.to_time, moving.parent);
        let pool = self.journal.state.to.pool.clone();
        let there = self.new_pool().devices()?.into_iter();
        let there = { there }.find(|device| device.id == to_id);
        if let Some(time) = time {
            return match there.map(|device| device.creation_time) == Some(time) {
                true => Ok(()),
                false => Err(not_ours(&pool, to_id)),
            };
        }
        let parents = self.journal.state.devices.iter();
        let parent = { parents }.find(|moving| Some(moving.id) == parent);
        let parent = parent.map(|moving| moving.to_id);
        let device = match there {
            Some(device) if was_making => {
                // Nothing was written to it yet, if it is the one.
                let expected = match parent {
                    Some(parent) => self.new_pool().device(parent)?.mapped_blocks,
                    None => 0,
                };
                match device.mapped_blocks == expected {
                    true => device,
                    false => return Err(not_ours(&pool, to_id)),
                }
            }
            Some(_) => return Err(not_ours(&pool, to_id)),
            None => {
                self.moving(at).making = true;
                self.journal.save()?;
                match parent {
                    Some(parent) => self.new_pool().snapshot_as(to_id, parent)?,
                    None => self.new_pool().create(to_id)?,
                }
            }
        };
        self.moving(at).to_time = Some(device.creation_time);
        self.journal.save()
    }

    fn copy(
        &mut self,
        at: usize,
        pass: Pass,
        to_id: u64,
        extents: &[Extent],
        patient: bool,
    ) -> Result<u64, CliError> {
        let end = extents.last().map_or(0, |last| last.first + last.count);
        let size_bytes = end * BLOCK_BYTES;
        let ((from_bdev, to_bdev), (from_socket, to_socket)) = (self.bdev_names(), self.sockets());
        let what = |id, writable| Open {
            id,
            size_sectors: size_bytes / 512,
            create: false,
            writable,
        };
        let mut from = self
            .old()
            .open(what(pass.id, false), &from_bdev, &from_socket)?;
        let opened = self
            .new_pool()
            .open(what(to_id, true), &to_bdev, &to_socket);
        let mut to = match opened {
            Ok(to) => to,
            Err(error) => {
                // The first error is the one to tell.
                let _ = self.old().close(from);
                return Err(error);
            }
        };
        let copied = self.transfer(at, pass, extents, size_bytes, patient, (&mut from, &mut to));
        let closed = self.old().close(from);
        let written_closed = self.new_pool().close(to);
        let written = copied?;
        closed.and(written_closed)?;
        Ok(written)
    }

    fn transfer(
        &mut self,
        at: usize,
        pass: Pass,
        extents: &[Extent],
        size_bytes: u64,
        patient: bool,
        (from, to): (&mut Access, &mut Access),
    ) -> Result<u64, CliError> {
        let what = What {
            extents,
            block_bytes: BLOCK_BYTES,
            next_block: pass.next_block,
            size_bytes,
        };
        let limit = Limit::new(self.limit_mib.filter(|_| patient));
        let progress = Progress::new(self.quiet || !patient, "moving");
        progress.expect(what.blocks());
        let mut steps = Steps::new();
        let read = read_pieces(&mut from.data, &what, &limit, &mut |piece| {
            apply(&mut to.data, &piece, BLOCK_BYTES, size_bytes)?;
            let (blocks, next_block) = extent_of(&piece);
            progress.advance(blocks);
            steps.take(&piece);
            if !patient {
                return Ok(());
            }
            if steps.are_to_be_noted() {
                to.data.finish()?;
                if let Some(pass) = &mut self.journal.state.devices[at].pass {
                    pass.next_block = next_block;
                }
                self.journal.save().map_err(io::Error::other)?;
            }
            if steps.is_time_to_look() {
                self.go_on().map_err(io::Error::other)?;
            }
            Ok(())
        });
        let read = read.and_then(|()| to.data.finish().map_err(CopyError::Write));
        progress.finish();
        match read {
            Ok(()) => Ok(steps.written_blocks),
            // What ended it from within says so itself.
            Err(_) if self.interrupted.load(Ordering::Relaxed) => Err(stopped()),
            Err(CopyError::Write(error)) if error.to_string() == STOPPED => Err(stopped()),
            Err(CopyError::Read(source)) => Err(from.failed(source)),
            Err(CopyError::Write(source)) => Err(to.failed(source)),
        }
    }
}

/// How many blocks a piece has, and where the next begins.
fn extent_of(piece: &Piece) -> (u64, u64) {
    match piece {
        Piece::Data { first, contents } => {
            let blocks = contents.len() as u64 / BLOCK_BYTES;
            (blocks, first + blocks)
        }
        Piece::Unmapped { first, count } => (*count, first + count),
    }
}

/// When something else than copying is to be done.
struct Steps {
    written_blocks: u64,
    unnoted_bytes: u64,
    noted: Instant,
    looked: Instant,
}

impl Steps {
    fn new() -> Self {
        Steps {
            written_blocks: 0,
            unnoted_bytes: 0,
            noted: Instant::now(),
            looked: Instant::now(),
        }
    }

    fn take(&mut self, piece: &Piece) {
        if let Piece::Data { contents, .. } = piece {
            self.written_blocks += contents.len() as u64 / BLOCK_BYTES;
            self.unnoted_bytes += contents.len() as u64;
        }
    }

    fn are_to_be_noted(&mut self) -> bool {
        let due = self.unnoted_bytes >= DURABLE_BYTES || self.noted.elapsed() >= DURABLE_EVERY;
        if due {
            (self.unnoted_bytes, self.noted) = (0, Instant::now());
        }
        due
    }

    fn is_time_to_look(&mut self) -> bool {
        let due = self.looked.elapsed() >= LOOK_EVERY;
        if due {
            self.looked = Instant::now();
        }
        due
    }
}
