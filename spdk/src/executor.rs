//! Futures on SPDK threads: a message of the thread is a poll of a task.
//!
//! A task stays on the SPDK thread it was spawned on. Wakers may be used anywhere.

use crate::ffi;
use crate::thread::Thread;
use async_task::Runnable;
use futures::channel::oneshot;
use std::ffi::{c_int, c_void};
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};
use std::time::Duration;

/// Runs a future to its end on the running SPDK thread. False when no SPDK thread is running: then
/// the future is dropped.
pub fn spawn(future: impl Future<Output = ()> + 'static) -> bool {
    let Some(thread) = Thread::current() else {
        return false;
    };
    let schedule = move |runnable: Runnable| {
        let raw = runnable.into_raw();
        // SAFETY: `run` is called once with the runnable, or the message is refused.
        if unsafe { ffi::sdm_thread_send(thread.raw(), run, raw.as_ptr().cast()) } != 0 {
            // The thread is exiting, or out of memory. Dropping the task here could be on the wrong
            // thread, so it is left alone.
            log::error!("SPDK thread takes no more messages; a task is lost");
        }
    };
    // SAFETY: the future is 'static; it is polled and dropped only by `run`, as messages of the
    // thread it was spawned on, which SPDK never runs on two cores at once. The schedule function is
    // Send, Sync and 'static. Wakers reach only the schedule function.
    let (runnable, task) = unsafe { async_task::spawn_unchecked(future, schedule) };
    task.detach();
    runnable.schedule();
    true
}

unsafe extern "C" fn run(ctx: *mut c_void) {
    if let Some(raw) = NonNull::new(ctx.cast::<()>()) {
        // SAFETY: the pointer comes from Runnable::into_raw in `schedule` and is used once.
        let runnable: Runnable = unsafe { Runnable::from_raw(raw) };
        runnable.run();
    }
}

/// Completes after some time. Must be used on the thread it was made on; dropping it cancels it.
pub struct Sleep {
    poller: *mut c_void,
    // Boxed: the poller holds its address.
    fired: Box<Option<oneshot::Sender<()>>>,
    done: oneshot::Receiver<()>,
}

/// Sleeps for at least `duration`.
pub fn sleep(duration: Duration) -> Sleep {
    unsafe extern "C" fn fire(ctx: *mut c_void) -> c_int {
        // SAFETY: `ctx` is the box of a Sleep that lives: dropping it unregisters the poller. Both
        // happen on one thread.
        let fired = unsafe { &mut *ctx.cast::<Option<oneshot::Sender<()>>>() };
        match fired.take() {
            Some(fired) => {
                let _ = fired.send(());
                1
            }
            None => 0,
        }
    }
    let (tx, done) = oneshot::channel();
    let mut fired = Box::new(Some(tx));
    let micros = u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .max(1);
    let ctx: *mut Option<oneshot::Sender<()>> = &mut *fired;
    // SAFETY: `ctx` stays valid until the poller is unregistered in Drop.
    let poller = unsafe { ffi::sdm_poller_register(fire, ctx.cast(), micros) };
    Sleep {
        poller,
        fired,
        done,
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.done).poll(cx).map(|_| ())
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if !self.poller.is_null() {
            // SAFETY: registered in `sleep`, unregistered once, on the same thread.
            unsafe { ffi::sdm_poller_unregister(self.poller) };
        }
        self.fired.take();
    }
}
