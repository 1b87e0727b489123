//! The base bdevs of a target where they come and go: the COW bdevs of an origin, the deltas of a chain.
//!
//! [`Bases`] knows them all; each core has its own channels to them. A bdev is made known to every core
//! before the first I/O is mapped to it, and taken away in two steps: no core sends anything more, then,
//! when nothing is under way, the channels go.

use crate::host::{TargetChannel, WayPast};
use crate::parts::{Carries, Engine};
use bdev::channel::{Host, InFlight, Ticket, ToOwner};
use bdev::errno::Errno;
use bdev::target::{BaseId, Target};
use futures::channel::mpsc::UnboundedSender;
use spdk::base::Descriptor;
use spdk::io::Io;
use spdk::io_device::IoDevice;
use spdk::passage::{Course, Way};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A target's channel of one core.
pub type MovingChannel<T> = TargetChannel<T, MovingHost<T>>;

/// The open base bdevs, by their number.
#[derive(Clone, Default)]
struct Bases(Arc<Mutex<Vec<Option<Descriptor>>>>);

impl Bases {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Descriptor>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new channel of the target on the running thread. None: no memory, or the target is closing.
    fn channel<T: Target>(&self, owner: UnboundedSender<ToOwner<T>>) -> Option<MovingChannel<T>> {
        let bases = self.lock();
        if bases.is_empty() {
            return None;
        }
        let in_flight: Rc<InFlight> = Rc::default();
        let mut ways = Vec::with_capacity(bases.len());
        for desc in bases.iter() {
            ways.push(match desc {
                Some(desc) => Some(Way::new(desc.channel()?, in_flight.clone())),
                None => None,
            });
        }
        drop(bases);
        let host = MovingHost {
            ways: RefCell::new(ways),
            in_flight,
            leaving: RefCell::default(),
            engine: Engine::default(),
        };
        MovingChannel::new(host, owner)
    }
}

/// A target's channels on all cores, and the base bdevs they lead to.
pub struct MovingBases<T: Target> {
    channels: Arc<IoDevice<MovingChannel<T>>>,
    bases: Bases,
}

impl<T: Target> MovingBases<T>
where
    ToOwner<T>: Send,
{
    /// With the base bdevs there are. None: no memory.
    pub fn new(
        name: &str,
        owner: UnboundedSender<ToOwner<T>>,
        descs: impl IntoIterator<Item = (BaseId, Descriptor)>,
    ) -> Option<Self> {
        let bases = Bases::default();
        for (number, desc) in descs {
            put(&mut bases.lock(), number, Some(desc));
        }
        let maker = bases.clone();
        let channels = IoDevice::register(name, move || maker.channel(owner.clone()))?;
        Some(MovingBases {
            channels: Arc::new(channels),
            bases,
        })
    }

    /// What a bdev of the target gets its channels from.
    pub fn channels(&self) -> Arc<IoDevice<MovingChannel<T>>> {
        self.channels.clone()
    }

    /// Makes a base bdev known on every core. Error: ENOMEM; it is to be taken away again.
    pub async fn add(&self, number: BaseId, desc: Descriptor) -> Result<(), Errno> {
        put(&mut self.bases.lock(), number, Some(desc.clone()));
        let failed = Arc::new(AtomicBool::new(false));
        let noted = failed.clone();
        self.channels
            .for_each(move |channel| {
                if !channel.engine.host().add(number, &desc) {
                    noted.store(true, Ordering::Release);
                }
            })
            .await;
        match failed.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(Errno::ENOMEM),
        }
    }

    /// Takes a base bdev away from every core; nothing more is mapped to it. `drained` completes when the I/O
    /// that was sent there is over.
    pub async fn take_away(&self, number: BaseId, drained: impl Future<Output = ()>) {
        put(&mut self.bases.lock(), number, None);
        self.channels
            .for_each(move |channel| channel.engine.host().leave(number))
            .await;
        drained.await;
        self.channels
            .for_each(|channel| channel.engine.host().let_go())
            .await;
    }

    /// No new channel can be made.
    pub fn close(&self) {
        let all = std::mem::take(&mut *self.bases.lock());
        drop(all);
    }
}

fn put<D>(bases: &mut Vec<Option<D>>, number: BaseId, base: Option<D>) {
    let at = usize::from(number.0);
    if bases.len() <= at {
        bases.resize_with(at + 1, || None);
    }
    if let Some(slot) = bases.get_mut(at) {
        *slot = base;
    }
}

/// A core's channels.
pub struct MovingHost<T: Target> {
    /// To the base bdevs, by number.
    ways: RefCell<Vec<Option<Way>>>,
    in_flight: Rc<InFlight>,
    /// I/O may be under way on them; none is sent.
    leaving: RefCell<Vec<Way>>,
    engine: Engine<T, MovingHost<T>>,
}

impl<T: Target> MovingHost<T> {
    /// Gets a channel to a base bdev. False: no memory.
    fn add(&self, number: BaseId, desc: &Descriptor) -> bool {
        let Some(channel) = desc.channel() else {
            return false;
        };
        let way = Way::new(channel, self.in_flight.clone());
        put(&mut self.ways.borrow_mut(), number, Some(way));
        true
    }

    /// Sends no more I/O to a base bdev: it fails.
    fn leave(&self, number: BaseId) {
        let mut ways = self.ways.borrow_mut();
        let way = ways.get_mut(usize::from(number.0)).and_then(Option::take);
        self.leaving.borrow_mut().extend(way);
    }

    /// Lets channels go on which nothing is under way.
    fn let_go(&self) {
        let leaving = self.leaving.take();
        drop(leaving);
    }
}

impl<T: Target> WayPast for MovingHost<T> {
    fn way(&self, base: BaseId) -> Option<Way> {
        self.ways.borrow().get(usize::from(base.0))?.clone()
    }

    #[inline(always)]
    fn course(&self, base: BaseId, block: u64) -> Option<Course> {
        match self.ways.borrow().get(usize::from(base.0)) {
            Some(Some(way)) => Some(way.at(block)),
            _ => None,
        }
    }
}

impl<T: Target> Carries<T> for MovingHost<T> {
    fn engine(&self) -> &Engine<T, Self> {
        &self.engine
    }
}

impl<T: Target> Host for MovingHost<T> {
    type Io = Io;

    #[inline]
    fn forward(&self, io: Io, base: BaseId, block: u64, ticket: Ticket) {
        // Borrowed while the I/O is sent, which may end at once and bring the next one: that borrows, too.
        // Channels come and go by messages, which are not handled in between.
        match self.ways.borrow().get(usize::from(base.0)) {
            Some(Some(way)) => self.engine.send(io, way, block, ticket),
            _ => self.engine.fail(io, ticket),
        }
    }

    fn in_flight(&self) -> Rc<InFlight> {
        self.in_flight.clone()
    }

    /// Not asked for by these targets.
    fn forward_head(&self, io: Io, _: BaseId, _: u64, _: u64, ticket: Ticket) {
        self.engine.fail(io, ticket);
    }

    fn complete_zeroes(&self, io: Io) {
        io.complete_zeroes();
    }

    #[inline]
    fn complete(&self, io: Io, result: Result<(), Errno>) {
        io.complete(result.map_or_else(|errno| errno.0, |()| 0));
    }

    fn split(&self, io: Io, nr_blocks: u64) -> Result<(Io, Io), Io> {
        io.split(nr_blocks)
    }

    fn id(&self, io: &Io) -> u64 {
        io.id()
    }

    #[inline]
    fn prefetch(&self, memory: &AtomicU64) {
        spdk::dma::prefetch(memory);
    }
}
