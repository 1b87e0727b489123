//! Blocks made writable many at a time.
//!
//! First writes come in crowds, and most of what one costs is getting to it: a task, two turns at the
//! metadata, a message for its data. So the owner gathers the writes that wait in its queue, and one
//! task gives all their blocks in one turn at the metadata, then inserts the mappings of those whose data
//! is in place together, as they come. What is not as plain as that, or does not succeed, goes block by
//! block ([`Pool::resolve_block`]).

use super::cache::Entry;
use super::map::{DATA, PoolMode, Thin, ThinDev};
use super::metadata::ThinMetadata;
use super::pool::Pool;
use super::worker::{NotWritable, Outcome};
use crate::channel::{Answer, Deferred};
use crate::errno::Errno;
use crate::locks::BlockGuard;
use crate::target::IoKind;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, Stream, StreamExt, select};
use persistent_data::turn::yield_now;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Most writes one task takes.
pub(super) const MOST: usize = 64;

/// Most that is zeroed at once. The writes to all of it wait.
const MOST_ZEROED_SECTORS: u64 = 2048;

/// Most mappings inserted in one turn at the metadata that break sharing. The first change below a node that is
/// shared counts all that the node refers to, so each may be much work.
const SHARED_PER_TURN: usize = 8;

/// A write whose block has to be made writable, and can be at once.
pub(super) struct FirstWrite {
    dev: Arc<ThinDev>,
    block: u64,
    /// The data block it shares, to be copied.
    old: Option<u64>,
    write: Deferred<Thin>,
    /// It covers its block, so that nothing is to be copied or zeroed.
    whole: bool,
    guard: BlockGuard,
}

impl FirstWrite {
    /// Its device's id.
    pub(super) fn device(&self) -> u32 {
        self.dev.id
    }

    /// What of the metadata its mapping needs.
    fn wanted(&self) -> (u32, Range<u64>) {
        (self.dev.id, self.block..self.block + 1)
    }

    /// Whether they are of one device.
    pub(super) fn is_with(&self, other: &FirstWrite) -> bool {
        Arc::ptr_eq(&self.dev, &other.dev)
    }
}

/// A first write with a data block of its own, and how filling that went.
type Filled = (FirstWrite, u64, Result<(), Errno>);

impl Pool {
    /// Takes a write if it is a plain first write; gives back what is not.
    pub(super) fn first_write(&self, write: Deferred<Thin>) -> Result<FirstWrite, Deferred<Thin>> {
        let dev = &write.volume;
        let block = self.shared.split(write.request.offset_blocks).0;
        let key = (dev.id, block);
        if write.request.kind != IoKind::Write || self.shared.mode() != PoolMode::Write {
            return Err(write);
        }
        let old = match dev.pages.get(block) {
            Entry::Unmapped => None,
            Entry::Mapped { data_block, time } if dev.is_shared(time) => Some(data_block),
            _ => return Err(write),
        };
        if self.pending.borrow().contains_key(&key) {
            return Err(write);
        }
        let lock = self.locks.lock_block(u64::from(dev.id), block);
        let Some(guard) = lock.now_or_never() else {
            return Err(write);
        };
        // Whatever else comes for this block joins.
        self.pending.borrow_mut().insert(key, Vec::new());
        Ok(FirstWrite {
            dev: dev.clone(),
            block,
            old,
            whole: self.shared.is_whole_block(&write.request),
            write,
            guard,
        })
    }

    /// Makes the blocks of these writes, all of one device, writable.
    pub(super) async fn provision(self: Rc<Self>, writes: Vec<FirstWrite>) {
        let (mut whole, mut zeroed) = (Vec::new(), Vec::new());
        let mut filling = FuturesUnordered::new();
        let mut answers = Vec::with_capacity(writes.len());
        {
            let wanted = writes.iter().map(FirstWrite::wanted).collect();
            let mut metadata = self.metadata_of(wanted).await;
            let mut new = match self.shared.mode() {
                PoolMode::Write => self.new_blocks(&mut metadata, writes.len()).await,
                _ => Vec::new(),
            }
            .into_iter();
            for first in writes {
                match new.next() {
                    // Why is found out there.
                    None => self.hand_over(first),
                    Some(new) if first.whole => whole.push((first, new)),
                    Some(new) if self.is_zeroed(&first) => zeroed.push((first, new)),
                    Some(new) if self.needs_filling(&first) => {
                        filling.push(self.fill(first, new).left_future());
                    }
                    Some(new) => {
                        let filled = (first, new, Ok(()));
                        answers.push(self.insert_filled(&mut metadata, filled).await);
                    }
                }
            }
            self.check_low_water(&metadata);
        }
        self.answer_all(answers);
        let runs = self.runs_to_zero(zeroed).into_iter();
        filling.extend(runs.map(|run| self.zero_run(run).right_future()));
        let written = self.write_whole(whole);
        let filling = filling
            .ready_chunks(MOST)
            .map(|filled| filled.into_iter().flatten().collect());
        let mut filled = select(written, filling);
        while let Some(mut filled) = filled.next().await {
            while !filled.is_empty() {
                let shared = |(first, ..): &Filled| first.old.is_some();
                let most = match filled.iter().any(shared) {
                    true => SHARED_PER_TURN,
                    false => MOST,
                };
                let rest = filled.split_off(filled.len().min(most));
                let mut answers = Vec::with_capacity(filled.len());
                let wanted = filled.iter().map(|(first, ..)| first.wanted());
                let mut metadata = self.metadata_of(wanted.collect()).await;
                for filled in filled {
                    answers.push(self.insert_filled(&mut metadata, filled).await);
                }
                drop(metadata);
                self.answer_all(answers);
                if !rest.is_empty() {
                    // Nobody else may want the metadata, but the core has I/O to serve.
                    yield_now().await;
                }
                filled = rest;
            }
        }
    }

