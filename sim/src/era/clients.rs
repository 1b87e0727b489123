//! Clients of an era device: random I/O from several cores, checked against the model.

use super::world::World;
use crate::cores::{Answer, Cores, request};
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
        let step = async || self.step().await;
        self.world.work(&self.refused, step).await;
    }

    async fn step(&self) {
        match self.world.executor.below(20) {
            0..=9 => self.change(IoKind::Write).await,
            10 => self.change(IoKind::Discard).await,
            11 => self.change(IoKind::WriteZeroes).await,
            12..=15 => self.read().await,
            16..=18 => self.flush().await,
            _ => {
                self.world.executor.count("resets");
                let _ = self.io(request(IoKind::Reset, 0, 0), Vec::new()).await;
            }
        }
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

    /// An I/O, which may end only as it may.
    async fn io(&self, request: Request, data: Vec<u64>) -> Answer {
        let answer = self.cores.io_anywhere("", &self.dev, request, data).await;
        self.judge(request.kind, answer.0);
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
        let io = self.io(request(IoKind::Read, first, count), Vec::new());
        let _ = self.world.watched().read(first, Since::Read, io).await;
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
        let data = match kind {
            IoKind::Write => vec![value; count as usize],
            _ => Vec::new(),
        };
        let io = self.io(request(kind, first, count), data);
        let (_, now) = self.world.watched().change(first, count, value, io).await;
        world.ledger.borrow_mut().end(blocks, now);
    }

    async fn flush(&self) {
        self.world.executor.count("flushes");
        let io = self.io(request(IoKind::Flush, 0, 0), Vec::new());
        let _ = self.world.watched().flush(io).await;
    }
}
