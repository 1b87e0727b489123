//! What the engine and the owner need of SPDK: channels, timers, tasks.

use crate::parts::{Carries, Engine};
use bdev::channel::{Channel, ChannelId, Host, InFlight, Ticket, ToOwner, VolumeHandle};
use bdev::era::EraTarget;
use bdev::errno::Errno;
use bdev::runtime::Runtime;
use bdev::target::{BaseId, IoKind as Kind, Request, Target};
use bdev::thin::Thin;
use bdev::thin::map::ORIGIN;
use futures::channel::mpsc::UnboundedSender;
use futures::future::LocalBoxFuture;
use spdk::base::{Descriptor, IoKind};
use spdk::executor;
use spdk::io::{Io, Which};
use spdk::passage::{Course, Passage, Way};
use spdk::vbdev::BdevIo;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A quarter of what cores of the last years have for themselves.
const NEAR_BYTES: usize = 256 << 10;

/// The executor of the running SPDK thread.
pub struct SpdkRuntime(Instant);

impl SpdkRuntime {
    /// Starts the clock.
    pub fn new() -> Rc<Self> {
        Rc::new(SpdkRuntime(Instant::now()))
    }
}

impl Runtime for SpdkRuntime {
    fn spawn(&self, future: LocalBoxFuture<'static, ()>) {
        executor::spawn(future);
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(executor::sleep(duration))
    }

    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn prefer_large_pages(&self, memory: &[AtomicU64]) {
        spdk::dma::prefer_large_pages(memory);
    }

    fn near_bytes(&self) -> usize {
        NEAR_BYTES
    }
}

/// A core's way to the bdev that holds the data: a pool's data bdev, an era target's origin.
pub struct SpdkHost<T: Target> {
    data: Way,
    in_flight: Rc<InFlight>,
    engine: Engine<T, SpdkHost<T>>,
}

/// What I/O can be sent to without the engine.
pub trait WayPast {
    /// The running thread's way to a base bdev.
    fn way(&self, base: BaseId) -> Option<Way>;

    /// A block there.
    fn course(&self, base: BaseId, block: u64) -> Option<Course>;
}

impl<T: Target> WayPast for SpdkHost<T> {
    fn way(&self, base: BaseId) -> Option<Way> {
        (base != ORIGIN).then(|| self.data.clone())
    }

    #[inline(always)]
    fn course(&self, base: BaseId, block: u64) -> Option<Course> {
        (base != ORIGIN).then(|| self.data.at(block))
    }
}

impl<T: Target> SpdkHost<T> {
    /// Sends an I/O, or its head, to the external origin.
    fn forward_origin(&self, io: Io, block: u64, head_blocks: Option<u64>, ticket: Ticket) {
        match io.which() {
            Which::Whole(io) => io.forward_other(block, head_blocks, ticket.into_raw()),
            // SPDK splits the I/O of bdevs that have an origin.
            Which::Part(part) => self.engine.fail(part.into(), ticket),
        }
    }
}

impl<T: Target> Carries<T> for SpdkHost<T> {
    fn engine(&self) -> &Engine<T, Self> {
        &self.engine
    }
}

impl<T: Target> Host for SpdkHost<T> {
    type Io = Io;

    #[inline]
    fn forward(&self, io: Io, base: BaseId, block: u64, ticket: Ticket) {
        match base {
            ORIGIN => self.forward_origin(io, block, None, ticket),
            _ => self.engine.send(io, &self.data, block, ticket),
        }
    }

    fn in_flight(&self) -> Rc<InFlight> {
        self.in_flight.clone()
    }

