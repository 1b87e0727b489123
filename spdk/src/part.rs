//! Parts of an I/O, where its blocks go to different places.
//!
//! The I/O is answered when all its parts are, with the error of one that has failed. Relies on the bdev
//! being registered with `buffers_first`.
//!
//! A large I/O has many parts. Only some are under way at a time on a thread: they would fill the queue of a
//! base bdev for everybody else, and SPDK v20.07 does not always recover when that of an AIO bdev is full.

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

/// Most parts under way on a thread.
const MOST: usize = 64;

/// What the thread does next with its parts.
type Next = Box<dyn FnOnce()>;

thread_local! {
    static NEXT_ID: Cell<u64> = const { Cell::new(0) };
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
    static SENDING: Cell<bool> = const { Cell::new(false) };
    static WAITING: RefCell<VecDeque<Next>> = const { RefCell::new(VecDeque::new()) };
}

/// No I/O's own identity, which is an address, has this bit.
const PART_ID: u64 = 1 << 63;

/// Some blocks of an I/O. Dropped without an answer, it has failed.
pub struct Part {
    whole: Rc<Whole>,
    first_block: u64,
    nr_blocks: u64,
    id: u64,
    answered: bool,
}

/// A part under way.
struct Pending<F> {
    part: Part,
    done: F,
    /// Keeps channel and descriptor alive.
    _channel: BaseChannel,
}

unsafe extern "C" fn part_done<F: FnOnce(Part, bool)>(ctx: *mut c_void, ok: bool) {
    // SAFETY: `ctx` comes from Box::into_raw in `forward` and is used once.
    let pending = unsafe { Box::from_raw(ctx.cast::<Pending<F>>()) };
    let Pending { part, done, .. } = *pending;
    UNDER_WAY.set(UNDER_WAY.get().saturating_sub(1));
    done(part, ok);
    // One that fails at once ends here again: not deeper and deeper.
    if SENDING.replace(true) {
        return;
    }
    while UNDER_WAY.get() < MOST {
        let Some(next) = WAITING.with_borrow_mut(VecDeque::pop_front) else {
            break;
        };
        next();
    }
    SENDING.set(false);
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
        let id = NEXT_ID.get();
        NEXT_ID.set(id.wrapping_add(1));
        Part {
            whole,
            first_block,
            nr_blocks,
            id: id | PART_ID,
            answered: false,
        }
    }

    /// Its first blocks, and the rest. Error: it has not more than `nr_blocks`.
    pub fn split(mut self, nr_blocks: u64) -> Result<(Part, Part), Part> {
        if nr_blocks == 0 || nr_blocks >= self.nr_blocks {
            return Err(self);
        }
        let tail = Part::new(
            self.whole.clone(),
            self.first_block + nr_blocks,
            self.nr_blocks - nr_blocks,
        );
        self.nr_blocks = nr_blocks;
        Ok((self, tail))
    }

    /// Distinguishes it from every other part and every whole I/O under way on this thread.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Sends it to a base bdev at a block offset; `done` is called with it afterwards.
    pub fn forward<F: FnOnce(Part, bool) + 'static>(
        self,
        channel: &BaseChannel,
        offset_blocks: u64,
        done: F,
    ) {
        let channel = channel.clone();
        let waits = UNDER_WAY.get() >= MOST || WAITING.with_borrow(|waiting| !waiting.is_empty());
        if waits {
            let next: Next = Box::new(move || self.forward_now(channel, offset_blocks, done));
            return WAITING.with_borrow_mut(|waiting| waiting.push_back(next));
        }
        self.forward_now(channel, offset_blocks, done);
    }

    fn forward_now<F: FnOnce(Part, bool) + 'static>(
        self,
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
        let pending = Box::new(Pending {
            part: self,
            done,
            _channel: channel,
        });
        UNDER_WAY.set(UNDER_WAY.get() + 1);
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
