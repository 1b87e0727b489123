//! What an operator does to an era target while clients work: messages, questions, growth.

use super::world::{Held, Snap, World};
use bdev::era::{Era, EraTargetError, View};
use bdev::errno::Errno;
use std::rc::Rc;

/// An operator. There is one, so that it is known which era an answer is about.
pub struct Operator {
    /// The world.
    pub world: Rc<World>,
    /// The target.
    pub era: Rc<Era>,
}

impl Operator {
    /// Works until the world stops.
    pub async fn run(self) {
        while !self.world.stopping.get() {
            for _ in 0..self.world.executor.below(12) {
                self.world.executor.delay().await;
            }
            match self.world.executor.below(12) {
                0..=3 => self.checkpoint().await,
                4..=5 => self.take_snap().await,
                6 => self.drop_snap().await,
                7..=8 => {
                    self.ask().await;
                }
                9 => self.ask_snap().await,
                10 => self.grow().await,
                _ => self.status().await,
            }
        }
    }

    /// Whether an operation may have failed like this.
    fn judge(&self, what: &str, error: &EraTargetError) {
        self.world.executor.count("operations refused");
        if !self.world.may_fail() {
            self.world.fail(format!("{what}: {error}"));
        }
    }

    fn answered(&self, era: u32) {
        let writes = self.world.origin.nr_writes();
        self.world
            .executor
            .trace(|| format!("era {era} is answered after write {writes}"));
        if let Err(wrong) = self.world.ledger.borrow_mut().answer(era, writes) {
            self.world.fail(wrong);
        }
    }

    fn asks(&self) {
        let now = self.world.tick();
        self.world.ledger.borrow_mut().ask(now);
    }

    async fn checkpoint(&self) {
        self.asks();
        match self.era.checkpoint().await {
            Ok(era) => {
                self.world.executor.count("checkpoints");
                self.answered(era);
            }
            Err(error) => self.judge("checkpoint", &error),
        }
    }

    async fn take_snap(&self) {
        let before = self.world.snap.borrow().clone();
        self.asks();
        // All that was let through by now is in it.
        let must = self.world.must();
        if !matches!(before, Snap::Held(_)) {
            *self.world.snap.borrow_mut() = Snap::Unsure;
        }
        match (self.era.take_metadata_snap().await, before) {
            (Ok(_), Snap::Held(_)) => {
                self.world.fail("a second metadata snapshot".to_owned());
            }
            (Ok(_), _) => {
                self.world.executor.count("metadata snapshots");
                *self.world.snap.borrow_mut() = Snap::Held(Held { must });
                self.status().await;
            }
            (Err(error), Snap::Held(_) | Snap::Unsure) if error.errno() == Errno::EINVAL => {}
            (Err(error), _) => self.judge("take_metadata_snap", &error),
        }
    }

    async fn drop_snap(&self) {
        let before = self.world.snap.replace(Snap::Unsure);
        match (self.era.drop_metadata_snap().await, before) {
            (Ok(()), Snap::None) => {
                self.world
                    .fail("a metadata snapshot nobody took".to_owned());
            }
            (Ok(()), _) => {
                self.world.executor.count("metadata snapshots dropped");
                *self.world.snap.borrow_mut() = Snap::None;
            }
            (Err(error), Snap::None | Snap::Unsure) if error.errno() == Errno::EINVAL => {
                *self.world.snap.borrow_mut() = Snap::None;
            }
            (Err(error), _) => self.judge("drop_metadata_snap", &error),
        }
    }

    /// Compares what is reported now with the model; false: nothing could be learnt.
    pub async fn ask(&self) -> bool {
        for must in self.world.must() {
            let found = self.era.written_since(View::Live, must.era, 0..u64::MAX);
            match found.await {
                Ok(found) => {
                    self.world.executor.count("eras asked for");
                    if let Err(wrong) = self.world.ledger.borrow().check(&must, &found) {
                        self.world.fail(wrong);
                    }
                }
                Err(error) => {
                    self.judge("written_since", &error);
                    return false;
                }
            }
        }
        true
    }

    /// The same of the metadata snapshot.
    pub async fn ask_snap(&self) {
        let snap = self.world.snap.borrow().clone();
        let Snap::Held(held) = snap else { return };
        for must in &held.must {
            let found = self
                .era
                .written_since(View::Snapshot, must.era, 0..u64::MAX);
            match found.await {
                Ok(found) => {
                    self.world.executor.count("eras asked for in a snapshot");
                    if let Err(wrong) = self.world.ledger.borrow().check(must, &found) {
                        self.world.fail(format!("metadata snapshot: {wrong}"));
                    }
                }
                Err(error) => return self.judge("written_since", &error),
            }
        }
    }

    async fn grow(&self) {
        self.world.grow_disks();
        self.asks();
        match self.era.grow().await {
            Ok(()) => {
                self.world.executor.count("growth of an open target");
                self.world
                    .nr_logical
                    .set(self.world.origin.nr_logical_blocks());
                self.status().await;
            }
            Err(error) => self.judge("grow", &error),
        }
    }

    /// The status says what is so.
    pub async fn status(&self) {
        let status = match self.era.status().await {
            Ok(status) => status,
            Err(error) => return self.judge("status", &error),
        };
        if let Some(error) = &status.error {
            if !self.world.may_fail() {
                self.world.fail(format!("status: {error}"));
            }
            return;
        }
        let last = self.world.ledger.borrow().last_era();
        if status.current_era < last {
            self.world
                .fail(format!("era {} after {last}", status.current_era));
        } else if status.current_era > last {
            // Growth, or an operation that was answered with an error.
            self.answered(status.current_era);
        }
        let right = match *self.world.snap.borrow() {
            Snap::None => status.metadata_snap.is_none(),
            Snap::Held(_) => status.metadata_snap.is_some(),
            Snap::Unsure => true,
        };
        if !right {
            self.world.fail(format!(
                "metadata snapshot {:?}, may be {:?}",
                status.metadata_snap,
                self.world.snap.borrow()
            ));
        }
    }
}
