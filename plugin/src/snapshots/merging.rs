//! Merges are begun, stopped and resumed.

use super::opening::check_settled;
use super::{OpenOrigin, SnapEntry, What, no_snapshot, refuse};
use crate::registry::Registry;
use bdev::errno::Errno;
use rpc::RpcError;
use rpc::dispatch::Answer;
use rpc::params::{SnapshotMerge, SnapshotMergeResume};
use serde_json::json;
use std::rc::Rc;

impl Registry {
    /// Begins to merge a snapshot, or a store that no snapshot has open.
    pub async fn merge(self: &Rc<Self>, params: SnapshotMerge) -> Answer {
        let name = params.name.clone();
        match params.of_store() {
            Some((origin, cow_bdev)) => {
                let (origin, cow_bdev) = (origin.to_owned(), cow_bdev.to_owned());
                self.merge_store(params, &origin, &cow_bdev).await?;
            }
            None => self.merge_snapshot(&params).await?,
        }
        Ok(json!(name))
    }

    async fn merge_snapshot(self: &Rc<Self>, params: &SnapshotMerge) -> Result<(), RpcError> {
        let name = &params.name;
        let origin = self.origin_of(name).ok_or_else(|| no_snapshot(name))?;
        let lock = self.origin_lock(&origin)?;
        let alone = lock.lock().await;
        let open = self.use_origin(&origin)?;
        self.check_no_merge(&origin, name)?;
        let (is_source, size, cow_bdev) = self.with_snapshot(&origin, name, |entry| {
            let size = match &entry.what {
                What::Snapshot(params) => params.size_sectors,
                What::Merge(_) => None,
            };
            (entry.handed_over, size, entry.cow_bdev.clone())
        })?;
        if is_source {
            return Err(RpcError::invalid(format!(
                "snapshot '{name}' has handed its store over; merge the snapshot that has it"
            )));
        }
        open.origin.set_merge_rate(params.mib_per_second << 20);
        let merged = open.origin.merge_snapshot(name).await;
        merged.map_err(refuse(name))?;
        let found = self.with_snapshot(&origin, name, |entry| {
            entry.what = What::Merge(SnapshotMerge {
                origin: Some(origin.clone()),
                cow_bdev: Some(cow_bdev),
                size_sectors: size,
                ..params.clone()
            });
        });
        drop(alone);
        self.close_if_idle(&origin);
        found
    }

    async fn merge_store(
        self: &Rc<Self>,
        params: SnapshotMerge,
        origin: &str,
        cow_bdev: &str,
    ) -> Result<(), RpcError> {
        let (name, wait) = (params.name.clone(), params.wait);
        if wait {
            self.wait_origin_opening(origin).await;
        }
        let lock = self.origin_lock(origin)?;
        let alone = lock.lock().await;
        self.check_free(&name)?;
        self.check_no_merge(origin, &name)?;
        if let Some(user) = self.cow_user(origin, &name, cow_bdev)? {
            return Err(RpcError::new(
                Errno::EBUSY,
                format!(
                    "snapshot '{name}': bdev '{cow_bdev}' is in use by snapshot '{user}'; merge that"
                ),
            ));
        }
        let entry = SnapEntry::new(What::Merge(params), cow_bdev);
        if self.declare_snapshot(origin, &name, entry, wait)? {
            return Ok(());
        }
        let open = self.use_origin(origin)?;
        if let Err(error) = self.bring_up(&open, origin, &name).await {
            self.forget(origin, &name);
            return Err(error);
        }
        drop(alone);
        self.close_if_idle(origin);
        Ok(())
    }

    /// The merge that an origin has, ended or not.
    pub fn merge_of(&self, origin: &str) -> Option<String> {
        let origins = self.origins.borrow();
        let entry = origins.get(origin)?;
        let found = entry
            .snapshots
            .iter()
            .find(|(_, snapshot)| matches!(snapshot.what, What::Merge(_)));
        found.map(|(name, _)| name.clone())
    }

    fn check_no_merge(&self, origin: &str, name: &str) -> Result<(), RpcError> {
        {
            let origins = self.origins.borrow();
            check_settled(origins.get(origin).ok_or_else(|| no_snapshot(origin))?)?;
        }
        match self.merge_of(origin) {
            None => Ok(()),
            Some(merge) => Err(RpcError::new(
                Errno::EINVAL,
                format!(
                    "snapshot '{name}': A snapshot is already merging. Snapshot_delete '{merge}' when its merge has finished"
                ),
            )),
        }
    }

    fn use_merge(&self, name: &str) -> Result<Rc<OpenOrigin>, RpcError> {
        let origin = self.origin_of(name).ok_or_else(|| no_snapshot(name))?;
        let open = self.use_origin(&origin)?;
        match self.merge_of(&origin).as_deref() == Some(name) {
            true => Ok(open),
            false => Err(RpcError::invalid(format!(
                "snapshot '{name}' is not being merged; see snapshot_merge"
            ))),
        }
    }

    /// Stops a merge after the batch in hand.
    pub async fn stop_merge(&self, name: &str) -> Result<(), RpcError> {
        let open = self.use_merge(name)?;
        open.origin.stop_merge().await.map_err(refuse(name))
    }

    /// Goes on with a merge, at another rate if one is given.
    pub fn resume_merge(&self, params: &SnapshotMergeResume) -> Result<(), RpcError> {
        let name = &params.name;
        let open = self.use_merge(name)?;
        if let Some(mib_per_second) = params.mib_per_second {
            open.origin.set_merge_rate(mib_per_second << 20);
            let origin = self.origin_of(name).ok_or_else(|| no_snapshot(name))?;
            self.with_snapshot(&origin, name, |entry| {
                if let What::Merge(merge) = &mut entry.what {
                    merge.mib_per_second = mib_per_second;
                }
            })?;
        }
        open.origin.resume_merge().map_err(refuse(name))
    }
}
