//! Clients of a ploop device: random I/O from several cores, checked against the model.

use super::world::World;
use crate::cores::{Answer, Cores};
use crate::history::Since;
use bdev::errno::Errno;
use bdev::ploop::{Ploop, PloopTarget};
use bdev::target::{IoKind, Request};
use std::cell::Cell;
use std::rc::Rc;

/// A client.
pub struct Client {
    /// The world.
    pub world: Rc<World>,
    /// The target.
    pub ploop: Rc<Ploop>,
    /// The cores.
    pub cores: Rc<Cores<PloopTarget>>,
    /// Its last I/O failed, or there was nothing to do.
    pub idle: Cell<bool>,
}

impl Client {
    /// Works until the world stops.
    pub async fn run(self) {
        while !self.world.stopping.get() {
            self.step().await;
            // What needs no disk takes time too; else a client of a failed target would spin.
            if self.world.executor.one_in(3) || self.idle.take() {
                self.world.executor.delay().await;
            }
        }
        self.world.running.set(self.world.running.get() - 1);
    }

    async fn step(&self) {
        let world = &self.world;
        if world.paused.get() {
            return self.idle.set(true);
        }
        world.busy.set(world.busy.get() + 1);
        let answered = match world.executor.below(20) {
            0..=8 => self.change(IoKind::Write).await,
            9 => self.change(IoKind::WriteZeroes).await,
            10 => self.discard().await,
            11..=16 => self.read().await,
            17 | 18 => self.flush().await,
            _ => self.reset().await,
        };
        world.busy.set(world.busy.get() - 1);
        self.idle.set(!answered);
    }

    /// An I/O, on any core.
    pub async fn submit(&self, kind: IoKind, first: u64, count: u64, data: Vec<u64>) -> Answer {
        let request = Request {
            kind,
            offset_blocks: first,
            nr_blocks: count,
        };
        let dice = &self.world.executor;
        let core = dice.below(self.cores.len());
        let value = data.first().copied();
        dice.trace(|| format!("core {core} {request:?} {value:x?}"));
        let answer = self.cores.io(core, self.ploop.dev(), request, data).await;
        dice.trace(|| {
            let found: Vec<u64> = answer.1.iter().take(20).copied().collect();
            format!(
                "core {core} {request:?} {value:x?} -> {:?} {found:x?}",
                answer.0
            )
        });
        answer
    }

    /// A range of logical blocks: often a few that are used again and again, often whole clusters, now and
    /// then many.
    fn place(&self) -> (u64, u64) {
        let dice = &self.world.executor;
        let nr = self.world.nr_logical();
        let per = self.world.shape.per_cluster;
        let hot = if dice.one_in(2) { nr.min(per * 4) } else { nr };
        let mut first = dice.below(hot);
        let count = match dice.below(8) {
            0 => 1 + dice.below(per * 6),
            1 | 2 => {
                first -= first % per;
                per * (1 + dice.below(3))
            }
            _ => 1 + dice.below(per),
        };
        (first, count.min(nr - first))
    }

    /// Whether an I/O was answered well; it may have failed only where something can fail.
    fn judge(&self, kind: IoKind, result: Result<(), Errno>) -> bool {
        let Err(errno) = result else { return true };
        self.world.executor.count("I/O refused");
        let full = errno == Errno::ENOSPC && self.world.shape.tight;
        if !self.world.faulty.get() && !full {
            self.world
                .fail(format!("{kind:?} failed for no reason: {errno}"));
        }
        false
    }

    async fn read(&self) -> bool {
        self.world.executor.count("reads");
        let (first, count) = self.place();
        self.read_range(first, count).await.is_some()
    }

    /// Reads a range and checks it. None: the read failed.
    pub async fn read_range(&self, first: u64, count: u64) -> Option<Vec<u64>> {
        let world = &self.world;
        let began = world.tick();
        world.history.borrow_mut().begin_read(began);
        let (result, found) = self.submit(IoKind::Read, first, count, Vec::new()).await;
        let answered = self.judge(IoKind::Read, result);
        let mut history = world.history.borrow_mut();
        if answered
            && let Err(wrong) = history.check(first, &found, Since::Read(began), world.tick())
        {
            world.fail(wrong);
        }
        history.end_read(began);
        answered.then_some(found)
    }

    async fn change(&self, kind: IoKind) -> bool {
        let world = &self.world;
        let (first, count) = self.place();
        let value = match kind {
            IoKind::Write => world.new_value(),
            _ => 0,
        };
        world.executor.count(match kind {
            IoKind::Write => "writes",
            _ => "write-zeroes",
        });
        let now = world.tick();
        let pending = world
            .history
            .borrow_mut()
            .begin(first, count, |_| value, now);
        let data = match kind {
            IoKind::Write => vec![value; count as usize],
            _ => Vec::new(),
        };
        let (result, _) = self.submit(kind, first, count, data).await;
        let answered = self.judge(kind, result);
        let now = world.tick();
        world
            .history
            .borrow_mut()
            .end(&pending, result.is_ok(), now);
        answered
    }

    /// Afterwards there are zeroes, or what was there before.
    async fn discard(&self) -> bool {
        let world = &self.world;
        world.executor.count("discards");
        let (first, count) = self.place();
        let now = world.tick();
        let pending = world.history.borrow_mut().begin(first, count, |_| 0, now);
        let (result, _) = self.submit(IoKind::Discard, first, count, Vec::new()).await;
        let answered = self.judge(IoKind::Discard, result);
        let now = world.tick();
        world.history.borrow_mut().end(&pending, false, now);
        answered
    }

    async fn flush(&self) -> bool {
        self.world.executor.count("flushes");
        let began = self.world.tick();
        let (result, _) = self.submit(IoKind::Flush, 0, 0, Vec::new()).await;
        let answered = self.judge(IoKind::Flush, result);
        if result.is_ok() {
            self.world.history.borrow_mut().flushed(began);
        }
        answered
    }

    async fn reset(&self) -> bool {
        self.world.executor.count("resets");
        let (result, _) = self.submit(IoKind::Reset, 0, 0, Vec::new()).await;
        self.judge(IoKind::Reset, result)
    }
}
