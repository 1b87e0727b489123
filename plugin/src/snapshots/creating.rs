//! Snapshots are made, opened, and given the store of another.

use super::opening::check_settled;
use super::{SnapEntry, What, config, no_snapshot, refuse};
use crate::registry::Registry;
use bdev::errno::Errno;
use bdev::snapshot::SnapshotError;
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::SnapshotCreate;
use serde_json::json;
use std::rc::Rc;

impl Registry {
    /// Makes or opens a snapshot, or declares it for an origin that is waiting.
    pub async fn create_snapshot(self: &Rc<Self>, params: SnapshotCreate) -> Answer {
        let (name, origin) = (params.name.clone(), params.origin.clone());
        if params.wait {
            self.wait_origin_opening(&origin).await;
        }
        let lock = self.origin_lock(&origin)?;
        let _alone = lock.lock().await;
        self.check_free(&name)?;
        let wait = params.wait;
        let cow_bdev = params.cow_bdev.clone();
        match self.cow_user(&origin, &name, &cow_bdev)? {
            None => {}
            Some(source) => return self.hand_over(&source, params).await,
        }
        let entry = SnapEntry::new(What::Snapshot(params), &cow_bdev);
        if self.declare_snapshot(&origin, &name, entry, wait)? {
            return Ok(json!(name));
        }
        let open = self.use_origin(&origin)?;
        let mut made = self.bring_up(&open, &origin, &name).await;
        if made.is_ok() {
            made = self.register_snapshot(&open, &origin, &name);
            if made.is_err() {
                let _ = open.origin.remove_snapshot(&name).await;
                self.detach(&open, &origin, &name).await;
            }
        }
        if let Err(error) = made {
            self.forget(&origin, &name);
            return Err(error);
        }
        self.close_if_idle(&origin);
        Ok(json!(name))
    }

    /// Adds an entry to an origin. True: it is only declared, and comes up when the origin opens.
    pub(super) fn declare_snapshot(
        &self,
        origin: &str,
        name: &str,
        entry: SnapEntry,
        wait: bool,
    ) -> Result<bool, RpcError> {
        let mut origins = self.origins.borrow_mut();
        let found = origins.get_mut(origin).ok_or_else(|| no_snapshot(origin))?;
        check_settled(found)?;
        let is_waiting = found.life.is_waiting();
        if is_waiting && !wait {
            drop(origins);
            return self.use_origin(origin).map(|_| false);
        }
        found.snapshots.insert(name.to_owned(), entry);
        Ok(is_waiting)
    }

    /// Forgets an entry that did not come up.
    pub(super) fn forget(&self, origin: &str, name: &str) {
        if let Some(entry) = self.origins.borrow_mut().get_mut(origin) {
            entry.snapshots.remove(name);
        }
    }

    /// Whose COW bdev it is, if that can hand its store over. Error: it cannot.
    pub(super) fn cow_user(
        &self,
        origin: &str,
        name: &str,
        cow_bdev: &str,
    ) -> Result<Option<String>, RpcError> {
        let origins = self.origins.borrow();
        let entry = origins.get(origin).ok_or_else(|| no_snapshot(origin))?;
        if entry.params.origin_bdev == cow_bdev {
            let same = SnapshotError::Table("COW device cannot be the same as origin device");
            return Err(refuse(name)(same));
        }
        let users: Vec<_> = entry
            .snapshots
            .iter()
            .filter(|(_, snapshot)| snapshot.cow_bdev == cow_bdev)
            .collect();
        let Some((user, snapshot)) = users.first() else {
            return Ok(None);
        };
        let is_waiting = entry.life.is_waiting();
        let has_store = matches!(snapshot.what, What::Snapshot(_)) && !snapshot.handed_over;
        let hands_over = has_store && users.len() == 1;
        match hands_over && !is_waiting {
            true => Ok(Some((*user).clone())),
            false => {
                let mut refused = refuse(name)(SnapshotError::Handover);
                let by: Vec<&str> = users.iter().map(|(user, _)| user.as_str()).collect();
                refused.message += &format!(
                    ": bdev '{cow_bdev}' is in use by '{}' already; delete one of them, or use another bdev",
                    by.join("' and '")
                );
                Err(refused)
            }
        }
    }

    /// Another snapshot takes a store over; the one that had it answers with errors from then on.
    async fn hand_over(self: &Rc<Self>, source: &str, params: SnapshotCreate) -> Answer {
        let (name, origin) = (params.name.clone(), params.origin.clone());
        let open = self.use_origin(&origin)?;
        let length = open
            .origin
            .snapshot(source)
            .map(|found| found.config().nr_sectors);
        let length = length.flatten().unwrap_or(open.origin.nr_sectors());
        let is_lost = self.with_snapshot(&origin, source, |entry| entry.lost)?;
        if is_lost {
            return Err(RpcError::new(
                Errno::ENODEV,
                format!(
                    "snapshot '{name}': bdev '{}' of snapshot '{source}' was removed; bring it back first",
                    params.cow_bdev
                ),
            ));
        }
        let config = config(&params, length)?;
        let heir = open.origin.hand_over(source, config).await;
        let heir = heir.map_err(refuse(&name))?;
        let cow = self.with_snapshot(&origin, source, |entry| {
            entry.handed_over = true;
            entry.cow.take()
        })?;
        let mut entry = SnapEntry::new(
            What::Snapshot(SnapshotCreate {
                size_sectors: heir.config().nr_sectors,
                ..params.clone()
            }),
            &params.cow_bdev,
        );
        entry.cow = cow;
        if let Some(found) = self.origins.borrow_mut().get_mut(&origin) {
            found.snapshots.insert(name.clone(), entry);
        }
        // It is in service with the bdev or without.
        self.register_snapshot(&open, &origin, &name)?;
        self.close_if_idle(&origin);
        Ok(json!(name))
    }
}
