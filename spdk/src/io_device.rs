//! Per-thread values that SPDK makes on first use and destroys with the last: io_devices.

use crate::ffi;
use crate::thread::Thread;
use futures::channel::oneshot;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Deref;

type Maker<C> = Box<dyn Fn() -> Option<C> + Send + Sync>;

/// Makes a value of type `C` for each SPDK thread that asks for one.
pub struct IoDevice<C: 'static> {
    raw: *mut c_void,
    maker: *mut Maker<C>,
}

// SAFETY: an io_device may be used from any thread; the maker is Send and Sync.
unsafe impl<C> Send for IoDevice<C> {}
// SAFETY: as above.
unsafe impl<C> Sync for IoDevice<C> {}

/// A thread's value; stays on its thread.
pub struct IoChannel<C: 'static> {
    raw: *mut c_void,
    value: *const C,
    _local: PhantomData<*mut ()>,
}

impl<C: 'static> IoDevice<C> {
    /// Registers a device. `make` runs on the thread that asks.
    pub fn register(
        name: &str,
        make: impl Fn() -> Option<C> + Send + Sync + 'static,
    ) -> Option<Self> {
        unsafe extern "C" fn create<C>(ctx: *mut c_void) -> *mut c_void {
            // SAFETY: the maker lives until the device is gone, and there are channels only before.
            let make = unsafe { &*ctx.cast::<Maker<C>>() };
            make().map_or(std::ptr::null_mut(), |value| {
                Box::into_raw(Box::new(value)).cast()
            })
        }
        unsafe extern "C" fn destroy<C>(value: *mut c_void) {
            // SAFETY: made by `create` on this thread, destroyed once.
            drop(unsafe { Box::from_raw(value.cast::<C>()) });
        }
        let maker: *mut Maker<C> = Box::into_raw(Box::new(Box::new(make)));
        // SAFETY: the callbacks fit the maker, which lives until the device is unregistered.
        let raw = unsafe {
            ffi::sdm_io_device_register(
                maker.cast(),
                create::<C>,
                destroy::<C>,
                ffi::c_string(name).as_ptr(),
            )
        };
        if raw.is_null() {
            // SAFETY: nothing was registered.
            drop(unsafe { Box::from_raw(maker) });
            return None;
        }
        Some(IoDevice { raw, maker })
    }

    /// The running thread's value.
    pub fn channel(&self) -> Option<IoChannel<C>> {
        Thread::current()?;
        // SAFETY: the device is registered and this is an SPDK thread.
        let raw = unsafe { ffi::sdm_io_device_get_channel(self.raw) };
        if raw.is_null() {
            return None;
        }
        // SAFETY: the channel's value was made by `create`.
        let value = unsafe { ffi::sdm_io_channel_value(raw) }.cast();
        Some(IoChannel {
            raw,
            value,
            _local: PhantomData,
        })
    }

    /// Unregisters the device; completes when all its channels are gone.
    pub async fn unregister(self) {
        unsafe extern "C" fn gone(ctx: *mut c_void) {
            // SAFETY: comes from Box::into_raw below and is used once.
            let done = unsafe { Box::from_raw(ctx.cast::<oneshot::Sender<()>>()) };
            let _ = done.send(());
        }
        let done = {
            let (tx, rx) = oneshot::channel::<()>();
            let ctx = Box::into_raw(Box::new(tx));
            // SAFETY: registered once, unregistered once (self is consumed).
            unsafe { ffi::sdm_io_device_unregister(self.raw, gone, ctx.cast()) };
            rx
        };
        let _ = done.await;
        // SAFETY: no channel is left that could call the maker.
        drop(unsafe { Box::from_raw(self.maker) });
    }
}

impl<C> Deref for IoChannel<C> {
    type Target = C;

    fn deref(&self) -> &C {
        // SAFETY: the value lives until the last channel reference of this thread is put.
        unsafe { &*self.value }
    }
}

impl<C> Drop for IoChannel<C> {
    fn drop(&mut self) {
        // SAFETY: got on this thread (the type is not Send), put once.
        unsafe { ffi::sdm_put_channel(self.raw) };
    }
}
