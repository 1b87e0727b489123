//! An I/O or a part of one, in one word: what waits in tables by the thousand is to be small, and to stay in
//! registers on its way.

use crate::part::Part;
use crate::vbdev::BdevIo;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// An I/O that was submitted to one of our bdevs, or one of the parts it was divided into. Answered exactly once, as
/// [`BdevIo`] and [`Part`] are.
pub struct Io(NonNull<c_void>);

/// Which of both it is.
pub enum Which {
    /// As it was submitted.
    Whole(BdevIo),
    /// A part of it.
    Part(Box<Part>),
}

/// In the address of a part, which is aligned. That of an I/O is, too.
const PART: usize = 1;
const _: () = assert!(align_of::<Part>() > PART);

impl Io {
    #[inline(always)]
    fn is_part(&self) -> bool {
        self.0.as_ptr().addr() & PART != 0
    }

    fn part(&self) -> *mut Part {
        self.0.as_ptr().map_addr(|addr| addr & !PART).cast()
    }

    /// Which it is.
    #[inline(always)]
    pub fn which(self) -> Which {
        let io = ManuallyDrop::new(self);
        match io.is_part() {
            // SAFETY: it was made of one, and ends here.
            false => Which::Whole(unsafe { BdevIo::from_raw(io.0) }),
            // SAFETY: it was made of a box, and ends here.
            true => Which::Part(unsafe { Box::from_raw(io.part()) }),
        }
    }

    /// Fills its buffers with zeroes and answers.
    pub fn complete_zeroes(self) {
        match self.which() {
            Which::Whole(io) => io.complete_zeroes(),
            Which::Part(part) => part.complete_zeroes(),
        }
    }

    /// Answers: 0 is success, else a positive errno.
    #[inline]
    pub fn complete(self, errno: i32) {
        match self.which() {
            Which::Whole(io) => io.complete(errno),
            Which::Part(part) => part.complete(errno),
        }
    }

    /// Its first logical blocks, and the rest. Error: it has not more than `nr_blocks`.
    pub fn split(self, nr_blocks: u64) -> Result<(Io, Io), Io> {
        let mut part = match self.which() {
            Which::Whole(io) => Box::new(Part::all_of(io)),
            Which::Part(part) => part,
        };
        match part.split_off_head(nr_blocks) {
            Some(head) => Ok((Box::new(head).into(), part.into())),
            None => Err(part.into()),
        }
    }

    /// The [`BdevIo::id`] of what was submitted.
    pub fn id(&self) -> u64 {
        match self.is_part() {
            false => self.0.as_ptr().addr() as u64,
            // SAFETY: it was made of a box, which nobody else has.
            true => unsafe { (*self.part()).id() },
        }
    }
}

impl From<BdevIo> for Io {
    #[inline(always)]
    fn from(io: BdevIo) -> Self {
        Io(io.into_raw())
    }
}

impl From<Box<Part>> for Io {
    fn from(part: Box<Part>) -> Self {
        // A box is nowhere at 0.
        let part = NonNull::from(Box::leak(part));
        Io(part.cast().map_addr(|addr| addr | PART))
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        drop(Io(self.0).which());
    }
}
