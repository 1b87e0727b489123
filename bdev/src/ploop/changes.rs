//! Which guest clusters were written since push backups, so that the next one need not read the rest.
//!
//! A record begins at the moment of a backup, while all I/O is held, and the one before it ends there: a write is in
//! one of them. Changes since a backup are what the record that begins with it has, and all later ones. A record that
//! is not asked for any more is joined to the one before, so nothing is lost by a backup that was not completed. Records are in memory only: who opens the target again begins
//! with a full backup.

use super::backup::Uuid;
use super::error::PloopError;
use super::map::RECORDING;
use super::owner::Ploop;
use crate::era::marks::Marks;
use std::ops::Range;
use std::sync::Arc;

/// Most backups since which changes are recorded; the oldest one makes way.
const MAX_RECORDS: usize = 16;

/// What was written from one backup to the next one, or until now.
pub(super) struct Record {
    since: Uuid,
    complete: bool,
    marks: Arc<Marks>,
}

/// Since when changes are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordStatus {
    /// The backup.
    pub since: Uuid,
    /// It was reported to be complete.
    pub complete: bool,
    /// Guest clusters written since then.
    pub changed_clusters: u64,
}

impl Ploop {
    /// Clusters of the guest that were written since a backup. Error: ESTALE if that is not recorded.
    pub(super) fn changed_since(&self, since: &Uuid) -> Result<Marks, PloopError> {
        let first = self.record_of(since)?;
        let changed = Marks::new(self.capacity);
        changed.grow(self.nr_clusters());
        for record in self.records.borrow().iter().skip(first) {
            changed.add(&record.marks);
        }
        Ok(changed)
    }

    /// Where the record that begins with a backup is. Error: ESTALE if there is none.
    pub(super) fn record_of(&self, since: &Uuid) -> Result<usize, PloopError> {
        let records = self.records.borrow();
        let first = records.iter().position(|record| record.since == *since);
        first.ok_or_else(|| self.not_recorded(since))
    }

    fn not_recorded(&self, since: &Uuid) -> PloopError {
        PloopError::NotRecorded {
            name: self.name(),
            since: since.to_string(),
        }
    }

    /// Whether a record can begin with this backup. Error: EEXIST.
    pub(super) fn check_record(&self, since: &Uuid) -> Result<(), PloopError> {
        let records = self.records.borrow();
        match records.iter().any(|record| record.since == *since) {
            false => Ok(()),
            true => Err(PloopError::Exists {
                name: self.name(),
                what: "a push backup of this uuid",
            }),
        }
    }

    /// From now on changes are recorded since this backup, too. All I/O is held.
    pub(super) fn begin_record(&self, since: Uuid) {
        let marks = Marks::new(self.capacity);
        marks.grow(self.nr_clusters());
        let mut records = self.records.borrow_mut();
        if records.len() >= MAX_RECORDS {
            // Who asks for changes since that one is told to make a full backup.
            records.remove(0);
        }
        records.push(Record {
            since,
            complete: false,
            marks: Arc::new(marks),
        });
        drop(records);
        self.publish_record();
    }

    /// Writes are noted in the last record.
    fn publish_record(&self) {
        let records = self.records.borrow();
        let last = records.last().map(|record| record.marks.clone());
        let is_any = last.is_some();
        self.dev.changed.store(last);
        self.dev.set_state(RECORDING, is_any);
    }

    /// A backup is complete: the next one can be made since it.
    pub(super) fn complete_record(&self, of: &Uuid) {
        let mut records = self.records.borrow_mut();
        for record in records.iter_mut().filter(|record| record.since == *of) {
            record.complete = true;
        }
    }

    /// Nobody will ask for changes since this backup: they are changes since the one before it.
    /// False: none are recorded.
    pub(super) fn end_record(&self, of: &Uuid) -> bool {
        let mut records = self.records.borrow_mut();
        let Some(at) = records.iter().position(|record| record.since == *of) else {
            return false;
        };
        let ended = records.remove(at);
        let is_none = records.is_empty();
        match at.checked_sub(1).and_then(|before| records.get_mut(before)) {
            Some(before) => {
                // Other cores may be noting writes in the marks of the last record: these stay.
                ended.marks.add(&before.marks);
                before.marks = ended.marks;
            }
            None if is_none => {
                drop(records);
                self.publish_record();
            }
            None => {}
        }
        true
    }

    /// Forgets what was written since a backup. Errors: EBUSY while it runs, ESTALE if it is not recorded.
    pub fn push_backup_forget(&self, since: &Uuid) -> Result<(), PloopError> {
        let backup = self.backup.borrow();
        if backup.as_ref().is_some_and(|backup| backup.uuid == *since) {
            return Err(self.busy("this push backup is running; stop it first"));
        }
        match self.end_record(since) {
            true => Ok(()),
            false => Err(self.not_recorded(since)),
        }
    }

    /// These clusters show something else from now on.
    pub(super) fn note_changed(&self, clusters: Range<u64>) {
        if let Some(changed) = &*self.dev.changed.load() {
            changed.grow(clusters.end);
            changed.mark(clusters);
        }
    }

    /// All of the disk may show something else from now on.
    pub(super) fn note_all_changed(&self) {
        self.note_changed(0..self.nr_clusters());
    }

    /// Since which backups changes are recorded, the oldest first.
    pub(super) fn record_status(&self) -> Vec<RecordStatus> {
        let records = self.records.borrow();
        let sums = records
            .iter()
            .rev()
            .scan(None, |later: &mut Option<Marks>, record| {
                let sum = Marks::new(self.capacity);
                sum.grow(self.nr_clusters());
                sum.add(&record.marks);
                if let Some(later) = later {
                    sum.add(later);
                }
                let status = RecordStatus {
                    since: record.since.clone(),
                    complete: record.complete,
                    changed_clusters: sum.count(),
                };
                *later = Some(sum);
                Some(status)
            });
        let mut all: Vec<_> = sums.collect();
        all.reverse();
        all
    }
}
