//! I/O that needs no look: a driver lets kinds of it pass to the same blocks of a base bdev, and the shim
//! sends it there and answers it without asking the driver again.
//!
//! Such I/O is counted where the driver counts what it has in flight, so that it can wait for it all the same.

use crate::base::BaseChannel;
use crate::ffi;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// I/O in flight on a channel: the number of its epoch, and how many entered since that began. What enters
/// has twice that number as its ticket.
pub type InFlight = [Cell<u64>; 2];

/// The way to a base bdev for I/O that is counted while it is there.
#[derive(Clone)]
pub struct Way(Rc<WayInner>);

struct WayInner {
    raw: ffi::Way,
    /// What `raw` points to.
    base: BaseChannel,
    _in_flight: Rc<InFlight>,
}

impl Way {
    /// The way on which a channel leads, counted there.
    pub fn new(base: BaseChannel, in_flight: Rc<InFlight>) -> Way {
        let of_base = base.way();
        Way(Rc::new(WayInner {
            raw: ffi::Way {
                spdk_desc: of_base.spdk_desc,
                channel: of_base.channel,
                in_flight: Rc::as_ptr(&in_flight),
            },
            base,
            _in_flight: in_flight,
        }))
    }

    /// The base bdev's channel.
    pub fn base(&self) -> &BaseChannel {
        &self.0.base
    }

    /// To a block offset there.
    #[inline]
    pub fn at(&self, offset_blocks: u64) -> Course {
        Course(ffi::Course {
            way: self.raw(),
            offset_blocks,
        })
    }

    /// At the same address as long as there is a clone.
    #[inline]
    pub(crate) fn raw(&self) -> &ffi::Way {
        &self.0.raw
    }
}

/// Where an I/O goes.
pub struct Course(pub(crate) ffi::Course);

/// Lets I/O pass.
pub struct Passage {
    /// Kinds of I/O, as a set of [`crate::base::IoKind::bit`].
    pub kinds: u32,
    /// Where it goes, and is counted.
    pub way: Way,
    /// The driver is asked again when this is no longer that value; None: never.
    pub as_long_as: Option<(Arc<AtomicU64>, u64)>,
}

/// What a channel's passages point to.
#[derive(Default)]
pub(crate) struct Granted {
    now: RefCell<Option<Passage>>,
    /// Those I/O may be under way on.
    before: RefCell<Vec<Way>>,
}

impl Granted {
    /// Notes what passes from now on, and says it as the shim wants it.
    pub fn grant(&self, passage: Option<Passage>) -> ffi::Passage {
        let raw = match &passage {
            None => ffi::Passage::NONE,
            Some(passage) => ffi::Passage {
                kinds: passage.kinds,
                version: match &passage.as_long_as {
                    Some((version, _)) => Arc::as_ptr(version),
                    None => std::ptr::null(),
                },
                seen: match &passage.as_long_as {
                    Some((_, seen)) => *seen,
                    None => 0,
                },
                way: passage.way.raw(),
            },
        };
        if let Some(old) = self.now.replace(passage) {
            let mut before = self.before.borrow_mut();
            if !before.iter().any(|way| Rc::ptr_eq(&way.0, &old.way.0)) {
                before.push(old.way);
            }
        }
        raw
    }
}
