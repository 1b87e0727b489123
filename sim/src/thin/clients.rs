//! Clients of thin devices: random I/O from several cores, checked against the model.

use super::world::{HOT_BLOCKS, Volume, World};
use crate::cores::{Answer, Cores, request};
use crate::history::{Moment, Pending, Since};
use crate::watched::Watched;
use bdev::errno::Errno;
use bdev::target::{IoKind, Request};
use bdev::thin::{Pool, PoolMode, Thin, ThinDev};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// A client: what it does I/O through.
pub struct Client {
    /// The world.
    pub world: Rc<World>,
    /// The pool.
    pub pool: Rc<Pool>,
    /// The cores.
    pub cores: Rc<Cores<Thin>>,
    /// Its last I/O failed.
    pub refused: Cell<bool>,
}

/// A place on a device: a used block, and a range within it.
struct Place {
    hot: u64,
    offset: u64,
    count: u64,
}

impl Client {
    /// Works until the world stops.
    pub async fn run(self) {
        if self.world.executor.is_seed_of(8)
            && let Some((volume, dev)) = self.pick()
        {
            self.fill(&volume, &dev).await;
        }
        while !self.world.stopping.get() {
            let Some((volume, dev)) = self.pick() else {
                self.world.executor.delay().await;
                continue;
            };
            volume.in_flight.set(volume.in_flight.get() + 1);
            match self.world.executor.below(20) {
                0..=7 => self.write(&volume, &dev).await,
                8..=13 => self.read(&volume, &dev).await,
                14..=15 => self.range(&volume, &dev, IoKind::Discard).await,
                16 => self.range(&volume, &dev, IoKind::WriteZeroes).await,
                19 if !self.world.shape.resets => self.read(&volume, &dev).await,
                17..=18 => self.flush(&volume, &dev).await,
                _ => {
                    self.world.executor.count("resets");
                    let _ = self
                        .io(&dev, request(IoKind::Reset, 0, 0), Vec::new())
                        .await;
                }
            }
            volume.in_flight.set(volume.in_flight.get() - 1);
            // What needs no disk takes time too; else a client of a failed pool would spin.
            if self.world.executor.one_in(3) || self.refused.take() {
                self.world.executor.delay().await;
            }
        }
    }

    fn pick(&self) -> Option<(Rc<Volume>, Arc<ThinDev>)> {
        let active: Vec<_> = self
            .world
            .volumes
            .borrow()
            .values()
            .filter_map(|volume| Some((volume.clone(), volume.dev.borrow().clone()?)))
            .collect();
        let at = self.world.executor.below(active.len() as u64);
        active.into_iter().nth(at as usize)
    }

    fn place(&self) -> Place {
        let dice = &self.world.executor;
        let per = self.world.shape.per_block();
        let hot = dice.below(HOT_BLOCKS);
        if dice.one_in(3) {
            return Place {
                hot,
                offset: 0,
                count: per,
            };
        }
        let offset = dice.below(per);
        // Blocks of the model that follow each other are neighbours on the device, too.
        let across = self.world.shape.spread == 1 && dice.one_in(4);
        let (left, most) = match across {
            true => ((HOT_BLOCKS - hot) * per - offset, 4 * per),
            false => (per - offset, 9),
        };
        Place {
            hot,
            offset,
            count: 1 + dice.below(left.min(most)),
        }
    }

    /// What the model knows of a device.
    fn watched<'a>(&'a self, volume: &'a Volume) -> Watched<'a, String> {
        Watched {
            course: &self.world,
            history: &volume.history,
            name: format!("device {}", volume.id),
        }
    }

    /// An I/O, which may end only as it may.
    async fn io(&self, dev: &Arc<ThinDev>, request: Request, data: Vec<u64>) -> Answer {
        let name = format_args!("device {}", dev.id);
        let answer = self.cores.io_anywhere(name, dev, request, data).await;
        self.judge(request.kind, answer.0);
        answer
    }

    /// Whether an I/O may end like this.
    fn judge(&self, kind: IoKind, result: Result<(), Errno>) {
        let Err(errno) = result else { return };
        self.world.executor.count("I/O refused");
        self.refused.set(true);
        let mode = self.pool.shared().mode();
        let excused = match kind {
            IoKind::Read | IoKind::Flush | IoKind::Reset => {
                self.world.faulty.get() || mode == PoolMode::Fail
            }
            _ => self.world.faulty.get() || mode.refuses_changes(),
        };
        let no_space = errno == Errno::ENOSPC && kind != IoKind::Read && kind != IoKind::Flush;
        // A reset fails what waits for space.
        let was_reset = self.world.shape.resets
            && errno == Errno::EIO
            && matches!(kind, IoKind::Write | IoKind::WriteZeroes);
        if !(excused || no_space || was_reset) {
            self.world.fail(format!(
                "{kind:?} failed for no reason: {errno} in mode {mode:?}"
            ));
        }
    }

