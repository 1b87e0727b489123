//! The owner's side of the channels: who they are, how to answer them, and barriers over all.

use crate::channel::{Answer, ChannelId, Deferred, ToChannel, ToOwner};
use crate::errno::Errno;
use crate::parked::Forwarded;
use crate::target::{BaseId, Target};
use futures::channel::{mpsc, oneshot};
use futures::future::join_all;
use futures::stream::{Stream, StreamExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Sorted by channel, each channel's in order.
fn by_channel<V>(all: impl Iterator<Item = (ChannelId, V)>) -> Vec<(ChannelId, Vec<V>)> {
    let mut of_channels: Vec<(ChannelId, Vec<V>)> = Vec::new();
    for (channel, value) in all {
        // There are few, and what comes together mostly comes from one.
        match of_channels.iter_mut().rev().find(|(id, _)| *id == channel) {
            Some((_, values)) => values.push(value),
            None => of_channels.push((channel, vec![value])),
        }
    }
    of_channels
}

/// The reports of one channel on writes it was given to forward.
struct Reports<W> {
    finished: mpsc::UnboundedReceiver<Forwarded>,
    /// Those not reported yet.
    writes: Vec<Option<W>>,
}

impl<W> Unpin for Reports<W> {}

impl<W> Stream for Reports<W> {
    type Item = Vec<(W, Result<(), Errno>)>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let told = ready!(self.finished.poll_next_unpin(context));
        let found: Self::Item = match told {
            Some(told) => told
                .into_iter()
                .filter_map(|(at, result)| Some((self.writes.get_mut(at)?.take()?, result)))
                .collect(),
            // The channel is gone; or all are reported.
            None => self
                .writes
                .drain(..)
                .flatten()
                .map(|write| (write, Err(Errno::ENODEV)))
                .collect(),
        };
        Poll::Ready((!found.is_empty()).then_some(found))
    }
}

/// Has an owner look whether its service is over: it does so after each message, and this one concerns
/// nobody.
pub(crate) fn look_again<T: Target>(to_owner: &mpsc::UnboundedSender<ToOwner<T>>) {
    // A closed queue: the service is over.
    let _ = to_owner.unbounded_send(ToOwner::Leave(ChannelId(u64::MAX)));
}

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

    /// Serves the channels of a target until it is closed and none is left. `accept` takes the I/O that they
    /// cannot map.
    pub(crate) async fn serve<T: Target>(
        &self,
        mut requests: mpsc::UnboundedReceiver<ToOwner<T>>,
        closed: &Cell<bool>,
        accept: impl Fn(Deferred<T>),
    ) {
        while let Some(message) = requests.next().await {
            match message {
                ToOwner::Join(id, sender) => self.join(id, sender),
                ToOwner::Leave(id) => self.leave(id),
                ToOwner::Deferred(deferred) => accept(deferred),
            }
            if closed.get() && self.is_empty() {
                return;
            }
        }
    }

    fn send(&self, id: ChannelId, message: ToChannel) {
        if let Some(sender) = self.senders.borrow().get(&id) {
            // A closed queue: the channel is gone, and with it the I/O.
            let _ = sender.unbounded_send(message);
        }
    }

    /// Has the I/O mapped again.
    pub fn retry<T: Target>(&self, deferred: &Deferred<T>) {
        self.answer(deferred, Answer::Retry);
    }

    /// Answers the I/O.
    pub fn complete<T: Target>(&self, deferred: &Deferred<T>, result: Result<(), Errno>) {
        self.answer(deferred, Answer::Complete(result));
    }

    fn answer<T: Target>(&self, deferred: &Deferred<T>, answer: Answer) {
        let answers = vec![(deferred.parked, answer)];
        self.send(deferred.channel, ToChannel::Answers(answers));
    }

    /// Answers many, in order.
    pub fn answer_all<'a, T: Target>(
        &self,
        answers: impl IntoIterator<Item = (&'a Deferred<T>, Answer)>,
    ) {
        let of_channels = by_channel(
            answers
                .into_iter()
                .map(|(deferred, answer)| (deferred.channel, (deferred.parked, answer))),
        );
        for (channel, answers) in of_channels {
            self.send(channel, ToChannel::Answers(answers));
        }
    }

    /// Has a write sent to a place that no mapping names yet, and waits for it. The I/O is then
    /// still to be completed.
    pub async fn forward_to<T: Target>(
        &self,
        deferred: &Deferred<T>,
        base: BaseId,
        block: u64,
    ) -> Result<(), Errno> {
        let (report, mut finished) = mpsc::unbounded();
        let places = vec![(deferred.parked, block)];
        self.send(deferred.channel, ToChannel::Forward(base, places, report));
        let told: Option<Forwarded> = finished.next().await;
        told.and_then(|told| told.first().map(|(_, result)| *result))
            .unwrap_or(Err(Errno::ENODEV))
    }

    /// The same with many writes, each with its block and what else the caller knows of it. They come out
    /// with their results, as many at a time as are back.
    pub fn forward_all<T: Target, W>(
        &self,
        base: BaseId,
        writes: Vec<(W, u64)>,
        deferred: fn(&W) -> &Deferred<T>,
    ) -> impl Stream<Item = Vec<(W, Result<(), Errno>)>> + use<T, W> {
        let of_channels = by_channel(writes.into_iter().map(|(write, block)| {
            let (channel, parked) = (deferred(&write).channel, deferred(&write).parked);
            (channel, (write, (parked, block)))
        }));
        let streams = of_channels.into_iter().map(|(channel, writes)| {
            let (report, finished) = mpsc::unbounded();
            let (writes, places): (Vec<W>, Vec<_>) = writes.into_iter().unzip();
            self.send(channel, ToChannel::Forward(base, places, report));
            Reports {
                finished,
                writes: writes.into_iter().map(Some).collect(),
            }
        });
        futures::stream::select_all(streams)
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
