//! One life of an origin and its snapshots: opening, comparing, load, an end; and what must be true after.

use super::clients::{Client, Io};
use super::manager::{HEIR, Manager};
use super::world::{NR_COWS, Use, World};
use crate::cores::Cores;
use crate::course::Lives;
use crate::disk::Disk;
use crate::executor::Executor;
use crate::history::History;
use bdev::snapshot::store::check;
use bdev::snapshot::{Condition, Origin, SnapshotError, SnapshotTarget, State, StoreKind, Volume};
use bdev::target::BaseId;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// How long a clean shutdown may take.
const SHUTDOWN: Duration = Duration::from_secs(400);

impl Lives for World {
    fn begin(executor: &Rc<Executor>) -> Rc<Self> {
        World::new(executor)
    }

    fn all_disks(&self) -> Vec<&Rc<Disk>> {
        self.disks().iter().collect()
    }

    /// A snapshot shows what its own disk has, or what the origin's had when it was made and keeps durably. A merge
    /// has the origin show both.
    fn on_disk(&self, number: usize, visit: &mut dyn FnMut(&mut History)) {
        let merges = number > 0 && self.use_of(number - 1) == Use::Merging;
        let target = self.target(if merges { 0 } else { number });
        visit(&mut target.history.borrow_mut());
    }

    async fn live(self: Rc<Self>, _: u64, lying: bool) -> Result<(), String> {
        let world = self;
        let dice = world.executor.clone();
        let opened = Origin::open(
            world.shape.origin.clone(),
            dice.clone(),
            world.origin_disk(),
            true,
        );
        let origin = opened.map_err(|error| format!("open: {error}"))?;
        *world.last.borrow_mut() = Some(origin.clone());
        let cores = Cores::new(
            &dice,
            world.shape.cores,
            world.disks(),
            &origin.owner_queue(),
        );
        open_all(&world, &origin, &cores).await?;
        compare(&world, &cores).await?;
        let removal = if lying { None } else { world.roll_faults() };
        for _ in 0..world.shape.clients {
            let client = Client {
                world: world.clone(),
                cores: cores.clone(),
                idle: Cell::new(false),
            };
            world.start(client.run());
        }
        let manager = Manager {
            world: world.clone(),
            origin: origin.clone(),
            cores: cores.clone(),
        };
        world.start(manager.run());
        world.remove_later(removal);
        world.let_work(400).await?;
        let counters = origin.counters();
        dice.count_many("snapshot: copies", counters.copies);
        dice.count_many("snapshot: full writes", counters.full_writes);
        dice.count_many("snapshot: commits", counters.commits);
        dice.count_many("snapshot: exceptions", counters.exceptions);
        dice.count_many("snapshot: merged chunks", counters.merged);
        dice.count_many("snapshot: page loads", counters.page_loads);
        world
            .end_life(SHUTDOWN, shut_down(&world, &origin, &cores))
            .await
    }

    fn last_moment(&self) -> Result<(), String> {
        let world = self;
        if let Some(origin) = world.last.take() {
            for status in origin.status().snapshots {
                let number = world
                    .shape
                    .snapshots
                    .iter()
                    .position(|config| config.name == status.name.trim_end_matches(HEIR));
                let Some(cow) = number else { continue };
                if status.handed_over {
                    continue;
                }
                if status.condition == Condition::Invalid && world.use_of(cow) == Use::Snapshot {
                    if !world.may_fail() && !world.is_dead(cow) {
                        return Err(format!("snapshot {cow} became invalid for no reason"));
                    }
                    world.set_dead(cow, true);
                }
                if status.header_unsure && world.use_of(cow) == Use::Snapshot {
                    // Its store may say valid, and is not: nobody may open it.
                    world
                        .executor
                        .count("invalid snapshots whose header could not be written");
                    world.set_use(cow, Use::Free);
                }
            }
        }
        Ok(())
    }

    fn after_the_cut(self: Rc<Self>) -> Result<(), String> {
        let world = &self;
        for target in &world.targets {
            target.busy.set(0);
            target.paused.set(false);
            target.volume.take();
        }
        world.run_check(check_all(world.clone()))?
    }
}

