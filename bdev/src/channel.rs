//! The per-core engine: maps I/O, counts what is in flight, parks what the owner must resolve.
//!
//! One [`Channel`] serves all volumes of a target on one core. It talks to the owner only through
//! queues ([`ToOwner`], [`ToChannel`]). What is in flight is counted in epochs (module `epochs`), so
//! that the owner can learn when all I/O mapped before some moment has finished.
//!
//! I/Os that look into much memory are *staged* and mapped several at a time (module `stage`).

use crate::epochs::Epochs;
pub use crate::epochs::InFlight;
use crate::errno::Errno;
pub use crate::parked::Parked;
use crate::parked::{Batch, ParkedIos, Slot};
pub use crate::queues::{Answer, ChannelId, Deferred, ToChannel, ToOwner};
use crate::stage::Stage;
use crate::target::{BaseId, IoKind, Map, Passage, Request, Target};
use futures::StreamExt;
use futures::channel::mpsc;
use std::cell::{Cell, RefCell};
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

    /// Identity of an I/O, for aborts. Its parts have the same.
    fn id(&self, io: &Self::Io) -> u64;

    /// Where a channel counts what it has in flight; a host that answers a forwarded I/O by itself counts it
    /// as back there: if the epoch it entered in, half of its ticket, is the one that runs.
    fn in_flight(&self) -> Rc<InFlight> {
        Rc::default()
    }

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

/// A volume as one core has it.
pub struct OnCore<T: Target> {
    volume: Arc<T::Volume>,
    local: T::Local,
}

impl<T: Target> OnCore<T> {
    /// For the running core.
    pub fn new(volume: Arc<T::Volume>) -> VolumeHandle<T> {
        Rc::new(OnCore {
            volume,
            local: T::Local::default(),
        })
    }

    /// The volume all cores share.
    pub fn volume(&self) -> &Arc<T::Volume> {
        &self.volume
    }
}

/// A core's own handle on a volume: cloned without touching memory that other cores write.
pub type VolumeHandle<T> = Rc<OnCore<T>>;

