//! Parameters of the methods of push backups of ploop targets.

use super::Validate;
use super::ploop::{is_false, many, refuse};
use crate::RpcError;
use bdev::ploop::Uuid;
use bdev::ploop::messages::clusters;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::time::Duration;

fn uuid(text: &str) -> Result<Uuid, String> {
    text.parse()
}

/// `ploop_push_backup_start`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopPushBackupStart {
    /// Name of the target.
    pub name: String,
    /// Its name.
    pub uuid: String,
    /// The guest clusters to be backed up; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<String>,
    /// How long a write of the guest waits at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// Record what is written since, for the next backup.
    #[serde(default, skip_serializing_if = "is_false")]
    pub record: bool,
    /// The same, and back up only what was written since this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// [`PloopPushBackupStart`], understood.
pub struct PushBackup {
    /// Its name.
    pub uuid: Uuid,
    /// The guest clusters to be backed up; all without it.
    pub clusters: Option<Vec<Range<u64>>>,
    /// What is written since is recorded, and only what was written since the backup before is backed up.
    pub recorded: Option<Option<Uuid>>,
    /// How long a write of the guest waits at most.
    pub timeout: Option<Duration>,
}

impl PloopPushBackupStart {
    /// What is meant.
    pub fn understood(&self) -> Result<PushBackup, RpcError> {
        let refused = refuse(&self.name);
        let chosen = self.clusters.as_deref().map(clusters).transpose();
        let since = self.since.as_deref().map(uuid).transpose();
        let since = since.map_err(refuse(&self.name))?;
        if self.clusters.is_some() && (self.record || since.is_some()) {
            return Err(refused(
                "of chosen clusters nothing is recorded: give clusters, or record or since".into(),
            ));
        }
        Ok(PushBackup {
            uuid: uuid(&self.uuid).map_err(refuse(&self.name))?,
            clusters: chosen.map_err(refuse(&self.name))?,
            recorded: (self.record || since.is_some()).then_some(since),
            timeout: self.timeout_s.map(Duration::from_secs),
        })
    }
}

impl Validate for PloopPushBackupStart {
    fn validate(&self) -> Result<(), RpcError> {
        self.understood().map(drop)
    }
}

/// `ploop_push_backup_stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopPushBackupStop {
    /// Name of the target.
    pub name: String,
    /// The backup.
    pub uuid: String,
    /// It has been read and is safe: another one can be made since it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub complete: bool,
    /// Another one can be made since the one before, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub keep: bool,
}

impl PloopPushBackupStop {
    /// The backup.
    pub fn uuid(&self) -> Result<Uuid, RpcError> {
        uuid(&self.uuid).map_err(refuse(&self.name))
    }
}

impl Validate for PloopPushBackupStop {
    fn validate(&self) -> Result<(), RpcError> {
        self.uuid().map(drop)
    }
}

/// `ploop_push_backup_forget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopPushBackupForget {
    /// Name of the target.
    pub name: String,
    /// The backup.
    pub uuid: String,
}

impl PloopPushBackupForget {
    /// The backup.
    pub fn uuid(&self) -> Result<Uuid, RpcError> {
        uuid(&self.uuid).map_err(refuse(&self.name))
    }
}

impl Validate for PloopPushBackupForget {
    fn validate(&self) -> Result<(), RpcError> {
        self.uuid().map(drop)
    }
}

/// `ploop_push_backup_left`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopPushBackupLeft {
    /// Name of the target.
    pub name: String,
    /// The backup.
    pub uuid: String,
    /// The first guest cluster of the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_cluster: Option<u64>,
    /// Most runs of clusters to return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
}

impl PloopPushBackupLeft {
    /// The backup.
    pub fn uuid(&self) -> Result<Uuid, RpcError> {
        uuid(&self.uuid).map_err(refuse(&self.name))
    }

    /// Most runs of clusters to return.
    pub fn max(&self) -> Result<usize, RpcError> {
        many(&self.name, self.max)
    }
}

impl Validate for PloopPushBackupLeft {
    fn validate(&self) -> Result<(), RpcError> {
        self.uuid()?;
        self.max().map(drop)
    }
}

/// `ploop_push_backup_read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopPushBackupRead {
    /// Name of the target.
    pub name: String,
    /// The backup.
    pub uuid: String,
    /// Most clusters to return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
}

impl PloopPushBackupRead {
    /// The backup.
    pub fn uuid(&self) -> Result<Uuid, RpcError> {
        uuid(&self.uuid).map_err(refuse(&self.name))
    }

    /// Most clusters to return.
    pub fn max(&self) -> Result<usize, RpcError> {
        many(&self.name, self.max)
    }
}

impl Validate for PloopPushBackupRead {
    fn validate(&self) -> Result<(), RpcError> {
        self.uuid()?;
        self.max().map(drop)
    }
}

/// `ploop_push_backup_write`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PloopPushBackupWrite {
    /// Name of the target.
    pub name: String,
    /// The backup.
    pub uuid: String,
    /// The first guest cluster that is safe.
    pub cluster: u64,
    /// How many are; 1 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl PloopPushBackupWrite {
    /// The backup.
    pub fn uuid(&self) -> Result<Uuid, RpcError> {
        uuid(&self.uuid).map_err(refuse(&self.name))
    }

    /// The clusters that are safe.
    pub fn clusters(&self) -> std::ops::Range<u64> {
        self.cluster..self.cluster.saturating_add(self.count.unwrap_or(1))
    }
}

impl Validate for PloopPushBackupWrite {
    fn validate(&self) -> Result<(), RpcError> {
        self.uuid().map(drop)
    }
}
