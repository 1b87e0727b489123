//! I/O as a target's channel sends it: whole, which the shim brings back, or parts, which go to base bdevs and come
//! back to the engine without the shim's knowing of them.

use bdev::channel::{Channel, Host, Ticket};
use bdev::errno::Errno;
use bdev::target::Target;
use spdk::io::{Io, Which};
use spdk::part::Part;
use spdk::passage::Way;
use std::cell::OnceCell;
use std::rc::{Rc, Weak};

/// The engine that a host's I/O comes back to.
pub struct Engine<T: Target, H: Host>(OnceCell<Weak<Channel<T, H>>>);

impl<T: Target, H: Host> Default for Engine<T, H> {
    fn default() -> Self {
        Engine(OnceCell::new())
    }
}

impl<T: Target, H: Host<Io = Io>> Engine<T, H> {
    /// It is this one, of which the host is a part.
    pub fn is(&self, engine: &Rc<Channel<T, H>>) {
        // It is told once.
        let _ = self.0.set(Rc::downgrade(engine));
    }

    /// Sends an I/O to a base bdev.
    #[inline]
    pub fn send(&self, io: Io, way: &Way, block: u64, ticket: Ticket) {
        match io.which() {
            Which::Whole(io) => io.forward_counted(way, block, ticket.into_raw()),
            Which::Part(part) => self.send_part(part, way, block, ticket),
        }
    }

    #[inline(never)]
    fn send_part(&self, part: Box<Part>, way: &Way, block: u64, ticket: Ticket) {
        let engine = self.0.get().cloned();
        part.forward(way.base(), block, move |part, ok| {
            let result = if ok { Ok(()) } else { Err(Errno::EIO) };
            match engine.and_then(|engine| engine.upgrade()) {
                Some(engine) => engine.forwarded(part.into(), ticket, result),
                // Not while I/O is under way on it.
                None => part.complete(Errno::ENODEV.0),
            }
        });
    }

    /// An I/O comes back without having been sent.
    #[cold]
    pub fn fail(&self, io: Io, ticket: Ticket) {
        match self.0.get().and_then(Weak::upgrade) {
            Some(engine) => engine.forwarded(io, ticket, Err(Errno::EIO)),
            None => io.complete(Errno::ENODEV.0),
        }
    }
}

/// A host that carries parts.
pub trait Carries<T: Target>: Host<Io = Io> + Sized {
    /// Where they come back to.
    fn engine(&self) -> &Engine<T, Self>;
}
