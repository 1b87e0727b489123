//! The owner's side of the channels: who they are, how to answer them, and barriers over all.

use crate::channel::{ChannelId, Deferred, Parked, ToChannel};
use crate::errno::Errno;
use crate::target::{BaseId, Target};
use futures::channel::{mpsc, oneshot};
use futures::future::join_all;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// The channels known to a target's owner.
#[derive(Default)]
pub struct Channels {
    senders: RefCell<BTreeMap<ChannelId, mpsc::UnboundedSender<ToChannel>>>,
}

impl Channels {
    /// Adds a channel and lets it map.
    pub fn join(&self, id: ChannelId, sender: mpsc::UnboundedSender<ToChannel>) {
        let _ = sender.unbounded_send(ToChannel::Joined);
        self.senders.borrow_mut().insert(id, sender);
    }

    /// Forgets a channel.
    pub fn leave(&self, id: ChannelId) {
        self.senders.borrow_mut().remove(&id);
    }

    /// Number of channels.
    pub fn len(&self) -> usize {
        self.senders.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn send(&self, id: ChannelId, message: ToChannel) {
        if let Some(sender) = self.senders.borrow().get(&id) {
            // A closed queue: the channel is gone, and with it the I/O.
            let _ = sender.unbounded_send(message);
        }
    }

    /// Has the I/O mapped again.
    pub fn retry<T: Target>(&self, deferred: &Deferred<T>) {
        self.send(deferred.channel, ToChannel::Retry(deferred.parked));
    }

    /// Answers the I/O.
    pub fn complete<T: Target>(&self, deferred: &Deferred<T>, result: Result<(), Errno>) {
        self.complete_parked(deferred.channel, deferred.parked, result);
    }

    fn complete_parked(&self, channel: ChannelId, parked: Parked, result: Result<(), Errno>) {
        self.send(channel, ToChannel::Complete(parked, result));
    }

    /// Has a write sent to a place that no mapping names yet, and waits for it. The I/O is then
    /// still to be completed.
    pub async fn forward_to<T: Target>(
        &self,
        deferred: &Deferred<T>,
        base: BaseId,
        block: u64,
    ) -> Result<(), Errno> {
        let (tx, rx) = oneshot::channel();
        self.send(
            deferred.channel,
            ToChannel::ForwardTo(deferred.parked, base, block, tx),
        );
        rx.await.unwrap_or(Err(Errno::ENODEV))
    }

    /// Completes when all I/O that any channel mapped before this call has finished.
    pub async fn barrier(&self) {
        self.ask_all(ToChannel::Barrier).await;
    }

    /// Completes when every channel sees what was published before this call.
    pub async fn quiesce(&self) {
        self.ask_all(ToChannel::Quiesce).await;
    }

    async fn ask_all(&self, message: impl Fn(oneshot::Sender<()>) -> ToChannel) {
        let answers: Vec<_> = self
            .senders
            .borrow()
            .values()
            .map(|sender| {
                let (tx, rx) = oneshot::channel();
                let _ = sender.unbounded_send(message(tx));
                rx
            })
            .collect();
        // A cancelled answer means that the channel is gone, with nothing in flight.
        join_all(answers).await;
    }
}
