//! Bdevs served over NBD on Unix sockets: the way by which programs beside the target read and write them
//! (`spdk-dm backup`, `qemu-img`, `nbdcopy`).
//!
//! An export belongs to the app thread and lasts until it is deleted, its bdev goes or the target ends; it
//! is not saved with the configuration. Who may open the socket's file may use it: only its owner may.

mod connection;

use crate::registry::{Registry, registry};
use bdev::errno::Errno;
use rpc::RpcError;
use rpc::params::{NbdExportCreate, NbdExportDelete};
use serde_json::{Value, json};
use socket2::SockRef;
use spdk::base::{BaseChannel, Descriptor, Event, IoKind};
use spdk::thread::Thread;
use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most clients of an export at a time; further ones are turned away.
const MAX_CLIENTS: usize = 64;

/// What the threads of an export share.
struct Shared {
    path: String,
    bdev_name: String,
    export: nbd::Export,
    thread: Thread,
    listener: UnixListener,
    stopping: AtomicBool,
    /// By number, so that they can be cut.
    clients: Mutex<HashMap<u64, UnixStream>>,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, HashMap<u64, UnixStream>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clients are cut, no more come.
    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        for client in self.clients().values() {
            let _ = client.shutdown(Shutdown::Both);
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// An export.
pub struct NbdExport {
    shared: Arc<Shared>,
    channel: BaseChannel,
}

impl Drop for NbdExport {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// The bdev's channel of an export that is still there, on the app thread.
fn channel(shared: &Arc<Shared>) -> Option<BaseChannel> {
    let registry = registry()?;
    let exports = registry.nbd_exports.borrow();
    let export = exports.get(&shared.path)?;
    Arc::ptr_eq(&export.shared, shared).then(|| export.channel.clone())
}

impl Registry {
    /// Serves a bdev. Returns the export's name in NBD URIs.
    pub fn create_nbd_export(self: &Rc<Self>, params: &NbdExportCreate) -> Result<Value, RpcError> {
        let (path, bdev) = (&params.path, &params.bdev_name);
        let refuse =
            |errno: i32, why: String| Err(RpcError::new(Errno(errno), format!("{path}: {why}")));
        if !Path::new(path).is_absolute() {
            return refuse(22, "give the socket's full path".into());
        }
        if self.nbd_exports.borrow().contains_key(path) {
            return refuse(
                17,
                "an export is there already; nbd_export_delete it".into(),
            );
        }
        let gone = path.clone();
        let events = move |event| {
            if event == Event::Remove {
                log::warn!("NBD export {gone} ends: its bdev is being removed");
                forget_later(gone.clone());
            }
        };
        let desc = Descriptor::open(bdev, params.writable, events).map_err(|errno| {
            let why = match errno {
                19 => "does not exist",
                1 | 16 => "is used by another module or target: export it without 'writable'",
                _ => "cannot be opened",
            };
            RpcError::new(Errno(errno), format!("bdev '{bdev}' {why}"))
        })?;
        if params.exclusive {
            desc.claim().map_err(|errno| {
                let why = "is claimed by another module or target: export it without 'exclusive'";
                RpcError::new(Errno(errno), format!("bdev '{bdev}' {why}"))
            })?;
        }
        let info = desc.info();
        let Some(channel) = desc.channel() else {
            return refuse(12, "no memory for a channel".into());
        };
        let Some(thread) = Thread::current() else {
            return refuse(5, "no SPDK thread".into());
        };
        let export = nbd::Export {
            size_bytes: info.nr_blocks * u64::from(info.block_bytes),
            block_bytes: info.block_bytes,
            read_only: !params.writable,
            flush: true,
            trim: params.writable && info.supports(IoKind::Unmap),
            write_zeroes: params.writable && info.supports(IoKind::WriteZeroes),
        };
        let shared = Arc::new(Shared {
            path: path.clone(),
            bdev_name: bdev.clone(),
            export,
            thread,
            listener: listen(path)?,
            stopping: AtomicBool::new(false),
            clients: Mutex::default(),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        let export = NbdExport { shared, channel };
        spdk::thread::spawn_blocking("sdm_nbd", move || accept(&accepting))
            .map_err(|error| RpcError::new(Errno::ENOMEM, format!("{path}: {error}")))?;
        self.nbd_exports.borrow_mut().insert(path.clone(), export);
        Ok(json!(format!("nbd+unix:///{bdev}?socket={path}")))
    }

    /// Ends an export.
    pub fn delete_nbd_export(&self, params: &NbdExportDelete) -> Result<Value, RpcError> {
        let export = self.nbd_exports.borrow_mut().remove(&params.path);
        match export {
            Some(_) => Ok(json!(true)),
            None => Err(RpcError::new(
                Errno::ENODEV,
                format!(
                    "there is no NBD export {}; see nbd_export_list",
                    params.path
                ),
            )),
        }
    }

    /// All exports.
    pub fn list_nbd_exports(&self) -> Value {
        let exports = self.nbd_exports.borrow();
        exports
            .values()
            .map(|NbdExport { shared, .. }| {
                json!({
                    "path": shared.path,
                    "bdev_name": shared.bdev_name,
                    "writable": !shared.export.read_only,
                    "size_bytes": shared.export.size_bytes,
                    "clients": shared.clients().len(),
                    "bytes_read": shared.bytes_read.load(Ordering::Relaxed),
                    "bytes_written": shared.bytes_written.load(Ordering::Relaxed),
                })
            })
            .collect()
    }
}

/// The bdev's handler is running, so it cannot be closed yet.
fn forget_later(path: String) {
    spdk::executor::spawn(async move {
        let export = registry().and_then(|r| r.nbd_exports.borrow_mut().remove(&path));
        drop(export);
    });
}

/// A socket at a path where there is none, or one that nobody listens at any more.
fn listen(path: &str) -> Result<UnixListener, RpcError> {
    let refuse = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "; nothing is overwritten: choose another path",
            io::ErrorKind::NotFound => "; make the folder first",
            _ => "",
        };
        let errno = error.raw_os_error().map_or(Errno::EINVAL, Errno);
        RpcError::new(errno, format!("{path}: {error}{remedy}"))
    };
    let stale = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if stale {
        fs::remove_file(path).map_err(refuse)?;
    }
    let listener = UnixListener::bind(path).map_err(refuse)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(refuse)?;
    Ok(listener)
}

/// The work of an export's thread.
fn accept(shared: &Arc<Shared>) {
    for number in 0.. {
        let stream = match shared.listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if shared.stopping.load(Ordering::Relaxed) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // Too many open files, say: it may pass.
                log::error!("NBD export {}: {error}", shared.path);
                std::thread::sleep(std::time::Duration::from_secs(1));
                continue;
            }
        };
        let Ok(to_cut) = stream.try_clone() else {
            continue;
        };
        {
            let mut clients = shared.clients();
            // Looked at under the lock: `stop` cuts those it finds there.
            if shared.stopping.load(Ordering::Relaxed) || clients.len() >= MAX_CLIENTS {
                continue;
            }
            clients.insert(number, to_cut);
        }
        let (serving, leaving) = (shared.clone(), shared.clone());
        let started = spdk::thread::spawn_blocking("sdm_nbd_in", move || {
            if let Err(error) = connection::serve(stream, &serving) {
                log::debug!("NBD export {}: {error}", serving.path);
            }
            serving.clients().remove(&number);
        });
        if started.is_err() {
            leaving.clients().remove(&number);
        }
    }
}
