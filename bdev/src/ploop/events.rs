//! What a ploop target tells whoever watches it.

use super::backup::Uuid;
use super::owner::Ploop;

/// Something that happened to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PloopEvent {
    /// A lower delta has been merged, and has left the chain.
    MergeFinished {
        /// Its number until then.
        level: usize,
    },
    /// A merge has ended before its end.
    MergeFailed {
        /// The number of the delta.
        level: usize,
        /// Why.
        reason: String,
    },
    /// A write has waited too long for a push backup.
    BackupExpired {
        /// Which.
        uuid: Uuid,
    },
    /// The disk has grown.
    Resized {
        /// Its size now.
        nr_sectors: u64,
    },
}

impl PloopEvent {
    /// A word for it, as in notifications.
    pub fn name(&self) -> &'static str {
        match self {
            PloopEvent::MergeFinished { .. } => "ploop_merge_finished",
            PloopEvent::MergeFailed { .. } => "ploop_merge_failed",
            PloopEvent::BackupExpired { .. } => "ploop_backup_expired",
            PloopEvent::Resized { .. } => "ploop_resized",
        }
    }

    /// All the names.
    pub const NAMES: [&'static str; 4] = [
        "ploop_merge_finished",
        "ploop_merge_failed",
        "ploop_backup_expired",
        "ploop_resized",
    ];
}

/// Who is told.
pub(super) type Watcher = Box<dyn Fn(&PloopEvent)>;

impl Ploop {
    /// Has events reported to `watcher`, on the owner's core, from now on.
    pub fn watch(&self, watcher: impl Fn(&PloopEvent) + 'static) {
        *self.watcher.borrow_mut() = Some(Box::new(watcher));
    }

    pub(super) fn emit(&self, event: PloopEvent) {
        match &event {
            PloopEvent::MergeFinished { .. } | PloopEvent::Resized { .. } => {
                log::info!("ploop '{}': {event:?}", self.config.name);
            }
            _ => log::error!("ploop '{}': {event:?}", self.config.name),
        }
        if let Some(watcher) = &*self.watcher.borrow() {
            watcher(&event);
        }
    }
}
