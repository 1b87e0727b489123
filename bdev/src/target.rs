//! What a target is to the engine: a synchronous, allocation-free `map` from an I/O to its fate.
//!
//! Everything that cannot be decided from published state is [`Map::Defer`]red to the core that
//! owns the target (design: "How an I/O flows").

use crate::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Kind of an I/O as a bdev user submits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    /// Read data.
    Read,
    /// Write data.
    Write,
    /// Make completed writes durable.
    Flush,
    /// The range is no longer needed (UNMAP).
    Discard,
    /// Make the range read as zeroes.
    WriteZeroes,
    /// Finish or fail everything outstanding on the volume.
    Reset,
}

/// An I/O on a volume, in logical blocks of that volume (512 or 4096 bytes).
///
/// Reads and writes of more than one of the target's blocks may be mapped to [`Map::Split`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub kind: IoKind,
    /// First logical block.
    pub offset_blocks: u64,
    /// Number of logical blocks.
    pub nr_blocks: u64,
}

/// One of the devices under a volume. Which number means which device is the target's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseId(pub u8);

/// The fate of an I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// Same I/O, at logical block `block` of a base device. A flush covers the whole base device.
    Remap {
        /// The base device.
        base: BaseId,
        /// First logical block there.
        block: u64,
    },
    /// A read of which only the head is on a base device; the rest reads as zeroes.
    RemapHead {
        /// The base device.
        base: BaseId,
        /// First logical block there.
        block: u64,
        /// Logical blocks to be read, at least one, fewer than asked for.
        nr_blocks: u64,
    },
    /// A read of nothing: fill the buffers with zeroes and complete.
    Zeroes,
    /// Nothing to do: complete with success.
    Done,
    /// Complete with an error.
    Fail(Errno),
    /// Two I/Os: the first logical blocks and the rest, each mapped for itself.
    Split {
        /// Logical blocks of the first, at least one, fewer than asked for.
        nr_blocks: u64,
        /// Where the first is to be remapped; None: it is to be mapped again.
        goes: Option<(BaseId, u64)>,
    },
    /// Park it on its channel and tell the owner.
    Defer,
}

/// I/O that all goes the same way.
#[derive(Debug, Clone)]
pub struct Passage {
    /// Whether all I/O of this kind goes to the same logical blocks of `base`, whichever these are.
    pub passes: fn(IoKind) -> bool,
    /// Where to.
    pub base: BaseId,
    /// As long as this has that value; None: for ever.
    pub as_long_as: Option<(Arc<AtomicU64>, u64)>,
}

/// A target's hot path.
pub trait Target: 'static {
    /// What one bdev of the target shows to every core: read-only or atomic state.
    type Volume: Send + Sync + 'static;

    /// What a core keeps for itself of a volume, so that it need not ask for it again. Whatever is in it,
    /// [`Target::map`] gives the same answer as with an empty one.
    type Local: Default + 'static;

    /// Decides an I/O. Allocates nothing, takes no lock, and in steady state touches no cache line
    /// that another core writes.
    fn map(volume: &Arc<Self::Volume>, local: &Self::Local, request: &Request) -> Map;

    /// Where a read or write goes of which [`Target::map`] would say [`Map::Remap`] and do nothing else: the
    /// quick way for nearly all I/O. None: ask `map`.
    #[inline]
    fn plain(
        _volume: &Self::Volume,
        _local: &Self::Local,
        _request: &Request,
    ) -> Option<(BaseId, u64)> {
        None
    }

    /// Whether [`Target::looks_at`] names memory for reads and writes.
    #[inline]
    fn is_far(_volume: &Self::Volume) -> bool {
        false
    }

    /// What the host may send to a base device without [`Target::map`], counted as in flight on the channel.
    #[inline]
    fn passage(_volume: &Self::Volume) -> Option<Passage> {
        None
    }

    /// The memory [`Target::map`] will look into for this I/O, where that is likely in no cache of the
    /// core's and can be told without looking there. The engine has it fetched for several I/Os at a time
    /// before it maps them.
    #[inline]
    fn looks_at<'a>(_volume: &'a Self::Volume, _request: &Request) -> Option<&'a AtomicU64> {
        None
    }
}
