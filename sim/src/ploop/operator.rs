//! What an operator does to a ploop device while clients work.

use super::clients::Client;
use super::sessions::BackedUp;
use super::world::{Chain, NR_DISKS, World};
use bdev::ploop::{Direction, Ploop, PloopError};
use bdev::runtime::Runtime;
use std::cell::RefCell;
use std::rc::Rc;

/// The operator.
pub struct Operator {
    /// The world.
    pub world: Rc<World>,
    /// The target.
    pub ploop: Rc<Ploop>,
    /// For I/O of its own.
    pub client: Client,
    /// The last complete backup since which changes are recorded.
    pub backed_up: RefCell<Option<BackedUp>>,
}

impl Operator {
    /// Works until the world stops.
    pub async fn run(self) {
        let dice = self.world.executor.clone();
        while !self.world.stopping.get() {
            match dice.below(17) {
                0..=2 => self.snapshot().await,
                3 | 4 => self.merge().await,
                5 | 6 => self.merge_lower().await,
                7 | 8 => self.resize().await,
                9 => self.suspend().await,
                10 => self.flip().await,
                11 => self.track().await,
                12 => self.back_up().await,
                13 | 14 => self.back_up_changes().await,
                15 => {
                    dice.count("caches dropped");
                    self.ploop.drop_cache().await;
                }
                _ => self.status(),
            }
            self.world.paused.set(false);
            for _ in 0..dice.below(30) {
                dice.delay().await;
            }
        }
    }

