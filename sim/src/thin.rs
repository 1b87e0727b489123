//! Thin pools under random load from several cores, with crashes, against a model.
//!
//! Each client owns some sectors and does one thing at a time, so it knows what they may hold: a log of
//! the values it wrote, what of it was acknowledged, and what was acknowledged before a completed flush.

use crate::disk::{DataDisk, Disk, MetadataDisk};
use crate::executor::Executor;
use bdev::channel::{Channel, ChannelId, Host, Ticket};
use bdev::errno::Errno;
use bdev::target::{BaseId, IoKind, Request};
use bdev::thin::metadata::{OpenOptions, ThinMetadata};
use bdev::thin::{Pool, PoolConfig, Thin, ThinDev};
use futures::channel::oneshot;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

const BLOCK_SECTORS: u64 = 128;
const DEVICE_BLOCKS: u64 = 12;
const DATA_BLOCKS: u64 = 40;
const METADATA_BLOCKS: u64 = 160;
const CORES: u64 = 2;
const CLIENTS: u64 = 4;
/// Sectors a client writes at once where it does not own the whole block.
const GRANULE_SECTORS: u64 = 8;
const DEVICES: [u32; 2] = [0, 1];
const POLLS: u64 = 4_000_000;

/// An I/O of a simulated core.
pub struct SimIo {
    id: u64,
    request: Request,
    data: Vec<u64>,
    done: oneshot::Sender<(Result<(), Errno>, Vec<u64>)>,
}

/// A simulated core's way to the data disk.
pub struct SimHost {
    executor: Rc<Executor>,
    data: Rc<DataDisk>,
    channel: RefCell<Weak<Channel<Thin, SimHost>>>,
}

impl Host for SimHost {
    type Io = SimIo;

    fn forward(&self, mut io: SimIo, _: BaseId, block: u64, ticket: Ticket) {
        let (data, channel) = (self.data.clone(), self.channel.borrow().clone());
        bdev::runtime::Runtime::spawn(
            &*self.executor,
            Box::pin(async move {
                match io.request.kind {
                    IoKind::Read => io.data = data.read(block, io.request.nr_blocks).await,
                    IoKind::Write => data.write(block, &io.data).await,
                    _ => data.flush_all().await,
                }
                if let Some(channel) = channel.upgrade() {
                    channel.forwarded(io, ticket, Ok(()));
                }
            }),
        );
    }

    fn complete_zeroes(&self, mut io: SimIo) {
        io.data = vec![0; io.request.nr_blocks as usize];
        self.complete(io, Ok(()));
    }

    fn complete(&self, io: SimIo, result: Result<(), Errno>) {
        let _ = io.done.send((result, io.data));
    }

    fn id(&self, io: &SimIo) -> u64 {
        io.id
    }
}

type Core = Rc<Channel<Thin, SimHost>>;

/// A sector's past.
#[derive(Clone)]
struct Sector {
    log: Vec<u64>,
    acknowledged: usize,
    flushed: usize,
}

type Model = Rc<RefCell<BTreeMap<u32, Vec<Sector>>>>;
/// What a snapshot's sectors may hold.
type Frozen = Vec<Vec<u64>>;

struct World {
    executor: Rc<Executor>,
    model: Model,
    snapshots: RefCell<BTreeMap<u32, Frozen>>,
    next_value: Cell<u64>,
    next_io: Cell<u64>,
    stopping: Cell<bool>,
    counts: RefCell<BTreeMap<&'static str, u64>>,
    failure: RefCell<Option<String>>,
}

/// What a run did, for coverage.
pub type Coverage = BTreeMap<&'static str, u64>;

