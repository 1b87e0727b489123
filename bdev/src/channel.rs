//! The per-core engine: maps I/O, counts what is in flight, parks what the owner must resolve.
//!
//! One [`Channel`] serves all volumes of a target on one core. It talks to the owner only through
//! queues ([`ToOwner`], [`ToChannel`]). The in-flight count is kept in epochs, so that the owner can
//! learn when all I/O mapped before some moment has finished (a *barrier*) without the hot path
//! paying more than one increment and one decrement of core-local memory.
//!
//! I/Os that look into much memory are *staged* and mapped several at a time (module `stage`).

use crate::errno::Errno;
use crate::stage::Stage;
use crate::target::{BaseId, IoKind, Map, Request, Target};
use futures::StreamExt;
use futures::channel::{mpsc, oneshot};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Poll, ready};

/// What the core's host (an SPDK channel, a simulated core) does for the engine.
pub trait Host: 'static {
    /// An I/O as the host hands it in; completed exactly once.
    type Io: 'static;

    /// Sends `io` to a base device at `block`. When the base has answered, the host calls
    /// [`Channel::forwarded`] with the ticket.
    fn forward(&self, io: Self::Io, base: BaseId, block: u64, ticket: Ticket);

    /// The same for a read of which the base device has only the first `nr_blocks` logical blocks: the
    /// rest of the buffers is filled with zeroes.
    fn forward_head(&self, io: Self::Io, base: BaseId, block: u64, nr_blocks: u64, ticket: Ticket);

    /// Fills the I/O's buffers with zeroes and completes it.
    fn complete_zeroes(&self, io: Self::Io);

    /// Answers the I/O.
    fn complete(&self, io: Self::Io, result: Result<(), Errno>);

    /// Divides an I/O into its first logical blocks and the rest; it is completed when both are, with
    /// the error of either. Error: the I/O itself, if this host cannot; it then fails.
    fn split(&self, io: Self::Io, _nr_blocks: u64) -> Result<(Self::Io, Self::Io), Self::Io> {
        Err(io)
    }

    /// Identity of an I/O, for aborts.
    fn id(&self, io: &Self::Io) -> u64;

    /// Begins to fetch memory into the core's caches, and does not wait for it. Advice.
    #[inline]
    fn prefetch(&self, _memory: &AtomicU64) {}
}

/// Proof that an I/O was counted as in flight; travels with it through the base device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    /// For hosts that store the ticket in a plain integer.
    pub fn into_raw(self) -> u64 {
        self.0
    }

    /// The inverse of [`Ticket::into_raw`].
    pub fn from_raw(raw: u64) -> Self {
        Ticket(raw)
    }
}

/// The ticket's low bit tells an I/O whose completion the owner awaits.
const OWNER_WAITS: u64 = 1;

/// Names a channel to its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u64);

/// Names a parked I/O on its channel; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parked(u64);

/// An I/O the owner has to resolve. The I/O itself stays parked on its channel.
pub struct Deferred<T: Target> {
    /// Where it is parked.
    pub channel: ChannelId,
    /// Under which name.
    pub parked: Parked,
    /// The volume it was submitted to.
    pub volume: Arc<T::Volume>,
    /// What it asks for.
    pub request: Request,
}

/// Messages to the core that owns the target.
pub enum ToOwner<T: Target> {
    /// A channel came up; it maps nothing before [`ToChannel::Joined`].
    Join(ChannelId, mpsc::UnboundedSender<ToChannel>),
    /// A channel is gone; nothing is in flight or parked on it.
    Leave(ChannelId),
    /// An I/O needs the owner.
    Deferred(Deferred<T>),
}

/// Messages from the owner to a channel.
pub enum ToChannel {
    /// From now on barriers include this channel: it may map.
    Joined,
    /// Map the I/O again.
    Retry(Parked),
    /// Answer the I/O.
    Complete(Parked, Result<(), Errno>),
    /// Send the I/O to this place, report, and wait for [`ToChannel::Complete`].
    ForwardTo(Parked, BaseId, u64, oneshot::Sender<Result<(), Errno>>),
    /// Answer once everything mapped before this message has finished.
    Barrier(oneshot::Sender<()>),
    /// Answer at once: what was published before is seen by everything mapped from now on.
    Quiesce(oneshot::Sender<()>),
}

