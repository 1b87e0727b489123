//! What origins, snapshots and merges say of themselves, in JSON and in device-mapper's words.

use super::{OpenOrigin, OriginEntry, SnapEntry, What, no_snapshot};
use crate::registry::Registry;
use bdev::errno::Errno;
use bdev::snapshot::table::SnapshotTable;
use bdev::snapshot::{SnapshotStatus, StoreKind};
use rpc::dispatch::Answer;
use rpc::params::{SnapshotCreate, SnapshotMerge, SnapshotOriginCreate};
use rpc::{RpcError, status, table};
use serde_json::{Value, json};
use std::rc::Rc;

/// The status of what a COW bdev is used for; None while the origin is not open.
fn found(open: Option<&Rc<OpenOrigin>>, name: &str, entry: &SnapEntry) -> Option<SnapshotStatus> {
    let origin = &open?.origin;
    match entry.what {
        What::Merge(_) => origin.merge_status(),
        What::Snapshot(_) => Some(origin.snapshot(name)?.status()),
    }
}

fn snapshot_json(open: Option<&Rc<OpenOrigin>>, name: &str, entry: &SnapEntry) -> Value {
    let mut answer = match found(open, name, entry) {
        Some(found) => status::snapshot_json(&found),
        None => json!({ "name": name, "condition": "waiting" }),
    };
    answer["cow_bdev"] = json!(entry.cow_bdev);
    answer["cow_bdev_missing"] = json!(entry.lost);
    answer["handed_over"] = json!(entry.handed_over);
    if let What::Merge(params) = &entry.what {
        answer["mib_per_second"] = json!(params.mib_per_second);
    }
    answer
}

fn origin_json(name: &str, entry: &OriginEntry) -> Value {
    let open = entry.open();
    let of_kind = |merge: bool| {
        let entries = entry.snapshots.iter();
        let entries = entries.filter(move |(_, s)| matches!(s.what, What::Merge(_)) == merge);
        entries.map(|(name, found)| snapshot_json(open, name, found))
    };
    let mut answer = json!({
        "name": name,
        "state": entry.life.word(),
        "origin_bdev": entry.params.origin_bdev,
        "failure": entry.life.failure(),
        "missing_bdevs": entry.missing(),
        "snapshots": of_kind(false).collect::<Value>(),
        "merge": of_kind(true).next(),
    });
    if let Some(open) = open {
        let work = status::origin_json(&open.origin.status());
        if let (Some(answer), Value::Object(work)) = (answer.as_object_mut(), work) {
            answer.remove("failure");
            answer.extend(work);
        }
    }
    answer
}

impl Registry {
    /// `snapshot_status`.
    pub fn snapshot_status(&self, name: Option<&str>) -> Answer {
        let origins = self.origins.borrow();
        let Some(name) = name else {
            let all = origins.iter().map(|(name, entry)| origin_json(name, entry));
            return Ok(all.collect());
        };
        if let Some(entry) = origins.get(name) {
            return Ok(origin_json(name, entry));
        }
        let origin = self.origin_of(name).ok_or_else(|| no_snapshot(name))?;
        let entry = origins.get(&origin).ok_or_else(|| no_snapshot(name))?;
        let snapshot = entry.snapshots.get(name).ok_or_else(|| no_snapshot(name))?;
        let mut answer = snapshot_json(entry.open(), name, snapshot);
        answer["origin"] = json!(origin);
        Ok(answer)
    }

    /// The kernel's status line of an origin, which is a snapshot-merge while it has one, or of a snapshot.
    pub fn snapshot_dm_status(&self, name: &str) -> Answer {
        let is_origin = self.has_origin(name);
        let origin = match is_origin {
            true => name.to_owned(),
            false => self.origin_of(name).ok_or_else(|| no_snapshot(name))?,
        };
        let open = self.use_origin(&origin)?;
        let (target, line) = match (is_origin, open.origin.merge_status()) {
            (true, Some(merge)) => ("snapshot-merge", merge.to_string()),
            (true, None) => ("snapshot-origin", String::new()),
            (false, merge) => {
                let snapshot = open.origin.snapshot(name).map(|s| s.status());
                let found = snapshot.or(merge).ok_or_else(|| no_snapshot(name))?;
                ("snapshot", found.to_string())
            }
        };
        Ok(json!({
            "name": name,
            "target": target,
            "line": line,
            "status": self.snapshot_status(Some(name))?,
        }))
    }

