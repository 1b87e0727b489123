//! A bdev's data, over NBD beside the target's RPC socket.

use crate::error::CliError;
use crate::rpc_client::RpcClient;
use nbd::client::Client;
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A target is not waited for longer, once it serves data.
const SILENCE: Duration = Duration::from_secs(300);

/// A bdev's data, over NBD.
pub struct Access {
    bdev: String,
    path: PathBuf,
    /// The connection.
    pub data: Client<UnixStream>,
}

impl Access {
    /// Which bdev.
    pub fn bdev(&self) -> &str {
        &self.bdev
    }

    /// Where a bdev is served: beside the target's RPC socket.
    pub fn path(bdev: &str, socket: &Path) -> Result<PathBuf, CliError> {
        let folder = socket.parent().unwrap_or(Path::new("/var/tmp"));
        let folder = folder.canonicalize().map_err(CliError::io(folder))?;
        // Two targets may have their sockets in one folder. A path of a socket has at most 107 bytes.
        let target = socket.file_stem().unwrap_or_default().to_string_lossy();
        Ok(folder.join(format!("{target}-{bdev}.nbd")))
    }

    /// Serves a bdev to nobody else meanwhile.
    pub fn open(
        client: &mut RpcClient,
        bdev: &str,
        writable: bool,
        socket: &Path,
    ) -> Result<Self, CliError> {
        let path = Access::path(bdev, socket)?;
        let how = json!({ "writable": writable, "exclusive": true });
        Access::open_at(client, bdev, path, how)
    }

    /// Reads a bdev that others write to, under the name of a backup.
    pub fn open_shared(
        client: &mut RpcClient,
        bdev: &str,
        backup: &str,
        socket: &Path,
    ) -> Result<Self, CliError> {
        let path = Access::path(backup, socket)?;
        Access::open_at(client, bdev, path, json!({}))
    }

    fn open_at(
        client: &mut RpcClient,
        bdev: &str,
        path: PathBuf,
        mut params: Value,
    ) -> Result<Self, CliError> {
        params["bdev_name"] = json!(bdev);
        params["path"] = json!(path);
        client.call("nbd_export_create", params)?;
        let connected = UnixStream::connect(&path).and_then(|stream| {
            stream.set_read_timeout(Some(SILENCE))?;
            stream.set_write_timeout(Some(SILENCE))?;
            Client::connect(stream, bdev)
        });
        match connected {
            Ok(data) => Ok(Access {
                bdev: bdev.to_owned(),
                path,
                data,
            }),
            Err(source) => {
                let _ = client.call("nbd_export_delete", json!({ "path": path }));
                Err(CliError::Io { path, source })
            }
        }
    }

    /// What goes wrong on this connection.
    pub fn failed(&self, source: std::io::Error) -> CliError {
        CliError::Usage(format!("bdev '{}': {source}", self.bdev))
    }

    /// Ends it.
    pub fn close(self, client: &mut RpcClient) -> Result<(), CliError> {
        let Access { path, data, .. } = self;
        // What matters was answered before; the export goes anyway.
        let _ = data.disconnect();
        client.call("nbd_export_delete", json!({ "path": path }))?;
        Ok(())
    }

    /// Whether somebody reads what a backup of this name serves. False also when nothing is served.
    pub fn is_used(client: &mut RpcClient, backup: &str, socket: &Path) -> Result<bool, CliError> {
        let path = Access::path(backup, socket)?;
        let exports = client.call("nbd_export_list", json!({}))?;
        let mut exports = exports.as_array().into_iter().flatten();
        let ours = exports.find(|export| export["path"].as_str().map(Path::new) == Some(&path));
        Ok(ours.is_some_and(|export| export["clients"].as_u64() != Some(0)))
    }

    /// Takes away what a backup of this name that was killed has served.
    pub fn clear(client: &mut RpcClient, backup: &str, socket: &Path) -> Result<(), CliError> {
        let path = Access::path(backup, socket)?;
        // Mostly there is none.
        let _ = client.call("nbd_export_delete", json!({ "path": path }));
        Ok(())
    }
}