impl World {
    fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_default() += 1;
    }

    fn fail(&self, text: String) {
        self.failure.borrow_mut().get_or_insert(text);
        self.stopping.set(true);
    }

    async fn io(
        &self,
        core: &Core,
        dev: &Arc<ThinDev>,
        kind: IoKind,
        offset_blocks: u64,
        nr_blocks: u64,
        data: Vec<u64>,
    ) -> (Result<(), Errno>, Vec<u64>) {
        let (done, answer) = oneshot::channel();
        let id = self.next_io.get();
        self.next_io.set(id + 1);
        let request = Request {
            kind,
            offset_blocks,
            nr_blocks,
        };
        let io = SimIo {
            id,
            request,
            data,
            done,
        };
        core.submit(dev, request, io);
        answer.await.unwrap_or((Err(Errno::ECANCELED), Vec::new()))
    }

    /// Notes values that are about to be written.
    fn issue(&self, id: u32, offset: u64, values: &[u64]) {
        if let Some(sectors) = self.model.borrow_mut().get_mut(&id) {
            for (sector, value) in sectors.iter_mut().skip(offset as usize).zip(values) {
                sector.log.push(*value);
            }
        }
    }

    fn acknowledge(&self, id: u32, offset: u64, len: u64) {
        if let Some(sectors) = self.model.borrow_mut().get_mut(&id) {
            for sector in sectors.iter_mut().skip(offset as usize).take(len as usize) {
                sector.acknowledged = sector.log.len() - 1;
            }
        }
    }

    fn check(&self, id: u32, offset: u64, found: &[u64], after_crash: bool) {
        let mut model = self.model.borrow_mut();
        let Some(sectors) = model.get_mut(&id) else {
            return;
        };
        for (i, (sector, value)) in sectors
            .iter_mut()
            .skip(offset as usize)
            .zip(found)
            .enumerate()
        {
            let from = if after_crash {
                sector.flushed
            } else {
                sector.acknowledged
            };
            if !sector.log.iter().skip(from).any(|allowed| allowed == value) {
                self.fail(format!(
                    "device {id} sector {}: holds {value:#x}, may hold {:x?}",
                    offset + i as u64,
                    sector.log.get(from..)
                ));
            }
            if after_crash {
                *sector = Sector {
                    log: vec![*value],
                    acknowledged: 0,
                    flushed: 0,
                };
            }
        }
    }
}

/// The sectors a client may use at a place chosen by chance: a whole block or a granule.
fn place(executor: &Executor, client: u64) -> (u64, u64, bool) {
    let block = executor.below(DEVICE_BLOCKS);
    if block % 3 == 2 {
        let mine = block / 3 % CLIENTS == client;
        return (
            block * BLOCK_SECTORS,
            if mine { BLOCK_SECTORS } else { 0 },
            true,
        );
    }
    let granules = BLOCK_SECTORS / GRANULE_SECTORS / CLIENTS;
    let granule = executor.below(granules) * CLIENTS + client;
    (
        block * BLOCK_SECTORS + granule * GRANULE_SECTORS,
        GRANULE_SECTORS,
        false,
    )
}

async fn client(world: Rc<World>, number: u64, cores: Vec<Core>, devs: Vec<Arc<ThinDev>>) {
    let executor = world.executor.clone();
    while !world.stopping.get() {
        let core = &cores[executor.below(CORES) as usize];
        let dev = &devs[executor.below(devs.len() as u64) as usize];
        let (offset, len, whole) = place(&executor, number);
        if len == 0 {
            continue;
        }
        match executor.below(10) {
            0..=3 => {
                world.count(if whole {
                    "whole-block writes"
                } else {
                    "writes"
                });
                let value = world.next_value.get();
                world.next_value.set(value + 1);
                let values = vec![value; len as usize];
                world.issue(dev.id, offset, &values);
                let (result, _) = world
                    .io(core, dev, IoKind::Write, offset, len, values)
                    .await;
                match result {
                    Ok(()) => world.acknowledge(dev.id, offset, len),
                    Err(_) => world.count("refused writes"),
                }
            }
            4..=6 => {
                world.count("reads");
                let (result, found) = world
                    .io(core, dev, IoKind::Read, offset, len, Vec::new())
                    .await;
                match result {
                    Ok(()) => world.check(dev.id, offset, &found, false),
                    Err(errno) => world.fail(format!("read: {errno}")),
                }
            }
            7 if whole => {
                let kind = match executor.below(2) {
                    0 => IoKind::Discard,
                    _ => IoKind::WriteZeroes,
                };
                world.count("discards and zeroes");
                world.issue(dev.id, offset, &vec![0; len as usize]);
                if world
                    .io(core, dev, kind, offset, len, Vec::new())
                    .await
                    .0
                    .is_ok()
                {
                    world.acknowledge(dev.id, offset, len);
                }
            }
            8 if !whole => {
                world.count("partial zeroes");
                world.issue(dev.id, offset, &vec![0; len as usize]);
                if world
                    .io(core, dev, IoKind::WriteZeroes, offset, len, Vec::new())
                    .await
                    .0
                    .is_ok()
                {
                    world.acknowledge(dev.id, offset, len);
                }
            }
            _ => {
                world.count("flushes");
                // What this client has had acknowledged by now is covered.
                let (result, _) = world.io(core, dev, IoKind::Flush, 0, 0, Vec::new()).await;
                if result.is_ok()
                    && let Some(sectors) = world.model.borrow_mut().get_mut(&dev.id)
                {
                    for (at, sector) in (0..).zip(sectors.iter_mut()) {
                        if owner_of(at) == number {
                            sector.flushed = sector.acknowledged;
                        }
                    }
                }
            }
        }
    }
}

