//! What an origin tells whoever watches it. The kernel raises an event on invalidation only
//! (snapshot.md 4); here the others need no polling either.

use super::owner::Origin;

/// Something that happened to a snapshot or a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotEvent {
    /// A snapshot is of no use any more.
    Invalidated {
        /// Which.
        snapshot: String,
        /// Why.
        reason: String,
    },
    /// A write to a snapshot found no room: its writes fail from now on.
    Overflow {
        /// Which.
        snapshot: String,
    },
    /// Everything has been merged.
    MergeFinished {
        /// Which snapshot.
        snapshot: String,
    },
    /// Merging stopped.
    MergeFailed {
        /// Which snapshot.
        snapshot: String,
        /// Why.
        reason: String,
    },
}

impl SnapshotEvent {
    /// A word for it, as in notifications.
    pub fn name(&self) -> &'static str {
        match self {
            SnapshotEvent::Invalidated { .. } => "snapshot_invalidated",
            SnapshotEvent::Overflow { .. } => "snapshot_overflow",
            SnapshotEvent::MergeFinished { .. } => "snapshot_merge_finished",
            SnapshotEvent::MergeFailed { .. } => "snapshot_merge_failed",
        }
    }

    /// All the names.
    pub const NAMES: [&'static str; 4] = [
        "snapshot_invalidated",
        "snapshot_overflow",
        "snapshot_merge_finished",
        "snapshot_merge_failed",
    ];
}

impl Origin {
    /// Has events reported to `watcher`, on the owner's core, from now on.
    pub fn watch(&self, watcher: impl Fn(&SnapshotEvent) + 'static) {
        *self.watcher.borrow_mut() = Some(Box::new(watcher));
    }

    pub(super) fn emit(&self, event: SnapshotEvent) {
        match &event {
            SnapshotEvent::MergeFinished { snapshot } => log::info!("{snapshot}: merged"),
            other => log::error!("origin '{}': {other:?}", self.config.name),
        }
        if let Some(watcher) = &*self.watcher.borrow() {
            watcher(&event);
        }
    }
}
