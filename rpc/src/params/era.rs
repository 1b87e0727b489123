//! Parameters of the methods of era targets.

use super::metadata_snap::{check_file, check_limit, check_only_with};
use super::{Validate, check_name, default_block_size, default_metadata_cache};
use crate::RpcError;
use serde::{Deserialize, Serialize};

/// `era_create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EraCreate {
    /// Name of the era target and of its bdev.
    pub name: String,
    /// Bdev that holds the metadata.
    pub metadata_bdev: String,
    /// Bdev that holds the data.
    pub origin_bdev: String,
    /// Sectors per data block.
    #[serde(default = "default_block_size")]
    pub block_size_sectors: u32,
    /// Size; that of the origin, which may grow, without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_sectors: Option<u64>,
    /// Limit of the metadata cache.
    #[serde(default = "default_metadata_cache")]
    pub metadata_cache_mib: u64,
    /// The base bdevs may appear later.
    #[serde(default)]
    pub wait: bool,
}

impl EraCreate {
    /// With the defaults.
    pub fn new(name: &str, metadata_bdev: &str, origin_bdev: &str) -> Self {
        EraCreate {
            name: name.to_owned(),
            metadata_bdev: metadata_bdev.to_owned(),
            origin_bdev: origin_bdev.to_owned(),
            block_size_sectors: default_block_size(),
            size_sectors: None,
            metadata_cache_mib: default_metadata_cache(),
            wait: false,
        }
    }
}

impl Validate for EraCreate {
    fn validate(&self) -> Result<(), RpcError> {
        check_name("era", &self.name)?;
        if self.metadata_bdev == self.origin_bdev {
            return Err(RpcError::invalid(format!(
                "era '{}': metadata and origin cannot both be bdev '{}'",
                self.name, self.origin_bdev
            )));
        }
        if [&self.metadata_bdev, &self.origin_bdev].contains(&&self.name) {
            return Err(RpcError::invalid(format!(
                "era '{}' cannot be on itself; choose another name than that of its bdev",
                self.name
            )));
        }
        let size = self.block_size_sectors;
        if size == 0 || !size.is_multiple_of(8) {
            return Err(RpcError::invalid(format!(
                "era '{}': Invalid block size: {size} is not a multiple of 8 sectors above 0",
                self.name
            )));
        }
        match self.size_sectors {
            Some(0) => Err(RpcError::invalid(format!(
                "era '{}': size_sectors must be above 0",
                self.name
            ))),
            _ => Ok(()),
        }
    }
}

/// `era_status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EraStatus {
    /// Name of an era target; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `era_metadata_snap_export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EraMetadataSnapExport {
    /// Name of the era target.
    pub name: String,
    /// Name of the bdev; `<name>_metadata_snap` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bdev_name: Option<String>,
    /// The era target may be being opened, and what is missing is only a warning: for configurations.
    #[serde(default)]
    pub wait: bool,
}

impl EraMetadataSnapExport {
    /// The name of the bdev.
    pub fn bdev_name(&self) -> String {
        self.bdev_name
            .clone()
            .unwrap_or_else(|| format!("{}_metadata_snap", self.name))
    }
}

impl Validate for EraMetadataSnapExport {
    fn validate(&self) -> Result<(), RpcError> {
        check_name("bdev", &self.bdev_name())
    }
}

/// `era_written_since`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EraWrittenSince {
    /// Name of the era target.
    pub name: String,
    /// Blocks written in this era or later.
    pub era: u32,
    /// First data block of the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_block: Option<u64>,
    /// Most ranges of the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The page must be of the metadata snapshot that an earlier page was of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u32>,
    /// Write XML to this new file instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl Validate for EraWrittenSince {
    fn validate(&self) -> Result<(), RpcError> {
        check_limit(self.limit)?;
        let Some(file) = &self.file else {
            return Ok(());
        };
        check_file(file)?;
        check_only_with(
            "with 'file'",
            &[
                ("begin_block", self.begin_block.is_some()),
                ("limit", self.limit.is_some()),
            ],
        )
    }
}
