//! Parameters of the methods that suspend thin bdevs and have them lead to other thin devices.

use super::Validate;
use crate::RpcError;
use serde::{Deserialize, Serialize};

/// A bdev waits at most so long, in ms.
const MAX_TIMEOUT_MS: u64 = 600_000;

fn default_timeout() -> u64 {
    5000
}

/// `thin_suspend`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinSuspend {
    /// Name of the thin bdev.
    pub bdev_name: String,
    /// When it goes on by itself.
    #[serde(default = "default_timeout")]
    pub timeout_ms: u64,
}

/// `thin_resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinResume {
    /// Name of the thin bdev.
    pub bdev_name: String,
}

/// `thin_switch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinSwitch {
    /// Name of the thin bdev.
    pub bdev_name: String,
    /// Pool of the thin device it is to lead to.
    pub pool: String,
    /// Id of that device.
    pub id: u32,
    /// What `thin_suspend` has answered.
    pub suspension: u64,
}

impl Validate for ThinSuspend {
    fn validate(&self) -> Result<(), RpcError> {
        match (1..=MAX_TIMEOUT_MS).contains(&self.timeout_ms) {
            true => Ok(()),
            false => Err(RpcError::invalid(format!(
                "bdev '{}': timeout_ms {} is not between 1 and {MAX_TIMEOUT_MS}",
                self.bdev_name, self.timeout_ms
            ))),
        }
    }
}

impl Validate for ThinSwitch {
    fn validate(&self) -> Result<(), RpcError> {
        super::check_id(self.id)
    }
}
