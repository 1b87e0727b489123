//! The side of the pool: a snapshot that does not change, what of it is to be read, and a way to its data.
//!
//! Everything is asked of the running target. What is made there is taken away again when it is no longer
//! needed, also after an error; the snapshot is the backup's and stays, for the next one.

pub use super::access::Access;
use super::header::Thin;
use crate::dm::odd;
use crate::error::CliError;
use crate::rpc_client::{RpcClient, RpcError};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Contents are counted in blocks of this size: what a data block is a multiple of in every pool.
pub const BLOCK_BYTES: u64 = 64 << 10;

/// The largest id of a thin device.
const MAX_ID: u64 = 16_777_215;

/// Entries of a page of mappings or differences.
const PAGE: u64 = 16_384;

/// A thin device as `thin_list` has it.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its id.
    pub id: u64,
    /// When it was made, in the pool's own counting.
    pub creation_time: u64,
    /// Size of its bdev, if it is active.
    pub size_sectors: Option<u64>,
    /// Name of its bdev, if it is active.
    pub bdev: Option<String>,
    /// Data blocks it maps.
    pub mapped_blocks: u64,
}

/// A pool of a running target.
pub struct Pool<'a> {
    client: &'a mut RpcClient,
    /// Its name.
    pub name: String,
}

/// A run of blocks of [`BLOCK_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// They have contents; else they are holes now, and were not before.
    pub data: bool,
}

impl<'a> Pool<'a> {
    /// The pool of this name.
    pub fn new(client: &'a mut RpcClient, name: &str) -> Self {
        Pool {
            client,
            name: name.to_owned(),
        }
    }

    fn call(&mut self, method: &str, mut params: Value) -> Result<Value, CliError> {
        params["pool"] = json!(self.name);
        Ok(self.client.call(method, params)?)
    }

    /// All its thin devices.
    pub fn devices(&mut self) -> Result<Vec<Device>, CliError> {
        let list = self.call("thin_list", json!({}))?;
        let device = |entry: &Value| {
            Some(Device {
                id: entry["id"].as_u64()?,
                creation_time: entry["creation_time"].as_u64()?,
                size_sectors: entry["size_sectors"].as_u64(),
                bdev: entry["bdev_name"].as_str().map(str::to_owned),
                mapped_blocks: entry["mapped_blocks"].as_u64()?,
            })
        };
        let devices = list.as_array().map(|list| list.iter().map(device));
        devices
            .and_then(Iterator::collect)
            .ok_or_else(|| odd("thin_list"))
    }

    /// The device of this id.
    pub fn device(&mut self, id: u64) -> Result<Device, CliError> {
        let mut devices = self.devices()?.into_iter();
        devices.find(|device| device.id == id).ok_or_else(|| {
            CliError::Usage(format!(
                "pool '{}' has no thin device {id}; see 'spdk-dm ls' or thin_list",
                self.name
            ))
        })
    }

    /// The snapshot a backup holds, if it is still the same.
    pub fn snapshot_of(&mut self, of: &Thin) -> Result<Device, CliError> {
        let snapshot = self.device(u64::from(of.snapshot_id))?;
        match snapshot.creation_time == of.snapshot_time {
            true => Ok(snapshot),
            false => Err(CliError::Usage(format!(
                "thin device {} of pool '{}' is not the snapshot the backup was made of any more; make a full backup",
                snapshot.id, self.name
            ))),
        }
    }

    /// The highest id there is not yet, far from those people count up.
    pub fn free_id(&mut self) -> Result<u64, CliError> {
        let taken: BTreeSet<u64> = self.devices()?.iter().map(|device| device.id).collect();
        let free = (0..=MAX_ID).rev().find(|id| !taken.contains(id));
        free.ok_or_else(|| CliError::Usage(format!("pool '{}' has no free id", self.name)))
    }

    /// Takes a snapshot with an id of its own.
    pub fn snapshot(&mut self, origin: u64) -> Result<Device, CliError> {
        let id = self.free_id()?;
        self.snapshot_as(id, origin)
    }

    /// Takes a snapshot with this id. It is on the disk when this returns.
    pub fn snapshot_as(&mut self, id: u64, origin: u64) -> Result<Device, CliError> {
        self.call("thin_snapshot", json!({ "id": id, "origin_id": origin }))?;
        self.device(id)
    }

