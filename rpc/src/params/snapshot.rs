//! Parameters of the methods of snapshot targets.

use super::{Validate, check_name};
use crate::RpcError;
use bdev::snapshot::layout::MAX_CHUNK_SECTORS;
use bdev::snapshot::{Discards, StoreKind};
use serde::{Deserialize, Serialize};

fn default_cache() -> u64 {
    64
}

fn persistent() -> String {
    "P".to_owned()
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// `snapshot_origin_create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotOriginCreate {
    /// Name of the origin target and of its bdev.
    pub name: String,
    /// Bdev with the data.
    pub origin_bdev: String,
    /// Size of the bdev; that of the origin, which may grow, without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_sectors: Option<u64>,
    /// Limit of the places of exceptions, of all snapshots together.
    #[serde(default = "default_cache")]
    pub exceptions_cache_mib: u64,
    /// The origin bdev, and the COW bdevs of snapshots declared with it, may appear later.
    #[serde(default)]
    pub wait: bool,
}

impl SnapshotOriginCreate {
    /// With the defaults.
    pub fn new(name: &str, origin_bdev: &str) -> Self {
        SnapshotOriginCreate {
            name: name.to_owned(),
            origin_bdev: origin_bdev.to_owned(),
            size_sectors: None,
            exceptions_cache_mib: default_cache(),
            wait: false,
        }
    }
}

impl Validate for SnapshotOriginCreate {
    fn validate(&self) -> Result<(), RpcError> {
        check_name("snapshot-origin", &self.name)?;
        if self.name == self.origin_bdev {
            return Err(RpcError::invalid(format!(
                "origin '{}' cannot be on itself; choose another name than that of its bdev",
                self.name
            )));
        }
        check_size(&self.name, self.size_sectors)
    }
}

fn check_size(name: &str, sectors: Option<u64>) -> Result<(), RpcError> {
    match sectors {
        Some(0) => Err(RpcError::invalid(format!(
            "'{name}': size_sectors must be above 0"
        ))),
        _ => Ok(()),
    }
}

/// `snapshot_create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Name of the snapshot and of its bdev.
    pub name: String,
    /// Name of the origin target.
    pub origin: String,
    /// Bdev with the exceptions.
    pub cow_bdev: String,
    /// Kind of store: P, PO or N, as in a table line.
    #[serde(default = "persistent")]
    pub store: String,
    /// Sectors per chunk; 0: the default.
    #[serde(default)]
    pub chunk_size_sectors: u64,
    /// Length of the part of the origin that is snapshotted; all of it without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_sectors: Option<u64>,
    /// A discard zeroes chunks that have an exception.
    #[serde(default, skip_serializing_if = "is_false")]
    pub discard_zeroes_cow: bool,
    /// A discard goes to the origin bdev, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub discard_passdown_origin: bool,
    /// The origin may still be waiting for its bdevs, the COW bdev among them.
    #[serde(default)]
    pub wait: bool,
}

impl SnapshotCreate {
    /// The kind of store.
    pub fn store_kind(&self) -> Result<StoreKind, RpcError> {
        StoreKind::parse(&self.store).map_err(|error| self.refuse(&error.to_string()))
    }

    /// How discards are treated.
    pub fn discards(&self) -> Discards {
        Discards {
            zeroes_cow: self.discard_zeroes_cow,
            passdown_origin: self.discard_passdown_origin,
        }
    }

    fn refuse(&self, why: &str) -> RpcError {
        RpcError::invalid(format!("snapshot '{}': {why}", self.name))
    }
}

fn check_chunk_size(name: &str, sectors: u64, must: bool) -> Result<(), RpcError> {
    let fine = match sectors {
        0 => !must,
        sectors => sectors.is_power_of_two() && sectors <= MAX_CHUNK_SECTORS,
    };
    match fine {
        true => Ok(()),
        false => Err(RpcError::invalid(format!(
            "snapshot '{name}': chunk_size_sectors {sectors} is not a power of two up to 2097152"
        ))),
    }
}

fn check_devices(name: &str, origin: &str, cow_bdev: &str) -> Result<(), RpcError> {
    check_name("snapshot", name)?;
    match [origin, cow_bdev].contains(&name) {
        true => Err(RpcError::invalid(format!(
            "snapshot '{name}' cannot be on itself; choose another name than that of its origin or COW bdev"
        ))),
        false => Ok(()),
    }
}

