//! One life of a pool: opening, comparing, load, an end; and what must be true after it.

use super::clients::Client;
use super::manager::Manager;
use super::merging;
use super::world::{Fate, HOT_BLOCKS, Shape, World};
use crate::cores::{Cores, request};
use crate::course::Lives;
use crate::disk::Disk;
use crate::executor::Executor;
use crate::history::{History, Since};
use bdev::target::IoKind;
use bdev::thin::metadata::check::clear_needs_check;
use bdev::thin::metadata::{OpenOptions, ThinMetadata};
use bdev::thin::{Pool, PoolError, Thin, ThinDev};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a clean shutdown may take: longer than writes wait for space.
const SHUTDOWN: Duration = Duration::from_secs(200);

impl Lives for World {
    fn begin(executor: &Rc<Executor>) -> Rc<Self> {
        World::new(executor)
    }

    fn all_disks(&self) -> Vec<&Rc<Disk>> {
        let disks = [&self.metadata, &self.data].into_iter();
        disks.chain(&self.origin).collect()
    }

    fn on_disk(&self, number: usize, visit: &mut dyn FnMut(&mut History)) {
        if number > 0 {
            for volume in self.volumes.borrow().values() {
                visit(&mut volume.history.borrow_mut());
            }
        }
    }

    async fn live(self: Rc<Self>, number: u64, lying: bool) -> Result<(), String> {
        let world = self;
        let dice = world.executor.clone();
        if number > 0 && dice.one_in(8) {
            world.opening_fails(&world.metadata);
            // An error, or a pool that is dropped at once.
            let _ = open(&world).await;
            return Ok(());
        }
        let pool = open(&world).await;
        let pool = pool.map_err(|error| format!("open: {error}"))?;
        merging::watch(&world, &pool);
        let cores = Cores::new(
            &dice,
            world.shape.cores,
            &world.bases(),
            &pool.owner_queue(),
        );
        let manager = |world: &Rc<World>| Manager {
            world: world.clone(),
            pool: pool.clone(),
        };
        compare(&world, &pool, &cores).await?;
        if number == 0 {
            for id in 0..2 {
                manager(&world).create(id).await;
            }
        }
        let volumes: Vec<_> = world.volumes.borrow().values().cloned().collect();
        for volume in &volumes {
            if dice.one_in(2) {
                manager(&world).activate(volume).await;
            }
        }
        let removal = if lying { None } else { world.roll_faults() };
        for _ in 0..world.shape.clients {
            let client = Client {
                world: world.clone(),
                pool: pool.clone(),
                cores: cores.clone(),
                refused: Cell::new(false),
            };
            world.start(client.run());
        }
        for _ in 0..1 + dice.below(2) {
            world.start(manager(&world).run());
        }
        world.remove_later(removal);
        world.let_work(300).await?;
        dice.count(match pool.shared().mode() {
            bdev::thin::PoolMode::Write => "life ended in mode write",
            bdev::thin::PoolMode::OutOfDataSpace => "life ended in mode out of data space",
            bdev::thin::PoolMode::OutOfMetadataSpace => "life ended in mode out of metadata space",
            bdev::thin::PoolMode::ReadOnly => "life ended in mode read-only",
            bdev::thin::PoolMode::Fail => "life ended in mode fail",
        });
        tally(&dice, &pool);
        world
            .end_life(SHUTDOWN, shut_down(&world, &pool, &cores))
            .await
    }

    fn after_the_cut(self: Rc<Self>) -> Result<(), String> {
        let world = &self;
        let dice = &world.executor;
        let disk = world.metadata.clone();
        let options = OpenOptions {
            data_block_size_sectors: world.shape.data_block_sectors,
            cache_bytes: 1 << 20,
            may_format: true,
            read_only: false,
        };
        let check = async move {
            let metadata = ThinMetadata::open(disk.clone(), options).await?;
            let findings = metadata.check().await?;
            if findings.is_empty() && metadata.needs_check() {
                clear_needs_check(disk).await?;
            }
            Ok::<_, bdev::thin::metadata::ThinError>(findings)
        };
        match world.run_check(check)? {
            Ok(findings) if findings.is_empty() => {}
            Ok(findings) => return Err(format!("check after a crash: {findings:?}")),
            Err(error) => return Err(format!("check after a crash: {error}")),
        }
        if dice.one_in(6) {
            let blocks = dice.below(6) * world.shape.per_block();
            world.data.grow(blocks, Shape::stale(1 << 40));
            world.metadata.grow(dice.below(20) * 8, 0);
        }
        Ok(())
    }
}

/// Which of the pool's slow paths were walked.
fn tally(dice: &Executor, pool: &Pool) {
    let counters = pool.counters();
    dice.count_many("pool: commits", counters.commits);
    dice.count_many("pool: blocks provisioned", counters.provisioned);
    dice.count_many("pool: shares broken", counters.shares_broken);
    dice.count_many("pool: writes without space", counters.no_space);
    dice.count_many("pool: blocks unmapped", counters.discarded);
    let cache = pool.mapping_cache_stats();
    dice.count_many("pool: mapping pages loaded", cache.loads);
    dice.count_many("pool: mapping pages evicted", cache.evictions);
}

