//! Small waiting rooms for the owner's tasks.

use crate::runtime::RuntimeRef;
use futures::channel::oneshot;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Wakes all that wait.
#[derive(Default)]
pub(crate) struct Bell(RefCell<Vec<oneshot::Sender<()>>>);

impl Bell {
    /// Completes at the next ring after this call.
    pub fn heard(&self) -> oneshot::Receiver<()> {
        let (tx, rx) = oneshot::channel();
        self.0.borrow_mut().push(tx);
        rx
    }

    pub fn ring(&self) {
        for waiter in self.0.take() {
            let _ = waiter.send(());
        }
    }
}

/// Closed while snapshots come and go; writes of the origin wait before it.
#[derive(Default)]
pub(crate) struct Gate {
    closed: Cell<bool>,
    opened: Bell,
    generation: Cell<u64>,
}

impl Gate {
    pub fn close(&self) {
        self.closed.set(true);
        self.generation.set(self.generation.get() + 1);
    }

    pub fn open(&self) {
        self.closed.set(false);
        self.opened.ring();
    }

    /// How often it was closed, while it is open. What was decided holds as long as this does not change.
    pub fn generation(&self) -> Option<u64> {
        (!self.closed.get()).then_some(self.generation.get())
    }

    /// Waits until it is open.
    pub async fn pass(&self) -> u64 {
        loop {
            if let Some(generation) = self.generation() {
                return generation;
            }
            let _ = self.opened.heard().await;
        }
    }
}

/// Tasks at work, to be waited for.
#[derive(Default)]
pub(crate) struct Tasks {
    running: Cell<u64>,
    idle: Bell,
}

impl Tasks {
    /// Runs a task on this core.
    pub fn run(self: &Rc<Self>, runtime: &RuntimeRef, task: impl Future<Output = ()> + 'static) {
        self.running.set(self.running.get() + 1);
        let tasks = self.clone();
        runtime.spawn(Box::pin(async move {
            task.await;
            tasks.running.set(tasks.running.get() - 1);
            if tasks.running.get() == 0 {
                tasks.idle.ring();
            }
        }));
    }

    /// Waits until none is at work.
    pub async fn drained(&self) {
        while self.running.get() > 0 {
            let _ = self.idle.heard().await;
        }
    }
}

/// So many at a time.
pub(crate) struct Permits {
    left: Cell<usize>,
    waiting: RefCell<VecDeque<oneshot::Sender<()>>>,
}

/// One of them, until dropped.
pub(crate) struct Permit<'a>(&'a Permits);

impl Permits {
    pub fn new(count: usize) -> Self {
        Permits {
            left: Cell::new(count.max(1)),
            waiting: RefCell::default(),
        }
    }

    pub async fn take(&self) -> Permit<'_> {
        while self.left.get() == 0 {
            let (tx, rx) = oneshot::channel();
            self.waiting.borrow_mut().push_back(tx);
            let _ = rx.await;
        }
        self.left.set(self.left.get() - 1);
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.left.set(self.0.left.get() + 1);
        // One for whom it is: others would only look and wait again.
        while let Some(waiter) = self.0.waiting.borrow_mut().pop_front() {
            if waiter.send(()).is_ok() {
                return;
            }
        }
    }
}
