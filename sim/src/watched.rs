//! I/O that the model watches: what may be read while it is under way and after it, and whether an answer
//! fits. Who sends the I/O judges whether it may fail.

use crate::cores::Answer;
use crate::course::Course;
use crate::history::{History, Moment, Pending, Since};
use bdev::errno::Errno;
use std::cell::RefCell;
use std::fmt::Display;

/// What I/O is done to.
pub struct Watched<'a, N> {
    /// The run.
    pub course: &'a Course,
    /// What it may hold.
    pub history: &'a RefCell<History>,
    /// What failures call it.
    pub name: N,
}

impl<N: Display> Watched<'_, N> {
    /// A read from a block of the model on. `since` is asked at its end: since when it must have seen what, given
    /// when it began.
    pub async fn read(
        &self,
        first: u64,
        since: impl FnOnce(Moment) -> Since,
        io: impl Future<Output = Answer>,
    ) -> Answer {
        let began = self.course.tick();
        self.history.borrow_mut().begin_read(began);
        let (result, found) = io.await;
        let mut history = self.history.borrow_mut();
        if result.is_ok() {
            let now = self.course.tick();
            if let Err(wrong) = history.check(first, &found, since(began), now) {
                self.course.fail(format!("{}: {wrong}", self.name));
            }
        }
        history.end_read(began);
        (result, found)
    }

    /// A change begins: these blocks may hold these values from now on.
    pub fn begin(&self, first: u64, count: u64, value: impl Fn(u64) -> u64) -> Pending {
        let now = self.course.tick();
        self.history.borrow_mut().begin(first, count, value, now)
    }

    /// Changes have ended; `ok`: they hold the new values, for certain. Returns when that was.
    pub fn end(&self, changes: &[Pending], ok: bool) -> Moment {
        let now = self.course.tick();
        for pending in changes {
            self.history.borrow_mut().end(pending, ok, now);
        }
        now
    }

    /// A change of some blocks to one value. Returns its result, and when it had ended.
    pub async fn change(
        &self,
        first: u64,
        count: u64,
        value: u64,
        io: impl Future<Output = Answer>,
    ) -> (Result<(), Errno>, Moment) {
        let pending = self.begin(first, count, |_| value);
        let (result, _) = io.await;
        (result, self.end(&[pending], result.is_ok()))
    }

    /// A flush: what was answered before it began is durable when it has ended well.
    pub async fn flush(&self, io: impl Future<Output = Answer>) -> Result<(), Errno> {
        self.flush_by(async { io.await.0 }).await
    }

    /// The same of what flushes as a guest does.
    pub async fn flush_by<E>(&self, flush: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let began = self.course.tick();
        self.course.losses.flush_begins(began);
        let result = flush.await;
        let now = self.course.tick();
        self.course.losses.flush_ends(began, result.is_ok(), now);
        if result.is_ok() {
            self.history.borrow_mut().flushed(began);
        }
        result
    }

    /// What a life begins with: what was read holds what a crash may leave. From now on that is what it holds.
    pub fn settle(&self, found: &[u64]) -> Result<(), String> {
        let mut history = self.history.borrow_mut();
        history
            .check(0, found, Since::Crash, self.course.tick())
            .map_err(|wrong| format!("{} after a crash: {wrong}", self.name))?;
        history.settle(found);
        Ok(())
    }
}
