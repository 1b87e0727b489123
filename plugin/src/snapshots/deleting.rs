//! Snapshots, merges that have ended, and origins are taken out of service for good.

use super::bdevs::Whose;
use super::opening::check_settled;
use super::{What, no_snapshot, refuse, whose};
use crate::life;
use crate::registry::Registry;
use bdev::errno::Errno;
use bdev::snapshot::SnapshotError;
use rpc::RpcError;
use spdk::vbdev::Destructed;
use std::rc::Rc;

impl Registry {
    /// `snapshot_delete`.
    pub async fn delete_snapshot_or_origin(self: &Rc<Self>, name: &str) -> Result<(), RpcError> {
        match self.origin_of(name) {
            Some(origin) => self.delete_snapshot(&origin, name).await,
            None => self.delete_origin(name).await,
        }
    }

    async fn delete_origin(self: &Rc<Self>, name: &str) -> Result<(), RpcError> {
        let vbdev = {
            let mut origins = self.origins.borrow_mut();
            let entry = origins.get_mut(name).ok_or_else(|| no_snapshot(name))?;
            check_settled(entry)?;
            if !entry.snapshots.is_empty() {
                let names: Vec<&str> = entry.snapshots.keys().map(String::as_str).collect();
                return Err(RpcError::new(
                    Errno::EBUSY,
                    format!(
                        "origin '{name}' has snapshots ({}); delete them first",
                        names.join(", ")
                    ),
                ));
            }
            if entry.life.is_waiting() {
                origins.remove(name);
                return Ok(());
            }
            let vbdev = entry.vbdev.take().ok_or_else(|| life::busy(&whose(name)))?;
            entry.life.note_closing();
            entry.deleting = true;
            vbdev
        };
        // It closes before its bdev is gone.
        vbdev.unregister().await;
        self.origins.borrow_mut().remove(name);
        Ok(())
    }

    async fn delete_snapshot(self: &Rc<Self>, origin: &str, name: &str) -> Result<(), RpcError> {
        let lock = self.origin_lock(origin)?;
        let alone = lock.lock().await;
        let (is_waiting, vbdev) = {
            let mut origins = self.origins.borrow_mut();
            let entry = origins.get_mut(origin).ok_or_else(|| no_snapshot(name))?;
            check_settled(entry)?;
            let is_waiting = entry.life.is_waiting();
            let open = entry.open().cloned();
            let snapshot = entry
                .snapshots
                .get_mut(name)
                .ok_or_else(|| no_snapshot(name))?;
            let merging = match (&snapshot.what, &open) {
                (What::Merge(_), Some(open)) => open.origin.is_merging(),
                _ => false,
            };
            if merging {
                return Err(RpcError::new(
                    Errno::EBUSY,
                    format!(
                        "snapshot '{name}' is being merged: origin '{origin}' shows it; wait until that has finished, see snapshot_status"
                    ),
                ));
            }
            let vbdev = snapshot.vbdev.take();
            if vbdev.is_some() {
                entry.unregistering = Some(name.to_owned());
            }
            (is_waiting, vbdev)
        };
        if is_waiting {
            self.forget(origin, name);
            drop(alone);
            // It may have been what the origin waited for.
            let ready = self.origins_ready().iter().any(|ready| ready == origin);
            if ready && let Err(error) = self.open_snapshot_origin(origin).await {
                log::error!("origin '{origin}' cannot open: {}", error.message);
            }
            return Ok(());
        }
        if let Some(vbdev) = vbdev {
            vbdev.unregister().await;
            if let Some(entry) = self.origins.borrow_mut().get_mut(origin) {
                entry.unregistering = None;
            }
        }
        let result = self.out_of_service(origin, name).await;
        drop(alone);
        self.close_if_idle(origin);
        result
    }

    async fn out_of_service(&self, origin: &str, name: &str) -> Result<(), RpcError> {
        let open = self.use_origin(origin)?;
        let is_merge =
            self.with_snapshot(origin, name, |entry| matches!(entry.what, What::Merge(_)))?;
        if is_merge {
            open.origin.forget_merge().await.map_err(refuse(name))?;
        }
        match open.origin.remove_snapshot(name).await {
            // A merge of a store that no snapshot had open.
            Err(SnapshotError::NoSnapshot(_)) => {}
            result => result.map_err(refuse(name))?,
        }
        self.detach(&open, origin, name).await;
        self.forget(origin, name);
        Ok(())
    }

    /// Called when all channels of a bdev are gone, whoever unregistered it.
    pub async fn snapshot_bdev_gone(self: Rc<Self>, whose: Whose, done: Destructed) {
        let Whose {
            origin, snapshot, ..
        } = whose;
        let closes = {
            let mut origins = self.origins.borrow_mut();
            let Some(entry) = origins.get_mut(&origin) else {
                return drop(done);
            };
            match &snapshot {
                None => {
                    entry.vbdev = None;
                    entry.registered = false;
                }
                Some(name) => {
                    if let Some(found) = entry.snapshots.get_mut(name) {
                        found.vbdev = None;
                        found.registered = false;
                    }
                }
            }
            // Whoever unregisters it has the lock, and looks afterwards.
            let is_awaited = snapshot.is_some() && entry.unregistering == snapshot;
            !is_awaited && self.should_close(entry)
        };
        if closes {
            self.close_origin(&origin).await;
        }
        drop(done);
        self.finish_if_closed();
        if closes {
            self.open_again(&origin);
        }
    }

    fn should_close(&self, entry: &super::OriginEntry) -> bool {
        entry.life.target().is_some()
            && (entry.life.is_to_close() || self.is_stopping())
            && !entry.is_any_registered()
    }

    async fn close_origin(&self, name: &str) {
        let Ok(lock) = self.origin_lock(name) else {
            return;
        };
        let _alone = lock.lock().await;
        let still = {
            let mut origins = self.origins.borrow_mut();
            let entry = origins.get_mut(name);
            entry.is_some_and(|entry| {
                let still = self.should_close(entry);
                if still {
                    entry.life.note_closing();
                }
                still
            })
        };
        if still {
            self.close_all(name).await;
        }
    }

    /// Closes an origin whose bdevs went while snapshots came or went.
    pub(super) fn close_if_idle(self: &Rc<Self>, name: &str) {
        let idle = {
            let origins = self.origins.borrow();
            let entry = origins.get(name);
            entry.is_some_and(|entry| self.should_close(entry))
        };
        if idle {
            let (registry, name) = (self.clone(), name.to_owned());
            spdk::executor::spawn(async move {
                registry.close_origin(&name).await;
                registry.finish_if_closed();
                registry.open_again(&name);
            });
        }
    }

    /// The bdev it was closed for may have come back already.
    fn open_again(self: &Rc<Self>, name: &str) {
        let ready = self.origins_ready().iter().any(|ready| ready == name);
        if ready && !self.is_stopping() {
            let (registry, name) = (self.clone(), name.to_owned());
            spdk::executor::spawn(async move {
                if let Err(error) = registry.open_snapshot_origin(&name).await {
                    log::error!("origin '{name}' cannot open: {}", error.message);
                }
            });
        }
    }
}
