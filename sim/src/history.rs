//! What each block of a volume may hold: a history of writes, and the rules of a register.
//!
//! A read may return a write that began before the read ended and that was not replaced, before the read
//! began, by a write that began after it had ended. After a crash only replacements that a completed
//! flush made durable count. Discards are writes of what a hole shows.

use crate::losses::Loss;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Counts events; later events have larger numbers.
pub type Moment = u64;

/// Still under way.
const OPEN: Moment = Moment::MAX;

/// One write of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    value: u64,
    began: Moment,
    ended: Moment,
    /// It may have happened or not: it failed, or is one of several possible beginnings.
    doubtful: bool,
    durable: bool,
    /// A disk that it was on has lost something since.
    lost: Option<Rc<Loss>>,
}

impl Write {
    /// The beginning of a volume.
    fn first(value: u64) -> Self {
        Write {
            value,
            began: 0,
            ended: 0,
            doubtful: false,
            durable: true,
            lost: None,
        }
    }

    fn is_doubtful(&self) -> bool {
        let is_excused = |loss: &Rc<Loss>| !self.durable || loss.is_excused();
        self.doubtful || self.lost.as_ref().is_some_and(is_excused)
    }

    fn is_replaced_by(&self, other: &Write) -> bool {
        !other.is_doubtful() && other.began > self.ended
    }
}

/// What a reader must have seen replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// A read that began at this moment: every write that had ended by then counts.
    Read(Moment),
    /// Nothing: what a disk has lost is on its way out.
    Loss,
    /// What is not durable may be gone.
    Crash,
    /// The same for something that began at this moment, before the crash.
    CrashAfter(Moment),
}

/// A volume's blocks.
#[derive(Debug, Clone, Default)]
pub struct History {
    blocks: Vec<Vec<Write>>,
    /// The state this volume began with, where that is known only as a choice: the histories of its
    /// origin when it was made.
    born: Option<Vec<Vec<Write>>>,
    /// When the reads under way began: what they may return is kept.
    reads: BTreeSet<Moment>,
}

/// A write under way on a range.
#[derive(Debug)]
pub struct Pending {
    first: u64,
    count: u64,
    began: Moment,
}

impl History {
    /// A volume of these values.
    pub fn new(values: impl Iterator<Item = u64>) -> Self {
        History {
            blocks: values.map(|value| vec![Write::first(value)]).collect(),
            born: None,
            reads: BTreeSet::new(),
        }
    }

    /// A volume that began as this one was at some moment since `since`. `until` is now.
    pub fn snapshot(&self, since: Since, until: Moment) -> Self {
        let born: Vec<Vec<Write>> = self
            .blocks
            .iter()
            .map(|block| {
                possible(block, since, until)
                    .map(|write| Write {
                        ended: write.ended.min(until),
                        doubtful: true,
                        durable: true,
                        lost: None,
                        ..*write
                    })
                    .collect()
            })
            .collect();
        let origin = matches!(since, Since::Read(_)).then(|| self.blocks.clone());
        // As beginnings of the new volume they are all over by now.
        let blocks = born
            .into_iter()
            .map(|block: Vec<Write>| {
                block
                    .into_iter()
                    .map(|write| Write {
                        began: 0,
                        ended: until,
                        ..write
                    })
                    .collect()
            })
            .collect();
        History {
            blocks,
            born: origin,
            reads: BTreeSet::new(),
        }
    }

    /// Number of blocks.
    pub fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Something begins that is to see a moment of this volume not before now: a read, a snapshot.
    pub fn begin_read(&mut self, now: Moment) {
        self.reads.insert(now);
    }

    /// It has ended.
    pub fn end_read(&mut self, began: Moment) {
        self.reads.remove(&began);
    }

    fn range(&mut self, first: u64, count: u64) -> impl Iterator<Item = &mut Vec<Write>> {
        self.blocks
            .iter_mut()
            .skip(first as usize)
            .take(count as usize)
    }

    /// A write begins, of a value for each block.
    pub fn begin(
        &mut self,
        first: u64,
        count: u64,
        value: impl Fn(u64) -> u64,
        now: Moment,
    ) -> Pending {
        for (at, block) in (first..).zip(self.range(first, count)) {
            block.push(Write {
                value: value(at),
                began: now,
                ended: OPEN,
                doubtful: true,
                durable: false,
                lost: None,
            });
        }
        Pending {
            first,
            count,
            began: now,
        }
    }

