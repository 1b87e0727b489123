//! An I/O that a target splits is mapped part by part, and aborted as a whole.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::channel::{Channel, ChannelId, Host, OnCore, Ticket, ToChannel, ToOwner};
use bdev::errno::Errno;
use bdev::target::{BaseId, IoKind, Map, Request, Target};
use futures::channel::mpsc;
use futures::executor::LocalPool;
use futures::task::LocalSpawnExt;
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Logical blocks per block of the target.
const PER: u64 = 8;

/// Splits at every block; odd blocks are the owner's business, even ones are where they are.
struct Striped;

impl Target for Striped {
    type Volume = ();
    type Local = ();

    fn map(_: &Arc<()>, (): &(), request: &Request) -> Map {
        let first = request.offset_blocks;
        let here = (first / PER)
            .is_multiple_of(2)
            .then_some((BaseId(0), first));
        let nr_blocks = PER - first % PER;
        match here {
            goes if nr_blocks < request.nr_blocks => Map::Split { nr_blocks, goes },
            Some((base, block)) => Map::Remap { base, block },
            None => Map::Defer,
        }
    }
}

/// A part of I/O `id`: first block and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Io {
    id: u64,
    first: u64,
    nr: u64,
}

#[derive(Default)]
struct Seen {
    forwarded: RefCell<Vec<(Io, u64)>>,
    completed: RefCell<Vec<(Io, Result<(), Errno>)>>,
}

struct Recorder(Rc<Seen>);

impl Host for Recorder {
    type Io = Io;

    fn forward(&self, io: Io, _: BaseId, block: u64, _: Ticket) {
        self.0.forwarded.borrow_mut().push((io, block));
    }

    fn forward_head(&self, _: Io, _: BaseId, _: u64, _: u64, _: Ticket) {
        panic!("no read has a head");
    }

    fn complete_zeroes(&self, _: Io) {
        panic!("nothing is a hole");
    }

    fn complete(&self, io: Io, result: Result<(), Errno>) {
        self.0.completed.borrow_mut().push((io, result));
    }

    fn split(&self, io: Io, nr: u64) -> Result<(Io, Io), Io> {
        let Io { id, first, nr: all } = io;
        let tail = Io {
            id,
            first: first + nr,
            nr: all - nr,
        };
        Ok((Io { id, first, nr }, tail))
    }

    fn id(&self, io: &Io) -> u64 {
        io.id
    }
}

proptest! {
    /// The parts are the I/O, each is in one block and goes to its place or to the owner. An abort ends those that
    /// wait there, and no others: of this I/O or of another.
    #[test]
    fn parts_are_sent_or_aborted(first in 0..40u64, nr in 1..60u64) {
        let seen = Rc::new(Seen::default());
        let (to_owner, mut asked) = mpsc::unbounded();
        let (channel, messages) = Channel::<Striped, Recorder>::new(ChannelId(0), Recorder(seen.clone()), to_owner);
        let Ok(ToOwner::Join(_, to_channel)) = asked.try_recv() else { panic!("no join") };
        let mut tasks = LocalPool::new();
        tasks.spawner().spawn_local(channel.clone().run(messages)).unwrap();
        to_channel.unbounded_send(ToChannel::Joined).unwrap();
        tasks.run_until_stalled();

        let volume = OnCore::new(Arc::new(()));
        let submit = |id| {
            let request = Request { kind: IoKind::Write, offset_blocks: first, nr_blocks: nr };
            channel.submit(&volume, request, Io { id, first, nr });
        };
        submit(1);
        submit(2);
        let deferred = channel.nr_parked();
        prop_assert_eq!(deferred % 2, 0);
        prop_assert_eq!(channel.abort(2), deferred > 0);
        prop_assert!(!channel.abort(2));
        prop_assert!(!channel.abort(3));
        prop_assert_eq!(channel.nr_parked(), deferred / 2);
        prop_assert_eq!(channel.abort(1), deferred > 0);

        for id in [1, 2] {
            let mut parts = Vec::new();
            for (io, block) in seen.forwarded.borrow().iter().filter(|(io, _)| io.id == id) {
                prop_assert_eq!(io.first, *block);
                prop_assert_eq!(io.first / PER % 2, 0);
                parts.push(*io);
            }
            for (io, result) in seen.completed.borrow().iter().filter(|(io, _)| io.id == id) {
                prop_assert_eq!(*result, Err(Errno::ECANCELED));
                prop_assert_eq!(io.first / PER % 2, 1);
                parts.push(*io);
            }
            parts.sort_unstable_by_key(|io| io.first);
            let mut next = first;
            for io in parts {
                prop_assert_eq!(io.first, next);
                prop_assert_eq!(io.first / PER, (io.first + io.nr - 1) / PER);
                next += io.nr;
            }
            prop_assert_eq!(next, first + nr);
        }
    }
}