    /// Has whole blocks written in place of what would fill them.
    fn write_whole(&self, whole: Vec<(FirstWrite, u64)>) -> impl Stream<Item = Vec<Filled>> {
        let per_block = self.shared.logical_per_block();
        let writes = whole
            .into_iter()
            .map(|(first, new)| ((first, new), new * per_block))
            .collect();
        let written = self
            .channels
            .forward_all(DATA, writes, |(first, _)| &first.write);
        written.map(|written| {
            let filled = |((first, new), result)| (first, new, result);
            written.into_iter().map(filled).collect()
        })
    }

    /// Has a block resolved by itself.
    fn hand_over(self: &Rc<Self>, first: FirstWrite) {
        let FirstWrite {
            dev,
            block,
            write,
            guard,
            ..
        } = first;
        let key = (dev.id, block);
        self.pending
            .borrow_mut()
            .entry(key)
            .or_default()
            .insert(0, write);
        drop(guard);
        let (pool, id) = (self.clone(), dev.id);
        self.run_task(id, async move { pool.resolve_block(dev, block).await });
    }

    fn needs_filling(&self, first: &FirstWrite) -> bool {
        first.old.is_some() || first.dev.origin_logical_blocks > 0
    }

    async fn fill(&self, first: FirstWrite, new: u64) -> Vec<Filled> {
        let filled = self.prepare(&first.dev, first.block, first.old, new).await;
        vec![(first, new, filled)]
    }

    /// Whether all that a new block is filled with are zeroes.
    fn is_zeroed(&self, first: &FirstWrite) -> bool {
        let begin = first.block * u64::from(self.config.data_block_size_sectors);
        let has_origin = first.dev.origin_sectors() > begin;
        first.old.is_none() && !self.config.skip_block_zeroing && !has_origin
    }

    /// Parts them where blocks do not follow each other, and where a run gets long.
    fn runs_to_zero(&self, writes: Vec<(FirstWrite, u64)>) -> Vec<Vec<(FirstWrite, u64)>> {
        let most = MOST_ZEROED_SECTORS / u64::from(self.config.data_block_size_sectors);
        let mut runs: Vec<Vec<(FirstWrite, u64)>> = Vec::new();
        for (first, new) in writes {
            let last = runs.last_mut();
            let follows = last.filter(|run| {
                let is_next = run.last().is_some_and(|(_, last)| last + 1 == new);
                is_next && (run.len() as u64) < most
            });
            match follows {
                Some(run) => run.push((first, new)),
                None => runs.push(vec![(first, new)]),
            }
        }
        runs
    }

    /// Zeroes new blocks that follow each other.
    async fn zero_run(&self, run: Vec<(FirstWrite, u64)>) -> Vec<Filled> {
        let sectors = u64::from(self.config.data_block_size_sectors);
        let begin = run.first().map_or(0, |(_, new)| new * sectors);
        let zeroed = self.data.zero(begin, sectors * run.len() as u64).await;
        let mut filled = Vec::with_capacity(run.len());
        for (first, new) in run {
            let zeroed = match zeroed {
                Ok(()) => Ok(()),
                // One of them may be bad.
                Err(_) => self.data.zero(new * sectors, sectors).await,
            };
            filled.push((first, new, zeroed));
        }
        filled
    }

    async fn insert_filled(
        &self,
        metadata: &mut ThinMetadata,
        (first, new, filled): Filled,
    ) -> (FirstWrite, Result<(), NotWritable>) {
        let FirstWrite {
            dev, block, old, ..
        } = &first;
        let inserted = self
            .publish_locked(metadata, dev, *block, *old, new, filled)
            .await;
        (first, inserted)
    }

    fn answer_all(&self, answers: Vec<(FirstWrite, Result<(), NotWritable>)>) {
        let mut joined = Vec::new();
        let mut direct = Vec::with_capacity(answers.len());
        for (first, made) in answers {
            let FirstWrite {
                dev,
                block,
                write,
                whole,
                guard,
                ..
            } = first;
            drop(guard);
            let waiting = self.pending.borrow_mut().remove(&(dev.id, block));
            let waiting = waiting.unwrap_or_default();
            match (whole, made) {
                (true, made) => {
                    let result = made.map_err(NotWritable::errno);
                    direct.push((write, Answer::Complete(result)));
                    // An error of this write says nothing about the others: they are mapped again.
                    joined.push((waiting, Outcome::Retry));
                }
                (false, Ok(())) => {
                    direct.push((write, Answer::Retry));
                    joined.push((waiting, Outcome::Retry));
                }
                (false, made) => {
                    let outcome = Outcome::from(made);
                    self.answer([write], outcome);
                    joined.push((waiting, outcome));
                }
            }
        }
        let direct = direct.iter().map(|(write, answer)| (write, *answer));
        self.channels.answer_all(direct);
        for (waiting, outcome) in joined {
            self.answer(waiting, outcome);
        }
    }
}