enum Slot<T: Target, I> {
    /// Not mapped yet, or waiting for the owner's verdict.
    Waiting(Arc<T::Volume>, Request, I),
    /// On its way to a base device at the owner's order.
    Forwarding(oneshot::Sender<Result<(), Errno>>),
    /// Back from the base device, waiting for the owner to make it reachable.
    Returned(I),
}

/// A core's own handle on a volume: cloned without touching memory that other cores write.
pub type VolumeHandle<T> = Rc<Arc<<T as Target>::Volume>>;

struct Epoch {
    number: u64,
    in_flight: u64,
    done: oneshot::Sender<()>,
}

/// The engine of one core.
pub struct Channel<T: Target, H: Host> {
    id: ChannelId,
    host: H,
    to_owner: mpsc::UnboundedSender<ToOwner<T>>,
    joined: Cell<bool>,
    epoch: Cell<u64>,
    in_flight: Cell<u64>,
    /// Closed epochs with I/O still in flight, oldest first.
    closed: RefCell<VecDeque<Epoch>>,
    /// Parked I/O by name; ordered, so that it is looked through in order of arrival.
    parked: RefCell<BTreeMap<Parked, Slot<T, H::Io>>>,
    next_parked: Cell<u64>,
    /// I/O sent at the owner's order, by the I/O's identity.
    forwarding: RefCell<BTreeMap<u64, Parked>>,
    stage: Stage<T, H::Io>,
}

impl<T: Target, H: Host> Channel<T, H> {
    /// Makes a channel and the receiver to be handed to [`Channel::run`]; tells the owner.
    pub fn new(
        id: ChannelId,
        host: H,
        to_owner: mpsc::UnboundedSender<ToOwner<T>>,
    ) -> (Rc<Self>, mpsc::UnboundedReceiver<ToChannel>) {
        let (tx, rx) = mpsc::unbounded();
        // A closed queue means that the owner is gone; submit() then fails I/O with ENODEV.
        let _ = to_owner.unbounded_send(ToOwner::Join(id, tx));
        let channel = Rc::new(Channel {
            id,
            host,
            to_owner,
            joined: Cell::new(false),
            epoch: Cell::new(0),
            in_flight: Cell::new(0),
            closed: RefCell::new(VecDeque::new()),
            parked: RefCell::new(BTreeMap::new()),
            next_parked: Cell::new(0),
            forwarding: RefCell::new(BTreeMap::new()),
            stage: Stage::new(),
        });
        (channel, rx)
    }

    /// Serves the owner's messages and maps what is staged until the owner lets go of the channel. To be
    /// spawned on the channel's own core.
    pub async fn run(self: Rc<Self>, mut rx: mpsc::UnboundedReceiver<ToChannel>) {
        poll_fn(|context| {
            self.stage.is_served_by(context.waker());
            self.map_staged();
            loop {
                match ready!(rx.poll_next_unpin(context)) {
                    Some(message) => self.handle(message),
                    None => return Poll::Ready(()),
                }
            }
        })
        .await;
        self.stage.is_not_served();
        self.map_staged();
        // The owner is gone without an answer: nothing parked may hang.
        self.fail_parked(Errno::ENODEV);
    }

    /// The host that was given to [`Channel::new`].
    pub fn host(&self) -> &H {
        &self.host
    }

    /// I/O forwarded to a base device and not yet returned.
    pub fn nr_in_flight(&self) -> u64 {
        self.in_flight.get()
            + self
                .closed
                .borrow()
                .iter()
                .map(|e| e.in_flight)
                .sum::<u64>()
    }

    /// I/O waiting for the owner, or to be mapped.
    pub fn nr_parked(&self) -> usize {
        self.parked.borrow().len() + self.stage.len()
    }

    /// Tells the owner that this channel is going away. Nothing may be in flight or parked.
    pub fn leave(&self) {
        let _ = self.to_owner.unbounded_send(ToOwner::Leave(self.id));
    }

    /// Takes an I/O. The hot path.
    #[inline]
    pub fn submit(&self, volume: &VolumeHandle<T>, request: Request, io: H::Io) {
        if !self.joined.get() {
            return self.park_unmapped(volume, request, io);
        }
        if self.stage.pays(self.in_flight.get())
            && let Some(memory) = T::looks_at(volume, &request)
        {
            self.host.prefetch(memory);
            if self.stage.push(volume, request, io) {
                self.map_staged();
            }
            return;
        }
        if request.kind == IoKind::Reset {
            // The barrier of a reset is for what was submitted before it.
            self.map_staged();
        }
        self.map(volume, request, io);
    }

