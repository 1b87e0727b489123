//! The bdev module: one per plugin.

use crate::ffi;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// What SPDK asks of a bdev module. All on the app thread.
pub trait Module: Send + Sync + 'static {
    /// SPDK starts. Error: a positive errno.
    fn init(&self) -> Result<(), i32>;

    /// SPDK begins to stop; bdevs will be unregistered.
    fn fini_start(&self);

    /// All bdevs are gone; SPDK goes on when `done` is dropped.
    fn fini(&self, done: FiniDone);

    /// The module's configuration: JSON objects with "method" and "params", in order.
    fn config(&self) -> Vec<String>;

    /// A bdev has appeared; SPDK goes on when `done` is dropped.
    fn examine(&self, bdev: &str, done: ExamineDone);
}

/// Lets SPDK finish.
pub struct FiniDone(());

impl Drop for FiniDone {
    fn drop(&mut self) {
        // SAFETY: made once per fini.
        unsafe { ffi::sdm_module_fini_done() };
    }
}

/// Lets SPDK go on examining.
pub struct ExamineDone(());

impl Drop for ExamineDone {
    fn drop(&mut self) {
        // SAFETY: made once per examine.
        unsafe { ffi::sdm_module_examine_done() };
    }
}

static MODULE: OnceLock<Box<dyn Module>> = OnceLock::new();

static OPS: ffi::ModuleOps = ffi::ModuleOps {
    init,
    fini_start,
    fini,
    config_json,
    examine,
};

/// Registers the module. To be called before SPDK starts (from a constructor); a second call is
/// ignored.
pub fn register(name: &str, module: impl Module) {
    if MODULE.set(Box::new(module)).is_ok() {
        let name = ffi::c_string(name);
        // SAFETY: name and table live for ever.
        unsafe { ffi::sdm_module_register(name.into_raw(), &OPS) };
    }
}

unsafe extern "C" fn init() -> c_int {
    match MODULE.get().map(|module| module.init()) {
        Some(Err(errno)) => -errno,
        _ => 0,
    }
}

unsafe extern "C" fn fini_start() {
    if let Some(module) = MODULE.get() {
        module.fini_start();
    }
}

unsafe extern "C" fn fini() {
    if let Some(module) = MODULE.get() {
        module.fini(FiniDone(()));
    }
}

unsafe extern "C" fn config_json(w: *mut c_void) {
    for object in MODULE
        .get()
        .map(|module| module.config())
        .unwrap_or_default()
    {
        // SAFETY: `w` is valid during the call, and so is the text.
        unsafe { ffi::sdm_json_raw(w, object.as_ptr().cast(), object.len()) };
    }
}

unsafe extern "C" fn examine(bdev: *const c_char) {
    let done = ExamineDone(());
    // SAFETY: SPDK hands a string that lives during the call.
    let name = unsafe { CStr::from_ptr(bdev) }.to_string_lossy();
    if let Some(module) = MODULE.get() {
        module.examine(&name, done);
    }
}
