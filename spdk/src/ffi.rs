//! The shim's functions, as in `shim/shim.h`.

use crate::passage::InFlight;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::AtomicU64;

pub type Callback = unsafe extern "C" fn(*mut c_void);
pub type Done = unsafe extern "C" fn(*mut c_void, c_int);

#[repr(C)]
#[derive(Default, Clone, Copy)]
pub struct BdevInfo {
    pub block_bytes: u32,
    pub nr_blocks: u64,
    pub metadata_bytes: u32,
    pub metadata_interleaved: u32,
    pub dif_type: u32,
    pub io_kinds: u32,
    pub copies: u32,
    pub stacked_on_nvme: u32,
}

#[repr(C)]
pub struct Way {
    pub spdk_desc: *mut c_void,
    pub channel: *mut c_void,
    pub in_flight: *const InFlight,
}

#[repr(C)]
pub struct Course {
    pub way: *const Way,
    pub offset_blocks: u64,
}

#[repr(C)]
pub struct Passage {
    pub kinds: u32,
    pub version: *const AtomicU64,
    pub seen: u64,
    pub way: *const Way,
}

impl Passage {
    /// Nothing ever passes.
    pub const NONE: Passage = Passage {
        kinds: 0,
        version: std::ptr::null(),
        seen: 0,
        way: std::ptr::null(),
    };
}

#[repr(C)]
pub struct VbdevOps {
    pub channel_create: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    pub channel_destroy: Callback,
    pub passage: unsafe extern "C" fn(*mut c_void, *mut Passage),
    pub plain: Option<unsafe extern "C" fn(*mut c_void, c_int, u64, u64) -> Course>,
    pub submit: unsafe extern "C" fn(*mut c_void, *mut c_void, c_int, u64, u64),
    pub forwarded: unsafe extern "C" fn(*mut c_void, *mut c_void, u64, bool),
    pub io_kinds: unsafe extern "C" fn(*mut c_void) -> u32,
    pub destruct: Callback,
    pub dump_info: unsafe extern "C" fn(*mut c_void, *mut c_void),
    pub write_config: unsafe extern "C" fn(*mut c_void, *mut c_void),
}

#[repr(C)]
pub struct ForEach {
    pub f: unsafe extern "C" fn(*mut ForEach, *mut c_void),
    pub done: unsafe extern "C" fn(*mut ForEach),
}

#[repr(C)]
pub struct VbdevParams {
    pub name: *const c_char,
    pub product_name: *const c_char,
    pub block_bytes: u32,
    pub nr_blocks: u64,
    pub optimal_boundary_blocks: u32,
    pub write_cache: bool,
    pub uuid: [u8; 16],
    pub divides_at_blocks: u32,
}

#[repr(C)]
pub struct ModuleOps {
    pub init: unsafe extern "C" fn() -> c_int,
    pub fini_start: unsafe extern "C" fn(),
    pub fini: unsafe extern "C" fn(),
    pub config_json: Callback,
    pub examine: unsafe extern "C" fn(*const c_char),
}

#[cfg(feature = "app")]
#[repr(C)]
pub struct AppParams {
    pub name: *const c_char,
    pub rpc_socket: *const c_char,
    pub json_config: *const c_char,
    pub core_mask: *const c_char,
    pub mem_mb: c_int,
    pub no_huge: bool,
}

