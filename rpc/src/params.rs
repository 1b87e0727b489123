//! Parameters of the methods.

mod era;
mod external_merge;
mod linear;
mod metadata_snap;
mod nbd;
mod ploop;
mod push_backup;
mod snapshot;
mod switching;

pub use era::{EraCreate, EraMetadataSnapExport, EraStatus, EraWrittenSince};
pub use external_merge::{ThinDevice, ThinMergeExternal};
pub use linear::{LinearCreate, LinearSegment};
pub use metadata_snap::{
    DumpFormat, MAX_PAGE, ThinDelta, ThinDump, ThinMetadataSnapExport, page_entries,
};

pub use nbd::{NbdExportCreate, NbdExportDelete, NbdExportList};

pub use ploop::{
    AsMessage, PloopAddDelta, PloopCheck, PloopCreate, PloopMerge, PloopNotifyMerged, PloopResize,
    PloopSetNoresume, PloopSnapshot, PloopStatusOf, PloopTrackingGetNext, PloopUpdateDeltaIndex,
};
pub use push_backup::{
    PloopPushBackupForget, PloopPushBackupLeft, PloopPushBackupRead, PloopPushBackupStart,
    PloopPushBackupStop, PloopPushBackupWrite, PushBackup,
};
pub use snapshot::{
    SnapshotCreate, SnapshotMerge, SnapshotMergeResume, SnapshotOriginCreate, SnapshotStatus,
};

pub use switching::{ThinResume, ThinSuspend, ThinSwitch};

use crate::RpcError;
use serde::{Deserialize, Serialize};

fn default_block_size() -> u32 {
    128
}
fn default_metadata_cache() -> u64 {
    64
}
fn default_mapping_cache() -> u64 {
    256
}
fn default_no_space_timeout() -> u32 {
    60
}

/// `thin_pool_create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinPoolCreate {
    /// Name of the pool.
    pub name: String,
    /// Bdev that holds the metadata.
    pub metadata_bdev: String,
    /// Bdev that holds the data.
    pub data_bdev: String,
    /// Sectors per data block.
    #[serde(default = "default_block_size")]
    pub data_block_size_sectors: u32,
    /// Free data blocks at which to warn.
    #[serde(default)]
    pub low_water_mark_blocks: u64,
    /// The kernel's feature words.
    #[serde(default)]
    pub features: Vec<String>,
    /// How long writes wait for data space, in seconds; 0: for ever. The kernel's module parameter.
    #[serde(default = "default_no_space_timeout")]
    pub no_space_timeout_s: u32,
    /// Limit of the metadata cache.
    #[serde(default = "default_metadata_cache")]
    pub metadata_cache_mib: u64,
    /// Limit of the mapping cache.
    #[serde(default = "default_mapping_cache")]
    pub mapping_cache_mib: u64,
    /// The base bdevs may appear later.
    #[serde(default)]
    pub wait: bool,
}

/// The features of a pool's table line, in the order they are printed (thin.md 11.1).
pub const POOL_FEATURES: [&str; 5] = [
    "skip_block_zeroing",
    "ignore_discard",
    "no_discard_passdown",
    "read_only",
    "error_if_no_space",
];

/// A pool has at most so many features (thin.md 11.1).
pub const MAX_POOL_FEATURES: usize = 4;

impl ThinPoolCreate {
    /// With the defaults.
    pub fn new(name: &str, metadata_bdev: &str, data_bdev: &str) -> Self {
        ThinPoolCreate {
            name: name.to_owned(),
            metadata_bdev: metadata_bdev.to_owned(),
            data_bdev: data_bdev.to_owned(),
            data_block_size_sectors: default_block_size(),
            low_water_mark_blocks: 0,
            features: Vec::new(),
            no_space_timeout_s: default_no_space_timeout(),
            metadata_cache_mib: default_metadata_cache(),
            mapping_cache_mib: default_mapping_cache(),
            wait: false,
        }
    }

    /// Whether a feature is asked for.
    pub fn has(&self, feature: &str) -> bool {
        self.features
            .iter()
            .any(|f| f.eq_ignore_ascii_case(feature))
    }

