//! The base bdevs of a target where they come and go: the COW bdevs of an origin, the deltas of a chain.
//!
//! [`Bases`] knows them all; each core has its own channels to them. A bdev is made known to every core
//! before the first I/O is mapped to it, and taken away in two steps: no core sends anything more, then,
//! when nothing is under way, the channels go.

use crate::host::{TargetChannel, WayPast};
use bdev::channel::{Channel, Host, InFlight, Ticket, ToOwner};
use bdev::errno::Errno;
use bdev::target::{BaseId, Target};
use futures::channel::mpsc::UnboundedSender;
use spdk::base::Descriptor;
use spdk::io_device::IoDevice;
use spdk::part::Part;
use spdk::passage::{Course, Way};
use spdk::vbdev::BdevIo;
use std::cell::{OnceCell, RefCell};
use std::rc::{Rc, Weak};
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
            engine: OnceCell::new(),
        };
        let channel = MovingChannel::new(host, owner)?;
        let engine = Rc::downgrade(&channel.engine);
        // It was made just now and has none.
        let _ = channel.engine.host().engine.set(engine);
        Some(channel)
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

/// An I/O, or one of the parts it was divided into.
pub enum Io {
    /// As it was submitted.
    Whole(BdevIo),
    /// A part of it; in a box, so that the others are small.
    Part(Box<Part>),
}

impl From<BdevIo> for Io {
    fn from(io: BdevIo) -> Self {
        Io::Whole(io)
    }
}

/// A core's channels.
pub struct MovingHost<T: Target> {
    /// To the base bdevs, by number.
    ways: RefCell<Vec<Option<Way>>>,
    in_flight: Rc<InFlight>,
    /// I/O may be under way on them; none is sent.
    leaving: RefCell<Vec<Way>>,
    engine: OnceCell<Weak<Channel<T, MovingHost<T>>>>,
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

    #[inline]
    fn send(&self, io: Io, way: &Way, block: u64, ticket: Ticket) {
        match io {
            Io::Whole(io) => io.forward_counted(way, block, ticket.into_raw()),
            Io::Part(part) => self.send_part(*part, way, block, ticket),
        }
    }

    #[inline(never)]
    fn send_part(&self, part: Part, way: &Way, block: u64, ticket: Ticket) {
        let engine = self.engine.get().cloned();
        part.forward(way.base(), block, move |part, ok| {
            let result = if ok { Ok(()) } else { Err(Errno::EIO) };
            match engine.and_then(|engine| engine.upgrade()) {
                Some(engine) => engine.forwarded(Io::Part(Box::new(part)), ticket, result),
                // Not while I/O is under way on it.
                None => part.complete(Errno::ENODEV.0),
            }
        });
    }

    #[cold]
    fn fail(&self, io: Io, ticket: Ticket) {
        match self.engine.get().and_then(Weak::upgrade) {
            Some(engine) => engine.forwarded(io, ticket, Err(Errno::EIO)),
            None => self.complete(io, Err(Errno::ENODEV)),
        }
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

impl<T: Target> Host for MovingHost<T> {
    type Io = Io;

    #[inline]
    fn forward(&self, io: Io, base: BaseId, block: u64, ticket: Ticket) {
        // Borrowed while the I/O is sent, which may end at once and bring the next one: that borrows, too.
        // Channels come and go by messages, which are not handled in between.
        match self.ways.borrow().get(usize::from(base.0)) {
            Some(Some(way)) => self.send(io, way, block, ticket),
            _ => self.fail(io, ticket),
        }
    }

    fn in_flight(&self) -> Rc<InFlight> {
        self.in_flight.clone()
    }

    /// Not asked for by these targets.
    fn forward_head(&self, io: Io, _: BaseId, _: u64, _: u64, ticket: Ticket) {
        self.fail(io, ticket);
    }

    /// Of whole I/O only: parts are not read as zeroes by these targets.
    fn complete_zeroes(&self, io: Io) {
        match io {
            Io::Whole(io) => io.complete_zeroes(),
            Io::Part(part) => part.complete(Errno::EOPNOTSUPP.0),
        }
    }

    #[inline]
    fn complete(&self, io: Io, result: Result<(), Errno>) {
        let errno = result.map_or_else(|errno| errno.0, |()| 0);
        match io {
            Io::Whole(io) => io.complete(errno),
            Io::Part(part) => part.complete(errno),
        }
    }

    fn split(&self, io: Io, nr_blocks: u64) -> Result<(Io, Io), Io> {
        let part = match io {
            Io::Whole(io) => Part::all_of(io),
            Io::Part(part) => *part,
        };
        match part.split(nr_blocks) {
            Ok((head, tail)) => Ok((Io::Part(Box::new(head)), Io::Part(Box::new(tail)))),
            Err(part) => Err(Io::Part(Box::new(part))),
        }
    }

    fn id(&self, io: &Io) -> u64 {
        match io {
            Io::Whole(io) => io.id(),
            Io::Part(part) => part.id(),
        }
    }

    #[inline]
    fn prefetch(&self, memory: &AtomicU64) {
        spdk::dma::prefetch(memory);
    }
}
