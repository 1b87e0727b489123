//! A core's way to an origin bdev and to the COW bdevs of its snapshots, which come and go.
//!
//! [`Bases`] knows them all; each core has its own channels to them. A COW bdev is made known to every core
//! before the first I/O is mapped to it, and taken away in two steps: no core sends anything more, then,
//! when nothing is under way, the channels go.

use crate::host::TargetChannel;
use bdev::channel::{Channel, Host, Ticket, ToOwner};
use bdev::errno::Errno;
use bdev::snapshot::SnapshotTarget;
use bdev::snapshot::map::ORIGIN;
use bdev::target::BaseId;
use futures::channel::mpsc::UnboundedSender;
use spdk::base::{BaseChannel, Descriptor};
use spdk::part::Part;
use spdk::vbdev::BdevIo;
use std::cell::{OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A target's channel of one core, shared by the bdevs of origin and snapshots.
pub type SnapshotChannel = TargetChannel<SnapshotTarget, SnapshotHost>;

/// The open base bdevs: the origin's, and COW bdevs by their number.
#[derive(Clone, Default)]
pub struct Bases(Arc<Mutex<Vec<Option<Descriptor>>>>);

impl Bases {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Descriptor>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on new channels have this one.
    pub fn set(&self, base: BaseId, desc: Descriptor) {
        let mut bases = self.lock();
        let at = usize::from(base.0);
        if bases.len() <= at {
            bases.resize_with(at + 1, || None);
        }
        if let Some(slot) = bases.get_mut(at) {
            *slot = Some(desc);
        }
    }

    /// New channels do not have it any more.
    pub fn clear(&self, base: BaseId) {
        let desc = self
            .lock()
            .get_mut(usize::from(base.0))
            .and_then(Option::take);
        drop(desc);
    }

    /// New channels have none.
    pub fn clear_all(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    /// A new channel of the target on the running thread. None: no memory, or the target is closing.
    pub fn channel(
        &self,
        owner: UnboundedSender<ToOwner<SnapshotTarget>>,
    ) -> Option<SnapshotChannel> {
        let bases = self.lock();
        let origin = bases.first()?.as_ref()?.channel()?;
        let mut cows = Vec::with_capacity(bases.len());
        for desc in bases.iter().skip(1) {
            cows.push(match desc {
                Some(desc) => Some(desc.channel()?),
                None => None,
            });
        }
        drop(bases);
        let host = SnapshotHost {
            origin,
            cows: RefCell::new(cows),
            leaving: RefCell::default(),
            engine: OnceCell::new(),
        };
        let channel = SnapshotChannel::new(host, owner)?;
        let engine = Rc::downgrade(&channel.engine);
        // It was made just now and has none.
        let _ = channel.engine.host().engine.set(engine);
        Some(channel)
    }
}

/// An I/O, or one of the parts it was divided into.
pub enum Io {
    /// As it was submitted.
    Whole(BdevIo),
    /// A part of it.
    Part(Part),
}

impl From<BdevIo> for Io {
    fn from(io: BdevIo) -> Self {
        Io::Whole(io)
    }
}

/// A core's channels.
pub struct SnapshotHost {
    origin: BaseChannel,
    /// By number, from 1 on.
    cows: RefCell<Vec<Option<BaseChannel>>>,
    /// I/O may be under way on them; none is sent.
    leaving: RefCell<Vec<BaseChannel>>,
    engine: OnceCell<Weak<Channel<SnapshotTarget, SnapshotHost>>>,
}

impl SnapshotHost {
    /// Gets a channel to a COW bdev. False: no memory.
    pub fn add(&self, base: BaseId, desc: &Descriptor) -> bool {
        let Some(at) = usize::from(base.0).checked_sub(1) else {
            return false;
        };
        let Some(channel) = desc.channel() else {
            return false;
        };
        let mut cows = self.cows.borrow_mut();
        if cows.len() <= at {
            cows.resize_with(at + 1, || None);
        }
        if let Some(slot) = cows.get_mut(at) {
            *slot = Some(channel);
        }
        true
    }

    /// Sends no more I/O to a COW bdev: it fails.
    pub fn leave(&self, base: BaseId) {
        let mut cows = self.cows.borrow_mut();
        let slot = usize::from(base.0).checked_sub(1);
        let channel = slot.and_then(|at| cows.get_mut(at)?.take());
        self.leaving.borrow_mut().extend(channel);
    }

    /// Lets channels go on which nothing is under way.
    pub fn let_go(&self) {
        let leaving = self.leaving.take();
        drop(leaving);
    }

    fn send(&self, io: Io, channel: &BaseChannel, block: u64, ticket: Ticket) {
        match io {
            Io::Whole(io) => io.forward(channel, channel.descriptor(), block, ticket.into_raw()),
            Io::Part(part) => {
                let engine = self.engine.get().cloned();
                part.forward(channel, block, move |part, ok| {
                    let result = if ok { Ok(()) } else { Err(Errno::EIO) };
                    match engine.and_then(|engine| engine.upgrade()) {
                        Some(engine) => engine.forwarded(Io::Part(part), ticket, result),
                        // Not while I/O is under way on it.
                        None => part.complete(Errno::ENODEV.0),
                    }
                });
            }
        }
    }

    #[cold]
    fn fail(&self, io: Io, ticket: Ticket) {
        match self.engine.get().and_then(Weak::upgrade) {
            Some(engine) => engine.forwarded(io, ticket, Err(Errno::EIO)),
            None => self.complete(io, Err(Errno::ENODEV)),
        }
    }
}

impl Host for SnapshotHost {
    type Io = Io;

    #[inline]
    fn forward(&self, io: Io, base: BaseId, block: u64, ticket: Ticket) {
        if base == ORIGIN {
            return self.send(io, &self.origin, block, ticket);
        }
        let at = usize::from(base.0) - 1;
        // Borrowed while the I/O is sent, which may end at once and bring the next one: that borrows, too.
        // Channels come and go by messages, which are not handled in between.
        match self.cows.borrow().get(at) {
            Some(Some(channel)) => self.send(io, channel, block, ticket),
            _ => self.fail(io, ticket),
        }
    }

    /// Not asked for by this target.
    fn forward_head(&self, io: Io, _: BaseId, _: u64, _: u64, ticket: Ticket) {
        self.fail(io, ticket);
    }

    /// Not asked for by this target.
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
            Io::Part(part) => part,
        };
        match part.split(nr_blocks) {
            Ok((head, tail)) => Ok((Io::Part(head), Io::Part(tail))),
            Err(part) => Err(Io::Part(part)),
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