    fn validate(&self) -> Result<(), RpcError> {
        check_name("pool", &self.name)?;
        if self.metadata_bdev == self.data_bdev {
            return Err(RpcError::invalid(format!(
                "pool '{}': metadata and data cannot both be on bdev '{}'",
                self.name, self.data_bdev
            )));
        }
        let size = self.data_block_size_sectors;
        if !(128..=2_097_152).contains(&size) || !size.is_multiple_of(128) {
            return Err(RpcError::invalid(format!(
                "pool '{}': Invalid block size: {size} is not a multiple of 128 sectors between 128 and 2097152",
                self.name
            )));
        }
        if self.features.len() > MAX_POOL_FEATURES {
            return Err(RpcError::invalid(format!(
                "pool '{}': Invalid number of pool feature arguments: {} given, at most {MAX_POOL_FEATURES} are allowed",
                self.name,
                self.features.len()
            )));
        }
        for feature in &self.features {
            if !POOL_FEATURES
                .iter()
                .any(|f| f.eq_ignore_ascii_case(feature))
            {
                return Err(RpcError::invalid(format!(
                    "pool '{}': Unrecognised pool feature requested: '{feature}'; there are {}",
                    self.name,
                    POOL_FEATURES.join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// Methods that take only a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// Name of a pool or device.
    pub name: String,
}

/// `thin_pool_status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinPoolStatus {
    /// Name of a pool; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `thin_create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinCreate {
    /// Name of the pool.
    pub pool: String,
    /// Id of the new device.
    pub id: u32,
    /// With a size: activate it at once under this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bdev_name: Option<String>,
    /// Size to activate it with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// With `bdev_name` or `size_mib`: the external origin of the bdev.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_bdev: Option<String>,
}

/// `thin_snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinSnapshot {
    /// Name of the pool.
    pub pool: String,
    /// Id of the snapshot.
    pub id: u32,
    /// Id of the device to take it of.
    pub origin_id: u32,
}

/// `thin_delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinDelete {
    /// Name of the pool.
    pub pool: String,
    /// Id of the device.
    pub id: u32,
}

/// `thin_activate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinActivate {
    /// Name of the pool.
    pub pool: String,
    /// Id of the device.
    pub id: u32,
    /// Name of the bdev; `<pool>_<id>` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bdev_name: Option<String>,
    /// Size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// Size, where MiB are too coarse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_sectors: Option<u64>,
    /// Name of a bdev outside the pool that holes show (thin.md 10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_bdev: Option<String>,
    /// Create the thin device if there is none of this id.
    #[serde(default)]
    pub create: bool,
    /// The pool may still be waiting for its bdevs.
    #[serde(default)]
    pub wait: bool,
}

impl ThinActivate {
    /// The name of the bdev.
    pub fn bdev_name(&self) -> String {
        self.bdev_name
            .clone()
            .unwrap_or_else(|| format!("{}_{}", self.pool, self.id))
    }

    /// The size in sectors.
    pub fn nr_sectors(&self) -> Result<u64, RpcError> {
        let sectors = match (self.size_mib, self.size_sectors) {
            (Some(mib), None) => mib.checked_mul(2048),
            (None, sectors) => sectors,
            (Some(_), Some(_)) => None,
        };
        sectors.filter(|sectors| *sectors > 0).ok_or_else(|| {
            RpcError::invalid(format!(
                "thin device {} of pool '{}': give either size_mib or size_sectors, above 0 (thin metadata records no size)",
                self.id, self.pool
            ))
        })
    }
}

/// `thin_deactivate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinDeactivate {
    /// Name of the thin bdev.
    pub bdev_name: String,
    /// Only while it is suspended, and this is what `thin_suspend` has answered.
    #[serde(default)]
    pub suspension: Option<u64>,
}

/// `thin_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinList {
    /// Name of the pool.
    pub pool: String,
}

/// Methods that take only a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolName {
    /// Name of the pool.
    pub pool: String,
}

