//! What an operator does to a pool while clients work: devices, snapshots, activation, messages.

use super::world::{Fate, Volume, World};
use crate::history::{History, Since};
use bdev::errno::Errno;
use bdev::thin::{Pool, PoolError};
use std::rc::Rc;

/// Ids an operator uses.
const IDS: u64 = 7;

/// An operator.
pub struct Manager {
    /// The world.
    pub world: Rc<World>,
    /// The pool.
    pub pool: Rc<Pool>,
}

impl Manager {
    /// Works until the world stops.
    pub async fn run(self) {
        while !self.world.stopping.get() {
            for _ in 0..self.world.executor.below(25) {
                self.world.executor.delay().await;
            }
            self.act().await;
        }
    }

    async fn act(&self) {
        let dice = &self.world.executor;
        let id = dice.below(IDS) as u32;
        let found = self.world.volumes.borrow().get(&id).cloned();
        if self.world.shape.merging && dice.one_in(3) {
            return self.merge().await;
        }
        match (dice.below(12), found) {
            (0..=7, None) => self.create(id).await,
            (0, Some(volume)) => self.create_again(&volume).await,
            (1..=3, Some(volume)) => self.delete(&volume).await,
            (4..=6, Some(volume)) => self.toggle(&volume).await,
            (8, _) => self.set_transaction_id().await,
            (9, _) => self.metadata_snap().await,
            (10, _) => self.look().await,
            (11, _) => self.grow().await,
            _ => {}
        }
    }

    /// Whether an operation may have failed like this.
    pub(super) fn judge(&self, what: &str, error: &PoolError) {
        self.world.executor.count("operations refused");
        let changes = self.pool.shared().mode().refuses_changes();
        if !self.world.faulty.get() && !changes {
            self.world.fail(format!("{what}: {error}"));
        }
    }

    /// A new device, empty or as a snapshot.
    pub async fn create(&self, id: u32) {
        let origin = self.pick_origin();
        let began = self.world.tick();
        self.world
            .executor
            .trace(|| format!("create {id} from {:?}", origin.as_ref().map(|o| o.id)));
        let fate = Fate::Making(origin.as_ref().map(|o| (o.id, began)));
        let volume = Volume::new(id, History::new(self.world.shape.holes(id)), fate);
        volume.busy.set(true);
        self.world.volumes.borrow_mut().insert(id, volume.clone());
        let result = match &origin {
            None => self.pool.create_thin(id).await,
            Some(origin) => {
                origin.busy.set(true);
                origin.history.borrow_mut().begin_read(began);
                let result = self.pool.create_snap(id, origin.id).await;
                if result.is_ok() {
                    let now = self.world.tick();
                    let history = origin.history.borrow().snapshot(Since::Read(began), now);
                    *volume.history.borrow_mut() = history;
                    self.world.executor.count("snapshots");
                }
                // If it failed, a crash may still show what it was to be.
                if result.is_ok() {
                    origin.history.borrow_mut().end_read(began);
                    origin.busy.set(false);
                }
                result
            }
        };
        self.world
            .executor
            .trace(|| format!("create {id}: {result:?}"));
        match result {
            Ok(()) => {
                volume.fate.set(Fate::There);
                volume.busy.set(false);
                self.world.executor.count("devices created");
            }
            // It stays as it is: neither here nor there until the pool is opened again.
            Err(error) => self.judge("create", &error),
        }
    }

    fn pick_origin(&self) -> Option<Rc<Volume>> {
        let volumes = self.world.volumes.borrow();
        let at = self.world.executor.below(volumes.len() as u64 + 1) as usize;
        let volume = volumes.values().nth(at)?;
        let usable = !volume.busy.get() && volume.fate.get() == Fate::There;
        let usable = usable && !self.world.is_merged(volume.id);
        usable.then(|| volume.clone())
    }

    async fn create_again(&self, volume: &Volume) {
        if volume.busy.get() || volume.fate.get() != Fate::There {
            return;
        }
        volume.busy.set(true);
        match self.pool.create_thin(volume.id).await {
            Err(error) if error.errno() == Errno::EEXIST => {
                self.world.executor.count("existing id refused");
            }
            Err(error) => self.judge("create of an existing device", &error),
            Ok(()) => self
                .world
                .fail(format!("device {} was created twice", volume.id)),
        }
        volume.busy.set(false);
    }

