//! A thin bdev's way to its pool: it can be closed for a while, and lead to another pool's device afterwards.
//!
//! Every core has its own [`Side`] of the gate. A side does what the shared [`Course`] says since it last
//! looked; it looks when it is made and when it is told to. The course is changed first and all sides are
//! told then, so a side that is made meanwhile has seen it.

use crate::host::PoolChannel;
use bdev::channel::{OnCore, VolumeHandle};
use bdev::errno::Errno;
use bdev::thin::{Thin, ThinDev};
use rpc::params::ThinActivate;
use spdk::base::{BaseChannel, Descriptor, IoKind};
use spdk::io_device::{IoChannel, IoDevice};
use spdk::passage::Course as Plain;
use spdk::vbdev::BdevIo;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What becomes of I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It goes its way.
    Open,
    /// It waits.
    Held,
    /// It fails: with ENODEV for good, with ENOMEM until there is memory for a channel.
    Failing(Errno),
}

/// Where I/O goes.
#[derive(Clone)]
pub struct Way {
    /// The thin device.
    pub dev: Arc<ThinDev>,
    /// Its pool's channels.
    pub channels: Arc<IoDevice<PoolChannel>>,
    /// The call that makes the bdev again.
    pub params: ThinActivate,
}

/// What all sides are to do.
struct Course {
    /// None: the bdev is gone.
    way: Option<Way>,
    /// Counts the ways there have been.
    number: u64,
    state: State,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Course>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Course> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The gate of a bdev.
pub struct Gate {
    /// The external origin, whatever the way.
    pub origin: Option<Descriptor>,
    shared: Shared,
    sides: IoDevice<Side>,
}

impl Gate {
    /// An open one. None: no memory.
    pub fn new(name: &str, way: Way, origin: Option<Descriptor>) -> Option<Arc<Gate>> {
        let shared = Shared(Arc::new(Mutex::new(Course {
            way: Some(way),
            number: 1,
            state: State::Open,
        })));
        let (of_sides, to_origin) = (shared.clone(), origin.clone());
        let sides = IoDevice::register(name, move || Side::new(&of_sides, to_origin.as_ref()))?;
        Some(Arc::new(Gate {
            origin,
            shared,
            sides,
        }))
    }

    /// The running thread's side.
    pub fn side(&self) -> Option<IoChannel<Side>> {
        self.sides.channel()
    }

    /// The call that makes the bdev again. None: it is gone.
    pub fn params(&self) -> Option<ThinActivate> {
        let course = self.shared.lock();
        course.way.as_ref().map(|way| way.params.clone())
    }

    /// The bdev is gone: where it led to. The pool's channels are let go.
    pub fn end(&self) -> Option<ThinActivate> {
        let way = self.shared.lock().way.take();
        way.map(|way| way.params)
    }

    async fn set(&self, state: State) {
        self.shared.lock().state = state;
        self.sides.for_each(Side::follow).await;
    }

    /// I/O that comes from now on waits.
    pub async fn hold(&self) {
        self.set(State::Held).await;
    }

    /// What waits goes on, and so does everything else.
    pub async fn open(&self) {
        self.set(State::Open).await;
    }

    /// What waits fails, and so does everything else.
    pub async fn fail(&self) {
        self.set(State::Failing(Errno::ENODEV)).await;
    }

    /// I/O that is parked in the engines. While the gate is held no more comes to it.
    pub async fn nr_parked(&self) -> usize {
        let count = Arc::new(AtomicUsize::new(0));
        let all = count.clone();
        self.sides
            .for_each(move |side| {
                all.fetch_add(side.nr_parked(), Ordering::Relaxed);
            })
            .await;
        count.load(Ordering::Relaxed)
    }

    /// Gets every core what it needs for another pool. Error: ENOMEM, and nothing is kept.
    pub async fn prepare(&self, channels: &Arc<IoDevice<PoolChannel>>) -> Result<(), Errno> {
        let (of_sides, failed) = (channels.clone(), Arc::new(AtomicBool::new(false)));
        let noted = failed.clone();
        self.sides
            .for_each(move |side| {
                let channel = of_sides.channel();
                if channel.is_none() {
                    noted.store(true, Ordering::Release);
                }
                side.next.replace(channel);
            })
            .await;
        match failed.load(Ordering::Acquire) {
            false => Ok(()),
            true => {
                self.forget().await;
                Err(Errno::ENOMEM)
            }
        }
    }

    /// Lets go what [`Gate::prepare`] got.
    pub async fn forget(&self) {
        let forget = |side: &Side| drop(side.next.take());
        self.sides.for_each(forget).await;
    }