    /// Makes an empty device. It is on the disk when this returns.
    pub fn create(&mut self, id: u64) -> Result<Device, CliError> {
        self.call("thin_create", json!({ "id": id }))?;
        self.device(id)
    }

    /// Deletes a device of which nobody needs to know.
    pub fn delete(&mut self, id: u64) -> Result<(), CliError> {
        self.call("thin_delete", json!({ "id": id })).map(drop)
    }

    /// What of `snapshot` is to be backed up: all that is mapped, or what differs from `since`.
    pub fn extents(
        &mut self,
        snapshot: u64,
        since: Option<u64>,
        size_bytes: u64,
    ) -> Result<Vec<Extent>, CliError> {
        self.with_metadata_snap(|pool| pool.extents_held(snapshot, since, size_bytes))
    }

    /// Does `work` while there is a metadata snapshot, as it is now.
    pub fn with_metadata_snap<R>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<R, CliError>,
    ) -> Result<R, CliError> {
        self.call("thin_reserve_metadata_snap", json!({})).map_err(|error| match error {
            CliError::Rpc(RpcError::Refused { message, .. }) => CliError::Usage(format!(
                "{message}: the pool's metadata snapshot is needed for a moment; thin_release_metadata_snap the one that is held"
            )),
            error => error,
        })?;
        let found = work(self);
        self.release_metadata_snap()?;
        found
    }

    /// Lets a metadata snapshot go.
    pub fn release_metadata_snap(&mut self) -> Result<(), CliError> {
        self.call("thin_release_metadata_snap", json!({})).map(drop)
    }

    /// [`Pool::extents`], while there is a metadata snapshot.
    pub fn extents_held(
        &mut self,
        snapshot: u64,
        since: Option<u64>,
        size_bytes: u64,
    ) -> Result<Vec<Extent>, CliError> {
        let block = self.data_block_bytes()?;
        let found = match since {
            Some(since) => self.differences(since, snapshot),
            None => self.mappings(snapshot),
        };
        Ok(in_blocks(found?, block, size_bytes))
    }

    /// Whether two devices share a block, while there is a metadata snapshot.
    pub fn share(&mut self, one: u64, other: u64) -> Result<bool, CliError> {
        let params = json!({ "left_id": one, "right_id": other, "limit": PAGE });
        let shared = self.pages("thin_delta", params, "differences", |run| {
            let relation = run["relation"].as_str()?;
            Some(matches!(relation, "same" | "identical").then_some(()))
        })?;
        Ok(!shared.is_empty())
    }

    /// Its state, as `thin_pool_status` has it.
    pub fn status(&mut self) -> Result<Value, CliError> {
        let name = json!({ "name": self.name });
        Ok(self.client.call("thin_pool_status", name)?)
    }

    fn data_block_bytes(&mut self) -> Result<u64, CliError> {
        let status = self.status()?;
        let sectors = status["data_block_size_sectors"].as_u64();
        sectors
            .map(|sectors| sectors * 512)
            .ok_or_else(|| odd("thin_pool_status"))
    }

    /// Runs of data blocks: first, how many, whether there are contents.
    fn mappings(&mut self, id: u64) -> Result<Vec<(u64, u64, bool)>, CliError> {
        self.pages(
            "thin_dump",
            json!({ "id": id, "limit": PAGE }),
            "runs",
            |run| {
                Some(Some((
                    run["begin"].as_u64()?,
                    run["length"].as_u64()?,
                    true,
                )))
            },
        )
    }

    fn differences(&mut self, old: u64, new: u64) -> Result<Vec<(u64, u64, bool)>, CliError> {
        let params = json!({ "left_id": old, "right_id": new, "limit": PAGE });
        self.pages("thin_delta", params, "differences", |run| {
            let (begin, length) = (run["begin"].as_u64()?, run["length"].as_u64()?);
            match run["relation"].as_str()? {
                "same" | "identical" => Some(None),
                "left_only" => Some(Some((begin, length, false))),
                "right_only" | "different" => Some(Some((begin, length, true))),
                _ => None,
            }
        })
    }

    /// All entries of a method that answers page by page.
    fn pages<T>(
        &mut self,
        method: &str,
        mut params: Value,
        field: &str,
        entry: impl Fn(&Value) -> Option<Option<T>>,
    ) -> Result<Vec<T>, CliError> {
        let mut found = Vec::new();
        loop {
            let page = self.call(method, params.clone())?;
            let entries = page[field].as_array().ok_or_else(|| odd(method))?;
            for value in entries {
                found.extend(entry(value).ok_or_else(|| odd(method))?);
            }
            match page["next_block"].as_u64() {
                Some(next) => {
                    params["begin_block"] = json!(next);
                    params["snapshot"] = page["snapshot"].clone();
                }
                None => return Ok(found),
            }
        }
    }

    /// Makes a device's data reachable, as a bdev of this name that nobody else uses.
    pub fn open(&mut self, what: Open, bdev: &str, socket: &Path) -> Result<Access, CliError> {
        let params = json!({
            "id": what.id,
            "bdev_name": bdev,
            "size_sectors": what.size_sectors,
            "create": what.create,
        });
        if let Err(CliError::Rpc(RpcError::Refused { .. })) =
            self.call("thin_activate", params.clone())
        {
            // What is left of an attempt that was killed. Others have other names.
            self.clear(bdev, socket)?;
            self.call("thin_activate", params)?;
        }
        let opened = Access::open(self.client, bdev, what.writable, socket);
        if opened.is_err() {
            // The first error is the one to tell.
            let _ = self
                .client
                .call("thin_deactivate", json!({ "bdev_name": bdev }));
        }
        opened
    }

    /// Takes away what is left of an attempt that was killed.
    pub fn clear(&mut self, bdev: &str, socket: &Path) -> Result<(), CliError> {
        Access::clear(self.client, bdev, socket)?;
        // Mostly there is none.
        let _ = self
            .client
            .call("thin_deactivate", json!({ "bdev_name": bdev }));
        Ok(())
    }

    /// Says what backups that were killed have left. It is not taken away: they can be gone on with.
    pub fn report_left_behind(&mut self, socket: &Path) -> Result<(), CliError> {
        for device in self.devices()? {
            let Some(bdev) = device.bdev.filter(|bdev| super::is_bdev_name(bdev)) else {
                continue;
            };
            if !Access::is_used(self.client, &bdev, socket)? {
                eprintln!(
                    "spdk-dm: thin device {} of pool '{}' (bdev '{bdev}') was left by a backup that was cut off: go on \
                     with its file by --resume, or thin_delete the device",
                    device.id, self.name
                );
            }
        }
        Ok(())
    }

    /// Makes a device a bdev for its users.
    pub fn activate(&mut self, id: u64, bdev: &str, size_sectors: u64) -> Result<(), CliError> {
        let params = json!({ "id": id, "bdev_name": bdev, "size_sectors": size_sectors });
        self.call("thin_activate", params).map(drop)
    }

    /// Ends what [`Pool::open`] began.
    pub fn close(&mut self, access: Access) -> Result<(), CliError> {
        let bdev = access.bdev().to_owned();
        let closed = access.close(self.client);
        self.client
            .call("thin_deactivate", json!({ "bdev_name": bdev }))?;
        closed
    }
}

