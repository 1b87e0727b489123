//! What a failed flush of an image may lose, of what is in it and not durable: pages of the BAT, and the data of
//! new clusters that the BAT does not name yet.
//!
//! A device tells of a failed flush once. The pages are to be written again, and the new clusters are not used:
//! the flush before the BAT names them would say nothing.

use super::image::Page;
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Of one image.
#[derive(Default)]
pub(super) struct Unsettled {
    /// Flushes that have failed.
    nr_errors: Cell<u64>,
    nr_writes: Cell<u64>,
    /// Pages written and not flushed since, with the number of the write.
    pages: RefCell<BTreeMap<u64, (u64, Rc<Page>)>>,
    /// First sectors of clusters taken and not named by the BAT, and the errors there had been.
    new: RefCell<FxHashMap<u64, u64>>,
}

impl Unsettled {
    /// Flushes that have failed until now.
    pub fn nr_errors(&self) -> u64 {
        self.nr_errors.get()
    }

    /// Whether a flush that fails loses nothing of this.
    pub fn is_empty(&self) -> bool {
        self.pages.borrow().is_empty() && self.new.borrow().is_empty()
    }

    /// A page has been written.
    pub fn note_page(&self, page: u64, bytes: Rc<Page>) {
        let number = self.nr_writes.get() + 1;
        self.nr_writes.set(number);
        self.pages.borrow_mut().insert(page, (number, bytes));
    }

    /// A flush begins: what was written until now, for [`Unsettled::note_flushed`].
    pub fn flush_begins(&self) -> u64 {
        self.nr_writes.get()
    }

    /// A flush has ended well.
    pub fn note_flushed(&self, until: u64) {
        let mut pages = self.pages.borrow_mut();
        pages.retain(|_, (number, _)| *number > until);
    }

    /// A flush has failed: the pages that may be lost.
    pub fn note_failed(&self) -> impl Iterator<Item = (u64, Rc<Page>)> + use<> {
        self.nr_errors.set(self.nr_errors.get() + 1);
        let pages = self.pages.take().into_iter();
        pages.map(|(page, (_, bytes))| (page, bytes))
    }

    /// A cluster is taken.
    pub fn begin(&self, place: u64) {
        self.new.borrow_mut().insert(place, self.nr_errors.get());
    }

    /// Whether what was written to a new cluster may be lost.
    pub fn is_lost(&self, place: u64) -> bool {
        let begun = self.new.borrow().get(&place).copied();
        begun.is_some_and(|errors| errors != self.nr_errors.get())
    }

    /// The BAT names the cluster, or nobody will.
    pub fn end(&self, place: u64) {
        self.new.borrow_mut().remove(&place);
    }
}
