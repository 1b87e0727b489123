//! What the model knows of eras: when each began, and which blocks somebody tried to write when.
//!
//! Promised, and checked for every era that is known:
//! - no false negatives: a block of the origin that any write reached after the era had been answered is
//!   reported since that era, whatever crashes and failures came between;
//! - bounded false positives: a block is reported since an era only if somebody was trying to write it
//!   after that era could have begun.

use crate::history::Moment;
use std::ops::Range;

/// An era that was answered.
#[derive(Debug, Clone, Copy)]
struct Known {
    era: u32,
    /// It cannot have begun before this moment.
    called: Moment,
    /// Writes of the origin above this number came after the answer.
    answered: u64,
}

/// Attempts at writing a block.
#[derive(Debug, Clone, Copy, Default)]
struct Attempts {
    under_way: u32,
    last_ended: Moment,
}

/// The model.
#[derive(Debug, Default)]
pub struct Ledger {
    known: Vec<Known>,
    attempts: Vec<Attempts>,
    /// Somebody has asked for a new era at this moment and not been told of one since.
    asked: Option<Moment>,
}

/// Blocks that must be reported since an era.
#[derive(Debug, Clone)]
pub struct Must {
    /// The era.
    pub era: u32,
    blocks: Vec<u64>,
}

impl Ledger {
    /// A new era is asked for.
    pub fn ask(&mut self, now: Moment) {
        self.asked.get_or_insert(now);
    }

    /// An era is answered when the origin has seen `writes` writes. Error: eras do not advance.
    pub fn answer(&mut self, era: u32, writes: u64) -> Result<(), String> {
        let last = self.known.last().map_or(0, |known| known.era);
        if era <= last {
            return Err(format!("a new era is {era}, after {last}"));
        }
        let called = self.asked.take().ok_or("an era that nobody asked for")?;
        self.known.push(Known {
            era,
            called,
            answered: writes,
        });
        Ok(())
    }

    /// Somebody begins to write data blocks.
    pub fn begin(&mut self, blocks: Range<u64>) {
        if self.attempts.len() < blocks.end as usize {
            self.attempts
                .resize(blocks.end as usize, Attempts::default());
        }
        for attempts in self.range(blocks) {
            attempts.under_way += 1;
        }
    }

    /// It is answered, well or not.
    pub fn end(&mut self, blocks: Range<u64>, now: Moment) {
        for attempts in self.range(blocks) {
            attempts.under_way -= 1;
            attempts.last_ended = now;
        }
    }

    fn range(&mut self, blocks: Range<u64>) -> impl Iterator<Item = &mut Attempts> {
        let count = (blocks.end - blocks.start) as usize;
        self.attempts
            .iter_mut()
            .skip(blocks.start as usize)
            .take(count)
    }

    /// Power fails: nothing is under way any more.
    pub fn power_cut(&mut self, now: Moment) {
        for attempts in self.attempts.iter_mut().filter(|a| a.under_way > 0) {
            *attempts = Attempts {
                under_way: 0,
                last_ended: now,
            };
        }
    }

    /// What must be reported from now on. `reached` tells the data blocks that writes above a number
    /// have reached. Looks at one era in a few, chosen by `pick`.
    pub fn must(&self, reached: impl Fn(u64) -> Vec<u64>, pick: impl Fn() -> bool) -> Vec<Must> {
        self.known
            .iter()
            .filter(|_| pick())
            .map(|known| Must {
                era: known.era,
                blocks: reached(known.answered),
            })
            .collect()
    }

    /// Checks what was reported since an era; `must` was made before the question was asked.
    pub fn check(&self, must: &Must, found: &[Range<u64>]) -> Result<(), String> {
        let era = must.era;
        let reported = |block: u64| found.iter().any(|range| range.contains(&block));
        if let Some(missed) = must.blocks.iter().find(|block| !reported(**block)) {
            return Err(format!(
                "block {missed} was written and is not reported since era {era}: {found:?}"
            ));
        }
        let Some(known) = self.known.iter().find(|known| known.era == era) else {
            return Ok(());
        };
        let touching = found.windows(2).any(|pair| match pair {
            [a, b] => a.end >= b.start,
            _ => false,
        });
        if touching {
            return Err(format!("ranges that touch or are out of order: {found:?}"));
        }
        for block in found.iter().cloned().flatten() {
            let attempts = self.attempts.get(block as usize).copied();
            let attempts = attempts.unwrap_or_default();
            if attempts.under_way == 0 && attempts.last_ended < known.called {
                return Err(format!(
                    "block {block} is reported since era {era}, and nobody tried to write it then: {attempts:?}, {known:?}"
                ));
            }
        }
        Ok(())
    }

    /// Eras that are known.
    pub fn last_era(&self) -> u32 {
        self.known.last().map_or(0, |known| known.era)
    }
}
