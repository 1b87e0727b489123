//! One life of an era target: opening, comparing, load, an end; and what must be true after it.

use super::clients::Client;
use super::operator::Operator;
use super::world::{Snap, World};
use crate::cores::{Cores, request};
use crate::course::Lives;
use crate::disk::Disk;
use crate::executor::Executor;
use crate::history::History;
use bdev::era::metadata::EraMetadata;
use bdev::era::{Era, EraError, EraTarget, EraTargetError, View};
use bdev::target::IoKind;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// How long a clean shutdown may take.
const SHUTDOWN: Duration = Duration::from_secs(200);

impl Lives for World {
    fn begin(executor: &Rc<Executor>) -> Rc<Self> {
        World::new(executor)
    }

    fn all_disks(&self) -> Vec<&Rc<Disk>> {
        vec![&self.metadata, &self.origin]
    }

    fn on_disk(&self, number: usize, visit: &mut dyn FnMut(&mut History)) {
        if number > 0 {
            visit(&mut self.history.borrow_mut());
        }
    }

    async fn live(self: Rc<Self>, number: u64, lying: bool) -> Result<(), String> {
        let world = self;
        let dice = world.executor.clone();
        if number > 0 && dice.one_in(8) {
            world.opening_fails(&world.metadata);
            // An error, or a target that is dropped at once.
            let _ = open(&world).await;
            return Ok(());
        }
        let era = match open(&world).await {
            Ok(era) => era,
            Err(error) if world.shape.tight => {
                dice.trace(|| format!("open: {error}"));
                dice.count("openings without space");
                return Ok(());
            }
            Err(error) => return Err(format!("open: {error}")),
        };
        world.formatted.set(true);
        world.nr_logical.set(world.origin.nr_logical_blocks());
        let cores = Cores::new(
            &dice,
            world.shape.cores,
            std::slice::from_ref(&world.origin),
            &era.owner_queue(),
        );
        compare(&world, &era, &cores).await?;
        let removal = if lying { None } else { world.roll_faults() };
        for _ in 0..world.shape.clients {
            let client = Client {
                world: world.clone(),
                dev: era.dev().clone(),
                cores: cores.clone(),
                refused: Cell::new(false),
            };
            world.start(client.run());
        }
        let operator = Operator {
            world: world.clone(),
            era: era.clone(),
        };
        world.start(operator.run());
        world.remove_later(removal);
        world.let_work(300).await?;
        let counters = era.counters();
        dice.count_many("era: commits", counters.commits);
        dice.count_many("era: first writes", counters.first_writes);
        dice.count_many("era: commits for first writes", counters.mark_commits);
        dice.count_many("era: writesets digested", counters.digested);
        dice.count_many("era: operations given up", counters.failures);
        world
            .end_life(SHUTDOWN, shut_down(&world, &era, &cores))
            .await
    }

    fn after_the_cut(self: Rc<Self>) -> Result<(), String> {
        let world = &self;
        let now = world.tick();
        world.ledger.borrow_mut().power_cut(now);
        match world.run_check(check(world.clone()))? {
            Ok(()) => {}
            Err(EraError::Blank) if !world.formatted.get() => {}
            Err(error) => return Err(format!("check after a crash: {error}")),
        }
        world.failure()?;
        if world.executor.one_in(6) {
            world.grow_disks();
        }
        Ok(())
    }
}

async fn open(world: &Rc<World>) -> Result<Rc<Era>, EraTargetError> {
    let now = world.tick();
    world.ledger.borrow_mut().ask(now);
    Era::open(
        world.shape.config.clone(),
        world.executor.clone(),
        world.metadata.clone(),
        world.origin.clone(),
        true,
    )
    .await
}

/// The origin holds what it may hold, and eras, snapshot and marks are as they must be.
async fn compare(world: &Rc<World>, era: &Rc<Era>, cores: &Cores<EraTarget>) -> Result<(), String> {
    let operator = Operator {
        world: world.clone(),
        era: era.clone(),
    };
    operator.status().await;
    operator.ask().await;
    operator.ask_snap().await;
    let read = request(IoKind::Read, 0, world.nr_logical.get());
    let (result, found) = cores.io_anywhere("", era.dev(), read, Vec::new()).await;
    result.map_err(|errno| format!("read after opening: {errno}"))?;
    world.watched().settle(&found)?;
    world.failure()
}

/// Clients and operator end, and the target is closed.
async fn shut_down(
    world: &Rc<World>,
    era: &Rc<Era>,
    cores: &Rc<Cores<EraTarget>>,
) -> Result<(), String> {
    let dice = &world.executor;
    world.end_clients().await;
    let closed = era.close().await;
    cores.leave();
    match closed {
        Ok(()) => dice.count("clean shutdowns"),
        Err(_) if world.may_fail() => {}
        Err(error) => return Err(format!("a clean shutdown failed: {error}")),
    }
    Ok(())
}

/// What lies on the disk is sound, and reports what it must, before anybody opens the target.
async fn check(world: Rc<World>) -> Result<(), EraError> {
    let metadata = EraMetadata::open_any(world.metadata.clone(), 1 << 20).await?;
    let findings = metadata.check().await?;
    if !findings.is_empty() {
        world.fail(format!("check after a crash: {findings:?}"));
    }
    let unsure = matches!(*world.snap.borrow(), Snap::Unsure);
    if unsure && metadata.metadata_snap().is_none() {
        *world.snap.borrow_mut() = Snap::None;
    }
    let (nr_blocks, _) = metadata.extent(View::Live).await?;
    for must in world.must() {
        let found = metadata
            .written_since(View::Live, must.era, 0..nr_blocks)
            .await?;
        if let Err(wrong) = world.ledger.borrow().check(&must, &found) {
            world.fail(format!("after a crash: {wrong}"));
        }
    }
    Ok(())
}
