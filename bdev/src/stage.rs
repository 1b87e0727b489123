//! I/Os whose mappings are on their way from memory.
//!
//! A table of mappings larger than the core's caches costs a trip to memory for each I/O. On a channel with
//! several I/Os under way these trips are made together: an I/O is staged while its memory is fetched, and
//! the channel's task maps all that are staged as soon as the core gets to it, or when there are as many as
//! a core fetches at a time. Until then a staged I/O is as one not submitted yet: nothing counts it, and
//! it is mapped by what holds when it is mapped.

use crate::channel::VolumeHandle;
use crate::target::{Request, Target};
use std::cell::RefCell;
use std::sync::Arc;
use std::task::Waker;

/// With fewer I/Os than this under way there is nothing to fetch together.
const FEWEST: u64 = 4;

/// Most I/Os staged.
const MOST: usize = 32;

struct Staged<T: Target, I> {
    volume: VolumeHandle<T>,
    request: Request,
    io: I,
}

/// A channel's staged I/Os.
pub(crate) struct Stage<T: Target, I> {
    staged: RefCell<Vec<Staged<T, I>>>,
    /// An empty list with room, to be swapped for the other.
    spare: RefCell<Vec<Staged<T, I>>>,
    /// Wakes the channel's task; None while that does not run.
    task: RefCell<Option<Waker>>,
}

impl<T: Target, I> Stage<T, I> {
    /// Empty.
    pub fn new() -> Self {
        Stage {
            staged: RefCell::new(Vec::with_capacity(MOST)),
            spare: RefCell::new(Vec::with_capacity(MOST)),
            task: RefCell::default(),
        }
    }

    /// How many are staged.
    pub fn len(&self) -> usize {
        self.staged.borrow().len()
    }

    /// How many of a volume are staged.
    pub fn len_of(&self, volume: &Arc<T::Volume>) -> usize {
        let staged = self.staged.borrow();
        let of_volume = |staged: &&Staged<T, I>| Arc::ptr_eq(&staged.volume, volume);
        staged.iter().filter(of_volume).count()
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

    /// Stages an I/O. True: the caller is to call [`Stage::take_all`] at once.
    #[inline]
    #[must_use]
    pub fn push(&self, volume: &VolumeHandle<T>, request: Request, io: I) -> bool {
        let nr_staged = {
            let mut staged = self.staged.borrow_mut();
            staged.push(Staged {
                volume: volume.clone(),
                request,
                io,
            });
            staged.len()
        };
        match nr_staged {
            1 => !self.wake(),
            many => many >= MOST,
        }
    }

    /// Hands out what is staged now, in order. What is staged meanwhile waits for the next call, for
    /// which the task is woken.
    #[inline]
    pub fn take_all(&self, mut map: impl FnMut(&VolumeHandle<T>, Request, I)) {
        let mut staged = self.staged.replace(self.spare.take());
        for Staged {
            volume,
            request,
            io,
        } in staged.drain(..)
        {
            map(&volume, request, io);
        }
        self.spare.replace(staged);
    }

    /// Takes back the staged I/O that `is_it` picks.
    pub fn remove(&self, is_it: impl Fn(&I) -> bool) -> Option<I> {
        let mut staged = self.staged.borrow_mut();
        let at = staged.iter().position(|staged| is_it(&staged.io))?;
        Some(staged.remove(at).io)
    }
}
