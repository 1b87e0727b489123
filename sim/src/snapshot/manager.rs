//! Who makes, removes and merges snapshots.

use super::clients::Io;
use super::world::{NR_COWS, Use, World};
use crate::cores::Cores;
use crate::history::Since;
use bdev::device::DataDevice;
use bdev::snapshot::{
    Condition, MergeState, Origin, SnapshotConfig, SnapshotError, SnapshotStatus, SnapshotTarget,
    State, StoreKind,
};
use bdev::target::BaseId;
use std::rc::Rc;

/// What the name of a snapshot ends with that has another's store for a moment.
pub const HEIR: &str = "-heir";

/// The manager.
pub struct Manager {
    /// The world.
    pub world: Rc<World>,
    /// The target.
    pub origin: Rc<Origin>,
    /// The cores.
    pub cores: Rc<Cores<SnapshotTarget>>,
}

impl Manager {
    /// Works until the world stops.
    pub async fn run(self) {
        let dice = self.world.executor.clone();
        while !self.world.stopping.get() {
            let cow = dice.below(NR_COWS as u64) as usize;
            match dice.below(16) {
                0..=6 => self.create(cow).await,
                7 => self.remove(cow).await,
                8 | 9 => self.merge(cow).await,
                10 | 11 => self.look_after_merge().await,
                12 => {
                    dice.count("caches dropped");
                    self.origin.drop_cache().await;
                }
                13 => self.hand_over(cow).await,
                _ => self.status(),
            }
            for _ in 0..dice.below(20) {
                dice.delay().await;
            }
        }
    }

    fn name(&self, cow: usize) -> String {
        let config = self.world.shape.snapshots.get(cow);
        config.map_or_else(String::new, |config| config.name.clone())
    }

    /// Begins a new store, as LVM does.
    async fn wipe(&self, cow: usize) -> bool {
        let Some(config) = self.world.shape.snapshots.get(cow) else {
            return false;
        };
        let disk = self.world.disk(cow + 1);
        let sectors = config.chunk_sectors.min(DataDevice::nr_sectors(&*disk));
        disk.zero(0, sectors).await.is_ok() && disk.flush_all().await.is_ok()
    }

    async fn create(&self, cow: usize) {
        let world = &self.world;
        if world.use_of(cow) != Use::Free {
            return;
        }
        let Some(config) = world.shape.snapshots.get(cow).cloned() else {
            return;
        };
        if config.store != StoreKind::Transient && !self.wipe(cow).await {
            return;
        }
        let began = world.tick();
        let source = world.target(0);
        source.history.borrow_mut().begin_read(began);
        let base = BaseId(cow as u8 + 1);
        let made = self
            .origin
            .create_snapshot(config, base, world.disk(cow + 1), true)
            .await;
        world.executor.trace(|| {
            let made = made.as_ref().map(|snapshot| snapshot.status());
            format!("snapshot {cow} made at {began}: {made:?}")
        });
        match made {
            Ok(snapshot) => {
                world.executor.count("snapshots");
                let now = world.tick();
                let history = source.history.borrow().snapshot(Since::Read(began), now);
                source.history.borrow_mut().end_read(began);
                world.set_use(cow, Use::Snapshot);
                world.set_dead(cow, false);
                let target = world.target(cow + 1);
                *target.history.borrow_mut() = history;
                target.paused.set(false);
                if world.executor.one_in(2) {
                    self.check_moment(cow, &snapshot).await;
                }
                *target.volume.borrow_mut() = Some(snapshot.volume().clone());
            }
            Err(error) => {
                source.history.borrow_mut().end_read(began);
                let refused = error == SnapshotError::NotWhileMerging;
                let merging = (0..NR_COWS).any(|other| world.use_of(other) == Use::Merging);
                let too_small = matches!(error, SnapshotError::TooShort { .. });
                if !(world.faulty.get() || too_small && world.shape.tight || refused && merging) {
                    world.fail(format!("snapshot {cow}: {error}"));
                }
            }
        }
    }

