//! Simulated cores: the real per-core channels of a target, on simulated disks.

use crate::disk::{Disk, GARBAGE};
use crate::executor::Executor;
use bdev::channel::{Channel, ChannelId, Host, OnCore, Ticket, ToOwner, VolumeHandle};
use bdev::errno::Errno;
use bdev::runtime::Runtime;
use bdev::target::{BaseId, IoKind, Request, Target};
use futures::channel::{mpsc, oneshot};
use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// A request of so many blocks.
pub fn request(kind: IoKind, offset_blocks: u64, nr_blocks: u64) -> Request {
    Request {
        kind,
        offset_blocks,
        nr_blocks,
    }
}

/// How an I/O ended, and what a read found.
pub type Answer = (Result<(), Errno>, Vec<u64>);

/// An I/O of a simulated core.
pub struct SimIo {
    id: u64,
    request: Request,
    data: Vec<u64>,
    done: oneshot::Sender<Answer>,
}

/// A simulated core's way to the disks.
pub struct SimHost<T: Target> {
    executor: Rc<Executor>,
    /// By [`BaseId`].
    bases: Vec<Rc<Disk>>,
    channel: RefCell<Weak<Channel<T, SimHost<T>>>>,
}

impl<T: Target> Host for SimHost<T> {
    type Io = SimIo;

    fn forward(&self, mut io: SimIo, base: BaseId, block: u64, ticket: Ticket) {
        let channel = self.channel.borrow().clone();
        let disk = self.bases.get(usize::from(base.0)).cloned();
        self.executor.spawn(Box::pin(async move {
            let result = match disk {
                None => Err(Errno::ENODEV),
                Some(disk) => carry_out(&disk, &mut io, block).await,
            };
            if let Some(channel) = channel.upgrade() {
                channel.forwarded(io, ticket, result);
            }
        }));
    }

    fn forward_head(
        &self,
        mut io: SimIo,
        base: BaseId,
        block: u64,
        nr_blocks: u64,
        ticket: Ticket,
    ) {
        let channel = self.channel.borrow().clone();
        let disk = self.bases.get(usize::from(base.0)).cloned();
        self.executor.spawn(Box::pin(async move {
            let found = match disk {
                None => Err(Errno::ENODEV),
                Some(disk) => disk.read_values(block, nr_blocks).await,
            };
            let result = found.map(|mut values| {
                values.resize(io.request.nr_blocks as usize, 0);
                io.data = values;
            });
            if let Some(channel) = channel.upgrade() {
                channel.forwarded(io, ticket, result);
            }
        }));
    }

    fn complete_zeroes(&self, mut io: SimIo) {
        io.data = vec![0; io.request.nr_blocks as usize];
        self.complete(io, Ok(()));
    }

    fn complete(&self, io: SimIo, result: Result<(), Errno>) {
        let _ = io.done.send((result, io.data));
    }

    fn split(&self, io: SimIo, nr_blocks: u64) -> Result<(SimIo, SimIo), SimIo> {
        self.executor.count("I/O split");
        let mut data = io.data;
        let at = data.len().min(nr_blocks as usize);
        let rest = data.split_off(at);
        let part = |data, offset_blocks, nr_blocks| {
            let (done, answer) = oneshot::channel();
            let request = Request {
                offset_blocks,
                nr_blocks,
                ..io.request
            };
            let part = SimIo {
                id: io.id,
                request,
                data,
                done,
            };
            (part, answer)
        };
        let Request {
            offset_blocks: first,
            nr_blocks: all,
            ..
        } = io.request;
        let (head, head_done) = part(data, first, nr_blocks);
        let (tail, tail_done) = part(rest, first + nr_blocks, all - nr_blocks);
        let done = io.done;
        self.executor.spawn(Box::pin(async move {
            let lost = || (Err(Errno::EIO), Vec::new());
            let (result, mut found) = head_done.await.unwrap_or_else(|_| lost());
            let (other, more) = tail_done.await.unwrap_or_else(|_| lost());
            found.extend(more);
            let _ = done.send((result.and(other), found));
        }));
        Ok((head, tail))
    }

    fn id(&self, io: &SimIo) -> u64 {
        io.id
    }

    fn prefetch(&self, _: &AtomicU64) {
        self.executor.count("I/O mapped together");
    }
}

