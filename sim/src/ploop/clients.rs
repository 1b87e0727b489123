//! Clients of a ploop device: random I/O from several cores, checked against the model.

use super::world::World;
use crate::cores::{Answer, Cores, request};
use crate::history::Since;
use crate::watched::Watched;
use bdev::errno::Errno;
use bdev::ploop::{Ploop, PloopTarget};
use bdev::target::IoKind;
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
        let step = async || self.step().await;
        self.world.work(&self.idle, step).await;
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
        let request = request(kind, first, count);
        let dev = self.ploop.dev();
        self.cores.io_anywhere("", dev, request, data).await
    }

    /// What the model knows of the device.
    pub fn watched(&self) -> Watched<'_, &'static str> {
        Watched {
            course: &self.world,
            history: &self.world.history,
            name: "the device",
        }
    }

    /// An I/O, which may end only as it may.
    async fn io(&self, kind: IoKind, first: u64, count: u64, data: Vec<u64>) -> Answer {
        let answer = self.submit(kind, first, count, data).await;
        self.judge(kind, answer.0);
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

    /// An I/O may have failed only where something can fail.
    fn judge(&self, kind: IoKind, result: Result<(), Errno>) {
        let Err(errno) = result else { return };
        self.world.executor.count("I/O refused");
        let full = errno == Errno::ENOSPC && self.world.shape.tight;
        if !self.world.faulty.get() && !full {
            self.world
                .fail(format!("{kind:?} failed for no reason: {errno}"));
        }
    }

    async fn read(&self) -> bool {
        self.world.executor.count("reads");
        let (first, count) = self.place();
        self.read_range(first, count).await.is_some()
    }

    /// Reads a range and checks it. None: the read failed.
    pub async fn read_range(&self, first: u64, count: u64) -> Option<Vec<u64>> {
        let io = self.io(IoKind::Read, first, count, Vec::new());
        let (result, found) = self.watched().read(first, Since::Read, io).await;
        result.is_ok().then_some(found)
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
        let data = match kind {
            IoKind::Write => vec![value; count as usize],
            _ => Vec::new(),
        };
        let io = self.io(kind, first, count, data);
        let (result, _) = self.watched().change(first, count, value, io).await;
        result.is_ok()
    }

    /// Afterwards there are zeroes, or what was there before.
    async fn discard(&self) -> bool {
        self.world.executor.count("discards");
        let (first, count) = self.place();
        let watched = self.watched();
        let maybe = watched.begin(first, count, |_| 0);
        let (result, _) = self.io(IoKind::Discard, first, count, Vec::new()).await;
        watched.end(&[maybe], false);
        result.is_ok()
    }

    async fn flush(&self) -> bool {
        self.world.executor.count("flushes");
        let io = self.io(IoKind::Flush, 0, 0, Vec::new());
        self.watched().flush(io).await.is_ok()
    }

    async fn reset(&self) -> bool {
        self.world.executor.count("resets");
        let (result, _) = self.io(IoKind::Reset, 0, 0, Vec::new()).await;
        result.is_ok()
    }
}