    fn map_staged(&self) {
        self.stage
            .take_all(|volume, request, io| self.map(volume, request, io));
    }

    #[inline]
    fn map(&self, volume: &Arc<T::Volume>, request: Request, io: H::Io) {
        match T::map(volume, &request) {
            Map::Remap { base, block } => {
                self.in_flight.set(self.in_flight.get() + 1);
                self.host
                    .forward(io, base, block, Ticket(self.epoch.get() << 1));
            }
            Map::RemapHead {
                base,
                block,
                nr_blocks,
            } => {
                self.in_flight.set(self.in_flight.get() + 1);
                let ticket = Ticket(self.epoch.get() << 1);
                self.host.forward_head(io, base, block, nr_blocks, ticket);
            }
            Map::Zeroes => self.host.complete_zeroes(io),
            Map::Done => self.host.complete(io, Ok(())),
            Map::Fail(errno) => self.host.complete(io, Err(errno)),
            Map::Split { nr_blocks } => self.split(volume, request, io, nr_blocks),
            Map::Defer => self.defer(volume, request, io),
        }
    }

    /// Maps an I/O part by part.
    #[cold]
    fn split(&self, volume: &Arc<T::Volume>, request: Request, io: H::Io, nr_blocks: u64) {
        let (mut request, mut io, mut nr_blocks) = (request, io, nr_blocks);
        loop {
            if nr_blocks == 0 || nr_blocks >= request.nr_blocks {
                return self.host.complete(io, Err(Errno::EINVAL));
            }
            let (head, tail) = match self.host.split(io, nr_blocks) {
                Ok(parts) => parts,
                Err(io) => return self.host.complete(io, Err(Errno::EOPNOTSUPP)),
            };
            self.map(
                volume,
                Request {
                    nr_blocks,
                    ..request
                },
                head,
            );
            request.offset_blocks += nr_blocks;
            request.nr_blocks -= nr_blocks;
            io = tail;
            match T::map(volume, &request) {
                Map::Split { nr_blocks: next } => nr_blocks = next,
                _ => return self.map(volume, request, io),
            }
        }
    }

    /// A forwarded I/O came back from its base device. The hot path's second half.
    #[inline]
    pub fn forwarded(&self, io: H::Io, ticket: Ticket, result: Result<(), Errno>) {
        if ticket.0 >> 1 == self.epoch.get() {
            self.in_flight.set(self.in_flight.get() - 1);
        } else {
            self.leave_closed_epoch(ticket.0 >> 1);
        }
        if ticket.0 & OWNER_WAITS == 0 {
            self.host.complete(io, result);
        } else {
            self.report(io, result);
        }
    }

    /// Completes a parked I/O as aborted. False when it is not parked here, or is already on its
    /// way to a base device.
    pub fn abort(&self, io_id: u64) -> bool {
        if let Some(io) = self.stage.remove(|io| self.host.id(io) == io_id) {
            self.host.complete(io, Err(Errno::ECANCELED));
            return true;
        }
        let found = self
            .parked
            .borrow()
            .iter()
            .find_map(|(name, slot)| match slot {
                Slot::Waiting(_, _, io) if self.host.id(io) == io_id => Some(*name),
                _ => None,
            });
        let Some(name) = found else { return false };
        let slot = self.parked.borrow_mut().remove(&name);
        if let Some(Slot::Waiting(_, _, io)) = slot {
            self.host.complete(io, Err(Errno::ECANCELED));
        }
        true
    }

    #[cold]
    fn park_unmapped(&self, volume: &Arc<T::Volume>, request: Request, io: H::Io) {
        if self.to_owner.is_closed() {
            return self.host.complete(io, Err(Errno::ENODEV));
        }
        self.park(volume, request, io);
    }

    fn park(&self, volume: &Arc<T::Volume>, request: Request, io: H::Io) -> Parked {
        let name = Parked(self.next_parked.get());
        self.next_parked.set(name.0 + 1);
        self.parked
            .borrow_mut()
            .insert(name, Slot::Waiting(volume.clone(), request, io));
        name
    }