async fn open(world: &World) -> Result<Rc<Pool>, PoolError> {
    Pool::open(
        world.shape.config.clone(),
        world.executor.clone(),
        world.metadata.clone(),
        world.data.clone(),
        true,
    )
    .await
}

async fn read_all(
    world: &World,
    cores: &Cores<Thin>,
    dev: &Arc<ThinDev>,
) -> Result<Vec<u64>, String> {
    let mut found = Vec::new();
    for hot in 0..HOT_BLOCKS {
        let read = request(
            IoKind::Read,
            world.shape.logical(hot),
            world.shape.per_block(),
        );
        let (result, values) = cores.io_anywhere(dev.id, dev, read, Vec::new()).await;
        result.map_err(|errno| format!("device {}: read after opening: {errno}", dev.id))?;
        found.extend(values);
    }
    Ok(found)
}

/// Every device that must be there is, no other, and each holds what it may hold.
async fn compare(world: &Rc<World>, pool: &Rc<Pool>, cores: &Cores<Thin>) -> Result<(), String> {
    let list = pool.list().await.map_err(|e| format!("list: {e}"))?;
    let listed = |id: u32| list.iter().any(|(listed, _)| *listed == id);
    let volumes: Vec<_> = world.volumes.borrow().values().cloned().collect();
    for (id, _) in &list {
        if !volumes.iter().any(|volume| volume.id == *id) {
            return Err(format!("device {id} is there, and nobody made it"));
        }
    }
    for volume in &volumes {
        match volume.fate.get() {
            Fate::There if !listed(volume.id) => {
                return Err(format!("device {} is gone", volume.id));
            }
            Fate::Making(_) | Fate::Deleting if !listed(volume.id) => {
                world.volumes.borrow_mut().remove(&volume.id);
            }
            Fate::Making(Some((origin, since))) => {
                world.executor.count("snapshots found after a crash");
                let origin = volumes.iter().find(|v| v.id == origin);
                let origin = origin.ok_or("the origin of a device being made was deleted")?;
                let history = origin
                    .history
                    .borrow()
                    .snapshot(Since::CrashAfter(since), world.tick());
                *volume.history.borrow_mut() = history;
            }
            _ => {}
        }
    }
    let transaction_id = pool
        .status()
        .await
        .map_err(|e| format!("status: {e}"))?
        .transaction_id;
    if !world.transaction_id.borrow().contains(&transaction_id) {
        return Err(format!(
            "the transaction id is {transaction_id}, may be {:?}",
            world.transaction_id.borrow()
        ));
    }
    *world.transaction_id.borrow_mut() = vec![transaction_id];
    let mut findings = Vec::new();
    let volumes: Vec<_> = world.volumes.borrow().values().cloned().collect();
    for volume in volumes {
        let sectors = world.shape.device_sectors();
        let dev = pool
            .activate(volume.id, sectors, world.origin_device(volume.id))
            .await
            .map_err(|e| format!("activate: {e}"))?;
        let found = read_all(world, cores, &dev).await?;
        {
            let mut history = volume.history.borrow_mut();
            history
                .check(0, &found, Since::Crash, world.tick())
                .map_err(|wrong| format!("device {} after a crash: {wrong}", volume.id))?;
            if !volume.written.get() {
                history
                    .check_moment(&found)
                    .map_err(|wrong| format!("device {}: {wrong}", volume.id))?;
            }
        }
        findings.push((volume, found));
        pool.deactivate(dev.id).await.map_err(|e| e.to_string())?;
    }
    for (volume, found) in findings {
        volume.history.borrow_mut().settle(&found);
        volume.fate.set(Fate::There);
        volume.busy.set(false);
        volume.in_flight.set(0);
        volume.dev.take();
    }
    Ok(())
}

/// Clients and operators end, devices and pool are closed; then everything acknowledged is durable.
async fn shut_down(
    world: &Rc<World>,
    pool: &Rc<Pool>,
    cores: &Rc<Cores<Thin>>,
) -> Result<(), String> {
    let dice = &world.executor;
    world.end_clients().await;
    let began = world.tick();
    let mut clean = true;
    for id in pool.active_ids() {
        clean &= pool.deactivate(id).await.is_ok();
    }
    let degraded = pool.shared().mode().refuses_changes();
    clean &= pool.close().await.is_ok();
    cores.leave();
    if world.faulty.get() || degraded {
        return Ok(());
    }
    if !clean {
        return Err("a clean shutdown failed".to_owned());
    }
    dice.count("clean shutdowns");
    for volume in world.volumes.borrow().values() {
        volume.history.borrow_mut().flushed(began);
    }
    Ok(())
}
