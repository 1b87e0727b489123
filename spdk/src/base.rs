//! Base bdevs: opening and claiming them, and asynchronous I/O from slow paths.

use crate::dma::DmaBuf;
use crate::ffi;
use crate::part::Parts;
use crate::thread::Thread;
use futures::channel::oneshot;
use std::ffi::{c_int, c_void};
use std::rc::Rc;
use std::sync::Arc;

/// Kinds of I/O, numbered as in the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum IoKind {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Flush.
    Flush = 2,
    /// Unmap.
    Unmap = 3,
    /// Write zeroes.
    WriteZeroes = 4,
    /// Reset.
    Reset = 5,
    /// Abort of another I/O.
    Abort = 6,
    /// Anything else.
    Other = 7,
}

impl IoKind {
    pub(crate) fn from_raw(raw: c_int) -> Self {
        match raw {
            0 => IoKind::Read,
            1 => IoKind::Write,
            2 => IoKind::Flush,
            3 => IoKind::Unmap,
            4 => IoKind::WriteZeroes,
            5 => IoKind::Reset,
            6 => IoKind::Abort,
            _ => IoKind::Other,
        }
    }

    /// The kind's bit in a set of kinds.
    pub const fn bit(self) -> u32 {
        1 << self as i32
    }
}

/// What happened to an open bdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is going away: close it.
    Remove,
    /// Its size has changed.
    Resize,
    /// Something else.
    Other,
}

/// Properties of a bdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Logical block size.
    pub block_bytes: u32,
    /// Size in logical blocks.
    pub nr_blocks: u64,
    /// Metadata bytes per block.
    pub metadata_bytes: u32,
    /// Metadata is part of the block.
    pub metadata_interleaved: bool,
    /// Protection information type, 0 = none.
    pub dif_type: u32,
    io_kinds: u32,
    /// Whether [`BaseChannel::copy`] works.
    pub copies: bool,
    /// Another module's bdev above an NVMe bdev, where flushes may end without reaching the drive.
    pub stacked_on_nvme: bool,
}

impl Info {
    /// Whether it takes a kind of I/O.
    pub fn supports(&self, kind: IoKind) -> bool {
        self.io_kinds & kind.bit() != 0
    }
}

/// Whether there is a bdev of this name.
pub fn exists(name: &str) -> bool {
    // SAFETY: the string lives during the call.
    unsafe { ffi::sdm_bdev_exists(ffi::c_string(name).as_ptr()) != 0 }
}

struct Inner {
    raw: *mut c_void,
    thread: Thread,
    events: *mut EventHandler,
}

type EventHandler = Box<dyn Fn(Event)>;

// SAFETY: the descriptor may be used for I/O on any thread; it is closed on the thread that opened
// it (see Drop), where also the event handler runs.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// An open bdev. Closed when the last clone is dropped.
#[derive(Clone)]
pub struct Descriptor(Arc<Inner>);

impl Descriptor {
    /// Opens a bdev for reading and writing, on an SPDK thread. `events` is called there.
    ///
    /// Errors are positive errnos: ENODEV without such a bdev, EPERM when it is claimed.
    pub fn open(name: &str, write: bool, events: impl Fn(Event) + 'static) -> Result<Self, i32> {
        unsafe extern "C" fn on_event(ctx: *mut c_void, event: c_int) {
            // SAFETY: `ctx` is the handler's box, which lives as long as the descriptor.
            let events = unsafe { &*ctx.cast::<EventHandler>() };
            events(match event {
                0 => Event::Remove,
                1 => Event::Resize,
                _ => Event::Other,
            });
        }
        let thread = Thread::current().ok_or(22)?;
        if !exists(name) {
            // v20.07 says EINVAL.
            return Err(19);
        }
        let events: *mut EventHandler = Box::into_raw(Box::new(Box::new(events)));
        let mut raw = std::ptr::null_mut();
        let name = ffi::c_string(name);
        // SAFETY: the strings live during the call, the handler until the descriptor is closed.
        let rc =
            unsafe { ffi::sdm_bdev_open(name.as_ptr(), write, on_event, events.cast(), &mut raw) };
        if rc != 0 {
            // SAFETY: nothing was opened, so nobody else has the box.
            drop(unsafe { Box::from_raw(events) });
            return Err(-rc);
        }
        Ok(Descriptor(Arc::new(Inner {
            raw,
            thread,
            events,
        })))
    }

