//! I/Os whose mappings are on their way from memory.
//!
//! A table of mappings larger than the core's caches costs a trip to memory for each I/O. On a channel with
//! several I/Os under way these trips are made together: an I/O is staged while its memory is fetched, and
//! the channel's task maps all that are staged as soon as the core gets to it, or when there are as many as
//! a core fetches at a time. Until then a staged I/O is as one not submitted yet: nothing counts it, and
//! it is mapped by what holds when it is mapped.

use crate::channel::VolumeHandle;
use crate::target::{IoKind, Request, Target};
use std::cell::RefCell;
use std::sync::Arc;
use std::task::Waker;

/// With fewer I/Os than this under way there is nothing to fetch together.
const FEWEST: u64 = 4;

/// Most I/Os staged.
const MOST: usize = 32;

/// A place for an I/O. What is in one is written and read field by field: a core waits for what it has written by
/// parts and reads as a whole.
struct Place<T: Target, I> {
    volume: Option<VolumeHandle<T>>,
    kind: IoKind,
    offset_blocks: u64,
    nr_blocks: u64,
    io: Option<I>,
}

impl<T: Target, I> Place<T, I> {
    fn empty() -> Self {
        Place {
            volume: None,
            kind: IoKind::Read,
            offset_blocks: 0,
            nr_blocks: 0,
            io: None,
        }
    }
}

/// Places, of which the first are taken.
struct Places<T: Target, I> {
    places: Box<[Place<T, I>]>,
    nr_taken: usize,
}

impl<T: Target, I> Places<T, I> {
    fn none() -> Self {
        Places {
            places: Box::default(),
            nr_taken: 0,
        }
    }

    fn new() -> Self {
        Places {
            places: (0..MOST).map(|_| Place::empty()).collect(),
            nr_taken: 0,
        }
    }

    fn take_last(&mut self) -> Option<I> {
        let last = self.nr_taken.checked_sub(1)?;
        self.nr_taken = last;
        let place = self.places.get_mut(last)?;
        place.volume.take();
        place.io.take()
    }

    fn taken(&self) -> &[Place<T, I>] {
        self.places.get(..self.nr_taken).unwrap_or_default()
    }
}

/// A channel's staged I/Os.
pub(crate) struct Stage<T: Target, I> {
    staged: RefCell<Places<T, I>>,
    /// Empty places to be swapped for the others.
    spare: RefCell<Places<T, I>>,
    /// Wakes the channel's task; None while that does not run.
    task: RefCell<Option<Waker>>,
}

impl<T: Target, I> Stage<T, I> {
    /// Empty.
    pub fn new() -> Self {
        Stage {
            staged: RefCell::new(Places::new()),
            spare: RefCell::new(Places::new()),
            task: RefCell::default(),
        }
    }

    /// How many are staged.
    pub fn len(&self) -> usize {
        self.staged.borrow().nr_taken
    }

    /// How many of a volume are staged.
    pub fn len_of(&self, volume: &Arc<T::Volume>) -> usize {
        let staged = self.staged.borrow();
        let of_volume = |place: &&Place<T, I>| {
            let on = place.volume.as_ref();
            on.is_some_and(|on| Arc::ptr_eq(on.volume(), volume))
        };
        staged.taken().iter().filter(of_volume).count()
    }

    /// From now on this task calls [`Stage::take_all`] when woken.
    pub fn is_served_by(&self, task: &Waker) {
        let mut known = self.task.borrow_mut();
        if known.is_none() {
            *known = Some(task.clone());
        }
    }

    /// Wakes the task. False: there is none.
    pub fn wake(&self) -> bool {
        match &*self.task.borrow() {
            Some(task) => {
                task.wake_by_ref();
                true
            }
            None => false,
        }
    }

    /// No task does any more.
    pub fn is_not_served(&self) {
        self.task.take();
    }

    /// Whether staging pays, with so many I/Os under way.
    #[inline]
    pub fn pays(&self, in_flight: u64) -> bool {
        in_flight + self.len() as u64 >= FEWEST
    }

    /// Stages an I/O. True: the caller is to call [`Stage::take_all`] at once. Error: there is no place; the
    /// caller is to do the same, and to map this one then.
    #[inline]
    pub fn push(&self, volume: &VolumeHandle<T>, request: Request, io: I) -> Result<bool, I> {
        let nr_staged = {
            let mut staged = self.staged.borrow_mut();
            let at = staged.nr_taken;
            let Some(place) = staged.places.get_mut(at) else {
                return Err(io);
            };
            place.volume = Some(volume.clone());
            place.kind = request.kind;
            place.offset_blocks = request.offset_blocks;
            place.nr_blocks = request.nr_blocks;
            place.io = Some(io);
            staged.nr_taken = at + 1;
            at + 1
        };
        Ok(match nr_staged {
            1 => !self.wake(),
            many => many >= MOST,
        })
    }

    /// Hands out what is staged now, in order. What is staged meanwhile waits for the next call, for
    /// which the task is woken.
    #[inline]
    pub fn take_all(&self, mut map: impl FnMut(&VolumeHandle<T>, Request, I)) {
        let spare = self.spare.replace(Places::none());
        let mut staged = self.staged.replace(spare);
        let nr_taken = std::mem::take(&mut staged.nr_taken);
        for place in staged.places.iter_mut().take(nr_taken) {
            if let (Some(volume), Some(io)) = (place.volume.take(), place.io.take()) {
                let request = Request {
                    kind: place.kind,
                    offset_blocks: place.offset_blocks,
                    nr_blocks: place.nr_blocks,
                };
                map(&volume, request, io);
            }
        }
        // Where what was mapped has staged so much that it was mapped, too, the spare places are in use.
        let used = match self.staged.borrow().places.is_empty() {
            true => &self.staged,
            false => &self.spare,
        };
        used.replace(staged);
    }

    /// Takes back the staged I/O that `is_it` picks.
    pub fn remove(&self, is_it: impl Fn(&I) -> bool) -> Option<I> {
        let mut staged = self.staged.borrow_mut();
        let is_it = |place: &Place<T, I>| place.io.as_ref().is_some_and(&is_it);
        let at = staged.taken().iter().position(is_it)?;
        // In order, those behind it move up.
        let nr_taken = staged.nr_taken;
        staged.places.get_mut(at..nr_taken)?.rotate_left(1);
        staged.take_last()
    }
}
