//! A channel maps I/Os that look into much memory several at a time: each is mapped once, and one that is
//! aborted before is not mapped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::channel::{
    Answer, Channel, ChannelId, Host, OnCore, Ticket, ToChannel, ToOwner, VolumeHandle,
};
use bdev::errno::Errno;
use bdev::target::{BaseId, IoKind, Map, Request, Target};
use futures::channel::mpsc;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Maps each block to itself, by way of memory; writes go to the owner.
struct Linear;

impl Target for Linear {
    type Volume = AtomicU64;
    type Local = ();

    fn map(_: &Arc<AtomicU64>, (): &(), request: &Request) -> Map {
        match request.kind {
            IoKind::Write => Map::Defer,
            _ => Map::Remap {
                base: BaseId(0),
                block: request.offset_blocks,
            },
        }
    }

    fn looks_at<'a>(volume: &'a AtomicU64, request: &Request) -> Option<&'a AtomicU64> {
        (request.kind == IoKind::Read).then_some(volume)
    }
}

#[derive(Default)]
struct Seen {
    forwarded: RefCell<Vec<(u64, Ticket)>>,
    completed: RefCell<Vec<(u64, Result<(), Errno>)>>,
    prefetched: Cell<usize>,
}

struct Recorder(Rc<Seen>);

impl Host for Recorder {
    type Io = u64;

    fn forward(&self, io: u64, _: BaseId, block: u64, ticket: Ticket) {
        assert_eq!(io, block);
        self.0.forwarded.borrow_mut().push((io, ticket));
    }

    fn forward_head(&self, _: u64, _: BaseId, _: u64, _: u64, _: Ticket) {
        panic!("no read has a head");
    }

    fn complete_zeroes(&self, _: u64) {
        panic!("nothing is a hole");
    }

    fn complete(&self, io: u64, result: Result<(), Errno>) {
        self.0.completed.borrow_mut().push((io, result));
    }

    fn id(&self, io: &u64) -> u64 {
        *io
    }

    fn prefetch(&self, _: &AtomicU64) {
        self.0.prefetched.set(self.0.prefetched.get() + 1);
    }
}

struct Lab {
    pool: LocalPool,
    channel: Rc<Channel<Linear, Recorder>>,
    seen: Rc<Seen>,
    volume: VolumeHandle<Linear>,
    to_channel: Option<mpsc::UnboundedSender<ToChannel>>,
    from_channel: mpsc::UnboundedReceiver<ToOwner<Linear>>,
}

impl Lab {
    fn new() -> Self {
        let (tx, mut rx) = mpsc::unbounded();
        let seen = Rc::new(Seen::default());
        let (channel, messages) = Channel::new(ChannelId(0), Recorder(seen.clone()), tx);
        let ToOwner::Join(_, to_channel) = rx.try_recv().unwrap() else {
            panic!("a channel joins first");
        };
        let mut pool = LocalPool::new();
        pool.spawner()
            .spawn_local(channel.clone().run(messages))
            .unwrap();
        to_channel.unbounded_send(ToChannel::Joined).unwrap();
        pool.run_until_stalled();
        Lab {
            pool,
            channel,
            seen,
            volume: OnCore::new(Arc::default()),
            to_channel: Some(to_channel),
            from_channel: rx,
        }
    }

    fn submit(&self, io: u64) {
        let request = Request {
            kind: IoKind::Read,
            offset_blocks: io,
            nr_blocks: 1,
        };
        self.channel.submit(&self.volume, request, io);
    }

    fn forwarded(&self) -> Vec<u64> {
        let forwarded = self.seen.forwarded.borrow();
        forwarded.iter().map(|(io, _)| *io).collect()
    }
}