    /// What a new snapshot shows is one moment of the origin.
    async fn check_moment(&self, cow: usize, snapshot: &bdev::snapshot::Snapshot) {
        let world = &*self.world;
        let target = world.target(cow + 1);
        let io = Io {
            world,
            cores: &self.cores,
            number: cow + 1,
            target,
            volume: snapshot.volume().clone(),
        };
        let began = world.tick();
        let Some(found) = io.read_all().await else {
            return;
        };
        world.executor.count("moments checked");
        let mut history = target.history.borrow_mut();
        let now = world.tick();
        let checked = history
            .check(0, &found, Since::Read(began), now)
            .and_then(|()| history.check_moment(&found));
        if let Err(wrong) = checked {
            world.fail(format!("new snapshot {cow}: {wrong}"));
        }
    }

    async fn remove(&self, cow: usize) {
        let world = &self.world;
        if world.use_of(cow) != Use::Snapshot {
            return;
        }
        world.executor.count("snapshots removed");
        let target = world.target(cow + 1);
        world.pause(cow + 1).await;
        target.volume.take();
        // From now on the origin's writes may not be kept from it.
        world.set_use(cow, Use::Free);
        if let Err(error) = self.origin.remove_snapshot(&self.name(cow)).await {
            world.fail(format!("removing snapshot {cow}: {error}"));
        }
    }

    /// A store goes to another snapshot and back, while the origin is written to: nothing changes.
    async fn hand_over(&self, cow: usize) {
        let world = &self.world;
        // Where snapshots may become invalid, a power cut in the middle would leave nobody who knows.
        if world.use_of(cow) != Use::Snapshot || world.may_fail() {
            return;
        }
        world.pause(cow + 1).await;
        let target = world.target(cow + 1);
        let name = self.name(cow);
        let other = format!("{name}{HEIR}");
        for (from, to) in [(&name, &other), (&other, &name)] {
            let Some(source) = self.origin.snapshot(from) else {
                return world.fail(format!("snapshot {cow} is not there as '{from}'"));
            };
            let config = SnapshotConfig {
                name: to.clone(),
                ..source.config().clone()
            };
            match self.origin.hand_over(from, config).await {
                Ok(heir) => *target.volume.borrow_mut() = Some(heir.volume().clone()),
                Err(error) => return world.fail(format!("handover of {cow}: {error}")),
            }
            if source.status().to_string() != "Invalid" {
                world.fail(format!("snapshot {cow} handed over: {}", source.status()));
            }
            let config = source.config().clone();
            if self.origin.hand_over(from, config).await.is_ok() {
                world.fail(format!("snapshot {cow} handed its store over twice"));
            }
            if let Err(error) = self.origin.remove_snapshot(from).await {
                world.fail(format!("removing the source of {cow}: {error}"));
            }
        }
        world.executor.count("handovers");
        target.paused.set(false);
    }

