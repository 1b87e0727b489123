//! Base bdevs of an origin go, come back, and grow.
//!
//! Without its COW bdev a snapshot can store nothing: its bdev goes, the origin goes on. The first write of
//! the origin that it would need makes it invalid, which its header says as soon as it can be written. If
//! there was none it goes on where it was.

use super::{What, whose};
use crate::registry::Registry;
use bdev::device::DataDevice;
use bdev::errno::Errno;
use rpc::RpcError;
use spdk::base;
use std::rc::Rc;

impl Registry {
    /// The origin bdev is going away: so does everything, until it comes back.
    pub async fn origin_bdev_removed(self: &Rc<Self>, name: &str, bdev: &str) {
        {
            let mut origins = self.origins.borrow_mut();
            let Some(entry) = origins.get_mut(name) else {
                return;
            };
            if !entry.life.base_removed(&whose(name), bdev) {
                return;
            }
        }
        self.unregister_all(name).await;
        self.close_if_idle(name);
    }

    /// A COW bdev is going away.
    pub async fn cow_bdev_removed(self: &Rc<Self>, origin: &str, cow_bdev: &str) {
        let Ok(lock) = self.origin_lock(origin) else {
            return;
        };
        {
            // While the origin is being opened, everything closes again and waits for the bdev.
            let mut origins = self.origins.borrow_mut();
            if let Some(entry) = origins.get_mut(origin)
                && entry.life.is_opening()
            {
                entry.life.note_closing();
                return;
            }
        }
        let alone = lock.lock().await;
        let (open, vbdev) = {
            let mut origins = self.origins.borrow_mut();
            let Some(entry) = origins.get_mut(origin) else {
                return;
            };
            let open = entry.open().cloned();
            let holder = cow_holder(entry, cow_bdev);
            let (Some(open), Some(holder)) = (open, holder) else {
                return;
            };
            let Some(snapshot) = entry.snapshots.get_mut(&holder) else {
                return;
            };
            snapshot.lost = true;
            log::warn!(
                "snapshot '{holder}': bdev '{}' is being removed; origin '{origin}' goes on without it",
                snapshot.cow_bdev
            );
            let vbdev = match snapshot.what {
                What::Snapshot(_) => snapshot.vbdev.take(),
                What::Merge(_) => None,
            };
            if vbdev.is_some() {
                entry.unregistering = Some(holder.clone());
            }
            (Some((open, holder)), vbdev)
        };
        if let Some(vbdev) = vbdev {
            vbdev.unregister().await;
            if let Some(entry) = self.origins.borrow_mut().get_mut(origin) {
                entry.unregistering = None;
            }
        }
        if let Some((open, holder)) = open {
            let cow = self.with_snapshot(origin, &holder, |entry| entry.cow.take());
            if let Ok(Some(mut cow)) = cow {
                self.let_go(&open, &mut cow, &holder).await;
                // Its number and the device, empty, stay for when it is back.
                let _ = self.with_snapshot(origin, &holder, |entry| entry.cow = Some(cow));
            }
        }
        drop(alone);
        self.close_if_idle(origin);
        self.cows_came_back(origin).await;
    }

    /// Origins that are open and miss a COW bdev that is there.
    pub fn cows_ready(&self) -> Vec<String> {
        let origins = self.origins.borrow();
        let ready = origins.iter().filter(|(_, entry)| {
            let mut lost = entry.snapshots.values().filter(|snapshot| snapshot.lost);
            entry.open().is_some() && lost.any(|snapshot| base::exists(&snapshot.cow_bdev))
        });
        ready.map(|(name, _)| name.clone()).collect()
    }

    /// Takes COW bdevs that are back into service.
    pub async fn cows_came_back(self: &Rc<Self>, origin: &str) {
        let Ok(lock) = self.origin_lock(origin) else {
            return;
        };
        let _alone = lock.lock().await;
        let back: Vec<String> = {
            let origins = self.origins.borrow();
            let Some(entry) = origins.get(origin) else {
                return;
            };
            let lost = entry.snapshots.iter().filter(|(_, entry)| entry.lost);
            let back = lost.filter(|(_, entry)| base::exists(&entry.cow_bdev));
            back.map(|(name, _)| name.clone()).collect()
        };
        for name in back {
            if let Err(error) = self.cow_came_back(origin, &name).await {
                log::error!("snapshot '{name}' stays away: {}", error.message);
            }
        }
    }

    async fn cow_came_back(self: &Rc<Self>, origin: &str, name: &str) -> Result<(), RpcError> {
        let open = self.use_origin(origin)?;
        let found = self.with_snapshot(origin, name, |entry| {
            let number = entry
                .cow
                .as_ref()
                .map(|cow| (cow.number, cow.closed.is_some()));
            (number, entry.cow_bdev.clone())
        })?;
        let (Some((number, false)), cow_bdev) = found else {
            return Ok(());
        };
        let device = self.with_snapshot(origin, name, |entry| {
            entry.cow.as_ref().map(|cow| cow.device.clone())
        })?;
        let before = device.map(|device| (device.block_bytes(), device.nr_sectors()));
        let (device, _) = self.attach(&open, origin, name, &cow_bdev, number).await?;
        if before.is_some_and(|(block, sectors)| {
            device.block_bytes() != block || device.nr_sectors() < sectors
        }) {
            let reason = format!("bdev '{cow_bdev}' came back smaller, or with other blocks");
            open.origin
                .invalidate_snapshot(name, &reason)
                .map_err(super::refuse(name))?;
        }
        let is_merge = self.with_snapshot(origin, name, |entry| {
            entry.lost = false;
            matches!(entry.what, What::Merge(_))
        })?;
        log::info!("snapshot '{name}': bdev '{cow_bdev}' is back");
        match is_merge {
            // If it has failed meanwhile; nothing to say if not.
            true => open.origin.resume_merge().map_err(super::refuse(name)),
            false => self.register_snapshot(&open, origin, name),
        }
    }

    /// The origin bdev has another size.
    pub async fn origin_resized(self: &Rc<Self>, name: &str) {
        // An origin that is not open looks at the size when it opens.
        let Ok(open) = self.use_origin(name) else {
            return;
        };
        let sectors = match open.origin.grow().await {
            Ok(sectors) => sectors,
            Err(error) => return log::error!("{error}"),
        };
        let origins = self.origins.borrow();
        let Some(entry) = origins.get(name) else {
            return;
        };
        let nr_blocks = sectors * 512 / u64::from(open.device.block_bytes());
        if entry.params.size_sectors.is_none()
            && let Some(vbdev) = &entry.vbdev
            && let Err(errno) = vbdev.resize(nr_blocks)
        {
            log::error!("bdev '{name}' keeps its size: {}", Errno(errno));
        }
    }
}

/// Who has a COW bdev now: a store may have been handed over since it was taken.
fn cow_holder(entry: &super::OriginEntry, cow_bdev: &str) -> Option<String> {
    let found = entry
        .snapshots
        .iter()
        .find(|(_, snapshot)| snapshot.cow.is_some() && snapshot.cow_bdev == cow_bdev);
    found.map(|(holder, _)| holder.clone())
}
