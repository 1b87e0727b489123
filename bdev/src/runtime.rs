//! What a target needs of the core it runs on: spawning tasks and sleeping.
//!
//! Everything that crosses cores goes through `futures` channels, whose wakers are `Send`; so an
//! executor per core is all a host has to supply, and the simulator can permute every order.

use futures::future::LocalBoxFuture;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// The executor of the current core. Futures never leave the core they were spawned on.
pub trait Runtime {
    /// Runs `future` to completion on this core.
    fn spawn(&self, future: LocalBoxFuture<'static, ()>);

    /// Completes after `duration` (simulated time in the simulator).
    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()>;

    /// Monotonic time since an arbitrary start.
    fn now(&self) -> Duration;

    /// Asks for large pages under memory that every core looks into at random, so that a look costs one
    /// cache miss and not a walk of the page tables too. Advice: nothing depends on it.
    fn prefer_large_pages(&self, _memory: &[AtomicU64]) {}

    /// So many bytes of what a core looks into at random stay in its own caches: fetching them ahead costs
    /// more than it brings.
    fn near_bytes(&self) -> usize {
        0
    }
}

/// A shared handle on the current core's executor.
pub type RuntimeRef = Rc<dyn Runtime>;
