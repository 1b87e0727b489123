//! Clients of an origin and its snapshots: random I/O from several cores, checked against the model.

use super::world::{Target, World};
use crate::cores::{Answer, Cores, request};
use crate::disk::GARBAGE;
use crate::history::Since;
use crate::watched::Watched;
use bdev::errno::Errno;
use bdev::snapshot::{SnapshotTarget, State, StoreKind, Volume};
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
        let step = async || self.step().await;
        self.world.work(&self.idle, step).await;
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
    /// What the model knows of the target.
    pub fn watched(&self) -> Watched<'_, usize> {
        Watched {
            course: self.world,
            history: &self.target.history,
            name: self.number,
        }
    }

    /// An I/O, which may end only as it may.
    async fn io(&self, request: Request, data: Vec<u64>) -> Answer {
        let (number, volume) = (self.number, &self.volume);
        let answer = self.cores.io_anywhere(number, volume, request, data).await;
        self.judge(request.kind, answer.0);
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
    fn judge(&self, kind: IoKind, result: Result<(), Errno>) {
        let Err(errno) = result else { return };
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
    }

    async fn read(&self) -> bool {
        self.world.executor.count(match self.number {
            0 => "reads of the origin",
            _ => "reads of snapshots",
        });
        let (first, count) = self.place();
        let io = self.io(request(IoKind::Read, first, count), Vec::new());
        let config = self.world.shape.snapshots.get(self.number.wrapping_sub(1));
        let transient = config.is_some_and(|config| config.store == StoreKind::Transient);
        // Copies are lost, and the snapshot is not yet invalid.
        let since = |began| match transient && self.world.losses.is_untold_since(began) {
            true => Since::Loss,
            false => Since::Read(began),
        };
        let (result, _) = self.watched().read(first, since, io).await;
        result.is_ok()
    }

    /// Reads all of it. None: it failed.
    pub async fn read_all(&self) -> Option<Vec<u64>> {
        let nr = self.volume.nr_logical_blocks();
        let (result, found) = self.io(request(IoKind::Read, 0, nr), Vec::new()).await;
        result.is_ok().then_some(found)
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
        let data = match kind {
            IoKind::Write => vec![value; count as usize],
            _ => Vec::new(),
        };
        let io = self.io(request(kind, first, count), data);
        let (result, _) = self.watched().change(first, count, value, io).await;
        result.is_ok()
    }

    /// Afterwards there are zeroes, garbage, or what was there before.
    async fn discard(&self) -> bool {
        self.world.executor.count("discards");
        let (first, count) = self.place();
        let watched = self.watched();
        let maybe = [0, GARBAGE].map(|value| watched.begin(first, count, |_| value));
        let discard = request(IoKind::Discard, first, count);
        let (result, _) = self.io(discard, Vec::new()).await;
        watched.end(&maybe, false);
        result.is_ok()
    }

    async fn flush(&self) -> bool {
        self.world.executor.count("flushes");
        let io = self.io(request(IoKind::Flush, 0, 0), Vec::new());
        self.watched().flush(io).await.is_ok()
    }

    async fn reset(&self) -> bool {
        self.world.executor.count("resets");
        let (result, _) = self.io(request(IoKind::Reset, 0, 0), Vec::new()).await;
        result.is_ok()
    }
}
