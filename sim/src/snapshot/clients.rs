//! Clients of an origin and its snapshots: random I/O from several cores, checked against the model.

use super::world::{Target, World};
use crate::cores::{Answer, Cores};
use crate::disk::GARBAGE;
use crate::history::Since;
use bdev::errno::Errno;
use bdev::snapshot::{SnapshotTarget, State, Volume};
use bdev::target::{IoKind, Request};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// A client.
pub struct Client {
    /// The world.
    pub world: Rc<World>,
    /// The cores.
    pub cores: Rc<Cores<SnapshotTarget>>,
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
        let dice = &self.world.executor;
        let number = match dice.one_in(2) {
            true => 0,
            false => dice.below(self.world.targets.len() as u64) as usize,
        };
        let target = self.world.target(number);
        let volume = target.volume.borrow().clone();
        let Some(volume) = volume.filter(|_| !target.paused.get()) else {
            return self.idle.set(true);
        };
        let io = Io {
            world: &self.world,
            cores: &self.cores,
            number,
            target,
            volume,
        };
        target.busy.set(target.busy.get() + 1);
        let answered = match dice.below(20) {
            0..=8 => io.change(IoKind::Write).await,
            9 => io.change(IoKind::WriteZeroes).await,
            10 => io.discard().await,
            11..=16 => io.read().await,
            17 | 18 => io.flush().await,
            _ => io.reset().await,
        };
        target.busy.set(target.busy.get() - 1);
        self.idle.set(!answered);
    }
}

/// I/O to one target.
pub struct Io<'a> {
    /// The world.
    pub world: &'a World,
    /// The cores.
    pub cores: &'a Cores<SnapshotTarget>,
    /// Which target.
    pub number: usize,
    /// The target.
    pub target: &'a Target,
    /// Its device.
    pub volume: Arc<Volume>,
}

impl Io<'_> {
    async fn submit(&self, request: Request, data: Vec<u64>) -> Answer {
        let core = self.world.executor.below(self.cores.len());
        let trace = |text: String| self.world.executor.trace(|| text);
        let (number, value) = (self.number, data.first().copied());
        trace(format!("{number} core {core} {request:?} {value:x?}"));
        let answer = self.cores.io(core, &self.volume, request, data).await;
        let found = match request.nr_blocks {
            0..20 => answer.1.clone(),
            _ => Vec::new(),
        };
        trace(format!(
            "{number} core {core} {request:?} {value:x?} -> {:?} {found:x?}",
            answer.0
        ));
        answer
    }

    /// A range of logical blocks: often few of them, often what a chunk is, now and then many.
    fn place(&self) -> (u64, u64) {
        let dice = &self.world.executor;
        let nr = self.volume.nr_logical_blocks();
        let hot = if dice.one_in(2) { nr.min(12) } else { nr };
        let mut first = dice.below(hot);
        let count = match dice.below(8) {
            0 => 1 + dice.below(40),
            1 | 2 => {
                let count = 1 << dice.below(5);
                first -= first % count;
                count
            }
            _ => 1 + dice.below(4),
        };
        (first, count.min(nr - first))
    }

    /// Whether an I/O may end like this. Why a snapshot is ailing is asked elsewhere.
    fn judge(&self, kind: IoKind, result: Result<(), Errno>) -> bool {
        let Err(errno) = result else { return true };
        self.world.executor.count("I/O refused");
        let ailing = match &*self.volume {
            Volume::Snapshot(dev) => dev.state() != State::Active,
            Volume::Origin(_) => false,
        };
        let unsupported = kind == IoKind::Discard && errno == Errno::EOPNOTSUPP && self.number > 0;
        if !(self.world.faulty.get() || ailing || unsupported) {
            self.world.fail(format!(
                "{kind:?} of {} failed for no reason: {errno}",
                self.number
            ));
        }
        false
    }

    async fn read(&self) -> bool {
        self.world.executor.count(match self.number {
            0 => "reads of the origin",
            _ => "reads of snapshots",
        });
        let (first, count) = self.place();
        let began = self.world.tick();
        self.target.history.borrow_mut().begin_read(began);
        let (result, found) = self
            .submit(request(IoKind::Read, first, count), Vec::new())
            .await;
        let answered = self.judge(IoKind::Read, result);
        let mut history = self.target.history.borrow_mut();
        if result.is_ok() {
            let now = self.world.tick();
            if let Err(wrong) = history.check(first, &found, Since::Read(began), now) {
                self.world.fail(format!("{}: {wrong}", self.number));
            }
        }
        history.end_read(began);
        answered
    }

    /// Reads all of it. None: it failed.
    pub async fn read_all(&self) -> Option<Vec<u64>> {
        let nr = self.volume.nr_logical_blocks();
        let (result, found) = self.submit(request(IoKind::Read, 0, nr), Vec::new()).await;
        self.judge(IoKind::Read, result).then_some(found)
    }

    async fn change(&self, kind: IoKind) -> bool {
        let world = self.world;
        let (first, count) = self.place();
        let value = match kind {
            IoKind::Write => world.new_value(),
            _ => 0,
        };
        world.executor.count(match self.number {
            0 => "writes of the origin",
            _ => "writes of snapshots",
        });
        let pending = self
            .target
            .history
            .borrow_mut()
            .begin(first, count, |_| value, world.tick());
        let data = match kind {
            IoKind::Write => vec![value; count as usize],
            _ => Vec::new(),
        };
        let (result, _) = self.submit(request(kind, first, count), data).await;
        let answered = self.judge(kind, result);
        let now = world.tick();
        let mut history = self.target.history.borrow_mut();
        history.end(&pending, result.is_ok(), now);
        answered
    }

    /// Afterwards there are zeroes, garbage, or what was there before.
    async fn discard(&self) -> bool {
        let world = self.world;
        world.executor.count("discards");
        let (first, count) = self.place();
        let maybe: Vec<_> = [0, GARBAGE]
            .into_iter()
            .map(|value| {
                let now = world.tick();
                let mut history = self.target.history.borrow_mut();
                history.begin(first, count, |_| value, now)
            })
            .collect();
        let discard = request(IoKind::Discard, first, count);
        let (result, _) = self.submit(discard, Vec::new()).await;
        let answered = self.judge(IoKind::Discard, result);
        let now = world.tick();
        for pending in maybe {
            self.target.history.borrow_mut().end(&pending, false, now);
        }
        answered
    }

    async fn flush(&self) -> bool {
        self.world.executor.count("flushes");
        let began = self.world.tick();
        let (result, _) = self.submit(request(IoKind::Flush, 0, 0), Vec::new()).await;
        let answered = self.judge(IoKind::Flush, result);
        if result.is_ok() {
            self.target.history.borrow_mut().flushed(began);
        }
        answered
    }

    async fn reset(&self) -> bool {
        self.world.executor.count("resets");
        let (result, _) = self.submit(request(IoKind::Reset, 0, 0), Vec::new()).await;
        self.judge(IoKind::Reset, result)
    }
}

fn request(kind: IoKind, offset_blocks: u64, nr_blocks: u64) -> Request {
    Request {
        kind,
        offset_blocks,
        nr_blocks,
    }
}
