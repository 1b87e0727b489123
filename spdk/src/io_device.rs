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

    /// Calls `f` with the value of each thread that has one, on that thread; completes when that is done.
    /// A value that is made meanwhile may be left out.
    pub async fn for_each(&self, f: impl Fn(&C) + Send + Sync + 'static) {
        #[repr(C)]
        struct Each<C> {
            head: ffi::ForEach,
            f: Box<dyn Fn(&C) + Send + Sync>,
            done: oneshot::Sender<()>,
        }
        unsafe extern "C" fn step<C>(each: *mut ffi::ForEach, value: *mut c_void) {
            // SAFETY: the head is the first field of the box, which lives until `done`; that follows the
            // last step, and steps come one after the other.
            let each = unsafe { &*each.cast::<Each<C>>() };
            // SAFETY: the value is this thread's, and lives as long as its channel, which is being visited.
            (each.f)(unsafe { &*value.cast::<C>() });
        }
        unsafe extern "C" fn done<C>(each: *mut ffi::ForEach) {
            // SAFETY: comes from Box::into_raw below and is used once.
            let each = unsafe { Box::from_raw(each.cast::<Each<C>>()) };
            let _ = each.done.send(());
        }
        let finished = {
            let (tx, rx) = oneshot::channel();
            let each = Box::into_raw(Box::new(Each::<C> {
                head: ffi::ForEach {
                    f: step::<C>,
                    done: done::<C>,
                },
                f: Box::new(f),
                done: tx,
            }));
            // SAFETY: the device is registered, and the callbacks fit the box.
            unsafe { ffi::sdm_io_device_for_each(self.raw, each.cast()) };
            rx
        };
        let _ = finished.await;
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
