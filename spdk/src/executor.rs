//! Futures on SPDK threads: each thread has a queue of tasks to be polled, and a message to itself
//! drains it.
//!
//! A task stays on the SPDK thread it was spawned on. Wakers may be used anywhere.

use crate::ffi;
use crate::thread::Thread;
use async_task::Runnable;
use futures::channel::oneshot;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Tasks polled before the thread gets to its pollers again.
const BATCH: usize = 128;

/// Nor is another task begun after this time: some of them compute for long.
const BATCH_TIME: Duration = Duration::from_micros(300);

/// Tasks of one SPDK thread that are to be polled.
struct Queue {
    thread: Thread,
    ready: Mutex<VecDeque<Runnable>>,
    /// A message that drains the queue is under way, or draining.
    scheduled: AtomicBool,
}

thread_local! {
    /// The queue of the SPDK thread that spawned last on this OS thread. A lookup that misses makes
    /// another queue for the same SPDK thread, which does no harm.
    static LAST: RefCell<Option<Arc<Queue>>> = const { RefCell::new(None) };
}

impl Queue {
    fn of(thread: Thread) -> Arc<Queue> {
        LAST.with_borrow_mut(|last| match last {
            Some(queue) if queue.thread == thread => queue.clone(),
            _ => {
                let queue = Arc::new(Queue {
                    thread,
                    ready: Mutex::default(),
                    scheduled: AtomicBool::new(false),
                });
                *last = Some(queue.clone());
                queue
            }
        })
    }

    fn push(self: &Arc<Self>, runnable: Runnable) {
        self.lock().push_back(runnable);
        self.schedule();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Runnable>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn schedule(self: &Arc<Self>) {
        if self.scheduled.swap(true, Ordering::AcqRel) {
            return;
        }
        let raw = Arc::into_raw(self.clone());
        // SAFETY: `drain` is called once with the reference, or the message is refused.
        if unsafe { ffi::sdm_thread_send(self.thread.raw(), drain, raw.cast_mut().cast()) } != 0 {
            // SAFETY: the message was refused, so the reference is still ours.
            drop(unsafe { Arc::from_raw(raw) });
            // The tasks wait: dropping them here could be on the wrong thread. The next wake tries again.
            self.scheduled.store(false, Ordering::Release);
            log::error!("SPDK thread takes no more messages; its tasks wait");
        }
    }
}

unsafe extern "C" fn drain(ctx: *mut c_void) {
    // SAFETY: the pointer comes from Arc::into_raw in `schedule` and is used once.
    let queue = unsafe { Arc::from_raw(ctx.cast::<Queue>()) };
    // The clock costs as much as a short task, and is not looked at for one alone.
    let begin = (queue.lock().len() > 1).then(Instant::now);
    for _ in 0..BATCH {
        let Some(runnable) = queue.lock().pop_front() else {
            break;
        };
        runnable.run();
        if begin.is_some_and(|begin| begin.elapsed() > BATCH_TIME) {
            break;
        }
    }
    queue.scheduled.store(false, Ordering::Release);
    // Also what another thread has pushed while `scheduled` was still set.
    if !queue.lock().is_empty() {
        queue.schedule();
    }
}

/// Runs a future to its end on the running SPDK thread. False when no SPDK thread is running: then
/// the future is dropped.
pub fn spawn(future: impl Future<Output = ()> + 'static) -> bool {
    let Some(thread) = Thread::current() else {
        return false;
    };
    let queue = Queue::of(thread);
    let schedule = move |runnable: Runnable| queue.push(runnable);
    // SAFETY: the future is 'static; it is polled and dropped only by `drain`, as messages of the
    // thread it was spawned on, which SPDK never runs on two cores at once. The schedule function is
    // Send, Sync and 'static. Wakers reach only the schedule function.
    let (runnable, task) = unsafe { async_task::spawn_unchecked(future, schedule) };
    task.detach();
    runnable.schedule();
    true
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