fn owner_of(sector: u64) -> u64 {
    let block = sector / BLOCK_SECTORS;
    match block % 3 {
        2 => block / 3 % CLIENTS,
        _ => sector % BLOCK_SECTORS / GRANULE_SECTORS % CLIENTS,
    }
}

/// Takes and deletes snapshots while the clients work.
async fn snapshots(world: Rc<World>, pool: Rc<Pool>) {
    while !world.stopping.get() {
        for _ in 0..world.executor.below(40) {
            world.executor.delay().await;
        }
        let id = 10 + world.executor.below(3) as u32;
        if world.snapshots.borrow().contains_key(&id) {
            world.snapshots.borrow_mut().remove(&id);
            world.count("snapshots deleted");
            if let Err(error) = pool.delete(id).await {
                world.fail(format!("delete: {error}"));
            }
            continue;
        }
        let origin = DEVICES[world.executor.below(2) as usize];
        let from: Vec<usize> = world
            .model
            .borrow()
            .get(&origin)
            .map_or_else(Vec::new, |sectors| {
                sectors.iter().map(|sector| sector.acknowledged).collect()
            });
        match pool.create_snap(id, origin).await {
            Ok(()) => {}
            // A crash came while it was being made or deleted, so either was right.
            Err(error) if error.errno() == Errno::EEXIST => {
                world.count("snapshots of unknown fate");
                if let Err(error) = pool.delete(id).await {
                    world.fail(format!("delete: {error}"));
                }
                continue;
            }
            Err(error) => {
                world.fail(format!("snapshot: {error}"));
                return;
            }
        }
        world.count("snapshots");
        let frozen = world
            .model
            .borrow()
            .get(&origin)
            .map_or_else(Vec::new, |sectors| {
                sectors
                    .iter()
                    .zip(from)
                    .map(|(sector, from)| sector.log.get(from..).unwrap_or_default().to_vec())
                    .collect()
            });
        world.snapshots.borrow_mut().insert(id, frozen);
    }
}

fn config(seed: u64) -> PoolConfig {
    PoolConfig {
        error_if_no_space: true,
        no_discard_passdown: seed.is_multiple_of(3),
        ..PoolConfig::new("sim")
    }
}

async fn make_cores(executor: &Rc<Executor>, pool: &Rc<Pool>, data: &Rc<DataDisk>) -> Vec<Core> {
    (0..CORES)
        .map(|id| {
            let host = SimHost {
                executor: executor.clone(),
                data: data.clone(),
                channel: RefCell::default(),
            };
            let (core, messages) = Channel::new(ChannelId(id), host, pool.owner_queue());
            *core.host().channel.borrow_mut() = Rc::downgrade(&core);
            bdev::runtime::Runtime::spawn(&**executor, Box::pin(core.clone().run(messages)));
            core
        })
        .collect()
}

async fn open(
    executor: Rc<Executor>,
    seed: u64,
    metadata: Rc<MetadataDisk>,
    data: Rc<DataDisk>,
) -> Result<(Rc<Pool>, Vec<Core>), String> {
    let pool = Pool::open(config(seed), executor.clone(), metadata, data.clone(), true)
        .await
        .map_err(|error| format!("open: {error}"))?;
    let cores = make_cores(&executor, &pool, &data).await;
    Ok((pool, cores))
}

