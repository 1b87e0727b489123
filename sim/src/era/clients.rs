//! Clients of an era device: random I/O from several cores, checked against the model.

use super::world::World;
use crate::cores::{Answer, Cores};
use crate::disk::GARBAGE;
use crate::history::Since;
use bdev::era::{EraDev, EraTarget};
use bdev::errno::Errno;
use bdev::target::{IoKind, Request};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// A client.
pub struct Client {
    /// The world.
    pub world: Rc<World>,
    /// What it does I/O through.
    pub dev: Arc<EraDev>,
    /// The cores.
    pub cores: Rc<Cores<EraTarget>>,
    /// Its last I/O failed.
    pub refused: Cell<bool>,
}

impl Client {
    /// Works until the world stops.
    pub async fn run(self) {
        while !self.world.stopping.get() {
            match self.world.executor.below(20) {
                0..=9 => self.change(IoKind::Write).await,
                10 => self.change(IoKind::Discard).await,
                11 => self.change(IoKind::WriteZeroes).await,
                12..=15 => self.read().await,
                16..=18 => self.flush().await,
                _ => {
                    self.world.executor.count("resets");
                    let (result, _) = self.submit(request(IoKind::Reset, 0, 0), Vec::new()).await;
                    self.judge(IoKind::Reset, result);
                }
            }
            // What needs no disk takes time too; else a client of a failed target would spin.
            if self.world.executor.one_in(3) || self.refused.take() {
                self.world.executor.delay().await;
            }
        }
        self.world.running.set(self.world.running.get() - 1);
    }

    /// A range of logical blocks; inside one data block, as hosts split I/O, or not.
    fn place(&self, whole: bool) -> (u64, u64) {
        let dice = &self.world.executor;
        let nr = self.world.nr_logical.get();
        let hot = if dice.one_in(2) { nr.min(8) } else { nr };
        let first = dice.below(hot);
        if !whole {
            let per = self.world.shape.per_block();
            let most = (per - first % per).min(nr - first);
            return (first, 1 + dice.below(most.min(9)));
        }
        let most = if dice.one_in(8) { nr } else { 24 };
        (first, 1 + dice.below((nr - first).min(most)))
    }

    async fn submit(&self, request: Request, data: Vec<u64>) -> Answer {
        let core = self.world.executor.below(self.cores.len());
        let trace = |text: String| self.world.executor.trace(|| text);
        let value = data.first().copied();
        trace(format!("core {core} {request:?} {value:x?}"));
        let answer = self.cores.io(core, &self.dev, request, data).await;
        trace(format!(
            "core {core} {request:?} {value:x?} -> {:?}",
            answer.0
        ));
        answer
    }

    /// Whether an I/O may end like this.
    fn judge(&self, kind: IoKind, result: Result<(), Errno>) {
        let Err(errno) = result else { return };
        self.world.executor.count("I/O refused");
        self.refused.set(true);
        let changes = matches!(kind, IoKind::Write | IoKind::Discard | IoKind::WriteZeroes);
        if !(self.world.faulty.get() || changes && self.world.shape.tight) {
            self.world
                .fail(format!("{kind:?} failed for no reason: {errno}"));
        }
    }

    async fn read(&self) {
        self.world.executor.count("reads");
        let (first, count) = self.place(false);
        let began = self.world.tick();
        self.world.history.borrow_mut().begin_read(began);
        let (result, found) = self
            .submit(request(IoKind::Read, first, count), Vec::new())
            .await;
        self.judge(IoKind::Read, result);
        let mut history = self.world.history.borrow_mut();
        if result.is_ok() {
            let now = self.world.tick();
            if let Err(wrong) = history.check(first, &found, Since::Read(began), now) {
                self.world.fail(wrong);
            }
        }
        history.end_read(began);
    }

    async fn change(&self, kind: IoKind) {
        let world = &self.world;
        let (first, count) = self.place(kind != IoKind::Write);
        let value = match kind {
            IoKind::Write => world.new_value(),
            IoKind::Discard => GARBAGE,
            _ => 0,
        };
        world.executor.count(match kind {
            IoKind::Write => "writes",
            IoKind::Discard => "discards",
            _ => "write-zeroes",
        });
        let blocks = world.shape.data_blocks(first, count);
        if blocks
            .clone()
            .all(|block| self.dev.marks().is_marked(block))
        {
            world.executor.count("changes of marked blocks");
        }
        world.ledger.borrow_mut().begin(blocks.clone());
        let pending = world
            .history
            .borrow_mut()
            .begin(first, count, |_| value, world.tick());
        let data = match kind {
            IoKind::Write => vec![value; count as usize],
            _ => Vec::new(),
        };
        let (result, _) = self.submit(request(kind, first, count), data).await;
        self.judge(kind, result);
        let now = world.tick();
        world
            .history
            .borrow_mut()
            .end(&pending, result.is_ok(), now);
        world.ledger.borrow_mut().end(blocks, now);
    }

    async fn flush(&self) {
        self.world.executor.count("flushes");
        let began = self.world.tick();
        let (result, _) = self.submit(request(IoKind::Flush, 0, 0), Vec::new()).await;
        self.judge(IoKind::Flush, result);
        if result.is_ok() {
            self.world.history.borrow_mut().flushed(began);
        }
    }
}

fn request(kind: IoKind, offset_blocks: u64, nr_blocks: u64) -> Request {
    Request {
        kind,
        offset_blocks,
        nr_blocks,
    }
}