async fn carry_out(disk: &Disk, io: &mut SimIo, block: u64) -> Result<(), Errno> {
    match io.request.kind {
        IoKind::Read => {
            io.data = disk.read_values(block, io.request.nr_blocks).await?;
            Ok(())
        }
        IoKind::Write => disk.write_values(block, &io.data).await,
        IoKind::WriteZeroes => {
            let zeroes = vec![0; io.request.nr_blocks as usize];
            disk.write_values(block, &zeroes).await
        }
        IoKind::Flush => disk.flush_all().await,
        IoKind::Discard => {
            let garbage = vec![GARBAGE; io.request.nr_blocks as usize];
            disk.write_values(block, &garbage).await
        }
        IoKind::Reset => Err(Errno::EOPNOTSUPP),
    }
}

/// One simulated core.
pub type Core<T> = Rc<Channel<T, SimHost<T>>>;

/// The volumes a simulated core has had I/O on, as a bdev's channels keep them.
type Handles<T> = RefCell<Vec<VolumeHandle<T>>>;

/// The core's own handle on a volume. Those nobody else has any more are let go.
fn handle<T: Target>(handles: &Handles<T>, volume: &Arc<T::Volume>) -> VolumeHandle<T> {
    let mut handles = handles.borrow_mut();
    let found = handles.iter().find(|it| Arc::ptr_eq(it.volume(), volume));
    if let Some(found) = found {
        return found.clone();
    }
    handles.retain(|it| Arc::strong_count(it.volume()) > 1);
    let new = OnCore::new(volume.clone());
    handles.push(new.clone());
    new
}

/// The cores that share a target.
pub struct Cores<T: Target> {
    executor: Rc<Executor>,
    cores: Vec<Core<T>>,
    handles: Vec<Handles<T>>,
    next_io: Cell<u64>,
}

impl<T: Target> Cores<T> {
    /// Brings up channels on `count` cores.
    pub fn new(
        executor: &Rc<Executor>,
        count: u64,
        bases: &[Rc<Disk>],
        owner: &mpsc::UnboundedSender<ToOwner<T>>,
    ) -> Rc<Self> {
        let cores: Vec<_> = (0..count)
            .map(|id| {
                let host = SimHost {
                    executor: executor.clone(),
                    bases: bases.to_vec(),
                    channel: RefCell::default(),
                };
                let (core, messages) = Channel::new(ChannelId(id), host, owner.clone());
                *core.host().channel.borrow_mut() = Rc::downgrade(&core);
                executor.spawn(Box::pin(core.clone().run(messages)));
                core
            })
            .collect();
        Rc::new(Cores {
            executor: executor.clone(),
            handles: cores.iter().map(|_| Handles::default()).collect(),
            cores,
            next_io: Cell::new(0),
        })
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.cores.len() as u64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.cores.is_empty()
    }

    /// Submits an I/O on any core and waits for its answer; a trace calls the volume `name`.
    pub async fn io_anywhere(
        &self,
        name: impl Display,
        volume: &Arc<T::Volume>,
        request: Request,
        data: Vec<u64>,
    ) -> Answer {
        let core = self.executor.below(self.len());
        let trace = |text: String| self.executor.trace(|| text);
        let what = match data.first() {
            Some(value) => format!("core {core} {name} {request:?} {value:x}"),
            None => format!("core {core} {name} {request:?}"),
        };
        trace(what.clone());
        let answer = self.io(core, volume, request, data).await;
        let found: Vec<u64> = answer.1.iter().take(20).copied().collect();
        trace(format!("{what} -> {:?} {found:x?}", answer.0));
        answer
    }

    /// Submits an I/O on a core and waits for its answer.
    pub async fn io(
        &self,
        core: u64,
        volume: &Arc<T::Volume>,
        request: Request,
        data: Vec<u64>,
    ) -> Answer {
        let at = core as usize;
        let (Some(core), Some(handles)) = (self.cores.get(at), self.handles.get(at)) else {
            return (Err(Errno::ENODEV), Vec::new());
        };
        let (done, answer) = oneshot::channel();
        let id = self.next_io.get();
        self.next_io.set(id + 1);
        let io = SimIo {
            id,
            request,
            data,
            done,
        };
        let volume = handle(handles, volume);
        // As the shim does.
        let course = match request.kind {
            IoKind::Read | IoKind::Write => core.plain(&volume, &request),
            _ => None,
        };
        match course {
            Some((base, block)) => core.host().forward(io, base, block, core.ticket()),
            None => core.submit(&volume, request, io),
        }
        answer.await.unwrap_or((Err(Errno::EIO), Vec::new()))
    }

    /// Tells the owner that the cores are going away. Nothing may be under way.
    pub fn leave(&self) {
        for core in &self.cores {
            core.leave();
        }
    }
}