    /// Takes the bdev for this module alone. Error: EPERM when another has it.
    pub fn claim(&self) -> Result<(), i32> {
        // SAFETY: the descriptor is open.
        match unsafe { ffi::sdm_desc_claim(self.0.raw) } {
            0 => Ok(()),
            rc => Err(-rc),
        }
    }

    /// Its properties now.
    pub fn info(&self) -> Info {
        let mut info = ffi::BdevInfo::default();
        // SAFETY: the descriptor is open, `info` is valid for writing.
        unsafe { ffi::sdm_desc_info(self.0.raw, &mut info) };
        Info {
            block_bytes: info.block_bytes,
            nr_blocks: info.nr_blocks,
            metadata_bytes: info.metadata_bytes,
            metadata_interleaved: info.metadata_interleaved != 0,
            dif_type: info.dif_type,
            io_kinds: info.io_kinds,
            copies: info.copies != 0,
            stacked_on_nvme: info.stacked_on_nvme != 0,
        }
    }

    /// A channel of the running thread; None when there is no memory.
    pub fn channel(&self) -> Option<BaseChannel> {
        // SAFETY: the descriptor is open, and this is an SPDK thread.
        let raw = unsafe { ffi::sdm_desc_channel(self.0.raw) };
        (!raw.is_null()).then(|| {
            BaseChannel(Rc::new(ChannelInner {
                way: ffi::Way {
                    // SAFETY: the descriptor is open.
                    spdk_desc: unsafe { ffi::sdm_desc_spdk(self.0.raw) },
                    channel: raw,
                    in_flight: std::ptr::null(),
                },
                desc: self.clone(),
                block_bytes: self.info().block_bytes as usize,
                parts: Parts::default(),
            }))
        })
    }

    pub(crate) fn raw(&self) -> *mut c_void {
        self.0.raw
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        struct Closing(*mut c_void, *mut EventHandler);
        // SAFETY: the last reference is gone, so only the message has them.
        unsafe impl Send for Closing {}
        impl Closing {
            fn close(self) {
                // SAFETY: opened by sdm_bdev_open, closed once, on the thread that opened it; the
                // handler is not called after that.
                unsafe {
                    ffi::sdm_desc_close(self.0);
                    drop(Box::from_raw(self.1));
                }
            }
        }
        let closing = Closing(self.raw, self.events);
        if self.thread.is_current() {
            closing.close();
        } else {
            self.thread.send(move || closing.close());
        }
    }
}

struct ChannelInner {
    way: ffi::Way,
    /// Keeps the bdev open as long as there is a channel.
    desc: Descriptor,
    block_bytes: usize,
    parts: Parts,
}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        // SAFETY: got by sdm_desc_channel on this thread (the type is not Send), put once.
        unsafe { ffi::sdm_put_channel(self.way.channel) };
    }
}

/// A bdev's channel of one thread.
#[derive(Clone)]
pub struct BaseChannel(Rc<ChannelInner>);

/// What an I/O owns while it is under way.
struct Pending {
    buf: Option<DmaBuf>,
    done: oneshot::Sender<(Option<DmaBuf>, c_int)>,
    /// Keeps channel and descriptor alive even if nobody waits any more.
    _channel: BaseChannel,
}

unsafe extern "C" fn base_io_done(ctx: *mut c_void, err: c_int) {
    // SAFETY: `ctx` comes from Box::into_raw in `io` and is used once.
    let pending = unsafe { Box::from_raw(ctx.cast::<Pending>()) };
    let Pending { buf, done, .. } = *pending;
    let _ = done.send((buf, err));
}