/// One life of the pool: open, check everything, load. Crashes (returns) after a random time.
async fn life(
    world: Rc<World>,
    seed: u64,
    metadata: Rc<MetadataDisk>,
    data: Rc<DataDisk>,
    first: bool,
) -> Result<(), String> {
    let executor = world.executor.clone();
    let (pool, cores) = open(executor.clone(), seed, metadata, data).await?;
    let sectors = DEVICE_BLOCKS * BLOCK_SECTORS;
    let mut devs = Vec::new();
    for id in DEVICES {
        if first {
            pool.create_thin(id).await.map_err(|e| e.to_string())?;
        }
        let dev = pool
            .activate(id, sectors)
            .await
            .map_err(|e| e.to_string())?;
        for block in 0..DEVICE_BLOCKS {
            let at = block * BLOCK_SECTORS;
            let (result, found) = world
                .io(&cores[0], &dev, IoKind::Read, at, BLOCK_SECTORS, Vec::new())
                .await;
            result.map_err(|e| format!("read after opening: {e}"))?;
            world.check(id, at, &found, true);
        }
        devs.push(dev);
    }
    let kept: Vec<(u32, Frozen)> = world
        .snapshots
        .borrow()
        .iter()
        .map(|(id, f)| (*id, f.clone()))
        .collect();
    for (id, frozen) in kept {
        world.count("snapshots compared");
        let dev = pool
            .activate(id, sectors)
            .await
            .map_err(|e| e.to_string())?;
        let mut now = Vec::new();
        for block in 0..DEVICE_BLOCKS {
            let at = block * BLOCK_SECTORS;
            let (result, found) = world
                .io(&cores[1], &dev, IoKind::Read, at, BLOCK_SECTORS, Vec::new())
                .await;
            result.map_err(|e| format!("read of snapshot {id}: {e}"))?;
            now.extend(found);
        }
        for (sector, (value, allowed)) in now.iter().zip(&frozen).enumerate() {
            if !allowed.contains(value) {
                return Err(format!(
                    "snapshot {id} sector {sector}: holds {value:#x}, may hold {allowed:x?}"
                ));
            }
        }
        // What it holds now it holds for ever.
        let fixed = now.into_iter().map(|value| vec![value]).collect();
        world.snapshots.borrow_mut().insert(id, fixed);
        pool.deactivate(id).await.map_err(|e| e.to_string())?;
    }
    for number in 0..CLIENTS {
        let task = client(world.clone(), number, cores.clone(), devs.clone());
        bdev::runtime::Runtime::spawn(&*executor, Box::pin(task));
    }
    let task = snapshots(world.clone(), pool.clone());
    bdev::runtime::Runtime::spawn(&*executor, Box::pin(task));
    for _ in 0..20 + executor.below(150) {
        executor.delay().await;
    }
    match world.failure.borrow_mut().take() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Runs a seed. Errors say what was wrong; `lose_flushes` makes the disks lie (see
/// [`Disk::lose_flushes`]).
pub fn run(seed: u64, lose_flushes: u64) -> Result<Coverage, String> {
    let executor = Executor::new(seed);
    let metadata: Rc<MetadataDisk> =
        Disk::new(&executor, vec![[0; 512]; METADATA_BLOCKS as usize * 8]);
    // Data disks are full of somebody's old data.
    let stale = (0..DATA_BLOCKS * BLOCK_SECTORS)
        .map(|s| (1 << 60) + s)
        .collect();
    let data: Rc<DataDisk> = Disk::new(&executor, stale);
    let sectors = DEVICE_BLOCKS * BLOCK_SECTORS;
    let fresh = Sector {
        log: vec![0],
        acknowledged: 0,
        flushed: 0,
    };
    let model = DEVICES
        .into_iter()
        .map(|id| (id, vec![fresh.clone(); sectors as usize]))
        .collect();
    let world = Rc::new(World {
        executor: executor.clone(),
        model: Rc::new(RefCell::new(model)),
        snapshots: RefCell::default(),
        next_value: Cell::new(1),
        next_io: Cell::new(1),
        stopping: Cell::new(false),
        counts: RefCell::default(),
        failure: RefCell::default(),
    });
    for number in 0..4 {
        let main = life(
            world.clone(),
            seed,
            metadata.clone(),
            data.clone(),
            number == 0,
        );
        match executor.run(main, POLLS) {
            Some(result) => result?,
            None => return Err("deadlock, or no end".to_owned()),
        }
        executor.forget_tasks();
        metadata.lose_flushes(lose_flushes);
        data.lose_flushes(lose_flushes);
        metadata.crash();
        data.crash();
        world.count("crashes");
        let disk = metadata.clone();
        let check = async move {
            let options = OpenOptions {
                data_block_size_sectors: BLOCK_SECTORS as u32,
                cache_bytes: 1 << 20,
                may_format: false,
                read_only: true,
            };
            let metadata = ThinMetadata::open(disk, options).await?;
            metadata.check().await
        };
        match executor.run(check, POLLS) {
            Some(Ok(findings)) if findings.is_empty() => {}
            Some(Ok(findings)) => return Err(format!("check after a crash: {findings:?}")),
            Some(Err(error)) => return Err(format!("check after a crash: {error}")),
            None => return Err("the check has no end".to_owned()),
        }
    }
    Ok(world.counts.take())
}
