//! The I/Os a channel keeps while its owner deals with them, by a name that finds each at once.

use crate::errno::Errno;
use crate::target::Request;
use futures::channel::mpsc;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// Bits of a name that say where the I/O is.
const PLACE_BITS: u32 = 20;

/// Bits of a name in all: it travels in a [`Ticket`](crate::channel::Ticket) with a bit beside it.
const NAME_BITS: u32 = 63;

/// Names a parked I/O on its channel. A name comes again only after 2^43 others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parked(u64);

impl Parked {
    pub(crate) fn into_raw(self) -> u64 {
        self.0
    }

    pub(crate) fn from_raw(raw: u64) -> Self {
        Parked(raw)
    }

    fn place(self) -> usize {
        (self.0 & ((1 << PLACE_BITS) - 1)) as usize
    }
}

/// How the writes went that an owner has sent to places: which of them, and with what result.
pub(crate) type Forwarded = Vec<(usize, Result<(), Errno>)>;

/// Writes the owner has had sent to places together. Those that are back are told together, too.
pub(crate) struct Batch {
    finished: RefCell<Forwarded>,
    names: Vec<Parked>,
    report: mpsc::UnboundedSender<Forwarded>,
    queued: Cell<bool>,
}

impl Batch {
    pub fn new(names: Vec<Parked>, report: mpsc::UnboundedSender<Forwarded>) -> Rc<Self> {
        Rc::new(Batch {
            finished: RefCell::default(),
            names,
            report,
            queued: Cell::new(false),
        })
    }

    /// Notes a result. True: the caller is to call [`Batch::tell`] soon, once for this and what follows.
    #[must_use]
    pub fn finish(&self, at: usize, result: Result<(), Errno>) -> bool {
        self.finished.borrow_mut().push((at, result));
        !self.queued.replace(true)
    }

    /// Tells the owner what has finished. Error: it does not listen any more, so nothing will come of these.
    pub fn tell(&self) -> Result<(), Vec<Parked>> {
        self.queued.set(false);
        let told = self.report.unbounded_send(self.finished.take());
        told.map_err(|error| {
            let unheard = error.into_inner().into_iter();
            unheard
                .filter_map(|(at, _)| self.names.get(at).copied())
                .collect()
        })
    }
}

/// Where a parked I/O is.
pub(crate) enum Slot<V, I> {
    /// Not mapped yet, or waiting for the owner's verdict.
    Waiting(Arc<V>, Request, I),
    /// On its way to a base device at the owner's order: in what batch, where in it, in which epoch.
    Forwarding(Arc<V>, Rc<Batch>, usize, u64),
    /// Back from the base device, waiting for the owner to make it reachable.
    Returned(Arc<V>, I),
}

impl<V, I> Slot<V, I> {
    fn volume(&self) -> &Arc<V> {
        match self {
            Slot::Waiting(volume, ..)
            | Slot::Forwarding(volume, ..)
            | Slot::Returned(volume, _) => volume,
        }
    }
}

/// A channel's parked I/Os.
pub(crate) struct ParkedIos<V, I> {
    slots: RefCell<Slab<(Parked, Slot<V, I>)>>,
    parked_so_far: Cell<u64>,
}

impl<V, I> ParkedIos<V, I> {
    /// None.
    pub fn new() -> Self {
        ParkedIos {
            slots: RefCell::new(Slab::new()),
            parked_so_far: Cell::new(0),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    /// How many there are of a volume.
    pub fn len_of(&self, volume: &Arc<V>) -> usize {
        let slots = self.slots.borrow();
        let of_volume = |(_, slot): &&(Parked, Slot<V, I>)| Arc::ptr_eq(slot.volume(), volume);
        slots.iter().map(|(_, it)| it).filter(of_volume).count()
    }

    /// Adds one. Error: the I/O, when a name cannot hold where it is.
    pub fn park(&self, volume: &Arc<V>, request: Request, io: I) -> Result<Parked, I> {
        let mut slots = self.slots.borrow_mut();
        let place = slots.vacant_key();
        if place >> PLACE_BITS != 0 {
            return Err(io);
        }
        let number = self.parked_so_far.get();
        self.parked_so_far.set(number.wrapping_add(1));
        let name = (number << PLACE_BITS | place as u64) & ((1 << NAME_BITS) - 1);
        slots.insert((Parked(name), Slot::Waiting(volume.clone(), request, io)));
        Ok(Parked(name))
    }

    /// Takes one out, if it is there and as `is_so` asks.
    pub fn take_if(
        &self,
        name: Parked,
        is_so: impl FnOnce(&Slot<V, I>) -> bool,
    ) -> Option<Slot<V, I>> {
        let mut slots = self.slots.borrow_mut();
        let (there, slot) = slots.get(name.place())?;
        if *there != name || !is_so(slot) {
            return None;
        }
        Some(slots.remove(name.place()).1)
    }

    /// Replaces what is kept under a name by what `change` makes of it, which is None where it does not fit:
    /// then all stays as it is.
    pub fn exchange<R>(
        &self,
        name: Parked,
        change: impl FnOnce(&mut Slot<V, I>) -> Option<R>,
    ) -> Option<R> {
        let mut slots = self.slots.borrow_mut();
        let (there, slot) = slots.get_mut(name.place())?;
        match *there == name {
            true => change(slot),
            false => None,
        }
    }

    /// Those that wait and are meant.
    pub fn waiting(&self, is_it: impl Fn(&I) -> bool) -> Vec<Parked> {
        let slots = self.slots.borrow();
        let meant = slots.iter().filter_map(|(_, (name, slot))| match slot {
            Slot::Waiting(_, _, io) if is_it(io) => Some(*name),
            _ => None,
        });
        meant.collect()
    }

    /// Takes all, in the order in which they were parked.
    pub fn take_all(&self) -> Vec<Slot<V, I>> {
        let mut all: Vec<_> = self.slots.take().into_iter().map(|(_, it)| it).collect();
        all.sort_unstable_by_key(|(name, _)| name.0 >> PLACE_BITS);
        all.into_iter().map(|(_, slot)| slot).collect()
    }
}
