//! Who reads a pool's metadata snapshot inside this process, beside the pool's own work on the same
//! metadata bdev.
//!
//! The blocks of a metadata snapshot do not change until it is released. So readers need no lock of
//! the pool: it is enough that a release waits for none of them to be left, and that none begins
//! during one. Closing the pool stops them.

use crate::backend::in_pool;
use async_trait::async_trait;
use bdev::errno::Errno;
use bdev::thin::Pool;
use bdev::thin::metadata::image::Image;
use futures::channel::oneshot;
use futures::future::{AbortHandle, AbortRegistration, Abortable};
use persistent_data::device::{BlockBytes, BlockDevice, DeviceError};
use rpc::RpcError;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::SystemTime;

/// The readers of a pool.
pub struct Readers {
    name: String,
    pool: Rc<Pool>,
    device: Rc<dyn BlockDevice>,
    serial: Cell<u64>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    under_way: BTreeMap<u64, Reader>,
    releasing: bool,
    closed: bool,
    waiting: Vec<oneshot::Sender<()>>,
}

struct Reader {
    what: String,
    device: Rc<Stoppable>,
    stop: AbortHandle,
}

/// The metadata for one reader, who reads a block at a time. A read that is under way is waited for:
/// until it ends it keeps the bdev open.
struct Stoppable {
    device: Rc<dyn BlockDevice>,
    reading: Cell<bool>,
    stopped: Cell<bool>,
}

#[async_trait(?Send)]
impl BlockDevice for Stoppable {
    fn nr_blocks(&self) -> u64 {
        self.device.nr_blocks()
    }

    async fn read(&self, block: u64, buf: &mut BlockBytes) -> Result<(), DeviceError> {
        self.reading.set(true);
        let read = self.device.read(block, buf).await;
        self.reading.set(false);
        match self.stopped.get() {
            true => Err(DeviceError {
                errno: Errno::ECANCELED.0,
            }),
            false => read,
        }
    }

    async fn write(&self, _: u64, _: &BlockBytes) -> Result<(), DeviceError> {
        Err(DeviceError {
            errno: Errno::EPERM.0,
        })
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// A metadata snapshot to be read.
pub struct Snapshot {
    /// The metadata.
    pub image: Image,
    /// Metadata block of the snapshot's superblock.
    pub block: u64,
    /// Another number for each snapshot that was reserved.
    pub serial: u64,
}

/// One reader's presence.
struct Reading {
    readers: Rc<Readers>,
    number: u64,
    device: Rc<Stoppable>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.readers.state.borrow_mut();
        state.under_way.remove(&self.number);
        if state.under_way.is_empty() {
            state.waiting.clear();
        }
    }
}

/// A release under way.
struct Releasing<'a>(&'a Readers);

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().releasing = false;
    }
}

/// Later than every number given out before, also by an earlier process: clients may keep them.
fn serial_after(last: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let micros = now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(0));
    micros.max(last.saturating_add(1))
}

impl Readers {
    /// Of an open pool, whose metadata is on `device`.
    pub fn new(name: &str, pool: Rc<Pool>, device: Rc<dyn BlockDevice>) -> Rc<Self> {
        Rc::new(Readers {
            name: name.to_owned(),
            pool,
            device,
            serial: Cell::new(serial_after(0)),
            state: RefCell::default(),
        })
    }

    fn busy(&self, why: &str) -> RpcError {
        RpcError::new(Errno::EBUSY, format!("pool '{}' {why}", self.name))
    }

    fn enter(self: &Rc<Self>, what: &str) -> Result<(Reading, AbortRegistration), RpcError> {
        let mut state = self.state.borrow_mut();
        if state.closed {
            return Err(self.busy("is being closed; try again"));
        }
        if state.releasing {
            return Err(self.busy("is releasing its metadata snapshot; reserve another one"));
        }
        let (stop, registration) = AbortHandle::new_pair();
        let number = state.next;
        state.next += 1;
        let device = Rc::new(Stoppable {
            device: self.device.clone(),
            reading: Cell::new(false),
            stopped: Cell::new(false),
        });
        let reader = Reader {
            what: what.to_owned(),
            device: device.clone(),
            stop,
        };
        state.under_way.insert(number, reader);
        let reading = Reading {
            readers: self.clone(),
            number,
            device,
        };
        Ok((reading, registration))
    }

    /// Reads the metadata snapshot, which stays as it is meanwhile. `what` is for messages to the user.
    pub async fn read<T>(
        self: &Rc<Self>,
        what: &str,
        work: impl AsyncFnOnce(Snapshot) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let (reading, registration) = self.enter(what)?;
        let work = async {
            let held = self.pool.metadata_snap().await;
            let block = held.map_err(in_pool(&self.name))?.ok_or_else(|| {
                RpcError::invalid(format!(
                    "pool '{}' has no metadata snapshot; make one by thin_reserve_metadata_snap (or dm_message reserve_metadata_snap)",
                    self.name
                ))
            })?;
            work(Snapshot {
                image: Image::new(reading.device.clone()),
                block,
                serial: self.serial.get(),
            })
            .await
        };
        let result = Abortable::new(work, registration).await;
        let stopped = reading.device.stopped.get();
        drop(reading);
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if !stopped => Err(error),
            _ => Err(self.busy(&format!("was closed during {what}"))),
        }
    }

    /// Makes a metadata snapshot.
    pub async fn reserve(&self) -> Result<(), RpcError> {
        let reserved = self.pool.reserve_metadata_snap().await;
        reserved.map_err(in_pool(&self.name))?;
        self.serial.set(serial_after(self.serial.get()));
        Ok(())
    }

    /// Lets the metadata snapshot go, unless it is being read.
    pub async fn release(&self) -> Result<(), RpcError> {
        {
            let mut state = self.state.borrow_mut();
            if let Some(reader) = state.under_way.values().next() {
                return Err(self.busy(&format!(
                    "cannot release its metadata snapshot during {}; wait until that has ended",
                    reader.what
                )));
            }
            if state.releasing {
                return Err(self.busy("is releasing its metadata snapshot already"));
            }
            state.releasing = true;
        }
        let _releasing = Releasing(self);
        let released = self.pool.release_metadata_snap().await;
        released.map_err(in_pool(&self.name))
    }

    /// Stops all readers for good.
    pub async fn close(&self) {
        let gone = {
            let mut state = self.state.borrow_mut();
            state.closed = true;
            for reader in state.under_way.values() {
                reader.device.stopped.set(true);
                if !reader.device.reading.get() {
                    reader.stop.abort();
                }
            }
            if state.under_way.is_empty() {
                return;
            }
            let (tx, rx) = oneshot::channel();
            state.waiting.push(tx);
            rx
        };
        // Ends when the sender is dropped.
        let _ = gone.await;
    }
}
