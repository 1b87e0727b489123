//! Push backup: the device's content of one moment, read from outside while the guest goes on writing
//! (ploop.md, Messages).
//!
//! Writes to clusters that have not been read wait at the owner, and these clusters are asked for first. No
//! write waits for ever: when one has waited too long the backup expires, and all go on.

use super::error::PloopError;
use super::events::PloopEvent;
use super::map::{BACKUP, Place, PloopTarget};
use super::owner::Ploop;
use crate::channel::Deferred;
use crate::era::marks::Marks;
use crate::errno::Errno;
use crate::target::Request;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the longest uuid.
const MAX_UUID_BYTES: usize = 39;

/// How long a held write waits, unless told.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Clusters that are looked at for a page of those left.
const LOOKED_AT_CLUSTERS: u64 = 1 << 18;

/// Longest that can be told.
const MAX_TIMEOUT: Duration = Duration::from_secs(17_999);

/// The name of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uuid(String);

impl FromStr for Uuid {
    type Err = String;

    /// 1 to 39 printable characters.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = text.bytes().all(|byte| byte.is_ascii_graphic());
        match !text.is_empty() && text.len() <= MAX_UUID_BYTES && is_name {
            true => Ok(Uuid(text.to_owned())),
            false => Err(format!(
                "'{text}' is no uuid: it must have 1 to {MAX_UUID_BYTES} characters, without spaces"
            )),
        }
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What of the disk a push backup is of.
#[derive(Debug, Clone, Copy)]
pub enum Of<'a> {
    /// All guest clusters.
    All,
    /// These.
    Clusters(&'a [Range<u64>]),
    /// All, or those that were written since a backup; what is written since this one is recorded.
    Recorded {
        /// The backup before.
        since: Option<&'a Uuid>,
    },
}

/// A run of guest clusters that have yet to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Which.
    pub clusters: Range<u64>,
    /// They are nowhere, and read as zeroes.
    pub holes: bool,
}

/// A backup that runs, or has expired.
pub(super) struct Backup {
    pub uuid: Uuid,
    number: u64,
    /// The backup that this one is made since.
    since: Option<Uuid>,
    marks: Arc<Marks>,
    nr_clusters: u64,
    /// Clusters that have yet to be read.
    pub remaining: Cell<u64>,
    /// Those that writes wait for and that nobody was told of.
    pending: RefCell<VecDeque<u64>>,
    /// Those that writes wait for.
    wanted: RefCell<BTreeSet<u64>>,
    pub held: RefCell<Vec<Deferred<PloopTarget>>>,
    timeout: Duration,
    /// When it expires, while writes wait.
    pub deadline: Cell<Option<Duration>>,
    pub expired: Cell<bool>,
    /// A task watches the deadline.
    watched: Cell<bool>,
}

impl Ploop {
    /// Begins a push backup; every write that has been answered is in it, none that comes after the answer.
    /// `timeout`: how long a write waits at most, none for 60 s. What was written since an earlier backup is
    /// taken at the same moment, so no write falls between.
    /// Errors: EEXIST, EBUSY while writes are tracked or something else goes on, E2BIG for a cluster that is
    /// not there, ESTALE for an earlier backup since which nothing is recorded, EINVAL for a timeout that
    /// cannot be.
    pub async fn push_backup_start(
        &self,
        uuid: Uuid,
        of: Of<'_>,
        timeout: Option<Duration>,
    ) -> Result<(), PloopError> {
        if self.backup.borrow().is_some() {
            return Err(PloopError::Exists {
                name: self.name(),
                what: "a push backup",
            });
        }
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        if timeout < Duration::from_secs(1) || timeout > MAX_TIMEOUT {
            return Err(PloopError::Invalid(format!(
                "ploop '{}': a timeout of {} s is not possible: 1 to {} s are",
                self.config.name,
                timeout.as_secs_f64(),
                MAX_TIMEOUT.as_secs()
            )));
        }
        let _message = self.begin_change()?;
        let nr_clusters = self.nr_clusters();
        let all = 0..nr_clusters;
        let (chosen, since) = match of {
            Of::Clusters(chosen) => (chosen, None),
            Of::All => (std::slice::from_ref(&all), None),
            Of::Recorded { since } => (std::slice::from_ref(&all), since),
        };
        for range in chosen {
            self.check_clusters(range)?;
        }
        if let Of::Recorded { .. } = of {
            self.check_record(&uuid)?;
        }
        since.map(|since| self.record_of(since)).transpose()?;
        let held = self.hold().await;
        // Nothing is under way now: what was written is in the records.
        let marks = match since {
            Some(since) => self.changed_since(since),
            None => {
                let marks = Marks::new(nr_clusters);
                for range in chosen {
                    marks.ensure(range.clone());
                    marks.mark(range.clone());
                }
                Ok(marks)
            }
        };
        let marks = match marks {
            Ok(marks) => Arc::new(marks),
            Err(error) => {
                self.serve_again(held);
                return Err(error);
            }
        };
        if let Of::Recorded { .. } = of {
            self.begin_record(uuid.clone());
        }
        let remaining = marks.count();
        let number = self.next_backup.get();
        self.next_backup.set(number + 1);
        *self.backup.borrow_mut() = Some(Rc::new(Backup {
            uuid,
            number,
            since: since.cloned(),
            nr_clusters,
            remaining: Cell::new(remaining),
            marks: marks.clone(),
            pending: RefCell::default(),
            wanted: RefCell::default(),
            held: RefCell::default(),
            timeout,
            deadline: Cell::new(None),
            expired: Cell::new(false),
            watched: Cell::new(false),
        }));
        self.dev.to_back_up.store(Some(marks));
        self.dev.set_state(BACKUP, true);
        self.serve_again(held);
        Ok(())
    }

