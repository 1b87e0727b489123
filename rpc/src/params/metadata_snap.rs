//! Parameters of the methods that make a pool's metadata snapshot readable.

use super::{Validate, check_id, check_name};
use crate::RpcError;
use serde::{Deserialize, Serialize};

/// `thin_metadata_snap_export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinMetadataSnapExport {
    /// Name of the pool.
    pub pool: String,
    /// Name of the bdev; `<pool>_metadata_snap` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bdev_name: Option<String>,
    /// The pool may be being opened, and what is missing is only a warning: for configurations.
    #[serde(default)]
    pub wait: bool,
}

impl ThinMetadataSnapExport {
    /// The name of the bdev.
    pub fn bdev_name(&self) -> String {
        self.bdev_name
            .clone()
            .unwrap_or_else(|| format!("{}_metadata_snap", self.pool))
    }
}

/// Most entries of a page, and how many there are unless said otherwise.
pub const MAX_PAGE: u32 = 65_536;
const DEFAULT_PAGE: u32 = 1024;

/// How the XML of a dump is laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DumpFormat {
    /// As `thin_dump` 0.9: every mapping of every device.
    #[default]
    Xml,
    /// As `thin_dump` 1.x: what devices share comes once.
    XmlShared,
}

/// `thin_dump`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinDump {
    /// Name of the pool.
    pub pool: String,
    /// A page of this device's mappings; of devices without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// First virtual block of the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_block: Option<u64>,
    /// First device of a page of devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_id: Option<u32>,
    /// Most entries of the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The page must be of the metadata snapshot that an earlier page was of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u64>,
    /// Write XML to this new file instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Only these devices, in a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
    /// Of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DumpFormat>,
}

/// `thin_delta`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinDelta {
    /// Name of the pool.
    pub pool: String,
    /// Id of the first device.
    pub left_id: u32,
    /// Id of the second device.
    pub right_id: u32,
    /// First virtual block of the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_block: Option<u64>,
    /// Most entries of the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The page must be of the metadata snapshot that an earlier page was of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u64>,
    /// Write XML to this new file instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// With data blocks, in a file.
    #[serde(default)]
    pub verbose: bool,
}

/// Entries of a page that was asked for with this limit.
pub fn page_entries(limit: Option<u32>) -> usize {
    limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE) as usize
}

pub(super) fn check_limit(limit: Option<u32>) -> Result<(), RpcError> {
    match limit {
        Some(limit) if !(1..=MAX_PAGE).contains(&limit) => Err(RpcError::invalid(format!(
            "limit {limit} is not between 1 and {MAX_PAGE}"
        ))),
        _ => Ok(()),
    }
}

/// `file` is on the machine of the target, whose working directory is nobody's business.
pub(super) fn check_file(file: &str) -> Result<(), RpcError> {
    match file.starts_with('/') && !file.contains('\0') {
        true => Ok(()),
        false => Err(RpcError::invalid(format!(
            "file '{file}' is on the target's machine: give a path that begins with /"
        ))),
    }
}

/// Parameters that go with something else only.
pub(super) fn check_only_with(what: &str, others: &[(&str, bool)]) -> Result<(), RpcError> {
    match others.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(RpcError::invalid(format!(
            "'{name}' has no meaning {what}; leave it out"
        ))),
        None => Ok(()),
    }
}

impl Validate for ThinMetadataSnapExport {
    fn validate(&self) -> Result<(), RpcError> {
        check_name("bdev", &self.bdev_name())
    }
}

impl Validate for ThinDump {
    fn validate(&self) -> Result<(), RpcError> {
        self.ids.iter().copied().try_for_each(check_id)?;
        self.id.map_or(Ok(()), check_id)?;
        self.begin_id.map_or(Ok(()), check_id)?;
        check_limit(self.limit)?;
        let Some(file) = &self.file else {
            check_only_with(
                "without 'file'",
                &[
                    ("ids", !self.ids.is_empty()),
                    ("format", self.format.is_some()),
                ],
            )?;
            return match self.id {
                Some(_) => check_only_with("with 'id'", &[("begin_id", self.begin_id.is_some())]),
                None => check_only_with(
                    "without 'id'",
                    &[("begin_block", self.begin_block.is_some())],
                ),
            };
        };
        check_file(file)?;
        check_only_with(
            "with 'file'",
            &[
                ("id", self.id.is_some()),
                ("begin_block", self.begin_block.is_some()),
                ("begin_id", self.begin_id.is_some()),
                ("limit", self.limit.is_some()),
            ],
        )
    }
}

impl Validate for ThinDelta {
    fn validate(&self) -> Result<(), RpcError> {
        check_id(self.left_id)?;
        check_id(self.right_id)?;
        check_limit(self.limit)?;
        let Some(file) = &self.file else {
            return check_only_with("without 'file'", &[("verbose", self.verbose)]);
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