/// The engine of one core.
pub struct Channel<T: Target, H: Host> {
    id: ChannelId,
    host: H,
    to_owner: mpsc::UnboundedSender<ToOwner<T>>,
    joined: Cell<bool>,
    epochs: Epochs,
    parked: ParkedIos<T::Volume, H::Io>,
    /// Batches of which some writes are back that the owner does not know of.
    to_tell: RefCell<Vec<Rc<Batch>>>,
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
        let epochs = Epochs::new(host.in_flight());
        let channel = Rc::new(Channel {
            id,
            host,
            to_owner,
            joined: Cell::new(false),
            epochs,
            parked: ParkedIos::new(),
            to_tell: RefCell::default(),
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
            self.tell_batches();
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
        self.tell_batches();
        // The owner is gone without an answer: nothing parked may hang.
        self.fail_parked(Errno::ENODEV);
    }

    /// The host that was given to [`Channel::new`].
    pub fn host(&self) -> &H {
        &self.host
    }

    /// I/O forwarded to a base device and not yet returned.
    pub fn nr_in_flight(&self) -> u64 {
        self.epochs.in_flight()
    }

    /// I/O waiting for the owner, or to be mapped.
    pub fn nr_parked(&self) -> usize {
        self.parked.len() + self.stage.len()
    }

    /// The same of one volume. When it gets no more I/O and has none of these on any channel, then the rest
    /// of its I/O is over after the next barrier.
    pub fn nr_parked_of(&self, volume: &Arc<T::Volume>) -> usize {
        self.parked.len_of(volume) + self.stage.len_of(volume)
    }

    /// What of a volume's I/O passes by this channel now; none before the owner knows the channel.
    pub fn passage(&self, volume: &VolumeHandle<T>) -> Option<Passage> {
        let passage = T::passage(&volume.volume)?;
        Some(match self.joined.get() {
            true => passage,
            false => Passage {
                passes: |_| false,
                as_long_as: Some((Arc::new(AtomicU64::new(0)), 1)),
                ..passage
            },
        })
    }

    /// Tells the owner that this channel is going away. Nothing may be in flight or parked.
    pub fn leave(&self) {
        let _ = self.to_owner.unbounded_send(ToOwner::Leave(self.id));
    }

    /// Where a plain read or write goes: nothing but to be counted in [`Host::in_flight`] and sent there. None:
    /// it is to be submitted. The hot path where there is nothing to be fetched from memory first.
    #[inline(always)]
    pub fn plain(&self, volume: &VolumeHandle<T>, request: &Request) -> Option<(BaseId, u64)> {
        let waits = T::is_far(&volume.volume) && self.stage.pays(self.epochs.in_flight_now());
        match self.joined.get() && !waits {
            true => T::plain(&volume.volume, &volume.local, request),
            false => None,
        }
    }

    /// Takes an I/O. The hot path of what is not plain.
    #[inline]
    pub fn submit(&self, volume: &VolumeHandle<T>, request: Request, io: H::Io) {
        if !self.joined.get() {
            return self.park_unmapped(&volume.volume, &{ request }, io);
        }
        if self.stage.pays(self.epochs.in_flight_now())
            && let Some(memory) = T::looks_at(&volume.volume, &request)
        {
            self.host.prefetch(memory);
            return match self.stage.push(volume, request, io) {
                Ok(false) => {}
                Ok(true) => self.map_staged(),
                Err(io) => self.map_behind(volume, request, io),
            };
        }
        if request.kind == IoKind::Reset {
            // The barrier of a reset is for what was submitted before it.
            self.map_staged();
        }
        self.map_here(&volume.volume, &volume.local, request, io);
    }

    fn map_staged(&self) {
        self.stage
            .take_all(|on, request, io| self.map_here(&on.volume, &on.local, request, io));
    }

    /// Maps what is staged, and then an I/O for which there was no place.
    #[cold]
    fn map_behind(&self, volume: &VolumeHandle<T>, request: Request, io: H::Io) {
        self.map_staged();
        self.map_here(&volume.volume, &volume.local, request, io);
    }

    fn map(&self, volume: &Arc<T::Volume>, request: Request, io: H::Io) {
        self.map_here(volume, &T::Local::default(), request, io);
    }

    /// Inlined with what calls it for every I/O, so that a request that goes to a base device never is in
    /// memory: it would be written by its parts and read as a whole at once, which a core has to wait for.
    #[inline(always)]
    fn map_here(&self, volume: &Arc<T::Volume>, local: &T::Local, request: Request, io: H::Io) {
        match T::map(volume, local, &request) {
            Map::Remap { base, block } => self.send(io, base, block),
            fate => self.settle(fate, volume, &{ request }, io),
        }
    }

    /// Counts an I/O as in flight, which the host then sends somewhere.
    #[inline]
    pub fn ticket(&self) -> Ticket {
        Ticket(self.epochs.enter() << 1)
    }

    #[inline]
    fn send(&self, io: H::Io, base: BaseId, block: u64) {
        self.host.forward(io, base, block, self.ticket());
    }

    /// What [`Channel::map_here`] leaves.
    #[inline(never)]
    fn settle(&self, fate: Map, volume: &Arc<T::Volume>, request: &Request, io: H::Io) {
        let request = *request;
        match fate {
            Map::Remap { base, block } => self.send(io, base, block),
            Map::RemapHead {
                base,
                block,
                nr_blocks,
            } => {
                self.host
                    .forward_head(io, base, block, nr_blocks, self.ticket());
            }
            Map::Zeroes => self.host.complete_zeroes(io),
            Map::Done => self.host.complete(io, Ok(())),
            Map::Fail(errno) => self.host.complete(io, Err(errno)),
            Map::Split { nr_blocks, goes } => self.split(volume, request, io, nr_blocks, goes),
            Map::Defer => self.defer(volume, request, io),
        }
    }

    /// Maps an I/O part by part.
    #[cold]
    fn split(
        &self,
        volume: &Arc<T::Volume>,
        mut request: Request,
        mut io: H::Io,
        mut nr_blocks: u64,
        mut goes: Option<(BaseId, u64)>,
    ) {
        loop {
            if nr_blocks == 0 || nr_blocks >= request.nr_blocks {
                return self.host.complete(io, Err(Errno::EINVAL));
            }
            let (head, tail) = match self.host.split(io, nr_blocks) {
                Ok(parts) => parts,
                Err(io) => return self.host.complete(io, Err(Errno::EOPNOTSUPP)),
            };
            let first = Request {
                nr_blocks,
                ..request
            };
            match goes {
                Some((base, block)) => self.send(head, base, block),
                None => self.map(volume, first, head),
            }
            request.offset_blocks += nr_blocks;
            request.nr_blocks -= nr_blocks;
            io = tail;
            match T::map(volume, &T::Local::default(), &request) {
                Map::Split {
                    nr_blocks: next,
                    goes: to,
                } => (nr_blocks, goes) = (next, to),
                Map::Remap { base, block } => return self.send(io, base, block),
                fate => return self.settle(fate, volume, &request, io),
            }
        }
    }

    /// A forwarded I/O came back from its base device. The hot path's second half.
    #[inline]
    pub fn forwarded(&self, io: H::Io, ticket: Ticket, result: Result<(), Errno>) {
        if ticket.0 & OWNER_WAITS == 0 {
            self.epochs.leave(ticket.0 >> 1);
            self.host.complete(io, result);
        } else {
            self.report(io, Parked::from_raw(ticket.0 >> 1), result);
        }
    }

    /// Completes a parked I/O as aborted, or its parts that are. False when it is not parked here, or is already
    /// on its way to a base device.
    pub fn abort(&self, io_id: u64) -> bool {
        if let Some(io) = self.stage.remove(|io| self.host.id(io) == io_id) {
            self.host.complete(io, Err(Errno::ECANCELED));
            return true;
        }
        // It, or those of its parts that wait. Found before the first is answered: a new one may be who it was then.
        let names = self.parked.waiting(|io| self.host.id(io) == io_id);
        let found = names.into_iter().filter_map(|name| self.take_waiting(name));
        let aborted = found.map(|(_, _, io)| self.host.complete(io, Err(Errno::ECANCELED)));
        aborted.count() > 0
    }

    fn take_waiting(&self, name: Parked) -> Option<(Arc<T::Volume>, Request, H::Io)> {
        let slot = self
            .parked
            .take_if(name, |slot| matches!(slot, Slot::Waiting(..)))?;
        match slot {
            Slot::Waiting(volume, request, io) => Some((volume, request, io)),
            _ => None,
        }
    }

    #[cold]
    fn park_unmapped(&self, volume: &Arc<T::Volume>, request: &Request, io: H::Io) {
        if self.to_owner.is_closed() {
            return self.host.complete(io, Err(Errno::ENODEV));
        }
        if let Err(io) = self.parked.park(volume, *request, io) {
            self.host.complete(io, Err(Errno::ENOMEM));
        }
    }

    fn defer(&self, volume: &Arc<T::Volume>, request: Request, io: H::Io) {
        let parked = match self.parked.park(volume, request, io) {
            Ok(parked) => parked,
            Err(io) => return self.host.complete(io, Err(Errno::ENOMEM)),
        };
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
                for slot in self.parked.take_all() {
                    if let Slot::Waiting(volume, request, io) = slot {
                        self.map(&volume, request, io);
                    }
                }
            }
            ToChannel::Answers(answers) => {
                for (name, answer) in answers {
                    match answer {
                        Answer::Retry => {
                            if let Some((volume, request, io)) = self.take_waiting(name) {
                                self.map(&volume, request, io);
                            }
                        }
                        Answer::Complete(result) => self.complete_parked(name, result),
                    }
                }
            }
            ToChannel::Forward(base, places, report) => {
                let names = places.iter().map(|(name, _)| *name).collect();
                let batch = Batch::new(names, report);
                for (at, (name, block)) in places.into_iter().enumerate() {
                    self.forward_parked(name, base, block, &batch, at);
                }
            }
            ToChannel::Barrier(done) => self.epochs.close(done),
            ToChannel::Quiesce(done) => {
                let _ = done.send(());
            }
        }
    }

    /// An aborted I/O is no longer parked: then there is nothing to answer.
    fn complete_parked(&self, name: Parked, result: Result<(), Errno>) {
        let slot = self
            .parked
            .take_if(name, |slot| !matches!(slot, Slot::Forwarding(..)));
        if let Some(Slot::Waiting(_, _, io) | Slot::Returned(_, io)) = slot {
            self.host.complete(io, result);
        }
    }

    fn forward_parked(&self, name: Parked, base: BaseId, block: u64, batch: &Rc<Batch>, at: usize) {
        let found = self.parked.exchange(name, |slot| {
            let Slot::Waiting(volume, ..) = &*slot else {
                return None;
            };
            let epoch = self.epochs.enter();
            let forwarding = Slot::Forwarding(volume.clone(), batch.clone(), at, epoch);
            match std::mem::replace(slot, forwarding) {
                Slot::Waiting(_, request, io) => Some((request, io)),
                _ => None,
            }
        });
        let Some((request, io)) = found else {
            // Aborted meanwhile: the place it was meant for stays unused.
            return self.finish_in_batch(batch, at, Err(Errno::ECANCELED));
        };
        debug_assert_eq!(request.kind, IoKind::Write);
        let ticket = Ticket(name.into_raw() << 1 | OWNER_WAITS);
        self.host.forward(io, base, block, ticket);
    }

    /// A write that the owner has had sent to a place is back.
    fn report(&self, io: H::Io, name: Parked, result: Result<(), Errno>) {
        let mut io = Some(io);
        let found = self.parked.exchange(name, |slot| match slot {
            Slot::Forwarding(volume, batch, at, epoch) => {
                let found = (batch.clone(), *at, *epoch);
                *slot = Slot::Returned(volume.clone(), io.take()?);
                Some(found)
            }
            _ => None,
        });
        match (found, io) {
            (Some((batch, at, epoch)), _) => {
                self.epochs.leave(epoch);
                self.finish_in_batch(&batch, at, result);
            }
            (None, Some(io)) => self.host.complete(io, Err(Errno::EIO)),
            (None, None) => {}
        }
    }

    fn finish_in_batch(&self, batch: &Rc<Batch>, at: usize, result: Result<(), Errno>) {
        if batch.finish(at, result) {
            self.to_tell.borrow_mut().push(batch.clone());
            if !self.stage.wake() {
                self.tell_batches();
            }
        }
    }

    fn tell_batches(&self) {
        for batch in self.to_tell.take() {
            // What an owner gave up is nowhere reachable.
            for name in batch.tell().err().unwrap_or_default() {
                self.complete_parked(name, Err(Errno::EIO));
            }
        }
    }

    fn fail_parked(&self, errno: Errno) {
        for slot in self.parked.take_all() {
            if let Slot::Waiting(_, _, io) | Slot::Returned(_, io) = slot {
                self.host.complete(io, Err(errno));
            }
        }
    }
}