    fn check_clusters(&self, range: &Range<u64>) -> Result<(), PloopError> {
        let nr_clusters = self.nr_clusters();
        match range.start <= range.end && range.end <= nr_clusters {
            true => Ok(()),
            false => Err(PloopError::OutOfRange {
                name: self.name(),
                cluster: range.end.saturating_sub(1).max(range.start),
                nr_clusters,
            }),
        }
    }

    /// The backup of this uuid. Errors: EBADF, EINVAL.
    fn backup(&self, uuid: &Uuid) -> Result<Rc<Backup>, PloopError> {
        let backup = self.backup.borrow().clone();
        let backup = backup.ok_or_else(|| PloopError::NoBackup(self.name()))?;
        match backup.uuid == *uuid {
            true => Ok(backup),
            false => Err(PloopError::WrongUuid(self.name())),
        }
    }

    /// The same, unless it has expired: ESTALE.
    fn active_backup(&self, uuid: &Uuid) -> Result<Rc<Backup>, PloopError> {
        let backup = self.backup(uuid)?;
        match backup.expired.get() {
            false => Ok(backup),
            true => Err(PloopError::Expired(self.name())),
        }
    }

    /// Takes up to `max` clusters that writes wait for; each is told once. Errors: ENOENT if there is none;
    /// EINVAL, EBADF, ESTALE.
    pub fn push_backup_read(&self, uuid: &Uuid, max: usize) -> Result<Vec<u64>, PloopError> {
        let backup = self.active_backup(uuid)?;
        let mut pending = backup.pending.borrow_mut();
        let count = pending.len().min(max.max(1));
        let found: Vec<u64> = pending.drain(..count).collect();
        match found.is_empty() {
            true => Err(PloopError::Nothing(Errno::ENOENT)),
            false => Ok(found),
        }
    }

    /// Clusters from `first` on that have yet to be read, up to `max` runs of them, and where to go on.
    /// Errors: EINVAL, EBADF, ESTALE; what reading the BAT fails with.
    pub async fn push_backup_left(
        &self,
        uuid: &Uuid,
        first: u64,
        max: usize,
    ) -> Result<(Vec<Left>, Option<u64>), PloopError> {
        let backup = self.active_backup(uuid)?;
        let mut found: Vec<Left> = Vec::new();
        let end = backup
            .nr_clusters
            .min(first.saturating_add(LOOKED_AT_CLUSTERS));
        for cluster in first..end {
            if !backup.marks.is_marked(cluster) {
                continue;
            }
            let place = self.resolve(cluster).await;
            let place = place.map_err(self.device_error("reading the BAT"))?;
            let holes = place == Place::Hole;
            let is_full = found.len() >= max.max(1);
            match found.last_mut() {
                Some(last) if last.clusters.end == cluster && last.holes == holes => {
                    last.clusters.end = cluster + 1;
                }
                _ if is_full => return Ok((found, Some(cluster))),
                _ => found.push(Left {
                    clusters: cluster..cluster + 1,
                    holes,
                }),
            }
        }
        Ok((found, (end < backup.nr_clusters).then_some(end)))
    }

    /// These clusters have been read: what waits for them goes on. Errors: E2BIG, EINVAL, EBADF, ESTALE.
    pub fn push_backup_write(&self, uuid: &Uuid, clusters: Range<u64>) -> Result<(), PloopError> {
        let backup = self.active_backup(uuid)?;
        if clusters.start > clusters.end || clusters.end > backup.nr_clusters {
            return Err(PloopError::OutOfRange {
                name: self.name(),
                cluster: clusters.end.saturating_sub(1).max(clusters.start),
                nr_clusters: backup.nr_clusters,
            });
        }
        let left = clusters
            .clone()
            .filter(|cluster| backup.marks.is_marked(*cluster));
        let nr = left.count() as u64;
        backup
            .remaining
            .set(backup.remaining.get().saturating_sub(nr));
        backup.marks.unmark(clusters.clone());
        let mut wanted = backup.wanted.borrow_mut();
        let over: Vec<u64> = wanted.range(clusters.clone()).copied().collect();
        for cluster in &over {
            wanted.remove(cluster);
        }
        drop(wanted);
        backup
            .pending
            .borrow_mut()
            .retain(|cluster| !clusters.contains(cluster));
        if !over.is_empty() {
            self.release(&backup);
        }
        Ok(())
    }