    async fn delete(&self, volume: &Rc<Volume>) {
        if volume.busy.get() || self.world.is_merged(volume.id) {
            return;
        }
        volume.busy.set(true);
        let id = volume.id;
        let active = volume.dev.borrow().is_some();
        if !active {
            volume.fate.set(Fate::Deleting);
            // Blocks may go before the device does, and a deletion that fails leaves the rest.
            volume.written.set(true);
            let now = self.world.tick();
            let hole = |block| self.world.shape.hole(id, block);
            let mut history = volume.history.borrow_mut();
            let len = history.len();
            history.begin(0, len, hole, now);
        }
        let result = self.pool.delete(id).await;
        self.world
            .executor
            .trace(|| format!("delete {id}: {result:?}"));
        match result {
            Ok(()) if active => self.world.fail(format!("device {id} deleted while active")),
            Ok(()) => {
                self.world.executor.count("devices deleted");
                self.world.volumes.borrow_mut().remove(&id);
            }
            Err(error) if active => {
                self.world.executor.count("delete of active refused");
                if error.errno() != Errno::EBUSY {
                    self.judge("delete of an active device", &error);
                }
                volume.busy.set(false);
            }
            Err(error) => self.judge("delete", &error),
        }
    }

    async fn toggle(&self, volume: &Rc<Volume>) {
        if volume.busy.get() {
            return;
        }
        volume.busy.set(true);
        let closing = volume.dev.take();
        match closing {
            None => self.activate(volume).await,
            Some(_) => self.deactivate(volume).await,
        }
        volume.busy.set(false);
    }

    /// Opens a device to clients.
    pub async fn activate(&self, volume: &Volume) {
        let sectors = self.world.shape.device_sectors();
        match self
            .pool
            .activate(volume.id, sectors, self.world.origin_device(volume.id))
            .await
        {
            Ok(dev) => {
                self.world.executor.count("activations");
                *volume.dev.borrow_mut() = Some(dev);
            }
            Err(error) => self.judge("activate", &error),
        }
    }

    /// Closes a device that clients no longer begin to use.
    pub async fn deactivate(&self, volume: &Volume) {
        while volume.in_flight.get() > 0 {
            self.world.executor.delay().await;
        }
        let began = self.world.tick();
        self.world.losses.flush_begins(began);
        let closed = self.pool.deactivate(volume.id).await;
        let now = self.world.tick();
        self.world.losses.flush_ends(began, closed.is_ok(), now);
        match closed {
            Ok(()) if !self.pool.shared().mode().refuses_changes() => {
                self.world.executor.count("deactivations");
                volume.history.borrow_mut().flushed(began);
            }
            // A pool gone back to its last commit refuses flushes of devices that lost something, but
            // knows no more of it when they are opened again.
            Ok(()) => volume.history.borrow_mut().doubt(),
            Err(error) => {
                volume.history.borrow_mut().doubt();
                self.judge("deactivate", &error);
            }
        }
    }

    async fn set_transaction_id(&self) {
        let known = self.world.transaction_id.borrow().clone();
        let [current] = known.as_slice() else { return };
        let new = current + 1 + self.world.executor.below(5);
        *self.world.transaction_id.borrow_mut() = vec![*current, new];
        match self.pool.set_transaction_id(*current, new).await {
            Ok(()) => {
                self.world.executor.count("transaction ids set");
                *self.world.transaction_id.borrow_mut() = vec![new];
            }
            Err(error) => self.judge("set_transaction_id", &error),
        }
    }

    async fn metadata_snap(&self) {
        let result = match self.world.executor.below(2) {
            0 => self.pool.reserve_metadata_snap().await,
            _ => self.pool.release_metadata_snap().await,
        };
        match result {
            Ok(()) => self.world.executor.count("metadata snapshots"),
            Err(error) if error.errno() == Errno::EBUSY || error.errno() == Errno::EINVAL => {}
            Err(error) => self.judge("metadata snapshot", &error),
        }
    }

    /// The disks grow under the open pool.
    async fn grow(&self) {
        let dice = &self.world.executor;
        if dice.one_in(2) {
            let blocks = dice.below(4) * self.world.shape.per_block();
            self.world
                .data
                .grow(blocks, super::world::Shape::stale(1 << 41));
        }
        if dice.one_in(2) {
            self.world.metadata.grow(dice.below(12) * 8, 0);
        }
        match self.pool.grow().await {
            Ok(()) => dice.count("growth of an open pool"),
            Err(error) => self.judge("grow", &error),
        }
    }

    /// Status and list say what is so.
    async fn look(&self) {
        match self.pool.list().await {
            Err(error) => self.judge("list", &error),
            Ok(list) => {
                for volume in self.world.volumes.borrow().values() {
                    let listed = list.iter().any(|(id, _)| *id == volume.id);
                    // What was there when the list was made may be on its way out by now; and a pool
                    // gone back to its last commit may show again what was deleted.
                    let sure = volume.fate.get() == Fate::There && !volume.busy.get();
                    let back = self.pool.shared().mode().refuses_changes();
                    if sure && !listed && !back && !Self::just_made(volume) {
                        self.world
                            .fail(format!("device {} is not listed", volume.id));
                    }
                }
                self.world.executor.count("lists");
            }
        }
        if let Err(error) = self.pool.status().await {
            self.judge("status", &error);
        }
    }

    /// Another operator made it while the list was on its way.
    fn just_made(volume: &Volume) -> bool {
        !volume.written.get() && volume.dev.borrow().is_none()
    }
}
