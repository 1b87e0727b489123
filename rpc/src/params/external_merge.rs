//! Parameters of the methods that merge a thin device into its external origin.

use super::{Validate, check_id};
use crate::RpcError;
use serde::{Deserialize, Serialize};

/// More than this is surely a mistake, and its bytes would not fit a number.
const MAX_RATE_MIB: u64 = 1 << 24;

/// `thin_merge_external`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinMergeExternal {
    /// Name of the pool.
    pub pool: String,
    /// Id of the device.
    pub id: u32,
    /// Most MiB merged per second; 0: as many as can be.
    #[serde(default)]
    pub mib_per_second: u64,
}

impl Validate for ThinMergeExternal {
    fn validate(&self) -> Result<(), RpcError> {
        check_id(self.id)?;
        match self.mib_per_second <= MAX_RATE_MIB {
            true => Ok(()),
            false => Err(RpcError::invalid(format!(
                "thin device {} of pool '{}': mib_per_second is at most {MAX_RATE_MIB}; 0 is without a limit",
                self.id, self.pool
            ))),
        }
    }
}

/// `thin_merge_external_stop`, `thin_merge_external_status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThinDevice {
    /// Name of the pool.
    pub pool: String,
    /// Id of the device.
    pub id: u32,
}

impl Validate for ThinDevice {
    fn validate(&self) -> Result<(), RpcError> {
        check_id(self.id)
    }
}
