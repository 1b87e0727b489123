//! Virtual bdevs: what a driver implements, and the I/O it is given.

use crate::base::{BaseChannel, IoKind};
use crate::ffi;
use crate::passage::{Course, Granted, Passage, Way};
use futures::channel::oneshot;
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

/// An I/O somebody submitted to one of our bdevs. Answered exactly once: by being completed,
/// forwarded, or, when dropped, with an error.
pub struct BdevIo(NonNull<c_void>);

impl BdevIo {
    /// Distinguishes the I/O under way from each other.
    pub fn id(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// The inverse of [`BdevIo::into_raw`].
    ///
    /// # Safety
    /// It comes from there, and becomes one I/O again.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(raw: NonNull<c_void>) -> Self {
        BdevIo(raw)
    }

    #[inline(always)]
    pub(crate) fn into_raw(self) -> NonNull<c_void> {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }

    /// Sends the I/O on to a base bdev at a block offset (a flush: to all of it).
    /// [`Driver::forwarded`] is called with the ticket afterwards.
    #[inline]
    pub fn forward(self, channel: &BaseChannel, offset_blocks: u64, ticket: u64) {
        // SAFETY: the I/O is ours and not answered; the driver keeps the channel for as long as its own
        // channel lives, which is as long as I/O is under way on it.
        unsafe {
            ffi::sdm_io_forward(
                self.into_raw().as_ptr(),
                channel.way(),
                offset_blocks,
                ticket,
            )
        };
    }

    /// The same, but [`Driver::forwarded`] is not called where the ticket is twice the number of the epoch that
    /// the way counts in, still: then the I/O is only counted as back, and answered.
    #[inline]
    pub fn forward_counted(self, way: &Way, offset_blocks: u64, ticket: u64) {
        // SAFETY: as above, of the way.
        unsafe { ffi::sdm_io_forward(self.into_raw().as_ptr(), way.raw(), offset_blocks, ticket) };
    }

    /// Gives the I/O a second way to go, see [`BdevIo::forward_other`].
    pub fn set_other(&self, channel: &BaseChannel) {
        // SAFETY: the I/O is ours and not answered; the driver keeps the channel for as long as its own
        // channel lives, which is as long as I/O is under way on it.
        unsafe { ffi::sdm_io_set_other(self.0.as_ptr(), channel.way()) };
    }

    /// Like [`BdevIo::forward`], the way that [`BdevIo::set_other`] has given it: an I/O
    /// without one comes back as failed. With `head_blocks`, of a read only so many blocks are read,
    /// and the rest of its buffers is filled with zeroes.
    pub fn forward_other(self, offset_blocks: u64, head_blocks: Option<u64>, ticket: u64) {
        let head_blocks = head_blocks.unwrap_or(0);
        // SAFETY: the I/O is ours and not answered.
        unsafe {
            ffi::sdm_io_forward_other(self.into_raw().as_ptr(), offset_blocks, head_blocks, ticket)
        };
    }

    /// Answers a read with zeroes.
    pub fn complete_zeroes(self) {
        // SAFETY: the I/O is ours and not answered.
        unsafe { ffi::sdm_io_complete_zeroes(self.into_raw().as_ptr()) };
    }

    /// Answers: 0 is success, else a positive errno.
    #[inline]
    pub fn complete(self, errno: i32) {
        // SAFETY: the I/O is ours and not answered.
        unsafe { ffi::sdm_io_complete(self.into_raw().as_ptr(), errno) };
    }

    /// Its length in logical blocks.
    pub(crate) fn nr_blocks(&self) -> u64 {
        // SAFETY: the I/O is ours and not answered.
        unsafe { ffi::sdm_io_nr_blocks(self.0.as_ptr()) }
    }