    fn defer(&self, volume: &Arc<T::Volume>, request: Request, io: H::Io) {
        let parked = self.park(volume, request, io);
        let sent = self.to_owner.unbounded_send(ToOwner::Deferred(Deferred {
            channel: self.id,
            parked,
            volume: volume.clone(),
            request,
        }));
        if sent.is_err() {
            self.complete_parked(parked, Err(Errno::ENODEV));
        }
    }

    fn handle(&self, message: ToChannel) {
        match message {
            ToChannel::Joined => {
                self.joined.set(true);
                let early = std::mem::take(&mut *self.parked.borrow_mut());
                for slot in early.into_values() {
                    if let Slot::Waiting(volume, request, io) = slot {
                        self.map(&volume, request, io);
                    }
                }
            }
            ToChannel::Retry(name) => {
                let slot = self.parked.borrow_mut().remove(&name);
                if let Some(Slot::Waiting(volume, request, io)) = slot {
                    self.map(&volume, request, io);
                }
            }
            ToChannel::Complete(name, result) => self.complete_parked(name, result),
            ToChannel::ForwardTo(name, base, block, report) => {
                self.forward_parked(name, base, block, report);
            }
            ToChannel::Barrier(done) => self.close_epoch(done),
            ToChannel::Quiesce(done) => {
                let _ = done.send(());
            }
        }
    }

    /// An aborted I/O is no longer parked: then there is nothing to answer.
    fn complete_parked(&self, name: Parked, result: Result<(), Errno>) {
        let slot = self.parked.borrow_mut().remove(&name);
        if let Some(Slot::Waiting(_, _, io) | Slot::Returned(io)) = slot {
            self.host.complete(io, result);
        }
    }

    fn forward_parked(
        &self,
        name: Parked,
        base: BaseId,
        block: u64,
        report: oneshot::Sender<Result<(), Errno>>,
    ) {
        let slot = self.parked.borrow_mut().remove(&name);
        let Some(Slot::Waiting(_, request, io)) = slot else {
            // Aborted meanwhile: the place it was meant for stays unused.
            let _ = report.send(Err(Errno::ECANCELED));
            return;
        };
        debug_assert_eq!(request.kind, IoKind::Write);
        self.parked
            .borrow_mut()
            .insert(name, Slot::Forwarding(report));
        self.forwarding.borrow_mut().insert(self.host.id(&io), name);
        self.in_flight.set(self.in_flight.get() + 1);
        self.host
            .forward(io, base, block, Ticket(self.epoch.get() << 1 | OWNER_WAITS));
    }

    #[cold]
    fn report(&self, io: H::Io, result: Result<(), Errno>) {
        let name = self.forwarding.borrow_mut().remove(&self.host.id(&io));
        let slot = name.and_then(|name| {
            self.parked
                .borrow_mut()
                .remove(&name)
                .map(|slot| (name, slot))
        });
        let Some((name, Slot::Forwarding(report))) = slot else {
            return self.host.complete(io, Err(Errno::EIO));
        };
        self.parked.borrow_mut().insert(name, Slot::Returned(io));
        if report.send(result).is_err() {
            // The owner gave up: the data is nowhere reachable.
            self.complete_parked(name, Err(Errno::EIO));
        }
    }

    fn close_epoch(&self, done: oneshot::Sender<()>) {
        let number = self.epoch.get();
        self.closed.borrow_mut().push_back(Epoch {
            number,
            in_flight: self.in_flight.replace(0),
            done,
        });
        self.epoch.set(number + 1);
        self.finish_epochs();
    }

    #[cold]
    fn leave_closed_epoch(&self, number: u64) {
        if let Some(epoch) = self
            .closed
            .borrow_mut()
            .iter_mut()
            .find(|epoch| epoch.number == number)
        {
            epoch.in_flight -= 1;
        }
        self.finish_epochs();
    }

    /// A barrier is passed when its epoch and all older ones are empty.
    fn finish_epochs(&self) {
        loop {
            let mut closed = self.closed.borrow_mut();
            if closed.front().is_none_or(|epoch| epoch.in_flight > 0) {
                return;
            }
            let epoch = closed.pop_front();
            drop(closed);
            if let Some(epoch) = epoch {
                let _ = epoch.done.send(());
            }
        }
    }

    fn fail_parked(&self, errno: Errno) {
        let parked = std::mem::take(&mut *self.parked.borrow_mut());
        for slot in parked.into_values() {
            if let Slot::Waiting(_, _, io) | Slot::Returned(io) = slot {
                self.host.complete(io, Err(errno));
            }
        }
    }
}
