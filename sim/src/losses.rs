//! Writes that a disk has lost because a flush failed: until somebody has been told.
//!
//! A write that was answered and not flushed may be old or new after that. But a guest's flush that ends well
//! promises that it is there, unless a guest's flush has been answered with the error before, or one that was under
//! way then still may be.

use crate::history::Moment;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// A failed flush of a disk that has lost something.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loss {
    told: Cell<Option<Moment>>,
    /// Guests' flushes that were under way, by the moment they began: each may be answered with the error.
    may_tell: RefCell<BTreeSet<Moment>>,
}

impl Loss {
    /// Whether a flush that ends well now does not vouch for what was lost.
    pub fn is_excused(&self) -> bool {
        self.told.get().is_some() || !self.may_tell.borrow().is_empty()
    }
}

/// The losses of a life, and the guests' flushes under way.
#[derive(Debug, Default)]
pub struct Losses {
    all: RefCell<Vec<Rc<Loss>>>,
    flushes: RefCell<BTreeSet<Moment>>,
}

impl Losses {
    /// A disk has lost something.
    pub fn add(&self) -> Rc<Loss> {
        let loss = Rc::new(Loss {
            told: Cell::new(None),
            may_tell: self.flushes.clone(),
        });
        self.all.borrow_mut().push(loss.clone());
        loss
    }

    /// A guest flushes.
    pub fn flush_begins(&self, began: Moment) {
        self.flushes.borrow_mut().insert(began);
    }

    /// It is answered now, well or not.
    pub fn flush_ends(&self, began: Moment, ok: bool, now: Moment) {
        self.flushes.borrow_mut().remove(&began);
        for loss in self.all.borrow().iter() {
            loss.may_tell.borrow_mut().remove(&began);
            if !ok && loss.told.get().is_none() {
                loss.told.set(Some(now));
            }
        }
    }

    /// Whether something was lost in this life.
    pub fn has_any(&self) -> bool {
        !self.all.borrow().is_empty()
    }

    /// Whether at this moment, or later, something was lost and nobody had been told.
    pub fn is_untold_since(&self, began: Moment) -> bool {
        let untold = |loss: &Rc<Loss>| loss.told.get().is_none_or(|told| told > began);
        self.all.borrow().iter().any(untold)
    }

    /// Power fails: nobody can be told any more.
    pub fn forget(&self) {
        self.all.take();
        self.flushes.take();
    }
}