/// Everything is opened that there was.
async fn open_all(
    world: &Rc<World>,
    origin: &Rc<Origin>,
    cores: &Rc<Cores<SnapshotTarget>>,
) -> Result<(), String> {
    let origin_target = world.target(0);
    *origin_target.volume.borrow_mut() = Some(origin.volume().clone());
    // The merge comes last: the others must not miss what it changes.
    for cow in (0..NR_COWS).filter(|cow| world.use_of(*cow) == Use::Snapshot) {
        let Some(config) = world.shape.snapshots.get(cow).cloned() else {
            continue;
        };
        if config.store == StoreKind::Transient {
            world.set_use(cow, Use::Free);
            continue;
        }
        let base = BaseId(cow as u8 + 1);
        let made = origin
            .create_snapshot(config, base, world.disk(cow + 1), true)
            .await;
        let snapshot = made.map_err(|error| format!("opening snapshot {cow}: {error}"))?;
        if snapshot.state() == State::Invalid {
            world.executor.count("snapshots found invalid");
            if !world.is_dead(cow) {
                return Err(format!("snapshot {cow} is invalid for no reason"));
            }
        }
        // Where power failed before the header said so, it is still good.
        world.set_dead(cow, snapshot.state() == State::Invalid);
        *world.target(cow + 1).volume.borrow_mut() = Some(snapshot.volume().clone());
    }
    // Sometimes the snapshots are looked at before and after.
    for cow in (0..NR_COWS).filter(|cow| world.use_of(*cow) == Use::Merging) {
        if world.executor.one_in(4) {
            compare_some(world, cores, 1).await?;
        }
        let Some(config) = world.shape.snapshots.get(cow).cloned() else {
            continue;
        };
        let base = BaseId(cow as u8 + 1);
        let merge = origin.merge_store(config, base, world.disk(cow + 1), true);
        let merge = merge.await;
        merge.map_err(|error| format!("going on with the merge of {cow}: {error}"))?;
        world.executor.count("merges after a power cut");
    }
    Ok(())
}

/// Everything holds what it may hold.
async fn compare(world: &Rc<World>, cores: &Rc<Cores<SnapshotTarget>>) -> Result<(), String> {
    compare_some(world, cores, 0).await
}

async fn compare_some(
    world: &Rc<World>,
    cores: &Rc<Cores<SnapshotTarget>>,
    from: usize,
) -> Result<(), String> {
    for (number, target) in world.targets.iter().enumerate().skip(from) {
        let volume = target.volume.borrow().clone();
        let Some(volume) = volume else { continue };
        if matches!(&*volume, Volume::Snapshot(dev) if dev.state() == State::Invalid) {
            continue;
        }
        let io = Io {
            world,
            cores,
            number,
            target,
            volume,
        };
        let Some(found) = io.read_all().await else {
            // A merge that goes on may need more room than there is.
            let invalid =
                matches!(&*io.volume, Volume::Snapshot(dev) if dev.state() == State::Invalid);
            if invalid && world.shape.tight {
                continue;
            }
            return Err(format!("{number} cannot be read after opening"));
        };
        io.watched().settle(&found)?;
    }
    Ok(())
}

/// Clients and manager end, and the target is closed.
async fn shut_down(
    world: &Rc<World>,
    origin: &Rc<Origin>,
    cores: &Rc<Cores<SnapshotTarget>>,
) -> Result<(), String> {
    let dice = &world.executor;
    world.end_clients().await;
    let closed = origin.close().await;
    cores.leave();
    dice.count("clean shutdowns");
    closed.map_err(|error| format!("a clean shutdown failed: {error}"))
}

/// What lies on the disks is sound before anybody opens it.
async fn check_all(world: Rc<World>) -> Result<(), String> {
    for cow in 0..NR_COWS {
        let config = world.shape.snapshots.get(cow);
        let transient = config.is_none_or(|config| config.store == StoreKind::Transient);
        if world.use_of(cow) == Use::Free || transient {
            continue;
        }
        let report = check(world.disk(cow + 1)).await;
        let wrong = |error: SnapshotError| format!("check of store {cow}: {error}");
        let report = report.map_err(wrong)?;
        let merging = world.use_of(cow) == Use::Merging;
        if !report.findings.is_empty() || !report.in_order || merging && !report.valid {
            return Err(format!("check of store {cow}: {report:?}"));
        }
    }
    Ok(())
}