    fn forward_head(&self, io: Io, _: BaseId, block: u64, nr_blocks: u64, ticket: Ticket) {
        self.forward_origin(io, block, Some(nr_blocks), ticket);
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

/// A target's channel of one core.
pub struct TargetChannel<T: Target, H: Host = SpdkHost<T>> {
    /// The engine.
    pub engine: Rc<Channel<T, H>>,
}

/// A pool's, shared by its thin bdevs.
pub type PoolChannel = TargetChannel<Thin>;

/// An era target's.
pub type EraChannel = TargetChannel<EraTarget>;

static NEXT_CHANNEL: AtomicU64 = AtomicU64::new(0);

impl<T: Target> SpdkHost<T> {
    /// On the running thread.
    pub fn new(data: &Descriptor) -> Option<Self> {
        let in_flight: Rc<InFlight> = Rc::default();
        Some(SpdkHost {
            data: Way::new(data.channel()?, in_flight.clone()),
            in_flight,
            engine: Engine::default(),
        })
    }
}

impl<T: Target, H: Carries<T>> TargetChannel<T, H> {
    /// Makes the running thread's channel and starts its message loop.
    pub fn new(host: H, owner: UnboundedSender<ToOwner<T>>) -> Option<Self> {
        let id = ChannelId(NEXT_CHANNEL.fetch_add(1, Ordering::Relaxed));
        let (engine, messages) = Channel::new(id, host, owner);
        engine.host().engine().is(&engine);
        executor::spawn(engine.clone().run(messages)).then_some(TargetChannel { engine })
    }

    /// Where a plain read or write of a bdev of the target goes.
    #[inline(always)]
    pub fn plain(
        &self,
        volume: &VolumeHandle<T>,
        kind: IoKind,
        offset_blocks: u64,
        nr_blocks: u64,
    ) -> Option<Course>
    where
        H: WayPast,
    {
        let request = Request {
            kind: match kind {
                IoKind::Read => Kind::Read,
                _ => Kind::Write,
            },
            offset_blocks,
            nr_blocks,
        };
        let (base, block) = self.engine.plain(volume, &request)?;
        self.engine.host().course(base, block)
    }

    /// Takes an I/O of a bdev of the target.
    #[inline]
    pub fn submit(
        &self,
        volume: &VolumeHandle<T>,
        io: BdevIo,
        kind: IoKind,
        offset_blocks: u64,
        nr_blocks: u64,
    ) {
        let kind = match kind {
            IoKind::Read => Kind::Read,
            IoKind::Write => Kind::Write,
            IoKind::Flush => Kind::Flush,
            IoKind::Unmap => Kind::Discard,
            IoKind::WriteZeroes => Kind::WriteZeroes,
            IoKind::Reset => Kind::Reset,
            IoKind::Abort => {
                let aborted = self.engine.abort(io.id_to_abort());
                // Not parked: it is on its way, and will end by itself.
                return io.complete(if aborted { 0 } else { Errno::EIO.0 });
            }
            IoKind::Other => return io.complete(Errno::EOPNOTSUPP.0),
        };
        let request = Request {
            kind,
            offset_blocks,
            nr_blocks,
        };
        self.engine.submit(volume, request, io.into());
    }

    /// What of a volume's I/O needs no engine.
    pub fn passage(&self, volume: &VolumeHandle<T>) -> Option<Passage>
    where
        H: WayPast,
    {
        let passage = self.engine.passage(volume)?;
        let host = self.engine.host();
        let kinds = [
            (Kind::Read, IoKind::Read),
            (Kind::Write, IoKind::Write),
            (Kind::Discard, IoKind::Unmap),
            (Kind::WriteZeroes, IoKind::WriteZeroes),
        ];
        let passing = kinds.iter().filter(|(kind, _)| (passage.passes)(*kind));
        Some(Passage {
            kinds: passing.fold(0, |all, (_, kind)| all | kind.bit()),
            way: host.way(passage.base)?,
            as_long_as: passage.as_long_as,
        })
    }

    /// An I/O came back from a base bdev.
    #[inline]
    pub fn forwarded(&self, io: BdevIo, ticket: u64, ok: bool) {
        let result = if ok { Ok(()) } else { Err(Errno::EIO) };
        let ticket = Ticket::from_raw(ticket);
        self.engine.forwarded(io.into(), ticket, result);
    }
}

/// What bdevs of every target take, beside unmaps and zeroings.
pub const ALWAYS_TAKEN: u32 = IoKind::Read.bit()
    | IoKind::Write.bit()
    | IoKind::Flush.bit()
    | IoKind::Reset.bit()
    | IoKind::Abort.bit();

impl<T: Target, H: Host> Drop for TargetChannel<T, H> {
    fn drop(&mut self) {
        self.engine.leave();
    }
}