    /// Lets go what waits for nothing any more; the deadline begins anew for the rest.
    fn release(&self, backup: &Rc<Backup>) {
        let all = backup.held.take();
        let is_over = |deferred: &Deferred<PloopTarget>| {
            backup.expired.get() || !backup.marks.has_any(self.clusters_of(&deferred.request))
        };
        let (over, still): (Vec<_>, Vec<_>) = all.into_iter().partition(is_over);
        let deadline = (!still.is_empty()).then(|| self.runtime.now() + backup.timeout);
        backup.deadline.set(deadline);
        *backup.held.borrow_mut() = still;
        for deferred in over {
            self.channels.retry(&deferred);
        }
    }

    /// The uuid of the backup. Error: EBADF.
    pub fn push_backup_get_uuid(&self) -> Result<Uuid, PloopError> {
        let backup = self.backup.borrow();
        let backup = backup.as_ref();
        backup
            .map(|backup| backup.uuid.clone())
            .ok_or_else(|| PloopError::NoBackup(self.name()))
    }

    /// Ends a backup that has been read and is safe: from now on another one can be made since it. With `keep`
    /// also since the one that this was made since. Errors: ENOENT, EINVAL, ESTALE, EBUSY if clusters have not been read.
    pub fn push_backup_complete(&self, uuid: &Uuid, keep: bool) -> Result<(), PloopError> {
        let backup = self.active_backup(uuid)?;
        let clusters = backup.remaining.get();
        if clusters > 0 {
            let name = self.name();
            return Err(PloopError::NotComplete { name, clusters });
        }
        self.complete_record(uuid);
        if let (Some(since), false) = (&backup.since, keep) {
            self.end_record(since);
        }
        self.backup.take();
        self.end_backup(&backup);
        Ok(())
    }

    /// Ends a backup, also one that has expired: all that waits goes on. What was written since it counts as
    /// written since the one before. Errors: ENOENT, EINVAL.
    pub fn push_backup_stop(&self, uuid: &Uuid) -> Result<(), PloopError> {
        let backup = match self.backup(uuid) {
            Err(PloopError::NoBackup(name)) => Err(PloopError::NotStarted {
                name,
                what: "a push backup",
            }),
            other => other,
        }?;
        self.backup.take();
        self.end_backup(&backup);
        self.end_record(uuid);
        Ok(())
    }

    /// All that waits goes on.
    pub(super) fn end_backup(&self, backup: &Rc<Backup>) {
        self.dev.set_state(BACKUP, false);
        self.dev.to_back_up.store(None);
        backup.expired.set(true);
        self.release(backup);
    }

    pub(super) fn clusters_of(&self, request: &Request) -> Range<u64> {
        let last = request.offset_blocks + request.nr_blocks.saturating_sub(1);
        self.dev.cluster(request.offset_blocks)..self.dev.cluster(last) + 1
    }

    /// The backup that a write has to wait for.
    pub(super) fn backup_of(&self, request: &Request) -> Option<Rc<Backup>> {
        let backup = self.backup.borrow().clone()?;
        let waits = !backup.expired.get() && backup.marks.has_any(self.clusters_of(request));
        waits.then_some(backup)
    }

    /// Keeps a write until the clusters it goes to have been read.
    pub(super) fn hold_for_backup(&self, backup: &Rc<Backup>, deferred: Deferred<PloopTarget>) {
        for cluster in self.clusters_of(&deferred.request) {
            if backup.marks.is_marked(cluster) && backup.wanted.borrow_mut().insert(cluster) {
                backup.pending.borrow_mut().push_back(cluster);
            }
        }
        backup.held.borrow_mut().push(deferred);
        if backup.deadline.get().is_none() {
            backup
                .deadline
                .set(Some(self.runtime.now() + backup.timeout));
            if !backup.watched.replace(true) {
                self.watch_deadline(backup);
            }
        }
    }

    /// Waits for the deadline, as long as there is one.
    fn watch_deadline(&self, backup: &Rc<Backup>) {
        let (me, backup) = (self.me.clone(), backup.clone());
        let runtime = self.runtime.clone();
        self.runtime.spawn(Box::pin(async move {
            while let Some(deadline) = backup.deadline.get() {
                let now = runtime.now();
                if now < deadline {
                    runtime.sleep(deadline - now).await;
                    continue;
                }
                if let Some(ploop) = me.upgrade() {
                    ploop.expire(&backup);
                }
                break;
            }
            backup.watched.set(false);
        }));
    }

    fn expire(&self, backup: &Rc<Backup>) {
        let current = self.backup.borrow().as_ref().map(|backup| backup.number);
        if current != Some(backup.number) || backup.expired.get() {
            return;
        }
        self.end_backup(backup);
        let uuid = backup.uuid.clone();
        self.emit(PloopEvent::BackupExpired { uuid });
    }
}
