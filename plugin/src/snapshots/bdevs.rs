//! Which bdev of an origin target one is: the origin's, or a snapshot's.

use crate::registry::{Registry, call};
use crate::volume::{Identity, VolumeDriver};
use bdev::snapshot::SnapshotTarget;
use rpc::params::SnapshotStatus;
use spdk::vbdev::Destructed;
use std::rc::Rc;

/// The bdevs' driver.
pub type SnapshotDriver = VolumeDriver<SnapshotTarget, Whose>;

/// Whose bdev it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    /// The origin target.
    pub origin: String,
    /// The snapshot, if it is one's.
    pub snapshot: Option<String>,
    /// What `bdev_get_bdevs` shows, as JSON.
    pub info: String,
}

impl Identity for Whose {
    fn info(&self) -> (&'static str, String) {
        let name = match self.snapshot {
            Some(_) => "snapshot",
            None => "snapshot_origin",
        };
        (name, self.info.clone())
    }

    /// Origins and snapshots are in the module's configuration: they must all be declared before the first
    /// of their bdevs comes, so that an origin is not written to without its snapshots. What follows in a
    /// configuration may need the bdevs.
    fn config(&self) -> String {
        match self.snapshot {
            Some(_) => String::new(),
            None => call(
                "snapshot_status",
                &SnapshotStatus {
                    name: Some(self.origin.clone()),
                    wait: true,
                },
            ),
        }
    }

    fn gone(self, registry: Rc<Registry>, done: Destructed) -> impl Future<Output = ()> + 'static {
        registry.snapshot_bdev_gone(self, done)
    }
}
