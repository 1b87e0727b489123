//! Merging a device into its external origin while clients use it: nobody may notice, and at the moment
//! it has finished the origin holds, durably, what the device does.

use super::manager::Manager;
use super::world::{HOT_BLOCKS, MERGED, Volume, World};
use crate::history::{Pending, Since};
use bdev::errno::Errno;
use bdev::thin::{ExternalMergeState, Pool, PoolEvent};
use std::rc::Rc;

/// Has the origin looked at when a merge into it has finished.
pub fn watch(world: &Rc<World>, pool: &Pool) {
    let world = Rc::downgrade(world);
    pool.watch(move |event| {
        let Some(world) = world.upgrade() else { return };
        match event {
            PoolEvent::ExternalMergeFinished { id: MERGED } => {
                world.executor.count("external merges finished");
                if let Err(wrong) = world.check_merged() {
                    world.fail(format!("the external origin after a merge: {wrong}"));
                }
            }
            PoolEvent::ExternalMergeFailed { .. } => {
                world.executor.count("external merges failed");
            }
            _ => {}
        }
    });
}

impl World {
    /// Whether a device is merged now and then.
    pub fn is_merged(&self, id: u32) -> bool {
        self.shape.merging && id == MERGED
    }

    /// Everything that was written before now is durable in the origin.
    fn check_merged(&self) -> Result<(), String> {
        let volume = self.volumes.borrow().get(&MERGED).cloned();
        let (Some(volume), Some(origin)) = (volume, &self.origin) else {
            return Ok(());
        };
        for block in 0..HOT_BLOCKS * self.shape.per_block() {
            let found = self.shape.in_origin(MERGED, block);
            let Some(found) = found.and_then(|at| origin.durable(at)) else {
                continue;
            };
            let now = self.tick();
            let mut history = volume.history.borrow_mut();
            history.check(block, &[found], Since::Read(now), self.tick())?;
        }
        Ok(())
    }

    /// A discard of ranges of the device that is merged shows what was merged last, and that may be any
    /// of what it ever held, or what else the origin holds.
    pub fn loosen(&self, volume: &Volume, ranges: &[(u64, u64)]) -> Vec<Pending> {
        if self.is_merged(volume.id) {
            self.executor.count("discards of what is merged");
            let mut history = volume.history.borrow_mut();
            for (first, count) in ranges {
                history.doubt_all_of(*first, *count);
            }
        }
        self.shown_by_holes(volume, ranges)
    }

    /// What holes of the device that is merged show just now. While a discard is under way it changes: a merge copies
    /// what is then discarded.
    pub fn shown_by_holes(&self, volume: &Volume, ranges: &[(u64, u64)]) -> Vec<Pending> {
        let mut pending = Vec::new();
        let Some(origin) = self.origin.as_ref().filter(|_| self.is_merged(volume.id)) else {
            return pending;
        };
        let mut history = volume.history.borrow_mut();
        for (first, count) in ranges {
            for block in *first..first + count {
                let at = self.shape.in_origin(volume.id, block);
                for value in at.map_or_else(Vec::new, |at| origin.versions(at)) {
                    pending.push(history.begin(block, 1, |_| value, self.tick()));
                }
            }
        }
        pending
    }
}

impl Manager {
    /// Begins a merge, and perhaps stops it.
    pub(super) async fn merge(&self) {
        let (world, pool) = (&self.world, &self.pool);
        let dice = &world.executor;
        let Some(target) = world.origin_device(MERGED) else {
            return;
        };
        let rate = [0, 1 << 30, 1 << 20][dice.below(3) as usize];
        match pool.merge_external(MERGED, target, rate).await {
            Ok(()) => dice.count("external merges"),
            // It is under way, not active, or longer than its origin.
            Err(error) if [Errno::EBUSY, Errno::ENODEV, Errno::EINVAL].contains(&error.errno()) => {
                dice.count("external merges refused");
                return;
            }
            Err(error) => return self.judge("merge_external", &error),
        }
        if dice.one_in(3) {
            for _ in 0..dice.below(30) {
                dice.delay().await;
            }
            match pool.stop_external_merge(MERGED).await {
                Ok(()) => dice.count("external merges stopped"),
                // It has ended.
                Err(error) if error.errno() == Errno::ENODEV => {}
                Err(error) => self.judge("stop_external_merge", &error),
            }
        }
        match pool.external_merge(MERGED).await {
            Ok(Some(merge)) => match merge.state {
                ExternalMergeState::Failed(reason)
                    if !world.faulty.get()
                        && !pool.shared().mode().refuses_changes()
                        && !reason.contains("beyond the end") =>
                {
                    world.fail(format!("a merge failed for no reason: {reason}"));
                }
                _ => {}
            },
            Ok(None) => {}
            Err(error) => self.judge("external_merge", &error),
        }
    }
}