proptest! {
    /// Whatever the order of submissions, aborts, answers and turns of the task, and whether or not the
    /// owner goes away: each I/O is mapped once or answered as aborted, and none is left.
    #[test]
    fn each_is_mapped_once(steps in prop::collection::vec(0u8..10, 0..300)) {
        let mut lab = Lab::new();
        let (mut next, mut aborted, mut answered) = (0, Vec::new(), 0);
        for step in steps {
            match step {
                0..5 => {
                    lab.submit(next);
                    next += 1;
                }
                5 if next > 0 => {
                    let last = next - 1;
                    if lab.channel.abort(last) {
                        aborted.push(last);
                    }
                }
                6 if answered < lab.forwarded().len() => {
                    let (io, ticket) = lab.seen.forwarded.borrow()[answered];
                    lab.channel.forwarded(io, ticket, Ok(()));
                    answered += 1;
                }
                7 => lab.pool.run_until_stalled(),
                8 if next % 7 == 0 => {
                    lab.to_channel.take();
                }
                _ => {}
            }
        }
        lab.pool.run_until_stalled();
        let expected: Vec<u64> = (0..next).filter(|io| !aborted.contains(io)).collect();
        let mut forwarded = lab.forwarded();
        forwarded.sort_unstable();
        prop_assert_eq!(forwarded, expected);
        prop_assert_eq!(lab.channel.nr_parked(), 0);
        let cancelled: Vec<u64> = lab.seen.completed.borrow().iter()
            .filter(|(_, result)| *result == Err(Errno::ECANCELED))
            .map(|(io, _)| *io)
            .collect();
        prop_assert_eq!(cancelled, aborted);
    }
}

/// With company an I/O waits for the task, with its memory on the way; alone it does not.
#[test]
fn only_with_company() {
    let mut lab = Lab::new();
    (0..4).for_each(|io| lab.submit(io));
    assert_eq!((lab.forwarded().len(), lab.seen.prefetched.get()), (4, 0));
    (4..14).for_each(|io| lab.submit(io));
    assert_eq!((lab.forwarded().len(), lab.seen.prefetched.get()), (4, 10));
    assert_eq!(lab.channel.nr_parked(), 10);
    lab.pool.run_until_stalled();
    assert_eq!((lab.forwarded().len(), lab.channel.nr_parked()), (14, 0));
}

/// A reset is not mapped before what was submitted before it.
#[test]
fn a_reset_overtakes_nothing() {
    let lab = Lab::new();
    (0..14).for_each(|io| lab.submit(io));
    let reset = Request {
        kind: IoKind::Reset,
        offset_blocks: 14,
        nr_blocks: 0,
    };
    lab.channel.submit(&lab.volume, reset, 14);
    assert_eq!(lab.forwarded(), (0..15).collect::<Vec<_>>());
}

/// What a volume has parked counts from when it comes until it is answered, and what another has does not.
#[test]
fn parked_of_a_volume() {
    let mut lab = Lab::new();
    let other: VolumeHandle<Linear> = OnCore::new(Arc::default());
    let write = Request {
        kind: IoKind::Write,
        offset_blocks: 0,
        nr_blocks: 1,
    };
    lab.channel.submit(&lab.volume, write, 0);
    lab.channel.submit(&other, write, 1);
    let counts = |lab: &Lab| {
        let of = |volume: &VolumeHandle<Linear>| lab.channel.nr_parked_of(volume.volume());
        (of(&lab.volume), of(&other))
    };
    assert_eq!(counts(&lab), (1, 1));
    let ToOwner::Deferred(deferred) = lab.from_channel.try_recv().unwrap() else {
        panic!("a write comes to the owner");
    };
    let (report, _reports) = mpsc::unbounded();
    let send = |lab: &mut Lab, message| {
        let to_channel = lab.to_channel.as_ref().unwrap();
        to_channel.unbounded_send(message).unwrap();
        lab.pool.run_until_stalled();
    };
    let places = vec![(deferred.parked, 0)];
    send(&mut lab, ToChannel::Forward(BaseId(0), places, report));
    assert_eq!((lab.forwarded(), counts(&lab)), (vec![0], (1, 1)));
    let (io, ticket) = lab.seen.forwarded.borrow()[0];
    lab.channel.forwarded(io, ticket, Ok(()));
    assert_eq!(counts(&lab), (1, 1));
    let answer = (deferred.parked, Answer::Complete(Ok(())));
    send(&mut lab, ToChannel::Answers(vec![answer]));
    assert_eq!(counts(&lab), (0, 1));
    (2..12).for_each(|io| lab.submit(io));
    assert_eq!(counts(&lab), (lab.channel.nr_parked() - 1, 1));
    assert!(counts(&lab).0 > 0);
}
