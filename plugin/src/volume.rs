//! The bdevs of targets whose base bdevs come and go, as SPDK sees them.

use crate::host::ALWAYS_TAKEN;
use crate::moving_bases::MovingChannel;
use crate::registry::{Registry, registry};
use bdev::channel::{OnCore, VolumeHandle};
use bdev::target::Target;
use spdk::base::IoKind;
use spdk::io_device::{IoChannel, IoDevice};
use spdk::passage::{Course, Passage};
use spdk::vbdev::{BdevIo, Destructed, Driver};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which bdev of a target it is, and what is said of it.
pub trait Identity: Clone + Send + Sync + 'static {
    /// A JSON object's member name and value, for `bdev_get_bdevs`.
    fn info(&self) -> (&'static str, String);

    /// Its call in configurations.
    fn config(&self) -> String;

    /// All channels are gone.
    fn gone(self, registry: Rc<Registry>, done: Destructed) -> impl Future<Output = ()> + 'static;
}

/// The bdev.
pub struct VolumeDriver<T: Target, I> {
    volume: Arc<T::Volume>,
    /// Let go before SPDK hears that the bdev is gone.
    channels: Mutex<Option<Arc<IoDevice<MovingChannel<T>>>>>,
    io_kinds: u32,
    identity: I,
}

impl<T: Target, I> VolumeDriver<T, I> {
    /// Of an open target. `io_kinds`: what it takes beside what all bdevs do, as a set of [`IoKind::bit`].
    pub fn new(
        volume: Arc<T::Volume>,
        channels: Arc<IoDevice<MovingChannel<T>>>,
        io_kinds: u32,
        identity: I,
    ) -> Self {
        VolumeDriver {
            volume,
            channels: Mutex::new(Some(channels)),
            io_kinds: io_kinds | ALWAYS_TAKEN,
            identity,
        }
    }

    fn channels(&self) -> MutexGuard<'_, Option<Arc<IoDevice<MovingChannel<T>>>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bdev's channel: the target's of this core.
pub struct VolumeChannel<T: Target> {
    dev: VolumeHandle<T>,
    target: IoChannel<MovingChannel<T>>,
}

impl<T, I> Driver for VolumeDriver<T, I>
where
    T: Target + 'static,
    T::Volume: Send + Sync,
    I: Identity,
{
    type Channel = VolumeChannel<T>;

    fn create_channel(&self) -> Option<VolumeChannel<T>> {
        let channels = self.channels().clone()?;
        Some(VolumeChannel {
            dev: OnCore::new(self.volume.clone()),
            target: channels.channel()?,
        })
    }

    const ASKS: bool = true;

    #[inline(always)]
    fn plain(channel: &VolumeChannel<T>, kind: IoKind, offset: u64, nr: u64) -> Option<Course> {
        channel.target.plain(&channel.dev, kind, offset, nr)
    }

    #[inline]
    fn submit(channel: &VolumeChannel<T>, io: BdevIo, kind: IoKind, offset: u64, nr_blocks: u64) {
        let dev = &channel.dev;
        channel.target.submit(dev, io, kind, offset, nr_blocks);
    }

    fn passage(channel: &VolumeChannel<T>) -> Option<Passage> {
        channel.target.passage(&channel.dev)
    }

    #[inline]
    fn forwarded(channel: &VolumeChannel<T>, io: BdevIo, ticket: u64, ok: bool) {
        channel.target.forwarded(io, ticket, ok);
    }

    fn io_kinds(&self) -> u32 {
        self.io_kinds
    }

    fn destruct(&self, done: Destructed) {
        drop(self.channels().take());
        match registry() {
            Some(registry) => {
                spdk::executor::spawn(self.identity.clone().gone(registry, done));
            }
            None => drop(done),
        }
    }

    fn info(&self) -> (&'static str, String) {
        self.identity.info()
    }

    fn config(&self) -> String {
        self.identity.config()
    }
}