    /// It has ended, well or not.
    pub fn end(&mut self, pending: &Pending, ok: bool, now: Moment) {
        for block in self.range(pending.first, pending.count) {
            for write in block.iter_mut().filter(|w| w.began == pending.began) {
                write.ended = now;
                write.doubtful = !ok;
            }
        }
    }

    /// A flush that began at `began` has ended well: what had ended by then is durable.
    pub fn flushed(&mut self, began: Moment) {
        let oldest = self.reads.first().copied().unwrap_or(OPEN);
        for block in &mut self.blocks {
            for write in block.iter_mut() {
                if write.ended < began {
                    write.durable = true;
                    write.lost.take_if(|loss| !loss.is_excused());
                }
            }
            forget_replaced(block, oldest);
        }
    }

    /// A disk has lost something: what is not durable may be old or new, if somebody has been told when it is
    /// said to be durable.
    pub fn lose(&mut self, loss: &Rc<Loss>) {
        for write in self.blocks.iter_mut().flatten() {
            let is_excused = write.lost.as_ref().is_some_and(|loss| loss.is_excused());
            if !write.durable && !is_excused {
                write.lost = Some(loss.clone());
            }
        }
    }

    /// What is not durable may have been taken back, and whoever wrote it has been told.
    pub fn doubt(&mut self) {
        for write in self.blocks.iter_mut().flatten() {
            write.doubtful |= !write.durable;
        }
    }

    /// Anything that some blocks ever held they may hold again.
    pub fn doubt_all_of(&mut self, first: u64, count: u64) {
        for write in self.range(first, count).flatten() {
            write.doubtful = true;
        }
    }

    /// Checks what a read that ends now found. A volume's choice of beginnings is narrowed by it.
    pub fn check(
        &mut self,
        first: u64,
        found: &[u64],
        since: Since,
        now: Moment,
    ) -> Result<(), String> {
        for (at, (block, value)) in (first..).zip(self.range(first, found.len() as u64).zip(found))
        {
            if since != Since::Loss
                && !possible(block, since, now).any(|write| write.value == *value)
            {
                let may: Vec<u64> = possible(block, since, now).map(|w| w.value).collect();
                return Err(format!(
                    "block {at} holds {value:#x}, may hold {may:x?} ({since:?}; history {block:?})"
                ));
            }
            // If only a beginning can have been seen, it is the beginning.
            let mut same = block.iter().filter(|w| w.value == *value).peekable();
            if same.peek().is_some() && same.all(|w| w.began == 0 && w.doubtful) {
                block.retain(|w| w.began != 0 || w.value == *value);
            }
        }
        Ok(())
    }

    /// Power failed, or the device went back to its last commit, and the whole volume reads as
    /// `found`: that is what it holds from now on.
    pub fn settle(&mut self, found: &[u64]) {
        for (block, value) in self.blocks.iter_mut().zip(found) {
            *block = vec![Write::first(*value)];
        }
        self.born = None;
    }

    /// Whether `found` is one moment of the origin this volume was made from: if it shows a write, it
    /// shows everything that had ended before that write began. To be asked before the volume is
    /// written to.
    pub fn check_moment(&self, found: &[u64]) -> Result<(), String> {
        let Some(born) = &self.born else {
            return Ok(());
        };
        let of = |block: &Vec<Write>, value: u64| {
            let same = || block.iter().filter(move |w| w.value == value);
            Some((
                same().map(|w| w.began).min()?,
                same().map(|w| w.ended).max()?,
            ))
        };
        let shown: Vec<_> = born.iter().zip(found).map(|(b, v)| of(b, *v)).collect();
        let Some(latest) = shown.iter().flatten().map(|(began, _)| *began).max() else {
            return Ok(());
        };
        for (at, (block, shown)) in born.iter().zip(&shown).enumerate() {
            let Some((_, ended)) = shown else { continue };
            if let Some(missed) = block
                .iter()
                .find(|w| !w.is_doubtful() && w.ended < latest && w.began > *ended)
            {
                return Err(format!(
                    "not one moment of its origin: block {at} lacks {missed:?}, ended before {latest}, which is there"
                ));
            }
        }
        Ok(())
    }
}