    /// Whether an operation may have failed like this.
    pub fn judge<T>(&self, what: &str, result: Result<T, PloopError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.world.executor.count("operations refused");
                let full = self.world.shape.tight && matches!(error, PloopError::NoSpace(_));
                if !self.world.faulty.get() && !full {
                    self.world.fail(format!("{what}: {error}"));
                }
                None
            }
        }
    }

    /// The chain is what the target says; unless it must be another.
    fn settle(&self, expected: Option<Chain>) {
        self.world.next_chain.take();
        let chain = self.world.chain_of(&self.ploop);
        self.world
            .executor
            .trace(|| format!("the chain is {chain:?}"));
        if let Some(expected) = expected
            && expected != chain
        {
            self.world
                .fail(format!("the chain is {chain:?}, must be {expected:?}"));
        }
        *self.world.chain.borrow_mut() = chain;
    }

    fn chain(&self) -> Chain {
        self.world.chain.borrow().clone()
    }

    async fn snapshot(&self) {
        let world = &self.world;
        let Some(free) = world.free_disks().first().copied() else {
            return;
        };
        if !world.format(free).await {
            if !world.may_fail() {
                world.fail(format!("image {free} cannot be made"));
            }
            return;
        }
        let mut next = self.chain();
        next.lower.push(next.top);
        next.top = free;
        // The guest's writes may go there before the answer has come.
        *world.next_chain.borrow_mut() = Some(next.clone());
        world.closing.set(true);
        let made = self.ploop.snapshot(world.source(free)).await;
        let made = self.judge("snapshot", made);
        if made.is_some() {
            world.closing.set(false);
            world.executor.count("snapshots");
        }
        self.settle(made.map(|()| next));
    }

    /// The newest lower delta goes up into the top, perhaps not to the end.
    async fn merge(&self) {
        let chain = self.chain();
        let Some((_, rest)) = chain.lower.split_last() else {
            let refused = self.ploop.merge().await;
            if !matches!(refused, Err(PloopError::NoLower(_))) {
                self.world.fail(format!("a merge of nothing: {refused:?}"));
            }
            return;
        };
        self.cancel_later();
        let merged = self.ploop.merge().await;
        if matches!(merged, Err(PloopError::Interrupted(_))) {
            self.world.executor.count("merges cancelled");
            return self.settle(Some(chain));
        }
        let merged = self.judge("merge", merged);
        if merged.is_some() {
            self.world.executor.count("merges");
        }
        self.settle(merged.map(|()| Chain {
            top: chain.top,
            lower: rest.to_vec(),
        }));
    }

    fn cancel_later(&self) {
        let dice = self.world.executor.clone();
        if !dice.one_in(3) {
            return;
        }
        let ploop = self.ploop.clone();
        self.world.executor.spawn(Box::pin(async move {
            for _ in 0..dice.below(30) {
                dice.delay().await;
            }
            ploop.cancel_merge();
        }));
    }

    /// A lower delta goes into a neighbour.
    async fn merge_lower(&self) {
        let dice = &self.world.executor;
        let chain = self.chain();
        let level = dice.below(chain.lower.len() as u64) as usize;
        let direction = match dice.one_in(2) {
            true => Direction::Forward,
            false => Direction::Backward,
        };
        let possible = match direction {
            Direction::Forward => level + 1 < chain.lower.len(),
            Direction::Backward => level > 0 && level < chain.lower.len(),
        };
        self.cancel_later();
        let merged = self.ploop.merge_lower(level, direction).await;
        // Older deltas may be smaller: a raw base, and what was there before a resize.
        let shape = &self.world.shape;
        let may_not_fit = direction == Direction::Backward
            && (shape.max_clusters > shape.nr_clusters
                || level == 1 && chain.lower.first() == Some(&(NR_DISKS - 1)));
        let result = match merged {
            Err(PloopError::Interrupted(_)) => return self.settle(Some(chain)),
            Err(PloopError::Invalid(_)) if may_not_fit => return self.settle(Some(chain)),
            Err(PloopError::NoLevel { .. } | PloopError::Invalid(_)) if !possible => return,
            other => self.judge("merge of a lower delta", other),
        };
        let Some(()) = result else {
            return self.settle(None);
        };
        dice.count("merges of lower deltas");
        let mut next = chain;
        next.lower.remove(level);
        self.settle(Some(next));
    }

    async fn resize(&self) {
        let world = &self.world;
        let shape = &world.shape;
        let now = world.nr_logical() / shape.per_cluster;
        let more = world.executor.below(shape.max_clusters - now + 1);
        let more = if world.executor.one_in(2) {
            more.min(9)
        } else {
            more
        };
        let next = (now + more) * shape.per_cluster;
        world.sizes.borrow_mut().push(next);
        let resized = self.ploop.resize(next * shape.block_sectors()).await;
        let resized = self.judge("resize", resized);
        if resized.is_some() {
            world.executor.count("resizes");
            *world.sizes.borrow_mut() = vec![next];
        }
        let size = self.ploop.dev().nr_logical_blocks();
        if size != world.nr_logical() {
            world.fail(format!(
                "the size is {size} after a resize to {next}: {resized:?}"
            ));
        }
    }

    /// Has the device suspended, which flushes. False: it failed.
    async fn stop_service(&self) -> bool {
        let watched = self.client.watched();
        let suspended = watched.flush_by(self.ploop.suspend()).await;
        self.judge("suspend", suspended).is_some()
    }

    async fn suspend(&self) {
        let world = &self.world;
        if !self.stop_service().await {
            return;
        }
        world.executor.count("suspensions");
        for _ in 0..world.executor.below(10) {
            world.executor.delay().await;
        }
        if let Some(free) = world.free_disks().first().copied()
            && world.executor.one_in(2)
            && world.format(free).await
        {
            // An empty delta changes nothing.
            let mut next = self.chain();
            next.lower.push(free);
            let added = self.ploop.add_delta(world.lower(free)).await;
            let added = self.judge("add_delta", added);
            self.settle(added.map(|()| next));
        }
        self.judge("resume", self.ploop.resume());
    }

    /// A snapshot that is empty changes places with what it is of, and perhaps back.
    async fn flip(&self) {
        let world = &self.world;
        if !world.pause().await {
            return;
        }
        let before = self.chain().top;
        self.snapshot().await;
        let chain = self.chain();
        if chain.lower.last() != Some(&before) || chain.top == before {
            return;
        }
        if !self.stop_service().await {
            return;
        }
        self.judge("set_noresume", self.ploop.set_noresume(true));
        for _ in 0..1 + world.executor.below(2) {
            let mut next = self.chain();
            if let Some(newest) = next.lower.last_mut() {
                std::mem::swap(newest, &mut next.top);
            }
            if world.executor.one_in(2) {
                *world.next_chain.borrow_mut() = Some(next.clone());
            }
            world.closing.set(true);
            let flipped = self.judge("flip", self.ploop.flip_upper_deltas().await);
            self.settle(flipped.map(|()| next));
            if flipped.is_some() {
                world.closing.set(false);
                world.executor.count("flips");
            }
        }
        if !matches!(self.ploop.resume(), Err(PloopError::Busy { .. })) {
            world.fail("resumed in spite of noresume".to_owned());
        }
        self.judge("set_noresume", self.ploop.set_noresume(false));
        self.judge("resume", self.ploop.resume());
    }

    fn status(&self) {
        let status = self.ploop.status();
        if status.nr_sectors != self.world.nr_logical() * self.world.shape.block_sectors() {
            self.world.fail(format!("status: {status:?}"));
        }
    }
}
