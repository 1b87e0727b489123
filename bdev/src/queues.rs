//! What the channels of a target and its owner say to each other, each through the other's queue.

use crate::errno::Errno;
use crate::parked::{Forwarded, Parked};
use crate::target::{BaseId, Request, Target};
use futures::channel::{mpsc, oneshot};
use std::sync::Arc;

/// Names a channel to its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u64);

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
    /// What becomes of parked I/Os.
    Answers(Vec<(Parked, Answer)>),
    /// Send these I/Os to these blocks of a base device, report each, and wait for an [`Answer`].
    Forward(BaseId, Vec<(Parked, u64)>, mpsc::UnboundedSender<Forwarded>),
    /// Answer once everything mapped before this message has finished.
    Barrier(oneshot::Sender<()>),
    /// Answer at once: what was published before is seen by everything mapped from now on.
    Quiesce(oneshot::Sender<()>),
}

/// What becomes of a parked I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is mapped again.
    Retry,
    /// It is completed.
    Complete(Result<(), Errno>),
}
