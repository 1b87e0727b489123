//! Parameters of the methods that serve bdevs over NBD.

use serde::{Deserialize, Serialize};

/// `nbd_export_create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdExportCreate {
    /// What is served: any bdev.
    pub bdev_name: String,
    /// Full path of the socket.
    pub path: String,
    /// Clients may write.
    #[serde(default)]
    pub writable: bool,
    /// Nobody else may write meanwhile.
    #[serde(default)]
    pub exclusive: bool,
}

/// `nbd_export_delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdExportDelete {
    /// Full path of the socket.
    pub path: String,
}

/// `nbd_export_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdExportList {}
