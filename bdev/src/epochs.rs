//! A channel's count of the I/O it has in flight, in epochs: closing one tells when all that was mapped
//! before is over (a *barrier*), and costs the hot path one increment and one decrement of core-local memory.

use futures::channel::oneshot;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// An epoch that was closed with I/O in flight.
struct Closed {
    number: u64,
    in_flight: u64,
    done: oneshot::Sender<()>,
}

/// The number of the running epoch, and how many I/Os that entered in it are in flight.
pub type InFlight = [Cell<u64>; 2];

/// The epochs of a channel.
pub(crate) struct Epochs {
    now: Rc<InFlight>,
    /// With I/O still in flight, oldest first.
    closed: RefCell<VecDeque<Closed>>,
}

impl Epochs {
    /// Counting there.
    pub fn new(now: Rc<InFlight>) -> Self {
        Epochs {
            now,
            closed: RefCell::default(),
        }
    }

    #[inline]
    fn number(&self) -> &Cell<u64> {
        let [number, _] = &*self.now;
        number
    }

    #[inline]
    fn count(&self) -> &Cell<u64> {
        let [_, count] = &*self.now;
        count
    }

    /// Counts an I/O as in flight. Returns the number to leave with.
    #[inline]
    pub fn enter(&self) -> u64 {
        self.count().set(self.count().get() + 1);
        self.number().get()
    }

    /// An I/O is back that had entered with this number.
    #[inline]
    pub fn leave(&self, number: u64) {
        if number == self.number().get() {
            self.count().set(self.count().get() - 1);
        } else {
            self.leave_closed(number);
        }
    }

    /// I/O in flight that entered since an epoch was last closed.
    #[inline]
    pub fn in_flight_now(&self) -> u64 {
        self.count().get()
    }

    /// All I/O in flight.
    pub fn in_flight(&self) -> u64 {
        let closed = self.closed.borrow();
        self.count().get() + closed.iter().map(|epoch| epoch.in_flight).sum::<u64>()
    }

    /// Closes the epoch; `done` is told when all I/O that has entered so far has left.
    pub fn close(&self, done: oneshot::Sender<()>) {
        let number = self.number().get();
        self.closed.borrow_mut().push_back(Closed {
            number,
            in_flight: self.count().replace(0),
            done,
        });
        self.number().set(number + 1);
        self.finish();
    }

    #[cold]
    fn leave_closed(&self, number: u64) {
        let mut closed = self.closed.borrow_mut();
        if let Some(epoch) = closed.iter_mut().find(|epoch| epoch.number == number) {
            epoch.in_flight -= 1;
        }
        drop(closed);
        self.finish();
    }

    /// A barrier is passed when its epoch and all older ones are empty.
    fn finish(&self) {
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
}