/// `thin_set_transaction_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinSetTransactionId {
    /// Name of the pool.
    pub pool: String,
    /// What it must be now.
    pub current: u64,
    /// What it shall be.
    pub new: u64,
}

/// `dm_create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DmCreate {
    /// Name of the device.
    pub name: String,
    /// The kernel's table line, with bdev names for devices.
    pub table: String,
}

/// `dm_message`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DmMessage {
    /// Name of the device.
    pub name: String,
    /// The message.
    pub message: String,
    /// As dmsetup has it; must be 0.
    #[serde(default)]
    pub sector: u64,
}

/// What must hold for a parameter struct beyond its types.
pub trait Validate {
    /// Says what is wrong.
    fn validate(&self) -> Result<(), RpcError>;
}

/// Names are used in file names, NQNs and logs: no spaces, slashes or control characters.
pub fn check_name(what: &str, name: &str) -> Result<(), RpcError> {
    let fine = (1..=255).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_graphic() && !matches!(c, '/' | '"' | '\\'));
    match fine {
        true => Ok(()),
        false => Err(RpcError::invalid(format!(
            "'{name}' is not a {what} name: 1 to 255 printable ASCII characters without spaces, slashes and quotes"
        ))),
    }
}

/// Ids of thin devices have 24 bits.
pub fn check_id(id: u32) -> Result<(), RpcError> {
    match id <= 16_777_215 {
        true => Ok(()),
        false => Err(RpcError::invalid(format!(
            "thin device id {id} is larger than 16777215"
        ))),
    }
}

impl Validate for ThinPoolCreate {
    fn validate(&self) -> Result<(), RpcError> {
        ThinPoolCreate::validate(self)
    }
}

impl Validate for ThinCreate {
    fn validate(&self) -> Result<(), RpcError> {
        if let Some(name) = &self.bdev_name
            && self.size_mib.is_none()
        {
            return Err(RpcError::invalid(format!(
                "to activate thin device {} at once as '{name}', give size_mib too",
                self.id
            )));
        }
        match self.size_mib {
            // What activation would refuse must be refused before the device is created.
            Some(_) => ThinActivate {
                pool: self.pool.clone(),
                id: self.id,
                bdev_name: self.bdev_name.clone(),
                size_mib: self.size_mib,
                size_sectors: None,
                origin_bdev: self.origin_bdev.clone(),
                create: false,
                wait: false,
            }
            .validate(),
            None => check_id(self.id),
        }
    }
}

impl Validate for ThinSnapshot {
    fn validate(&self) -> Result<(), RpcError> {
        check_id(self.origin_id)?;
        check_id(self.id)
    }
}

impl Validate for ThinDelete {
    fn validate(&self) -> Result<(), RpcError> {
        check_id(self.id)
    }
}

impl Validate for ThinActivate {
    fn validate(&self) -> Result<(), RpcError> {
        if self.origin_bdev.as_ref() == Some(&self.pool) {
            return Err(RpcError::invalid(format!(
                "thin device {} of pool '{}': the external origin must be another device than the pool",
                self.id, self.pool
            )));
        }
        check_id(self.id)?;
        check_name("bdev", &self.bdev_name())?;
        self.nr_sectors().map(|_| ())
    }
}

impl Validate for DmCreate {
    fn validate(&self) -> Result<(), RpcError> {
        check_name("device", &self.name)
    }
}

impl Validate for DmMessage {
    fn validate(&self) -> Result<(), RpcError> {
        match self.sector {
            0 => Ok(()),
            sector => Err(RpcError::invalid(format!(
                "message to sector {sector} of '{}': only sector 0 takes messages",
                self.name
            ))),
        }
    }
}

macro_rules! nothing_to_validate {
    ($($params:ty),*) => {
        $(impl Validate for $params {
            fn validate(&self) -> Result<(), RpcError> {
                Ok(())
            }
        })*
    };
}
nothing_to_validate!(
    Name,
    NbdExportCreate,
    NbdExportDelete,
    NbdExportList,
    PoolName,
    ThinPoolStatus,
    ThinDeactivate,
    ThinList,
    ThinResume,
    ThinSetTransactionId,
    EraStatus
);