unsafe extern "C" {
    pub fn sdm_thread_current() -> *mut c_void;
    pub fn sdm_thread_app() -> *mut c_void;
    pub fn sdm_thread_send(thread: *mut c_void, f: Callback, ctx: *mut c_void) -> c_int;
    pub fn spdk_unaffinitize_thread();
    pub fn sdm_poller_register(
        f: unsafe extern "C" fn(*mut c_void) -> c_int,
        ctx: *mut c_void,
        period_us: u64,
    ) -> *mut c_void;
    pub fn sdm_poller_unregister(poller: *mut c_void);
    pub fn sdm_dma_alloc(bytes: usize, align: usize) -> *mut c_void;
    pub fn sdm_dma_free(buf: *mut c_void);
    pub fn sdm_log(
        level: c_int,
        file: *const c_char,
        line: c_int,
        func: *const c_char,
        text: *const c_char,
    );
    pub fn sdm_prefer_large_pages(memory: *const c_void, bytes: usize);
    pub fn sdm_notify_register(kind: *const c_char) -> c_int;
    pub fn sdm_notify(kind: *const c_char, context: *const c_char);
    pub fn sdm_io_device_register(
        ctx: *mut c_void,
        create: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
        destroy: Callback,
        name: *const c_char,
    ) -> *mut c_void;
    pub fn sdm_io_device_unregister(dev: *mut c_void, done: Callback, ctx: *mut c_void);
    pub fn sdm_io_device_get_channel(dev: *mut c_void) -> *mut c_void;
    pub fn sdm_io_device_for_each(dev: *mut c_void, each: *mut ForEach);
    pub fn sdm_io_channel_value(channel: *mut c_void) -> *mut c_void;
    pub fn sdm_put_channel(channel: *mut c_void);
    pub fn sdm_bdev_exists(name: *const c_char) -> c_int;
    pub fn sdm_bdev_open(
        name: *const c_char,
        write: bool,
        event: Done,
        ctx: *mut c_void,
        desc: *mut *mut c_void,
    ) -> c_int;
    pub fn sdm_desc_close(desc: *mut c_void);
    pub fn sdm_desc_claim(desc: *mut c_void) -> c_int;
    pub fn sdm_desc_spdk(desc: *mut c_void) -> *mut c_void;
    pub fn sdm_desc_info(desc: *mut c_void, info: *mut BdevInfo);
    pub fn sdm_desc_channel(desc: *mut c_void) -> *mut c_void;
    pub fn sdm_base_io(
        kind: c_int,
        desc: *mut c_void,
        channel: *mut c_void,
        buf: *mut c_void,
        offset_blocks: u64,
        nr_blocks: u64,
        done: Done,
        ctx: *mut c_void,
    );
    pub fn sdm_base_copy(
        desc: *mut c_void,
        channel: *mut c_void,
        from_block: u64,
        to_block: u64,
        nr_blocks: u64,
        done: Done,
        ctx: *mut c_void,
    );
    pub fn sdm_vbdev_register(
        params: *const VbdevParams,
        ops: *const VbdevOps,
        ctx: *mut c_void,
        rc: *mut c_int,
    ) -> *mut c_void;
    pub fn sdm_vbdev_unregister(vbdev: *mut c_void, done: Done, ctx: *mut c_void);
    pub fn sdm_vbdev_destructed(vbdev: *mut c_void);
    pub fn sdm_vbdev_resize(vbdev: *mut c_void, nr_blocks: u64) -> c_int;
    pub fn sdm_io_set_other(io: *mut c_void, way: *const Way);
    pub fn sdm_io_forward_other(io: *mut c_void, offset_blocks: u64, head_blocks: u64, ticket: u64);
    pub fn sdm_io_forward(io: *mut c_void, way: *const Way, offset_blocks: u64, ticket: u64);
    pub fn sdm_io_complete_zeroes(io: *mut c_void);
    pub fn sdm_io_complete(io: *mut c_void, err: c_int);
    pub fn sdm_io_to_abort(io: *mut c_void) -> *mut c_void;
    pub fn sdm_io_nr_blocks(io: *mut c_void) -> u64;
    pub fn sdm_io_zero_part(io: *mut c_void, first_block: u64, nr_blocks: u64) -> bool;
    pub fn sdm_io_forward_part(
        io: *mut c_void,
        first_block: u64,
        nr_blocks: u64,
        desc: *mut c_void,
        channel: *mut c_void,
        offset_blocks: u64,
        done: unsafe extern "C" fn(*mut c_void, bool),
        ctx: *mut c_void,
    );
    pub fn sdm_module_register(name: *const c_char, ops: *const ModuleOps);
    pub fn sdm_module_fini_done();
    pub fn sdm_module_examine_done();
    pub fn sdm_rpc_register(
        method: usize,
        name: *const c_char,
        f: unsafe extern "C" fn(usize, *mut c_void, *const c_char, usize),
    ) -> bool;
    pub fn sdm_rpc_result(request: *mut c_void, json: *const c_char, len: usize);
    pub fn sdm_rpc_error(request: *mut c_void, code: c_int, message: *const c_char);
    pub fn sdm_json_raw(w: *mut c_void, json: *const c_char, len: usize);
    pub fn sdm_json_named_raw(w: *mut c_void, name: *const c_char, json: *const c_char, len: usize);
}

#[cfg(feature = "app")]
unsafe extern "C" {
    pub fn sdm_app_run(params: *const AppParams, start: Callback, ctx: *mut c_void) -> c_int;
    pub fn sdm_app_stop(rc: c_int);
    pub fn sdm_thread_on_core(name: *const c_char, n: std::ffi::c_uint) -> *mut c_void;
    pub fn sdm_thread_exit();
    pub fn sdm_spdk_tgt_main(argc: c_int, argv: *mut *mut c_char) -> c_int;
}

/// A C string from text that may hold zero bytes (they end it).
pub fn c_string(text: &str) -> std::ffi::CString {
    let until = text.find('\0').unwrap_or(text.len());
    std::ffi::CString::new(&text[..until]).unwrap_or_default()
}
