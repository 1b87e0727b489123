//! Exclusive locks on virtual blocks of a device, single or by range, for an owner's tasks.
//!
//! A task holds at most one lock at a time, so there is no order to keep and no deadlock. A range
//! that waits keeps new single-block locks inside it from being granted, so it is not starved.

use futures::channel::oneshot;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

type Waiters = Vec<oneshot::Sender<()>>;

struct RangeLock {
    ticket: u64,
    device: u64,
    blocks: Range<u64>,
    waiters: Waiters,
}

impl RangeLock {
    fn covers(&self, device: u64, blocks: &Range<u64>) -> bool {
        self.device == device && self.blocks.start < blocks.end && blocks.start < self.blocks.end
    }
}

#[derive(Default)]
struct State {
    blocks: FxHashMap<(u64, u64), Waiters>,
    /// Granted and waiting ranges, oldest first.
    ranges: Vec<RangeLock>,
    next_ticket: u64,
}

/// The locks of one target. `device` distinguishes the volumes.
#[derive(Default, Clone)]
pub struct BlockLocks(Rc<RefCell<State>>);

/// Holds a single block until dropped.
pub struct BlockGuard {
    locks: BlockLocks,
    key: (u64, u64),
}

/// Holds a range until dropped.
pub struct RangeGuard {
    locks: BlockLocks,
    ticket: u64,
}

impl BlockLocks {
    /// Locks one block.
    pub async fn lock_block(&self, device: u64, block: u64) -> BlockGuard {
        let key = (device, block);
        loop {
            let wait = {
                let mut state = self.0.borrow_mut();
                let range = block..block.saturating_add(1);
                if let Some(lock) = state.ranges.iter_mut().find(|l| l.covers(device, &range)) {
                    wait_on(&mut lock.waiters)
                } else if let Some(waiters) = state.blocks.get_mut(&key) {
                    wait_on(waiters)
                } else {
                    state.blocks.insert(key, Vec::new());
                    return BlockGuard {
                        locks: self.clone(),
                        key,
                    };
                }
            };
            let _ = wait.await;
        }
    }

    /// Locks a range of blocks.
    pub async fn lock_range(&self, device: u64, blocks: Range<u64>) -> RangeGuard {
        let ticket = {
            let mut state = self.0.borrow_mut();
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.ranges.push(RangeLock {
                ticket,
                device,
                blocks: blocks.clone(),
                waiters: Vec::new(),
            });
            ticket
        };
        // Made now, so that a waiter that is dropped takes its place out of the list.
        let guard = RangeGuard {
            locks: self.clone(),
            ticket,
        };
        loop {
            let wait = {
                let mut state = self.0.borrow_mut();
                let older = state
                    .ranges
                    .iter_mut()
                    .find(|l| l.ticket < ticket && l.covers(device, &blocks));
                if let Some(lock) = older {
                    wait_on(&mut lock.waiters)
                } else if let Some(waiters) = state
                    .blocks
                    .iter_mut()
                    .find(|((d, b), _)| *d == device && blocks.contains(b))
                    .map(|(_, waiters)| waiters)
                {
                    wait_on(waiters)
                } else {
                    return guard;
                }
            };
            let _ = wait.await;
        }
    }
}

fn wait_on(waiters: &mut Waiters) -> oneshot::Receiver<()> {
    let (tx, rx) = oneshot::channel();
    waiters.push(tx);
    rx
}

fn wake(waiters: Waiters) {
    for waiter in waiters {
        let _ = waiter.send(());
    }
}

impl Drop for BlockGuard {
    fn drop(&mut self) {
        let waiters = self.locks.0.borrow_mut().blocks.remove(&self.key);
        wake(waiters.unwrap_or_default());
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let mut state = self.locks.0.borrow_mut();
        if let Some(at) = state.ranges.iter().position(|l| l.ticket == self.ticket) {
            let lock = state.ranges.remove(at);
            drop(state);
            wake(lock.waiters);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    /// A range waits for blocks in it, keeps later blocks out, and lets others pass.
    #[test]
    fn range_excludes_blocks_and_is_not_starved() {
        let locks = BlockLocks::default();
        let first = locks.lock_block(1, 5).now_or_never();
        assert!(first.is_some());
        let mut range = Box::pin(locks.lock_range(1, 4..8));
        assert!(range.as_mut().now_or_never().is_none());
        let mut late = Box::pin(locks.lock_block(1, 6));
        assert!(late.as_mut().now_or_never().is_none());
        assert!(locks.lock_block(1, 8).now_or_never().is_some());
        assert!(locks.lock_block(2, 5).now_or_never().is_some());
        drop(first);
        let held = range.as_mut().now_or_never();
        assert!(held.is_some());
        assert!(late.as_mut().now_or_never().is_none());
        drop(held);
        assert!(late.as_mut().now_or_never().is_some());
    }

    /// A cancelled waiter leaves nothing behind.
    #[test]
    fn cancelled_range_is_forgotten() {
        let locks = BlockLocks::default();
        let block = locks.lock_block(0, 1).now_or_never();
        {
            let mut range = Box::pin(locks.lock_range(0, 0..9));
            assert!(range.as_mut().now_or_never().is_none());
        }
        drop(block);
        assert!(locks.lock_block(0, 1).now_or_never().is_some());
    }
}
