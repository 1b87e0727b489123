//! The course of a simulated run, whatever the target: its clock, what has gone wrong, who still works.

use crate::disk::Disk;
use crate::executor::{Coverage, Executor};
use crate::faults::FaultRates;
use crate::history::{History, Moment};
use crate::losses::Losses;
use bdev::runtime::Runtime;
use futures::future::{Either, select};
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// No life takes so long; if it does, something runs in circles.
const POLLS: u64 = 6_000_000;

/// What every world of a run has.
pub struct Course {
    /// Clock, dice, tasks.
    pub executor: Rc<Executor>,
    /// Clients and operators are to end.
    pub stopping: Cell<bool>,
    /// Clients and operators that have not ended.
    running: Rc<Cell<u64>>,
    /// Something in this life may fail.
    pub faulty: Cell<bool>,
    /// What disks have lost, and whether anybody knows.
    pub losses: Losses,
    next_value: Cell<u64>,
    clock: Cell<Moment>,
    failure: RefCell<Option<String>>,
}

impl Course {
    /// The beginning.
    pub fn new(executor: &Rc<Executor>) -> Self {
        Course {
            executor: executor.clone(),
            stopping: Cell::new(false),
            running: Rc::default(),
            faulty: Cell::new(false),
            losses: Losses::default(),
            next_value: Cell::new(1),
            clock: Cell::new(1),
            failure: RefCell::default(),
        }
    }

    /// A moment no other event has.
    pub fn tick(&self) -> Moment {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// A value that was never written.
    pub fn new_value(&self) -> u64 {
        let value = self.next_value.get();
        self.next_value.set(value + 1);
        value
    }

    /// Something is wrong. The first time counts.
    pub fn fail(&self, text: String) {
        self.failure.borrow_mut().get_or_insert(text);
        self.stopping.set(true);
    }

    /// What is wrong, if anything.
    pub fn failure(&self) -> Result<(), String> {
        match self.failure.borrow().clone() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Starts a client or an operator.
    pub fn start(&self, work: impl Future<Output = ()> + 'static) {
        let running = self.running.clone();
        running.set(running.get() + 1);
        self.executor.spawn(Box::pin(async move {
            work.await;
            running.set(running.get() - 1);
        }));
    }

    /// A client's work: I/O after I/O until the end. A `step` sets `idle` when its I/O failed, or there was
    /// nothing to do: what needs no disk takes time too; else a client of a failed target would spin.
    pub async fn work(&self, idle: &Cell<bool>, mut step: impl AsyncFnMut()) {
        while !self.stopping.get() {
            step().await;
            if self.executor.one_in(3) || idle.take() {
                self.executor.delay().await;
            }
        }
    }

    /// Lets the clients work for a while, unless something is wrong.
    pub async fn let_work(&self, most_delays: u64) -> Result<(), String> {
        for _ in 0..20 + self.executor.below(most_delays) {
            self.executor.delay().await;
            if self.stopping.get() {
                return self.failure();
            }
        }
        Ok(())
    }

    /// Runs one life to its end: its result, or what has gone wrong meanwhile.
    fn run_life(
        &self,
        life: impl Future<Output = Result<(), String>> + 'static,
    ) -> Result<(), String> {
        match self.run_to_end(life) {
            Some(result) => result.and_then(|()| self.failure()),
            None => Err(match self.failure() {
                Err(failure) => failure,
                Ok(()) => "deadlock, or no end".to_owned(),
            }),
        }
    }

    /// Runs something to its end. None: a deadlock, or it has none.
    fn run_to_end<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> Option<T> {
        self.executor.run(main, POLLS)
    }

    /// Runs the check of what lies on the disks after a power cut.
    pub fn run_check<T: 'static>(
        &self,
        check: impl Future<Output = T> + 'static,
    ) -> Result<T, String> {
        let end = self.run_to_end(check);
        end.ok_or_else(|| "the check has no end".to_owned())
    }

    /// Has clients and operators end, and waits for that.
    pub async fn end_clients(&self) {
        self.stopping.set(true);
        while self.running.get() > 0 {
            self.executor.pass(Duration::from_millis(50)).await;
        }
    }

    /// How a life ends: now and then by a clean shutdown, which may hang only where something fails.
    pub async fn end_life(
        &self,
        limit: Duration,
        closing: impl Future<Output = Result<(), String>>,
    ) -> Result<(), String> {
        if self.executor.one_in(4) {
            self.shut_down_within(limit, closing).await?;
        }
        self.failure()
    }

    async fn shut_down_within(
        &self,
        limit: Duration,
        closing: impl Future<Output = Result<(), String>>,
    ) -> Result<(), String> {
        let too_long = pin!(self.executor.pass(limit));
        match select(pin!(closing), too_long).await {
            Either::Left((result, _)) => result,
            Either::Right(_) if self.faulty.get() => {
                self.executor.count("shutdowns that hang");
                Ok(())
            }
            Either::Right(_) => Err("a clean shutdown hangs".to_owned()),
        }
    }
}

/// Changes to what a run does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Print what happens.
    pub trace: bool,
    /// The disks lie: one flush in so many is not carried out. For showing that this is found.
    pub lost_flush: u64,
}

/// A world that lives several times, as a target does on the same disks.
pub trait Lives: Deref<Target = Course> + Sized + 'static {
    /// The world of a seed.
    fn begin(executor: &Rc<Executor>) -> Rc<Self>;
    /// Its disks.
    fn all_disks(&self) -> Vec<&Rc<Disk>>;
    /// What the model knows of the volumes whose data is, in part, on a disk, by its number among all.
    fn on_disk(&self, number: usize, visit: &mut dyn FnMut(&mut History));
    /// One life, from opening to the moment before the power cut.
    fn live(
        self: Rc<Self>,
        number: u64,
        lying: bool,
    ) -> impl Future<Output = Result<(), String>> + 'static;
    /// A look at what goes on in the moment before the power cut.
    fn last_moment(&self) -> Result<(), String> {
        Ok(())
    }
    /// What must be true after the power cut.
    fn after_the_cut(self: Rc<Self>) -> Result<(), String>;
}

/// Lives of a world.
const NR_LIVES: u64 = 5;

/// Runs a seed: what happened how often, or what was wrong.
pub fn run<L: Lives>(seed: u64, options: Options) -> Result<Coverage, String> {
    let executor = Executor::new(seed);
    if options.trace {
        executor.start_tracing();
    }
    let world = L::begin(&executor);
    for (number, disk) in world.all_disks().into_iter().enumerate() {
        let world = Rc::downgrade(&world);
        disk.watch_losses(move || {
            let Some(world) = world.upgrade() else { return };
            let loss = world.losses.add();
            world.on_disk(number, &mut |history| history.lose(&loss));
        });
    }
    for number in 0..NR_LIVES {
        executor.trace(|| format!("life {number}"));
        for disk in world.all_disks() {
            disk.set_faults(FaultRates::lies(options.lost_flush));
        }
        world.stopping.set(false);
        world.faulty.set(false);
        world.run_life(world.clone().live(number, options.lost_flush > 0))?;
        world.last_moment()?;
        executor.forget_tasks();
        world.running.set(0);
        world.losses.forget();
        for disk in world.all_disks() {
            disk.crash();
        }
        executor.count("power cuts");
        world.clone().after_the_cut()?;
    }
    Ok(executor.coverage())
}