    async fn merge(&self, cow: usize) {
        let world = &self.world;
        let merging = (0..NR_COWS).any(|other| world.use_of(other) == Use::Merging);
        if world.use_of(cow) != Use::Snapshot {
            return;
        }
        let name = self.name(cow);
        let Some(snapshot) = self.origin.snapshot(&name) else {
            return world.fail(format!("snapshot {cow} is not there"));
        };
        let config = snapshot.config();
        // The rest of the origin would be a mixture to the model.
        if config.nr_sectors.is_some() {
            return;
        }
        let state = self.origin.merge().map(|merge| merge.state());
        if merging && state != Some(MergeState::Stopped) {
            // It could finish meanwhile.
            return;
        }
        let refused = match () {
            () if merging => Some(SnapshotError::AlreadyMerging),
            () if config.store == StoreKind::Transient => Some(SnapshotError::CannotMerge),
            () => None,
        };
        if let Some(refused) = refused {
            let answer = self.origin.merge_snapshot(&name).await;
            if answer != Err(refused) {
                world.fail(format!("merge of {cow}: {answer:?}"));
            }
            return;
        }
        world.pause(0).await;
        world.pause(cow + 1).await;
        if snapshot.state() == State::Invalid {
            world.target(0).paused.set(false);
            world.target(cow + 1).paused.set(false);
            return;
        }
        // From now on, if power fails, it is the origin's content all the same.
        world.set_use(cow, Use::Merging);
        world.target(cow + 1).volume.take();
        let history = world.target(cow + 1).history.take();
        *world.target(0).history.borrow_mut() = history;
        world
            .executor
            .trace(|| format!("merge of {cow}: {:?}", snapshot.status()));
        match self.origin.merge_snapshot(&name).await {
            Ok(()) => world.executor.count("merges"),
            Err(error) => world.fail(format!("merge of {cow}: {error}")),
        }
        if snapshot.status().to_string() != "Invalid" {
            world.fail(format!("snapshot {cow} handed over: {}", snapshot.status()));
        }
        if let Err(error) = self.origin.remove_snapshot(&name).await {
            world.fail(format!("removing merged snapshot {cow}: {error}"));
        }
        world.target(0).paused.set(false);
    }

    async fn look_after_merge(&self) {
        let world = &self.world;
        let Some(cow) = (0..NR_COWS).find(|cow| world.use_of(*cow) == Use::Merging) else {
            return;
        };
        let Some(status) = self.origin.merge_status() else {
            return world.fail("the merge is not there".to_owned());
        };
        world
            .executor
            .trace(|| format!("merge of {cow}: {status:?}"));
        match &status.merge {
            Some(MergeState::Finished) => {
                world.executor.count("merges finished");
                if status.allocated_sectors != status.metadata_sectors {
                    world.fail(format!("a merge finished with {status}"));
                }
                if let Err(error) = self.origin.forget_merge().await {
                    world.fail(format!("forgetting a finished merge: {error}"));
                }
                world.set_use(cow, Use::Free);
            }
            Some(MergeState::Failed(reason)) => {
                world.executor.count("merges failed");
                if !world.faulty.get() {
                    world.fail(format!("a merge failed for no reason: {reason}"));
                }
                if self.origin.resume_merge().is_err() {
                    world.fail("a failed merge cannot be resumed".to_owned());
                }
            }
            Some(MergeState::Stopped) => {
                let _ = self.origin.resume_merge();
            }
            Some(MergeState::Running) if world.executor.one_in(3) => {
                world.executor.count("merges stopped");
                let _ = self.origin.stop_merge().await;
            }
            Some(MergeState::Invalid) => world.fail("a merge of an invalid store".to_owned()),
            _ => {}
        }
    }

    /// Looks at every status; a snapshot that is invalid stays so.
    pub fn status(&self) {
        for cow in 0..NR_COWS {
            let Some(snapshot) = self.origin.snapshot(&self.name(cow)) else {
                continue;
            };
            if self.world.use_of(cow) == Use::Snapshot {
                self.judge(cow, &snapshot.status());
            }
        }
    }

    fn judge(&self, cow: usize, status: &SnapshotStatus) {
        let world = &self.world;
        if status.handed_over {
            return;
        }
        match status.condition {
            Condition::Good if world.is_dead(cow) => {
                world.fail(format!("snapshot {cow} was invalid, is {status}"));
            }
            Condition::Good => {
                let sane = status.metadata_sectors <= status.allocated_sectors
                    && status.allocated_sectors <= status.total_sectors;
                if !sane {
                    world.fail(format!("snapshot {cow}: {status}"));
                }
            }
            Condition::Overflow if !world.shape.tight => {
                world.fail(format!("snapshot {cow} overflows for no reason"));
            }
            Condition::Overflow => world.executor.count("overflows"),
            _ => {
                world.executor.count("invalid snapshots");
                if !world.may_fail() && !world.is_dead(cow) {
                    world.fail(format!("snapshot {cow} is {status} for no reason"));
                }
                world.set_dead(cow, true);
            }
        }
    }
}