impl BaseChannel {
    pub(crate) fn raw(&self) -> *mut c_void {
        self.0.way.channel
    }

    /// The way there, for I/O that nobody counts. It is at this address as long as there is a clone.
    #[inline]
    pub(crate) fn way(&self) -> &ffi::Way {
        &self.0.way
    }

    #[inline]
    pub(crate) fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// The open bdev this is a channel of.
    pub fn descriptor(&self) -> &Descriptor {
        &self.0.desc
    }

    /// Has an I/O submitted with what it owns while it is under way, and waits for its end.
    async fn submitted(
        &self,
        buf: Option<DmaBuf>,
        submit: impl FnOnce(*mut c_void),
    ) -> (Option<DmaBuf>, Result<(), i32>) {
        let (tx, rx) = oneshot::channel();
        let pending = Box::new(Pending {
            buf,
            done: tx,
            _channel: self.clone(),
        });
        submit(Box::into_raw(pending).cast());
        match rx.await {
            Ok((buf, 0)) => (buf, Ok(())),
            Ok((buf, err)) => (buf, Err(err)),
            Err(_) => (None, Err(5)),
        }
    }

    async fn io(
        &self,
        kind: IoKind,
        buf: Option<DmaBuf>,
        offset_blocks: u64,
        nr_blocks: u64,
    ) -> (Option<DmaBuf>, Result<(), i32>) {
        let data = buf.as_ref().map_or(std::ptr::null_mut(), DmaBuf::as_ptr);
        // SAFETY: channel and descriptor live until base_io_done, which is called exactly once, and so
        // does the buffer; its length was checked by the callers.
        let submit = |ctx| unsafe {
            ffi::sdm_base_io(
                kind as c_int,
                self.0.desc.raw(),
                self.raw(),
                data,
                offset_blocks,
                nr_blocks,
                base_io_done,
                ctx,
            );
        };
        self.submitted(buf, submit).await
    }

    /// Copies blocks to another place of the bdev, which does not overlap them. Fails where
    /// [`Info::copies`] is false.
    pub async fn copy(&self, from_block: u64, to_block: u64, nr_blocks: u64) -> Result<(), i32> {
        // SAFETY: channel and descriptor live until base_io_done, which is called exactly once.
        let submit = |ctx| unsafe {
            ffi::sdm_base_copy(
                self.0.desc.raw(),
                self.raw(),
                from_block,
                to_block,
                nr_blocks,
                base_io_done,
                ctx,
            );
        };
        self.submitted(None, submit).await.1
    }

    async fn transfer(&self, kind: IoKind, buf: DmaBuf, offset_blocks: u64) -> Result<DmaBuf, i32> {
        let block_bytes = self.0.block_bytes;
        if !buf.len().is_multiple_of(block_bytes) {
            return Err(22);
        }
        let nr_blocks = (buf.len() / block_bytes) as u64;
        match self.io(kind, Some(buf), offset_blocks, nr_blocks).await {
            (Some(buf), Ok(())) => Ok(buf),
            (_, result) => Err(result.err().unwrap_or(5)),
        }
    }

    /// Fills a buffer from a block offset on. Its length must be whole blocks.
    pub async fn read(&self, buf: DmaBuf, offset_blocks: u64) -> Result<DmaBuf, i32> {
        self.transfer(IoKind::Read, buf, offset_blocks).await
    }

    /// Writes a buffer at a block offset. Its length must be whole blocks.
    pub async fn write(&self, buf: DmaBuf, offset_blocks: u64) -> Result<DmaBuf, i32> {
        self.transfer(IoKind::Write, buf, offset_blocks).await
    }

    /// An I/O on a range without data: flush, unmap, write zeroes.
    pub async fn range(&self, kind: IoKind, offset_blocks: u64, nr_blocks: u64) -> Result<(), i32> {
        self.io(kind, None, offset_blocks, nr_blocks).await.1
    }
}
