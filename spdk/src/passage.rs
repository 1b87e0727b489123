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

/// Lets I/O pass.
pub struct Passage {
    /// Kinds of I/O, as a set of [`crate::base::IoKind::bit`].
    pub kinds: u32,
    /// Where it goes.
    pub base: BaseChannel,
    /// Where it is counted.
    pub in_flight: Rc<InFlight>,
    /// The driver is asked again when this is no longer that value; None: never.
    pub as_long_as: Option<(Arc<AtomicU64>, u64)>,
}

/// What a channel's passages point to.
#[derive(Default)]
pub(crate) struct Granted {
    now: RefCell<Option<Passage>>,
    /// Base channels I/O may be under way on.
    before: RefCell<Vec<(BaseChannel, Rc<InFlight>)>>,
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
                spdk_desc: passage.base.spdk_desc(),
                channel: passage.base.raw(),
                in_flight: Rc::as_ptr(&passage.in_flight),
            },
        };
        if let Some(old) = self.now.replace(passage) {
            let mut before = self.before.borrow_mut();
            let is_known = before.iter().any(|(base, in_flight)| {
                base.raw() == old.base.raw() && Rc::ptr_eq(in_flight, &old.in_flight)
            });
            if !is_known {
                before.push((old.base, old.in_flight));
            }
        }
        raw
    }
}
