//! How a method says no.

use bdev::errno::Errno;

/// JSON-RPC's code for parameters that cannot be understood.
pub const INVALID_PARAMS: i32 = -32602;

/// A refusal: an errno, and a text that names the object and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcError {
    /// What kind.
    pub errno: Errno,
    /// In words.
    pub message: String,
}

impl RpcError {
    /// A refusal.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        RpcError {
            errno,
            message: message.into(),
        }
    }

    /// EINVAL.
    pub fn invalid(message: impl Into<String>) -> Self {
        RpcError::new(Errno::EINVAL, message)
    }

    /// The code of the JSON-RPC error object: the negative errno, as SPDK's own methods do.
    pub fn code(&self) -> i32 {
        -self.errno.0
    }
}
