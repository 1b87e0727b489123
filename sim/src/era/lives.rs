//! One life of an era target: opening, comparing, load, an end; and what must be true after it.

use super::clients::Client;
use super::operator::Operator;
use super::world::{Snap, World};
use crate::cores::Cores;
use crate::history::Since;
use bdev::era::metadata::EraMetadata;
use bdev::era::{Era, EraError, EraTarget, EraTargetError, View};
use bdev::runtime::Runtime;
use bdev::target::{IoKind, Request};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// How long a clean shutdown may take.
const SHUTDOWN: Duration = Duration::from_secs(200);

/// One life, from opening to the moment before the power cut.
pub fn live(world: &Rc<World>, number: u64, lying: bool) -> Result<(), String> {
    world.run_life(whole_life(world.clone(), number, lying))
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

async fn whole_life(world: Rc<World>, number: u64, lying: bool) -> Result<(), String> {
    let dice = world.executor.clone();
    world.stopping.set(false);
    world.faulty.set(false);
    if number > 0 && dice.one_in(8) {
        opening_fails(&world).await;
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
    let operator = || Operator {
        world: world.clone(),
        era: era.clone(),
    };
    compare(&world, &era, &cores).await?;
    let removal = match lying {
        true => None,
        false => world.roll_faults(),
    };
    for _ in 0..world.shape.clients {
        world.running.set(world.running.get() + 1);
        let client = Client {
            world: world.clone(),
            dev: era.dev().clone(),
            cores: cores.clone(),
            refused: Cell::new(false),
        };
        dice.spawn(Box::pin(client.run()));
    }
    world.running.set(world.running.get() + 1);
    dice.spawn(Box::pin(operator().run()));
    world.remove_later(removal);
    for _ in 0..20 + dice.below(300) {
        dice.delay().await;
        if world.stopping.get() {
            return world.failure();
        }
    }
    let counters = era.counters();
    dice.count_many("era: commits", counters.commits);
    dice.count_many("era: first writes", counters.first_writes);
    dice.count_many("era: commits for first writes", counters.mark_commits);
    dice.count_many("era: writesets digested", counters.digested);
    dice.count_many("era: operations given up", counters.failures);
    if dice.one_in(4) {
        let closing = shut_down(&world, &era, &cores);
        world.shut_down_within(SHUTDOWN, closing).await?;
    }
    world.failure()
}

/// The target is opened on failing disks. Whatever comes of it, the next opening finds everything.
async fn opening_fails(world: &Rc<World>) {
    world.executor.count("openings on failing disks");
    let often = 1 + world.executor.below(40);
    world
        .metadata
        .set_faults(crate::disk::FaultRates::errors(often));
    // An error, or a target that is dropped at once.
    let _ = open(world).await;
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
    let core = world.executor.below(cores.len());
    let request = Request {
        kind: IoKind::Read,
        offset_blocks: 0,
        nr_blocks: world.nr_logical.get(),
    };
    let (result, found) = cores.io(core, era.dev(), request, Vec::new()).await;
    result.map_err(|errno| format!("read after opening: {errno}"))?;
    let mut history = world.history.borrow_mut();
    history
        .check(0, &found, Since::Crash, world.tick())
        .map_err(|wrong| format!("after a crash: {wrong}"))?;
    history.settle(&found);
    drop(history);
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

/// The power cut, the check of the metadata, and perhaps larger disks.
pub fn cut_power(world: &Rc<World>) -> Result<(), String> {
    let dice = &world.executor;
    dice.forget_tasks();
    world.running.set(0);
    world.metadata.crash();
    world.origin.crash();
    let now = world.tick();
    world.ledger.borrow_mut().power_cut(now);
    dice.count("power cuts");
    match world.run_to_end(check(world.clone())) {
        Some(Ok(())) => {}
        Some(Err(EraError::Blank)) if !world.formatted.get() => {}
        Some(Err(error)) => return Err(format!("check after a crash: {error}")),
        None => return Err("the check has no end".to_owned()),
    }
    world.failure()?;
    if dice.one_in(6) {
        world.grow_disks();
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