    /// From the moment this is called I/O goes another way. [`Gate::open`] is to follow: it lets I/O go, and
    /// when it has ended nothing uses the old way any more.
    pub fn lead_to(&self, way: Way) {
        let mut course = self.shared.lock();
        if course.way.is_some() {
            course.way = Some(way);
            course.number += 1;
        }
    }
}

struct Waiting {
    io: BdevIo,
    kind: IoKind,
    offset: u64,
    nr_blocks: u64,
}

struct Current {
    dev: VolumeHandle<Thin>,
    pool: IoChannel<PoolChannel>,
}

/// A core's side.
pub struct Side {
    shared: Shared,
    /// Whether `state` is [`State::Open`].
    passes: Cell<bool>,
    state: Cell<State>,
    current: RefCell<Option<Current>>,
    number: Cell<u64>,
    next: RefCell<Option<IoChannel<PoolChannel>>>,
    origin: Option<BaseChannel>,
    waiting: RefCell<VecDeque<Waiting>>,
}

impl Side {
    fn new(shared: &Shared, origin: Option<&Descriptor>) -> Option<Self> {
        let side = Side {
            shared: shared.clone(),
            passes: Cell::new(false),
            state: Cell::new(State::Held),
            current: RefCell::default(),
            number: Cell::new(0),
            next: RefCell::default(),
            origin: match origin {
                Some(origin) => Some(origin.channel()?),
                None => None,
            },
            waiting: RefCell::default(),
        };
        side.follow();
        let has_way = side.current.borrow().is_some();
        has_way.then_some(side)
    }

    /// Does what the course says.
    fn follow(&self) {
        let (mut state, number, way) = {
            let course = self.shared.lock();
            let changed = course.number != self.number.get();
            let way = course.way.as_ref().filter(|_| changed);
            let way = way.map(|way| (way.dev.clone(), way.channels.clone()));
            (course.state, course.number, way)
        };
        if let Some((dev, channels)) = way {
            let prepared = self.next.take();
            match prepared.or_else(|| channels.channel()) {
                Some(pool) => {
                    let dev = OnCore::new(dev);
                    let old = self.current.replace(Some(Current { dev, pool }));
                    drop(old);
                    self.number.set(number);
                }
                None if state == State::Open => state = State::Failing(Errno::ENOMEM),
                None => {}
            }
        }
        self.state.set(state);
        self.passes.set(state == State::Open);
        if state != State::Held {
            let waiting = self.waiting.take();
            for it in waiting {
                self.submit(it.io, it.kind, it.offset, it.nr_blocks);
            }
        }
    }

    fn nr_parked(&self) -> usize {
        let current = self.current.borrow();
        let parked = |current: &Current| current.pool.engine.nr_parked_of(current.dev.volume());
        current.as_ref().map_or(0, parked)
    }

    /// Where a plain read or write of the bdev goes, while the gate is open.
    #[inline(always)]
    pub fn plain(&self, kind: IoKind, offset: u64, nr_blocks: u64) -> Option<Plain> {
        if !self.passes.get() {
            return None;
        }
        let current = self.current.borrow();
        let Current { dev, pool } = current.as_ref()?;
        pool.plain(dev, kind, offset, nr_blocks)
    }

    /// Takes an I/O of the bdev.
    #[inline]
    pub fn submit(&self, io: BdevIo, kind: IoKind, offset: u64, nr_blocks: u64) {
        match self.passes.get() {
            true => self.pass(io, kind, offset, nr_blocks),
            false => self.stop(io, kind, offset, nr_blocks),
        }
    }

    #[inline]
    fn pass(&self, io: BdevIo, kind: IoKind, offset: u64, nr_blocks: u64) {
        if let Some(origin) = &self.origin {
            io.set_other(origin);
        }
        match &*self.current.borrow() {
            Some(current) => current
                .pool
                .submit(&current.dev, io, kind, offset, nr_blocks),
            None => io.complete(Errno::ENODEV.0),
        }
    }

    #[cold]
    fn stop(&self, io: BdevIo, kind: IoKind, offset: u64, nr_blocks: u64) {
        if self.state.get() == State::Failing(Errno::ENOMEM) {
            // Perhaps there is memory now.
            self.follow();
        }
        match self.state.get() {
            State::Open => self.pass(io, kind, offset, nr_blocks),
            State::Failing(errno) => io.complete(errno.0),
            State::Held if kind == IoKind::Abort => self.abort(io),
            State::Held => self.waiting.borrow_mut().push_back(Waiting {
                io,
                kind,
                offset,
                nr_blocks,
            }),
        }
    }

    /// Aborts an I/O that waits here; or else one that does in the engine.
    fn abort(&self, io: BdevIo) {
        let wanted = io.id_to_abort();
        let found = {
            let mut waiting = self.waiting.borrow_mut();
            let at = waiting.iter().position(|it| it.io.id() == wanted);
            at.and_then(|at| waiting.remove(at))
        };
        match found {
            Some(aborted) => {
                aborted.io.complete(Errno::ECANCELED.0);
                io.complete(0);
            }
            None => self.pass(io, IoKind::Abort, 0, 0),
        }
    }

    /// An I/O came back from a base bdev.
    #[inline]
    pub fn forwarded(&self, io: BdevIo, ticket: u64, ok: bool) {
        match &*self.current.borrow() {
            Some(current) => current.pool.forwarded(io, ticket, ok),
            None => io.complete(Errno::ENODEV.0),
        }
    }
}
