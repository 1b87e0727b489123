//! One life of a ploop device: opening, comparing, load, an end; and what must be true after it.

use super::clients::Client;
use super::operator::Operator;
use super::world::{Chain, NR_DISKS, World};
use crate::cores::Cores;
use crate::course::Lives;
use crate::disk::Disk;
use crate::executor::Executor;
use crate::history::History;
use bdev::ploop::image::survey::Survey;
use bdev::ploop::{Ploop, PloopTarget};
use bdev::target::IoKind;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// How long a clean shutdown may take: longer than a write waits for a backup.
const SHUTDOWN: Duration = Duration::from_secs(400);

impl Lives for World {
    fn begin(executor: &Rc<Executor>) -> Rc<Self> {
        World::new(executor)
    }

    fn all_disks(&self) -> Vec<&Rc<Disk>> {
        self.disks().iter().collect()
    }

    fn on_disk(&self, _: usize, visit: &mut dyn FnMut(&mut History)) {
        visit(&mut self.history.borrow_mut());
    }

    async fn live(self: Rc<Self>, number: u64, lying: bool) -> Result<(), String> {
        let world = self;
        let dice = world.executor.clone();
        world.closed.set(false);
        world.closing.set(false);
        if number == 0 && !world.format(0).await {
            return Err("the first image cannot be made".to_owned());
        }
        let chain = world.chain.borrow().clone();
        let lower = chain.lower.iter().map(|number| world.lower(*number));
        let opened = Ploop::open(
            world.shape.config.clone(),
            dice.clone(),
            world.source(chain.top),
            lower.collect(),
        );
        let ploop = opened.await.map_err(|error| format!("open: {error}"))?;
        let size = ploop.dev().nr_logical_blocks();
        if !world.sizes.borrow().contains(&size) {
            return Err(format!(
                "the size is {size}, may be {:?}",
                world.sizes.borrow()
            ));
        }
        *world.sizes.borrow_mut() = vec![size];
        let cores = Cores::new(
            &dice,
            world.shape.cores,
            world.disks(),
            &ploop.owner_queue(),
        );
        let client = || Client {
            world: world.clone(),
            ploop: ploop.clone(),
            cores: cores.clone(),
            idle: Cell::new(false),
        };
        compare(&world, &client()).await?;
        let removal = if lying { None } else { world.roll_faults() };
        for _ in 0..world.shape.clients {
            world.start(client().run());
        }
        let operator = Operator {
            world: world.clone(),
            ploop: ploop.clone(),
            client: client(),
            backed_up: RefCell::default(),
        };
        world.start(operator.run());
        world.remove_later(removal);
        world.let_work(500).await?;
        let counters = ploop.counters();
        dice.count_many("ploop: clusters allocated", counters.allocated);
        dice.count_many("ploop: clusters copied up", counters.copied);
        dice.count_many("ploop: clusters freed", counters.freed);
        dice.count_many("ploop: clusters merged", counters.merged);
        dice.count_many("ploop: clusters moved", counters.moved);
        dice.count_many("ploop: BAT changes", counters.bat_changes);
        dice.count_many("ploop: BAT writes", counters.bat_writes);
        dice.count_many("ploop: BAT failures", counters.bat_failures);
        dice.count_many("ploop: page loads", counters.page_loads);
        world
            .end_life(SHUTDOWN, shut_down(&world, &ploop, &cores))
            .await
    }

    fn after_the_cut(self: Rc<Self>) -> Result<(), String> {
        let world = &self;
        world.busy.set(0);
        world.paused.set(false);
        if let Some(next) = world.next_chain.take() {
            world.executor.count("power cuts while the chain changes");
            *world.chain.borrow_mut() = next;
        }
        let chain = world.chain.borrow().clone();
        world.run_check(check(world.clone(), chain))?
    }
}

/// Everything holds what it may hold.
async fn compare(world: &Rc<World>, client: &Client) -> Result<(), String> {
    let nr = world.nr_logical();
    let (result, found) = client.submit(IoKind::Read, 0, nr, Vec::new()).await;
    result.map_err(|errno| format!("read after opening: {errno}"))?;
    client.watched().settle(&found)
}

/// Clients and operator end, and the target is closed.
async fn shut_down(
    world: &Rc<World>,
    ploop: &Rc<Ploop>,
    cores: &Rc<Cores<PloopTarget>>,
) -> Result<(), String> {
    world.end_clients().await;
    let began = world.tick();
    world.closing.set(true);
    let closed = ploop.close().await;
    cores.leave();
    match closed {
        Ok(()) => {
            world.executor.count("clean shutdowns");
            world.closed.set(true);
            world.closing.set(false);
            world.history.borrow_mut().flushed(began);
        }
        Err(_) if world.faulty.get() => {}
        Err(error) => return Err(format!("a clean shutdown failed: {error}")),
    }
    Ok(())
}

/// What lies on the disks is sound before anybody opens it.
async fn check(world: Rc<World>, chain: Chain) -> Result<(), String> {
    let raw = NR_DISKS - 1;
    for number in chain
        .lower
        .iter()
        .chain([&chain.top])
        .filter(|n| **n != raw)
    {
        let survey = Survey::of(&*world.disk(*number)).await;
        let survey = survey.map_err(|problem| format!("check of image {number}: {problem}"))?;
        if let Some(problem) = survey.problems.first() {
            return Err(format!("check of image {number}: {problem}"));
        }
        let must_say = *number == chain.top && !world.closing.get();
        if must_say && survey.is_in_use() == world.closed.get() {
            return Err(format!(
                "image {number} says {:?}, and it was closed: {}",
                survey.header.in_use,
                world.closed.get()
            ));
        }
    }
    Ok(())
}
