//! What a pool tells whoever watches it: the events the kernel sends to device-mapper (thin.md 6).

use super::map::PoolMode;
use super::metadata::ThinMetadata;
use super::pool::Pool;

/// Something that happened to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEvent {
    /// The mode has changed to this one.
    Mode(PoolMode),
    /// So few data blocks are free that the low water mark is reached. Once until the pool grows or is
    /// opened again.
    LowData {
        /// Free data blocks.
        free_blocks: u64,
    },
    /// So few metadata blocks are free that the threshold is reached. Once until there are more.
    LowMetadata {
        /// Free metadata blocks, the reserve among them.
        free_blocks: u64,
    },
    /// Writes have waited for space long enough; they fail from now on until there is space.
    NoSpaceTimeout,
    /// Data or metadata has grown.
    Grown {
        /// Data blocks now.
        data_blocks: u64,
        /// Metadata blocks now.
        metadata_blocks: u64,
    },
    /// All a device had is in its external origin now.
    ExternalMergeFinished {
        /// The device.
        id: u32,
    },
    /// A merge into an external origin has ended before its time; its status says why.
    ExternalMergeFailed {
        /// The device.
        id: u32,
    },
}

impl PoolEvent {
    /// A word for it, as in notifications.
    pub fn name(&self) -> &'static str {
        match self {
            PoolEvent::Mode(_) => "thin_pool_mode",
            PoolEvent::LowData { .. } => "thin_pool_low_data",
            PoolEvent::LowMetadata { .. } => "thin_pool_low_metadata",
            PoolEvent::NoSpaceTimeout => "thin_pool_no_space_timeout",
            PoolEvent::Grown { .. } => "thin_pool_grown",
            PoolEvent::ExternalMergeFinished { .. } => "thin_merge_external_finished",
            PoolEvent::ExternalMergeFailed { .. } => "thin_merge_external_failed",
        }
    }

    /// All the names.
    pub const NAMES: [&'static str; 7] = [
        "thin_pool_mode",
        "thin_pool_low_data",
        "thin_pool_low_metadata",
        "thin_pool_no_space_timeout",
        "thin_pool_grown",
        "thin_merge_external_finished",
        "thin_merge_external_failed",
    ];
}

impl Pool {
    /// Has events reported to `watcher`, on the owner's core, from now on.
    pub fn watch(&self, watcher: impl Fn(&PoolEvent) + 'static) {
        *self.watcher.borrow_mut() = Some(Box::new(watcher));
    }

    pub(super) fn emit(&self, event: PoolEvent) {
        if let Some(watcher) = &*self.watcher.borrow() {
            watcher(&event);
        }
    }

    /// Changes the mode for all cores, and says so.
    pub(super) fn change_mode(&self, mode: PoolMode) {
        if self.shared.mode() != mode {
            self.shared.set_mode(mode);
            self.emit(PoolEvent::Mode(mode));
        }
    }

    pub(super) fn check_low_water(&self, metadata: &ThinMetadata) {
        let free_blocks = metadata.nr_free_data();
        if free_blocks <= self.config.low_water_mark_blocks
            && !self.low_water_triggered.replace(true)
        {
            log::warn!(
                "pool '{}': {free_blocks} data blocks left, low water mark is {}",
                self.config.name,
                self.config.low_water_mark_blocks
            );
            self.emit(PoolEvent::LowData { free_blocks });
        }
    }

    /// Metadata's threshold is an edge: it is reported each time free blocks fall to it.
    pub(super) fn check_low_metadata(&self, metadata: &ThinMetadata) {
        let free_blocks = metadata.nr_free_metadata();
        let low = free_blocks <= metadata.metadata_low_water();
        if low && !self.low_metadata.replace(low) {
            log::warn!(
                "pool '{}': {free_blocks} metadata blocks left, grow the metadata bdev",
                self.config.name
            );
            self.emit(PoolEvent::LowMetadata { free_blocks });
        }
        self.low_metadata.set(low);
    }
}