impl Validate for SnapshotCreate {
    fn validate(&self) -> Result<(), RpcError> {
        check_devices(&self.name, &self.origin, &self.cow_bdev)?;
        let store = self.store_kind()?;
        check_chunk_size(
            &self.name,
            self.chunk_size_sectors,
            store == StoreKind::Transient,
        )?;
        if self.discard_passdown_origin && !self.discard_zeroes_cow {
            return Err(self.refuse(
                "discard_passdown_origin feature depends on discard_zeroes_cow; give both",
            ));
        }
        check_size(&self.name, self.size_sectors)
    }
}

/// `snapshot_merge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMerge {
    /// Name of the snapshot.
    pub name: String,
    /// Of a store no snapshot has open: the origin target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Of a store no snapshot has open: the bdev with the exceptions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cow_bdev: Option<String>,
    /// Of such a store: sectors per chunk, if the header is not to be believed; 0: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_size_sectors: Option<u64>,
    /// Of such a store: length of the part of the origin that is merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_sectors: Option<u64>,
    /// Most MiB merged per second; 0: as many as can be.
    #[serde(default)]
    pub mib_per_second: u64,
    /// The origin may still be waiting for its bdevs, the COW bdev among them.
    #[serde(default)]
    pub wait: bool,
}

impl SnapshotMerge {
    /// Of a snapshot that is there, as fast as can be.
    pub fn of_snapshot(name: &str) -> Self {
        SnapshotMerge {
            name: name.to_owned(),
            origin: None,
            cow_bdev: None,
            chunk_size_sectors: None,
            size_sectors: None,
            mib_per_second: 0,
            wait: false,
        }
    }

    /// The origin and the COW bdev, when a store is to be opened.
    pub fn of_store(&self) -> Option<(&str, &str)> {
        Some((self.origin.as_deref()?, self.cow_bdev.as_deref()?))
    }
}

impl Validate for SnapshotMerge {
    fn validate(&self) -> Result<(), RpcError> {
        check_rate(&self.name, self.mib_per_second)?;
        match (&self.origin, &self.cow_bdev) {
            (Some(origin), Some(cow_bdev)) => {
                check_devices(&self.name, origin, cow_bdev)?;
                check_chunk_size(&self.name, self.chunk_size_sectors.unwrap_or(0), false)?;
                check_size(&self.name, self.size_sectors)
            }
            (None, None) => {
                check_name("snapshot", &self.name)?;
                match self.chunk_size_sectors.is_some() || self.size_sectors.is_some() || self.wait
                {
                    true => Err(RpcError::invalid(format!(
                        "snapshot '{}': chunk_size_sectors, size_sectors and wait are for a store that no snapshot has open; give origin and cow_bdev with them",
                        self.name
                    ))),
                    false => Ok(()),
                }
            }
            _ => Err(RpcError::invalid(format!(
                "snapshot '{}': give both origin and cow_bdev, or neither to merge the snapshot of this name",
                self.name
            ))),
        }
    }
}

/// `snapshot_merge_resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMergeResume {
    /// Name of the snapshot.
    pub name: String,
    /// Most MiB merged per second from now on; 0: as many as can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mib_per_second: Option<u64>,
}

impl Validate for SnapshotMergeResume {
    fn validate(&self) -> Result<(), RpcError> {
        check_rate(&self.name, self.mib_per_second.unwrap_or(0))
    }
}

/// More than this is surely a mistake, and its bytes would not fit a number.
const MAX_RATE_MIB: u64 = 1 << 24;

fn check_rate(name: &str, mib_per_second: u64) -> Result<(), RpcError> {
    match mib_per_second <= MAX_RATE_MIB {
        true => Ok(()),
        false => Err(RpcError::invalid(format!(
            "snapshot '{name}': mib_per_second is at most {MAX_RATE_MIB}; 0 is without a limit"
        ))),
    }
}

/// `snapshot_status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotStatus {
    /// Name of an origin target or a snapshot; all origins without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// If an origin is being opened, wait for that: for configurations.
    #[serde(default, skip_serializing_if = "is_false")]
    pub wait: bool,
}

impl Validate for SnapshotStatus {
    fn validate(&self) -> Result<(), RpcError> {
        Ok(())
    }
}
