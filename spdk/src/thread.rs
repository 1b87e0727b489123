//! SPDK threads: identity, messages, and values that belong to one of them.

use crate::ffi;
use std::ffi::c_void;

/// An SPDK thread. Outlives every object this crate makes on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread(*mut c_void);

// SAFETY: the handle is an address that is only compared and handed to spdk_thread_send_msg, which
// may be called from anywhere.
unsafe impl Send for Thread {}
// SAFETY: as above.
unsafe impl Sync for Thread {}

impl Thread {
    /// The SPDK thread that is running, if any.
    pub fn current() -> Option<Thread> {
        // SAFETY: no preconditions.
        let thread = unsafe { ffi::sdm_thread_current() };
        (!thread.is_null()).then_some(Thread(thread))
    }

    /// The thread on which bdevs are registered and RPCs arrive; known after the module's init.
    pub fn app() -> Option<Thread> {
        // SAFETY: no preconditions.
        let thread = unsafe { ffi::sdm_thread_app() };
        (!thread.is_null()).then_some(Thread(thread))
    }

    /// Whether this is the running thread.
    pub fn is_current(self) -> bool {
        Thread::current() == Some(self)
    }

    /// Runs `f` on the thread, later. If the thread has no room for messages `f` is dropped.
    pub fn send(self, f: impl FnOnce() + Send + 'static) {
        type Boxed = Box<dyn FnOnce() + Send>;
        unsafe extern "C" fn run(ctx: *mut c_void) {
            // SAFETY: `ctx` comes from Box::into_raw below and is used once.
            let f = unsafe { Box::from_raw(ctx.cast::<Boxed>()) };
            f();
        }
        let f: Boxed = Box::new(f);
        let ctx = Box::into_raw(Box::new(f)).cast();
        // SAFETY: SPDK calls `run` once with `ctx`, or says that it will not.
        if unsafe { ffi::sdm_thread_send(self.0, run, ctx) } != 0 {
            // SAFETY: the message was refused, so the box is still ours.
            drop(unsafe { Box::from_raw(ctx.cast::<Boxed>()) });
            log::error!("SPDK thread takes no more messages");
        }
    }

    /// A thread in the shim's hands. Not null, and not used after it has ended.
    #[cfg(feature = "app")]
    pub(crate) fn from_raw(raw: *mut c_void) -> Self {
        Thread(raw)
    }

    pub(crate) fn raw(self) -> *mut c_void {
        self.0
    }
}

/// Starts an ordinary thread for work that blocks. It runs on any core, not on that of the SPDK thread
/// that starts it, to which it would otherwise be bound too.
pub fn spawn_blocking(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread
        .spawn(move || {
            // SAFETY: no preconditions; changes the affinity of the calling thread only.
            unsafe { ffi::spdk_unaffinitize_thread() };
            work();
        })
        .map(drop)
}

/// A value that may be touched only on the SPDK thread it was made on.
pub struct ThreadBound<T> {
    thread: Thread,
    value: std::mem::ManuallyDrop<T>,
}

// SAFETY: every access checks that it happens on the owning thread; SPDK runs a thread on one core
// at a time, with the necessary barriers when it moves.
unsafe impl<T> Send for ThreadBound<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for ThreadBound<T> {}

impl<T> ThreadBound<T> {
    /// Binds a value to the running SPDK thread; None outside of any.
    pub fn new(value: T) -> Option<Self> {
        Some(ThreadBound {
            thread: Thread::current()?,
            value: std::mem::ManuallyDrop::new(value),
        })
    }

    /// The value, on its thread.
    pub fn get(&self) -> Option<&T> {
        self.thread.is_current().then_some(&*self.value)
    }
}

impl<T> Drop for ThreadBound<T> {
    fn drop(&mut self) {
        // Elsewhere it is leaked: dropping there would break the promise.
        if self.thread.is_current() {
            // SAFETY: dropped once, and not used afterwards.
            unsafe { std::mem::ManuallyDrop::drop(&mut self.value) };
        }
    }
}