    pub(crate) fn raw(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// For an abort: the [`BdevIo::id`] of the I/O to be aborted.
    pub fn id_to_abort(&self) -> u64 {
        // SAFETY: the I/O is ours; only called for aborts.
        unsafe { ffi::sdm_io_to_abort(self.0.as_ptr()) as u64 }
    }
}

impl Drop for BdevIo {
    fn drop(&mut self) {
        log::error!("an I/O was dropped without an answer");
        // SAFETY: the I/O is ours and not answered.
        unsafe { ffi::sdm_io_complete(self.0.as_ptr(), 5) };
    }
}

/// A virtual bdev's behaviour. Channels may be made on any thread.
pub trait Driver: Send + Sync + 'static {
    /// What a thread needs to do I/O.
    type Channel: 'static;

    /// Makes the running thread's channel; None: there is no memory.
    fn create_channel(&self) -> Option<Self::Channel>;

    /// Whether to ask [`Driver::plain`].
    const ASKS: bool = false;

    /// Where a read or write goes of which nothing else is to be known: then it is sent there, counted and
    /// answered as by [`BdevIo::forward_counted`], and not submitted. The driver keeps the way for as long as its
    /// own channel lives, or I/O is under way on it.
    fn plain(_channel: &Self::Channel, _kind: IoKind, _offset: u64, _nr: u64) -> Option<Course> {
        None
    }

    /// Takes an I/O.
    fn submit(
        channel: &Self::Channel,
        io: BdevIo,
        kind: IoKind,
        offset_blocks: u64,
        nr_blocks: u64,
    );

    /// What passes without [`Driver::submit`] from now on; None: nothing ever.
    fn passage(_channel: &Self::Channel) -> Option<Passage> {
        None
    }

    /// A forwarded I/O came back.
    fn forwarded(channel: &Self::Channel, io: BdevIo, ticket: u64, ok: bool);

    /// The kinds of I/O it takes, as a set of [`IoKind::bit`].
    fn io_kinds(&self) -> u32;

    /// All channels are gone. The bdev's memory is released when `done` is dropped.
    fn destruct(&self, done: Destructed);

    /// What `bdev_get_bdevs` shows under "driver_specific": a JSON object's member name and value.
    fn info(&self) -> (&'static str, String);

    /// The call that makes the bdev again: a JSON object with "method" and "params"; empty when the module's
    /// configuration has it.
    fn config(&self) -> String;
}

/// Ends the life of a bdev when dropped, on the thread that unregistered it.
pub struct Destructed {
    vbdev: *mut c_void,
    driver: Option<Box<dyn FnOnce()>>,
}

impl Drop for Destructed {
    fn drop(&mut self) {
        // SAFETY: `destruct` was called for it and this is the only answer.
        unsafe { ffi::sdm_vbdev_destructed(self.vbdev) };
        if let Some(free) = self.driver.take() {
            free();
        }
    }
}

/// How a virtual bdev presents itself.
#[derive(Debug, Clone)]
pub struct Params {
    /// Name.
    pub name: String,
    /// Product name.
    pub product_name: String,
    /// Logical block size.
    pub block_bytes: u32,
    /// Size in logical blocks.
    pub nr_blocks: u64,
    /// Reads and writes are split at multiples of this; 0: never.
    pub optimal_boundary_blocks: u32,
    /// Writes are durable only after a flush.
    pub write_cache: bool,
    /// UUID; zeroes: SPDK chooses.
    pub uuid: [u8; 16],
    /// The driver may divide I/O at multiples of this ([`crate::part::Part`]), so reads that cross one come with
    /// their buffers; 0: it does not.
    pub divides_at_blocks: u32,
}

struct State<D> {
    driver: D,
    vbdev: *mut c_void,
}

/// A thread's channel.
struct Channel<D: Driver> {
    driver: D::Channel,
    granted: Granted,
}

struct Ops<D>(std::marker::PhantomData<D>);

impl<D: Driver> Ops<D> {
    const TABLE: ffi::VbdevOps = ffi::VbdevOps {
        channel_create: Self::channel_create,
        channel_destroy: Self::channel_destroy,
        passage: Self::passage,
        plain: match D::ASKS {
            true => Some(Self::plain),
            false => None,
        },
        submit: Self::submit,
        forwarded: Self::forwarded,
        io_kinds: Self::io_kinds,
        destruct: Self::destruct,
        dump_info: Self::dump_info,
        write_config: Self::write_config,
    };