    /// Since when a read that began at `began` and ends now must have seen what.
    fn since(&self, began: Moment) -> Since {
        if self.world.losses.is_untold_since(began) {
            // New blocks may show what they held before, until their mappings are gone.
            return Since::Loss;
        }
        match self.pool.shared().mode() {
            // It has gone back to its last commit.
            PoolMode::ReadOnly | PoolMode::Fail => Since::CrashAfter(began),
            _ => Since::Read(began),
        }
    }

    async fn read(&self, volume: &Volume, dev: &Arc<ThinDev>) {
        self.world.executor.count("reads");
        let place = self.place();
        let per = self.world.shape.per_block();
        let request = request(
            IoKind::Read,
            self.world.shape.logical(place.hot) + place.offset,
            place.count,
        );
        let first = place.hot * per + place.offset;
        let io = self.io(dev, request, Vec::new());
        let since = |began| self.since(began);
        let _ = self.watched(volume).read(first, since, io).await;
    }

    /// Writes to all of a device, from its beginning to its end.
    async fn fill(&self, volume: &Volume, dev: &Arc<ThinDev>) {
        volume.in_flight.set(volume.in_flight.get() + 1);
        self.world.executor.count("devices filled");
        for hot in 0..HOT_BLOCKS {
            let place = Place {
                hot,
                offset: 0,
                count: self.world.shape.per_block(),
            };
            self.write_to(volume, dev, place).await;
        }
        volume.in_flight.set(volume.in_flight.get() - 1);
    }

    async fn write(&self, volume: &Volume, dev: &Arc<ThinDev>) {
        self.write_to(volume, dev, self.place()).await;
    }

    async fn write_to(&self, volume: &Volume, dev: &Arc<ThinDev>, place: Place) {
        let per = self.world.shape.per_block();
        self.world.executor.count(match place.count == per {
            true => "whole-block writes",
            false => "writes",
        });
        let value = self.world.new_value();
        volume.written.set(true);
        let first = place.hot * per + place.offset;
        let request = request(
            IoKind::Write,
            self.world.shape.logical(place.hot) + place.offset,
            place.count,
        );
        let data = vec![value; place.count as usize];
        let io = self.io(dev, request, data);
        let watched = self.watched(volume);
        let _ = watched.change(first, place.count, value, io).await;
    }

    /// A discard or write-zeroes over any range.
    async fn range(&self, volume: &Volume, dev: &Arc<ThinDev>, kind: IoKind) {
        self.world.executor.count(match kind {
            IoKind::Discard => "discards",
            _ => "write-zeroes",
        });
        let dice = &self.world.executor;
        let shape = &self.world.shape;
        let per = shape.per_block();
        if kind == IoKind::Discard && self.world.is_merged(volume.id) && !dice.one_in(8) {
            // The model knows little of what they show.
            return self.write(volume, dev).await;
        }
        let first = dice.below(HOT_BLOCKS);
        let last = first + dice.below((HOT_BLOCKS - first).min(3));
        let (mut offset, mut end) = (0, per);
        if dice.one_in(2) {
            offset = dice.below(per);
            end = 1 + dice.below(per);
            if first == last && end <= offset {
                (offset, end) = (end - 1, offset + 1);
            }
        }
        volume.written.set(true);
        let zeroed: Vec<(u64, u64)> = (first..=last)
            .map(|hot| {
                let from = if hot == first { offset } else { 0 };
                let to = if hot == last { end } else { per };
                (hot, from, to)
            })
            // Discards leave partial blocks alone.
            .filter(|(_, from, to)| kind == IoKind::WriteZeroes || (*from == 0 && *to == per))
            .filter(|_| !(kind == IoKind::Discard && shape.config.ignore_discard))
            .map(|(hot, from, to)| (hot * per + from, to - from))
            .collect();
        let watched = self.watched(volume);
        let value = |block| match kind {
            IoKind::Discard => shape.hole(volume.id, block),
            _ => 0,
        };
        let begun = zeroed
            .iter()
            .map(|(first, count)| watched.begin(*first, *count, value));
        let pending: Vec<Pending> = begun.collect();
        let loose = match kind {
            IoKind::Discard => self.world.loosen(volume, &zeroed),
            _ => Vec::new(),
        };
        let begin = shape.logical(first) + offset;
        let count = shape.logical(last) + end - begin;
        let (result, _) = self.io(dev, request(kind, begin, count), Vec::new()).await;
        // A pool that may not change takes discards and does nothing.
        let ignored = kind == IoKind::Discard && self.pool.shared().mode().refuses_changes();
        let sure = loose.is_empty() && result.is_ok() && !ignored;
        watched.end(&pending, sure);
        watched.end(&loose, false);
        if kind == IoKind::Discard {
            watched.end(&self.world.shown_by_holes(volume, &zeroed), false);
        }
    }

    async fn flush(&self, volume: &Volume, dev: &Arc<ThinDev>) {
        self.world.executor.count("flushes");
        let io = self.io(dev, request(IoKind::Flush, 0, 0), Vec::new());
        let _ = self.watched(volume).flush(io).await;
    }
}
