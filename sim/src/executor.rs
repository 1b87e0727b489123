//! A single-threaded executor that picks the next ready task by chance, with simulated time.

use bdev::runtime::Runtime;
use futures::channel::oneshot;
use futures::future::LocalBoxFuture;
use futures::task::{ArcWake, waker_ref};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

type Ready = Arc<Mutex<Vec<u64>>>;

struct Wake {
    task: u64,
    /// In `ready` already.
    queued: AtomicBool,
    ready: Ready,
}

impl Wake {
    fn queue(&self) {
        if self.queued.swap(true, Ordering::Relaxed) {
            return;
        }
        // Only this thread ever holds the lock, and nothing panics under it.
        if let Ok(mut ready) = self.ready.lock() {
            ready.push(self.task);
        }
    }
}

impl ArcWake for Wake {
    fn wake_by_ref(this: &Arc<Self>) {
        this.queue();
    }
}

struct Task {
    future: LocalBoxFuture<'static, ()>,
    wake: Arc<Wake>,
}

/// The world's clock, dice and tasks.
pub struct Executor {
    seed: u64,
    random: RefCell<StdRng>,
    ready: Ready,
    tasks: RefCell<FxHashMap<u64, Task>>,
    next_task: Cell<u64>,
    now: Cell<Duration>,
    timers: RefCell<BTreeMap<(Duration, u64), oneshot::Sender<()>>>,
    tally: RefCell<Coverage>,
    tracing: Cell<bool>,
}

/// What happened in a run, and how often.
pub type Coverage = BTreeMap<&'static str, u64>;

impl Executor {
    /// A world from a seed.
    pub fn new(seed: u64) -> Rc<Self> {
        Rc::new(Executor {
            seed,
            random: RefCell::new(StdRng::seed_from_u64(seed)),
            ready: Ready::default(),
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            now: Cell::new(Duration::ZERO),
            timers: RefCell::default(),
            tally: RefCell::default(),
            tracing: Cell::new(false),
        })
    }

    /// Whether this is one of the seeds, every nth, where something is done. No dice are cast for it: the other seeds go as
    /// they would without.
    pub fn is_seed_of(&self, n: u64) -> bool {
        self.seed % n == n - 1
    }

    /// A number below `end`.
    pub fn below(&self, end: u64) -> u64 {
        self.random.borrow_mut().random_range(0..end.max(1))
    }

    /// Counts something that happened.
    pub fn count(&self, what: &'static str) {
        self.count_many(what, 1);
    }

    /// Counts something that happened so often.
    pub fn count_many(&self, what: &'static str, times: u64) {
        *self.tally.borrow_mut().entry(what).or_default() += times;
    }

    /// What has been counted.
    pub fn coverage(&self) -> Coverage {
        self.tally.borrow().clone()
    }

    /// From now on [`Executor::trace`] prints.
    pub fn start_tracing(&self) {
        self.tracing.set(true);
    }

    /// Tells what happens, if anybody listens.
    pub fn trace(&self, text: impl FnOnce() -> String) {
        if self.tracing.get() {
            eprintln!("{:>12.6} {}", self.now.get().as_secs_f64(), text());
        }
    }

    /// True once in `n` times; never for 0.
    pub fn one_in(&self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }

    /// The time an I/O takes: now and then so long that whole transactions go by.
    pub async fn delay(&self) {
        let most = if self.one_in(40) { 20_000 } else { 500 };
        let micros = 1 + self.below(most);
        self.timer(Duration::from_micros(micros)).await;
    }

    /// Lets time pass.
    pub async fn pass(&self, duration: Duration) {
        self.timer(duration).await;
    }

    fn timer(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        let (tx, rx) = oneshot::channel();
        let id = self.next_task.get();
        self.next_task.set(id + 1);
        self.timers
            .borrow_mut()
            .insert((self.now.get() + duration, id), tx);
        Box::pin(async move {
            let _ = rx.await;
        })
    }

    /// Runs until `main` has ended (its result) or nothing can go on (None: a deadlock), for at most
    /// `polls` polls. Tasks that are left stay suspended.
    pub fn run<T: 'static>(
        self: &Rc<Self>,
        main: impl Future<Output = T> + 'static,
        polls: u64,
    ) -> Option<T> {
        let result = Rc::new(Cell::new(None));
        let slot = result.clone();
        self.spawn(Box::pin(async move { slot.set(Some(main.await)) }));
        for _ in 0..polls {
            if let Some(result) = result.take() {
                return Some(result);
            }
            if !self.step() {
                return result.take();
            }
        }
        None
    }

    /// Polls one ready task, or lets time pass. False when there is nothing to do.
    fn step(self: &Rc<Self>) -> bool {
        let picked = {
            let Ok(mut ready) = self.ready.lock() else {
                return false;
            };
            match ready.len() {
                0 => None,
                len => Some(ready.swap_remove(self.below(len as u64) as usize)),
            }
        };
        let Some(id) = picked else {
            let timer = self.timers.borrow_mut().pop_first();
            return timer.is_some_and(|((at, _), fired)| {
                self.now.set(at);
                // Nobody waits any more: fine.
                let _ = fired.send(());
                true
            });
        };
        let task = self.tasks.borrow_mut().remove(&id);
        if let Some(mut task) = task {
            task.wake.queued.store(false, Ordering::Relaxed);
            let polled = {
                let waker = waker_ref(&task.wake);
                task.future.as_mut().poll(&mut Context::from_waker(&waker))
            };
            if polled == Poll::Pending {
                self.tasks.borrow_mut().insert(id, task);
            }
        }
        true
    }

    /// A crash: every task is gone.
    pub fn forget_tasks(&self) {
        self.timers.take();
        let tasks = self.tasks.take();
        drop(tasks);
        if let Ok(mut ready) = self.ready.lock() {
            ready.clear();
        }
    }
}

impl Runtime for Executor {
    fn spawn(&self, future: LocalBoxFuture<'static, ()>) {
        let id = self.next_task.get();
        self.next_task.set(id + 1);
        let wake = Arc::new(Wake {
            task: id,
            queued: AtomicBool::new(false),
            ready: self.ready.clone(),
        });
        wake.queue();
        self.tasks.borrow_mut().insert(id, Task { future, wake });
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        self.timer(duration)
    }

    fn now(&self) -> Duration {
        self.now.get()
    }
}