    /// # Safety
    /// `ctx` is the state given to sdm_vbdev_register.
    unsafe fn state<'a>(ctx: *mut c_void) -> &'a State<D> {
        // SAFETY: the state lives until Destructed has been dropped.
        unsafe { &*ctx.cast::<State<D>>() }
    }

    unsafe extern "C" fn channel_create(ctx: *mut c_void) -> *mut c_void {
        // SAFETY: called with the state.
        let state = unsafe { Self::state(ctx) };
        state
            .driver
            .create_channel()
            .map_or(std::ptr::null_mut(), |driver| {
                let granted = Granted::default();
                Box::into_raw(Box::new(Channel::<D> { driver, granted })).cast()
            })
    }

    unsafe extern "C" fn passage(channel: *mut c_void, passage: *mut ffi::Passage) {
        // SAFETY: the channel lives while I/O is submitted to it.
        let channel = unsafe { &*channel.cast::<Channel<D>>() };
        let raw = channel.granted.grant(D::passage(&channel.driver));
        // SAFETY: valid during the call.
        unsafe { *passage = raw };
    }

    unsafe extern "C" fn channel_destroy(channel: *mut c_void) {
        // SAFETY: made by channel_create on this thread, destroyed once.
        drop(unsafe { Box::from_raw(channel.cast::<Channel<D>>()) });
    }

    unsafe extern "C" fn plain(
        channel: *mut c_void,
        kind: c_int,
        offset_blocks: u64,
        nr_blocks: u64,
    ) -> ffi::Course {
        // SAFETY: the channel lives while I/O is submitted to it.
        let channel = unsafe { &*channel.cast::<Channel<D>>() };
        let kind = match kind {
            0 => IoKind::Read,
            _ => IoKind::Write,
        };
        match D::plain(&channel.driver, kind, offset_blocks, nr_blocks) {
            Some(course) => course.0,
            None => ffi::Course {
                way: std::ptr::null(),
                offset_blocks: 0,
            },
        }
    }

    unsafe extern "C" fn submit(
        channel: *mut c_void,
        io: *mut c_void,
        kind: c_int,
        offset_blocks: u64,
        nr_blocks: u64,
    ) {
        if let Some(io) = NonNull::new(io) {
            // SAFETY: the channel lives while I/O is submitted to it.
            let channel = unsafe { &*channel.cast::<Channel<D>>() };
            D::submit(
                &channel.driver,
                BdevIo(io),
                IoKind::from_raw(kind),
                offset_blocks,
                nr_blocks,
            );
        }
    }

    unsafe extern "C" fn forwarded(channel: *mut c_void, io: *mut c_void, ticket: u64, ok: bool) {
        if let Some(io) = NonNull::new(io) {
            // SAFETY: SPDK does not destroy a channel with I/O under way.
            let channel = unsafe { &*channel.cast::<Channel<D>>() };
            D::forwarded(&channel.driver, BdevIo(io), ticket, ok);
        }
    }

    unsafe extern "C" fn io_kinds(ctx: *mut c_void) -> u32 {
        // SAFETY: called with the state.
        unsafe { Self::state(ctx) }.driver.io_kinds()
    }

    unsafe extern "C" fn destruct(ctx: *mut c_void) {
        // SAFETY: called with the state.
        let state = unsafe { Self::state(ctx) };
        let raw = ctx.cast::<State<D>>();
        let free = move || {
            // SAFETY: made by Box::into_raw in `register`; the bdev is gone, so nothing calls back.
            drop(unsafe { Box::from_raw(raw) });
        };
        state.driver.destruct(Destructed {
            vbdev: state.vbdev,
            driver: Some(Box::new(free)),
        });
    }

