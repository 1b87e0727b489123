//! What must hold of a target's metadata on a damaged disk, whatever the target.
//!
//! Where the strict check has found nothing, the metadata is as good as undamaged: then every operation
//! must succeed, and the check must find nothing at the end either. Other errors say where the damage is.

use bdev::errno::Errno;
use persistent_data::Error;
use persistent_data::memory::MemoryDevice;
use std::fmt::Display;
use std::rc::Rc;

/// Steps of one input that are taken.
const MAX_STEPS: usize = 24;

/// What a metadata cache of no size may keep.
const MOST_CACHED_BYTES: u64 = 128 * 4096;

/// An error of a target's metadata.
pub(crate) trait Trouble: Display {
    /// What a client sees.
    fn errno(&self) -> Errno;
    /// The operation was refused, and nothing has changed.
    fn is_refusal(&self) -> bool;
    /// Also possible without damage, without being a refusal.
    fn is_harmless(&self) -> bool;
    /// What lies below, if the blocks of the metadata are to blame.
    fn cause(&self) -> Option<&Error>;
}

/// Says no more than it must: an error that blames the disk says where.
pub(crate) fn look_at(error: &impl Trouble) {
    let text = error.to_string();
    assert!(!text.is_empty() && error.errno().0 > 0);
    assert!(!matches!(error.cause(), Some(Error::Flush(_))), "{text}");
}

/// The metadata of a target.
pub(crate) trait Metadata {
    /// An operation on it.
    type Step: 'static;
    /// Its errors.
    type Error: Trouble;
    /// The operations of an input that names none.
    const TOUR: &'static [Self::Step];

    /// Does one.
    async fn take(
        &mut self,
        device: &Rc<MemoryDevice>,
        step: &Self::Step,
    ) -> Result<(), Self::Error>;
    /// It can go on after a refusal.
    fn is_usable(&self) -> bool;
    /// Goes back to what is on the disk.
    async fn recover(&mut self) -> Result<(), Self::Error>;
    /// Makes what was done durable.
    async fn commit(&mut self) -> Result<(), Self::Error>;
    /// The strict check finds nothing.
    async fn assert_sound(&mut self);
    /// Memory of its cache.
    fn cache_used_bytes(&self) -> u64;
}

/// Takes the steps. `is_clean`: the strict check has found nothing.
pub(crate) async fn drive<M: Metadata>(
    mut metadata: M,
    device: &Rc<MemoryDevice>,
    is_clean: bool,
    steps: &[M::Step],
) {
    let outcome = |error: M::Error| {
        look_at(&error);
        assert!(
            !is_clean || error.is_refusal() || error.is_harmless(),
            "checked, and yet: {error}"
        );
        error
    };
    let steps = if steps.is_empty() { M::TOUR } else { steps };
    for step in steps.iter().take(MAX_STEPS) {
        let Err(error) = metadata.take(device, step).await else {
            continue;
        };
        let error = outcome(error);
        if !(error.is_refusal() && metadata.is_usable())
            && let Err(error) = metadata.recover().await
        {
            // What was read before is read again.
            outcome(error);
            return;
        }
    }
    if let Err(error) = metadata.commit().await {
        outcome(error);
        return;
    }
    if is_clean {
        // Restored or grown metadata may be odd, this never was.
        metadata.assert_sound().await;
    }
    assert!(metadata.cache_used_bytes() <= MOST_CACHED_BYTES);
}
