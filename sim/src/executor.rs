//! A single-threaded executor that picks the next ready task by chance, with simulated time.

use bdev::runtime::Runtime;
use futures::channel::oneshot;
use futures::future::LocalBoxFuture;
use futures::task::{ArcWake, waker};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

type Ready = Arc<Mutex<BTreeSet<u64>>>;

struct Wake {
    task: u64,
    ready: Ready,
}

impl ArcWake for Wake {
    fn wake_by_ref(this: &Arc<Self>) {
        // Only this thread ever holds the lock, and nothing panics under it.
        if let Ok(mut ready) = this.ready.lock() {
            ready.insert(this.task);
        }
    }
}

/// The world's clock, dice and tasks.
pub struct Executor {
    random: RefCell<StdRng>,
    ready: Ready,
    tasks: RefCell<BTreeMap<u64, LocalBoxFuture<'static, ()>>>,
    next_task: Cell<u64>,
    now: Cell<Duration>,
    timers: RefCell<BTreeMap<(Duration, u64), oneshot::Sender<()>>>,
}

impl Executor {
    /// A world from a seed.
    pub fn new(seed: u64) -> Rc<Self> {
        Rc::new(Executor {
            random: RefCell::new(StdRng::seed_from_u64(seed)),
            ready: Ready::default(),
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            now: Cell::new(Duration::ZERO),
            timers: RefCell::default(),
        })
    }

    /// A number below `end`.
    pub fn below(&self, end: u64) -> u64 {
        self.random.borrow_mut().random_range(0..end.max(1))
    }

    /// The time an I/O takes.
    pub async fn delay(&self) {
        let micros = 1 + self.below(500);
        self.timer(Duration::from_micros(micros)).await;
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
            let at = self.below(ready.len() as u64) as usize;
            let picked = ready.iter().nth(at).copied();
            picked.inspect(|task| {
                ready.remove(task);
            })
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
            let waker = waker(Arc::new(Wake {
                task: id,
                ready: self.ready.clone(),
            }));
            if task.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
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
        self.tasks.borrow_mut().insert(id, future);
        if let Ok(mut ready) = self.ready.lock() {
            ready.insert(id);
        }
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        self.timer(duration)
    }

    fn now(&self) -> Duration {
        self.now.get()
    }
}