    unsafe extern "C" fn write_config(ctx: *mut c_void, w: *mut c_void) {
        // SAFETY: called with the state.
        let json = unsafe { Self::state(ctx) }.driver.config();
        if json.is_empty() {
            return;
        }
        // SAFETY: `w` is valid during the call, and so is the text.
        unsafe { ffi::sdm_json_raw(w, json.as_ptr().cast(), json.len()) };
    }

    unsafe extern "C" fn dump_info(ctx: *mut c_void, w: *mut c_void) {
        // SAFETY: called with the state.
        let (name, json) = unsafe { Self::state(ctx) }.driver.info();
        // SAFETY: `w` is valid during the call, and so are the strings.
        unsafe {
            ffi::sdm_json_named_raw(
                w,
                ffi::c_string(name).as_ptr(),
                json.as_ptr().cast(),
                json.len(),
            );
        }
    }
}

/// A registered virtual bdev. Dropping the handle leaves it registered.
pub struct Vbdev(*mut c_void);

impl Vbdev {
    /// Registers a bdev, on the app thread. Error: a positive errno; EEXIST when the name is taken.
    pub fn register<D: Driver>(params: &Params, driver: D) -> Result<Vbdev, i32> {
        let state = Box::into_raw(Box::new(State {
            driver,
            vbdev: std::ptr::null_mut(),
        }));
        let (name, product_name) = (
            ffi::c_string(&params.name),
            ffi::c_string(&params.product_name),
        );
        let raw_params = ffi::VbdevParams {
            name: name.as_ptr(),
            product_name: product_name.as_ptr(),
            block_bytes: params.block_bytes,
            nr_blocks: params.nr_blocks,
            optimal_boundary_blocks: params.optimal_boundary_blocks,
            write_cache: params.write_cache,
            uuid: params.uuid,
            divides_at_blocks: params.divides_at_blocks,
        };
        let mut rc = 0;
        // SAFETY: the strings are copied; the state lives until destruct; the table is constant.
        let vbdev = unsafe {
            ffi::sdm_vbdev_register(&raw_params, &Ops::<D>::TABLE, state.cast(), &mut rc)
        };
        if vbdev.is_null() {
            // SAFETY: nothing was registered.
            drop(unsafe { Box::from_raw(state) });
            return Err(-rc);
        }
        // SAFETY: the state is ours; other threads read this field only after destruct.
        unsafe { (*state).vbdev = vbdev };
        Ok(Vbdev(vbdev))
    }

    /// Gives the bdev another size and tells who has it open. On the app thread. Error: a positive errno;
    /// EBUSY when it would be smaller and somebody has it open.
    pub fn resize(&self, nr_blocks: u64) -> Result<(), i32> {
        // SAFETY: the bdev is registered: the caller gives the handle up when destruct is called.
        match unsafe { ffi::sdm_vbdev_resize(self.0, nr_blocks) } {
            0 => Ok(()),
            rc => Err(-rc),
        }
    }

    /// Unregisters the bdev: its users are told to close it, and [`Driver::destruct`] follows. Completes
    /// when it is gone. Must be called at most once, on the app thread.
    pub fn unregister(self) -> impl Future<Output = ()> {
        unsafe extern "C" fn gone(ctx: *mut c_void, _: c_int) {
            // SAFETY: comes from Box::into_raw below and is used once.
            let done = unsafe { Box::from_raw(ctx.cast::<oneshot::Sender<()>>()) };
            let _ = done.send(());
        }
        let (tx, rx) = oneshot::channel::<()>();
        let ctx = Box::into_raw(Box::new(tx));
        // SAFETY: the bdev is registered: the caller gives the handle up when destruct is called.
        unsafe { ffi::sdm_vbdev_unregister(self.0, gone, ctx.cast()) };
        async move {
            let _ = rx.await;
        }
    }
}