/// What a read that ends at `until` may find.
fn possible(block: &[Write], since: Since, until: Moment) -> impl Iterator<Item = &Write> {
    block.iter().filter(move |write| {
        write.began <= until
            && !block.iter().any(|other| {
                write.is_replaced_by(other)
                    && match since {
                        Since::Read(began) => other.ended < began,
                        Since::Loss => false,
                        Since::Crash => other.durable,
                        Since::CrashAfter(began) => other.durable && other.ended < began,
                    }
            })
    })
}

/// Drops what neither a crash nor a read can bring back; the oldest read under way began at `oldest`.
fn forget_replaced(block: &mut Vec<Write>, oldest: Moment) {
    if block.len() < 4 {
        return;
    }
    let newest: Vec<Write> = block
        .iter()
        .filter(|w| w.durable && !w.is_doubtful() && w.ended < oldest)
        .cloned()
        .collect();
    block.retain(|w| !newest.iter().any(|n| w.is_replaced_by(n)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::Losses;

    /// A read sees the last write that ended, or one under way, and nothing older.
    #[test]
    fn reads() {
        let mut history = History::new([0].into_iter());
        let a = history.begin(0, 1, |_| 7, 1);
        assert!(history.check(0, &[0], Since::Read(2), 3).is_ok());
        assert!(history.check(0, &[7], Since::Read(2), 3).is_ok());
        history.end(&a, true, 4);
        assert!(history.check(0, &[0], Since::Read(3), 5).is_ok());
        assert!(history.check(0, &[0], Since::Read(5), 6).is_err());
        assert!(history.check(0, &[9], Since::Read(5), 6).is_err());
    }

    /// A crash brings back what was not flushed away, and nothing else.
    #[test]
    fn crashes() {
        let mut history = History::new([0].into_iter());
        let a = history.begin(0, 1, |_| 7, 1);
        history.end(&a, true, 2);
        assert!(history.check(0, &[0], Since::Crash, 3).is_ok());
        history.flushed(3);
        assert!(history.check(0, &[0], Since::Crash, 4).is_err());
        let b = history.begin(0, 1, |_| 8, 5);
        history.end(&b, false, 6);
        for value in [7, 8] {
            assert!(history.check(0, &[value], Since::Crash, 7).is_ok());
        }
        assert!(history.check(0, &[0], Since::Crash, 7).is_err());
    }

    /// What a failed flush has lost may be old, unless a flush that ends well hides it.
    #[test]
    fn losses() {
        let lose_and_flush = |tells: bool| {
            let losses = Losses::default();
            let mut history = History::new([0].into_iter());
            let a = history.begin(0, 1, |_| 7, 1);
            history.end(&a, true, 2);
            losses.flush_begins(3);
            history.lose(&losses.add());
            // Who may still be told is waited for.
            assert!(history.check(0, &[0], Since::Read(4), 5).is_ok());
            losses.flush_ends(3, !tells, 6);
            history.flushed(7);
            let old = history.check(0, &[0], Since::Read(8), 9).is_ok();
            let new = history.check(0, &[7], Since::Read(8), 9).is_ok();
            (old, new, losses.is_untold_since(1))
        };
        assert_eq!(lose_and_flush(true), (true, true, true));
        assert_eq!(lose_and_flush(false), (false, true, true));
    }

    /// A snapshot holds one moment of its origin.
    #[test]
    fn snapshots() {
        let mut history = History::new([0, 0].into_iter());
        let a = history.begin(0, 1, |_| 7, 1);
        history.end(&a, true, 2);
        let b = history.begin(1, 1, |_| 8, 4);
        history.end(&b, true, 5);
        let mut late = history.snapshot(Since::Read(3), 6);
        assert!(late.check(0, &[7, 0], Since::Read(7), 8).is_ok());
        assert!(late.check(0, &[0, 8], Since::Read(7), 8).is_err());
        let both = history.snapshot(Since::Read(0), 6);
        assert!(both.check_moment(&[0, 0]).is_ok());
        assert!(both.check_moment(&[7, 8]).is_ok());
        assert!(both.check_moment(&[0, 8]).is_err());
    }
}
