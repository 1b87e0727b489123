//! Per-thread values that SPDK makes on first use and destroys with the last: io_devices.

use crate::ffi;
use crate::thread::Thread;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Deref;

type Maker<C> = Box<dyn Fn() -> Option<C> + Send + Sync>;

/// Makes a value of type `C` for each SPDK thread that asks for one.
pub struct IoDevice<C: 'static> {
    raw: *mut c_void,
    maker: *mut Maker<C>,
    thread: Thread,
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
    /// Registers a device, on an SPDK thread. `make` runs on the thread that asks.
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
        let thread = Thread::current()?;
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
        Some(IoDevice { raw, maker, thread })
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
}

impl<C> Drop for IoDevice<C> {
    /// Unregisters the device, on the thread that registered it. Its maker is dropped when all its channels are gone.
    fn drop(&mut self) {
        struct Unregistering<C: 'static>(*mut c_void, *mut Maker<C>);
        // SAFETY: the device is gone for everybody else, so only the message has it; the maker is Send.
        unsafe impl<C> Send for Unregistering<C> {}
        impl<C: 'static> Unregistering<C> {
            fn unregister(self) {
                // SAFETY: registered once, unregistered once (the device is being dropped).
                unsafe { ffi::sdm_io_device_unregister(self.0, gone::<C>, self.1.cast()) };
            }
        }
        unsafe extern "C" fn gone<C>(ctx: *mut c_void) {
            // SAFETY: comes from Box::into_raw in `register`; no channel is left that could call it.
            drop(unsafe { Box::from_raw(ctx.cast::<Maker<C>>()) });
        }
        let unregistering = Unregistering(self.raw, self.maker);
        match self.thread.is_current() {
            true => unregistering.unregister(),
            false => self.thread.send(move || unregistering.unregister()),
        }
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