    /// The kernel's table line.
    pub fn snapshot_dm_table(&self, name: &str) -> Answer {
        let origins = self.origins.borrow();
        if let Some(entry) = origins.get(name) {
            let open = entry.open();
            let length = entry.params.size_sectors;
            let length = length.or(open.map(|open| open.origin.nr_sectors()));
            let length = length.unwrap_or(0);
            let merge = entry
                .snapshots
                .iter()
                .find(|(_, s)| matches!(s.what, What::Merge(_)));
            return Ok(json!(match merge {
                Some((snapshot, found)) => {
                    let line = dm_table(entry, snapshot, found, false);
                    table::snapshot_line(length, "snapshot-merge", &line)
                }
                None => table::snapshot_origin_line(length, &entry.params.origin_bdev),
            }));
        }
        let origin = self.origin_of(name).ok_or_else(|| no_snapshot(name))?;
        let entry = origins.get(&origin).ok_or_else(|| no_snapshot(name))?;
        let snapshot = entry.snapshots.get(name).ok_or_else(|| no_snapshot(name))?;
        let length = match &snapshot.what {
            What::Snapshot(params) => params.size_sectors,
            What::Merge(params) => params.size_sectors,
        };
        let line = dm_table(entry, name, snapshot, true);
        let length = length.unwrap_or(0);
        Ok(json!(table::snapshot_line(length, "snapshot", &line)))
    }

    /// A table line of an origin.
    pub async fn dm_snapshot_origin(
        self: &Rc<Self>,
        name: String,
        length: u64,
        origin_bdev: String,
    ) -> Answer {
        let params = SnapshotOriginCreate {
            size_sectors: Some(length),
            ..SnapshotOriginCreate::new(&name, &origin_bdev)
        };
        rpc::params::Validate::validate(&params)?;
        self.create_origin(params).await
    }

    /// A table line of a snapshot: of the origin target on that bdev.
    pub async fn dm_snapshot(
        self: &Rc<Self>,
        name: String,
        length: u64,
        found: SnapshotTable,
    ) -> Answer {
        let origin = self.origin_on(&found.origin).ok_or_else(|| {
            RpcError::new(
                Errno::ENODEV,
                format!(
                    "snapshot '{name}': there is no snapshot-origin on bdev '{}'; create it first",
                    found.origin
                ),
            )
        })?;
        let params = SnapshotCreate {
            name,
            origin,
            cow_bdev: found.cow,
            store: found.store.to_string(),
            chunk_size_sectors: found.chunk_sectors,
            size_sectors: Some(length),
            discard_zeroes_cow: found.discards.zeroes_cow,
            discard_passdown_origin: found.discards.passdown_origin,
            wait: false,
        };
        rpc::params::Validate::validate(&params)?;
        self.create_snapshot(params).await
    }

    /// A table line of a merge. It is that of the origin target of this name, whose place the merge takes;
    /// or of a new one.
    pub async fn dm_snapshot_merge(
        self: &Rc<Self>,
        name: String,
        length: u64,
        found: SnapshotTable,
    ) -> Answer {
        let there = self.origin_on(&found.origin);
        let made = match there.as_deref() {
            Some(there) if there == name => false,
            Some(there) => {
                return Err(RpcError::new(
                    Errno::EBUSY,
                    format!(
                        "snapshot-merge '{name}': bdev '{}' has the snapshot-origin '{there}'; a merge takes its place and its name",
                        found.origin
                    ),
                ));
            }
            None => {
                self.dm_snapshot_origin(name.clone(), length, found.origin.clone())
                    .await?;
                true
            }
        };
        let source = self.cow_user(&name, &name, &found.cow)?;
        let merge = match source {
            Some(snapshot) => SnapshotMerge::of_snapshot(&snapshot),
            None => SnapshotMerge {
                origin: Some(name.clone()),
                cow_bdev: Some(found.cow.clone()),
                chunk_size_sectors: Some(found.chunk_sectors),
                size_sectors: Some(length),
                ..SnapshotMerge::of_snapshot(&format!("{name}-merge"))
            },
        };
        if let Err(error) = self.merge(merge).await {
            if made {
                // Nothing but what was made for it.
                let _ = self.delete_snapshot_or_origin(&name).await;
            }
            return Err(error);
        }
        Ok(json!(name))
    }
}

/// `as_source`: of a snapshot, which may have handed its store over; the kernel then shows no chunk size.
fn dm_table(origin: &OriginEntry, name: &str, entry: &SnapEntry, as_source: bool) -> SnapshotTable {
    let found = found(origin.open(), name, entry);
    let (store, mut chunk_sectors, discards) = match &entry.what {
        What::Snapshot(params) => (
            params.store_kind().unwrap_or(StoreKind::Transient),
            params.chunk_size_sectors,
            params.discards(),
        ),
        What::Merge(params) => (
            StoreKind::Persistent { overflow: false },
            params.chunk_size_sectors.unwrap_or(0),
            Default::default(),
        ),
    };
    if let Some(found) = found {
        chunk_sectors = found.chunk_sectors;
    }
    if as_source && (entry.handed_over || matches!(entry.what, What::Merge(_))) {
        chunk_sectors = 0;
    }
    SnapshotTable {
        origin: origin.params.origin_bdev.clone(),
        cow: entry.cow_bdev.clone(),
        store,
        chunk_sectors,
        discards,
    }
}
