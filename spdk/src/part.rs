//! Parts of an I/O, where its blocks go to different places.
//!
//! The I/O is answered when all its parts are, with the error of one that has failed. Relies on the bdev being
//! registered with the boundaries it is divided at (`divides_at_blocks`).
//!
//! A large I/O has many parts. Only some are under way at a time on a channel of a base bdev: they would fill its queue
//! for everybody else, and SPDK v20.07 does not always recover when that of an AIO bdev is full.

use crate::base::BaseChannel;
use crate::ffi;
use crate::vbdev::BdevIo;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::rc::Rc;

const EIO: i32 = 5;

struct Whole {
    io: RefCell<Option<BdevIo>>,
    errno: Cell<i32>,
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some(io) = self.io.take() {
            io.complete(self.errno.get());
        }
    }
}

/// Most parts under way on a channel of a base bdev.
const MOST: usize = 64;

/// What the channel does next with its parts.
type Next = Box<dyn FnOnce()>;

/// The parts of a channel of a base bdev. Each has its own limit: the base bdev may be one of ours, and its parts are
/// waited for by those here.
#[derive(Default)]
pub(crate) struct Parts {
    under_way: Cell<usize>,
    /// What waits is being sent.
    sending: Cell<bool>,
    waiting: RefCell<VecDeque<Next>>,
}

impl Parts {
    fn has_room(&self) -> bool {
        self.under_way.get() < MOST
    }

    /// Sends what waits, as far as there is room.
    fn send_waiting(&self) {
        // One that fails at once ends here again: not deeper and deeper.
        if self.waiting.borrow().is_empty() || self.sending.replace(true) {
            return;
        }
        while self.has_room() {
            let next = self.waiting.borrow_mut().pop_front();
            match next {
                Some(next) => next(),
                None => break,
            }
        }
        self.sending.set(false);
    }
}

/// Some blocks of an I/O. Dropped without an answer, it has failed.
pub struct Part {
    whole: Rc<Whole>,
    first_block: u64,
    nr_blocks: u64,
    answered: bool,
}

/// A part under way.
struct Pending<F> {
    part: Box<Part>,
    done: F,
    /// Kept alive, and its descriptor.
    channel: BaseChannel,
}

unsafe extern "C" fn part_done<F: FnOnce(Box<Part>, bool)>(ctx: *mut c_void, ok: bool) {
    // SAFETY: `ctx` comes from Box::into_raw in `forward` and is used once.
    let pending = unsafe { Box::from_raw(ctx.cast::<Pending<F>>()) };
    let Pending {
        part,
        done,
        channel,
    } = *pending;
    let parts = channel.parts();
    parts.under_way.set(parts.under_way.get().saturating_sub(1));
    done(part, ok);
    parts.send_waiting();
}

impl Part {
    /// All of an I/O.
    pub fn all_of(io: BdevIo) -> Part {
        let nr_blocks = io.nr_blocks();
        let whole = Whole {
            io: RefCell::new(Some(io)),
            errno: Cell::new(0),
        };
        Part::new(Rc::new(whole), 0, nr_blocks)
    }

    fn new(whole: Rc<Whole>, first_block: u64, nr_blocks: u64) -> Part {
        Part {
            whole,
            first_block,
            nr_blocks,
            answered: false,
        }
    }

    /// Takes its first blocks away from it. None: it has not more than `nr_blocks`.
    pub fn split_off_head(&mut self, nr_blocks: u64) -> Option<Part> {
        if nr_blocks == 0 || nr_blocks >= self.nr_blocks {
            return None;
        }
        let head = Part::new(self.whole.clone(), self.first_block, nr_blocks);
        self.first_block += nr_blocks;
        self.nr_blocks -= nr_blocks;
        Some(head)
    }

    /// The [`BdevIo::id`] of the I/O it is a part of.
    pub fn id(&self) -> u64 {
        // It is there until its parts are answered.
        self.whole.io.borrow().as_ref().map_or(0, BdevIo::id)
    }

    /// Fills its buffers with zeroes and answers.
    pub fn complete_zeroes(self) {
        let raw = self.whole.io.borrow().as_ref().map(BdevIo::raw);
        let zeroed = raw.is_some_and(|raw| {
            // SAFETY: the I/O is not answered while one of its parts is not.
            unsafe { ffi::sdm_io_zero_part(raw, self.first_block, self.nr_blocks) }
        });
        self.complete(if zeroed { 0 } else { EIO });
    }

    /// Sends it to a base bdev at a block offset; `done` is called with it afterwards.
    pub fn forward<F: FnOnce(Box<Part>, bool) + 'static>(
        self: Box<Self>,
        channel: &BaseChannel,
        offset_blocks: u64,
        done: F,
    ) {
        let (parts, owned) = (channel.parts(), channel.clone());
        if parts.has_room() && parts.waiting.borrow().is_empty() {
            return self.forward_now(owned, offset_blocks, done);
        }
        let next: Next = Box::new(move || self.forward_now(owned, offset_blocks, done));
        parts.waiting.borrow_mut().push_back(next);
    }

    fn forward_now<F: FnOnce(Box<Part>, bool) + 'static>(
        self: Box<Self>,
        channel: BaseChannel,
        offset_blocks: u64,
        done: F,
    ) {
        let raw = self.whole.io.borrow().as_ref().map(BdevIo::raw);
        let Some(raw) = raw else {
            return done(self, false);
        };
        let (first_block, nr_blocks) = (self.first_block, self.nr_blocks);
        let (raw_desc, raw_channel) = (channel.descriptor().raw(), channel.raw());
        let under_way = &channel.parts().under_way;
        under_way.set(under_way.get() + 1);
        let pending = Box::new(Pending {
            part: self,
            done,
            channel,
        });
        // SAFETY: the I/O is not answered while one of its parts is not; channel and descriptor live until
        // `part_done`, which is called once.
        unsafe {
            ffi::sdm_io_forward_part(
                raw,
                first_block,
                nr_blocks,
                raw_desc,
                raw_channel,
                offset_blocks,
                part_done::<F>,
                Box::into_raw(pending).cast(),
            );
        }
    }

    /// Answers: 0 is success, else a positive errno.
    pub fn complete(mut self, errno: i32) {
        self.answered = true;
        if errno != 0 {
            self.whole.errno.set(errno);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.answered {
            self.whole.errno.set(EIO);
        }
    }
}