/// A thin device to be opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Open {
    /// Its id.
    pub id: u64,
    /// What its bdev's size shall be.
    pub size_sectors: u64,
    /// It is not there yet.
    pub create: bool,
    /// It is to be written to.
    pub writable: bool,
}

/// Runs of data blocks of `block` bytes as extents that join where they can, within `size_bytes`.
fn in_blocks(runs: Vec<(u64, u64, bool)>, block: u64, size_bytes: u64) -> Vec<Extent> {
    let per = block / BLOCK_BYTES;
    let all = size_bytes.div_ceil(BLOCK_BYTES);
    let mut extents: Vec<Extent> = Vec::new();
    for (begin, length, data) in runs {
        let first = begin.saturating_mul(per);
        let count = length.saturating_mul(per).min(all.saturating_sub(first));
        match extents.last_mut() {
            _ if count == 0 => {}
            Some(last) if last.first + last.count == first && last.data == data => {
                last.count += count
            }
            _ => extents.push(Extent { first, count, data }),
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs join, and nothing reaches beyond the end of the device.
    #[test]
    fn extents_of_runs() {
        let extent = |first, count, data| Extent { first, count, data };
        let runs = vec![
            (0, 2, true),
            (2, 1, true),
            (3, 1, false),
            (10, 5, true),
            (90, 1, true),
        ];
        let size = 23 * BLOCK_BYTES - 512;
        assert_eq!(
            in_blocks(runs, 2 * BLOCK_BYTES, size),
            [extent(0, 6, true), extent(6, 2, false), extent(20, 3, true)]
        );
    }
}
