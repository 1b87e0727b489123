//! JSON-RPC methods.

use crate::ffi;
use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

/// A request to be answered once; dropped, it is answered with an internal error.
pub struct Request(*mut c_void);

impl Request {
    /// Answers with a result, as JSON text.
    pub fn result(self, json: &str) {
        let raw = self.into_raw();
        // SAFETY: the request is not answered yet; the text lives during the call.
        unsafe { ffi::sdm_rpc_result(raw, json.as_ptr().cast(), json.len()) };
    }

    /// Answers with an error.
    pub fn error(self, code: i32, message: &str) {
        let raw = self.into_raw();
        // SAFETY: the request is not answered yet; the text lives during the call.
        unsafe { ffi::sdm_rpc_error(raw, code, ffi::c_string(message).as_ptr()) };
    }

    fn into_raw(self) -> *mut c_void {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: the request is not answered yet.
        unsafe { ffi::sdm_rpc_error(self.0, -32603, c"request was dropped".as_ptr()) };
    }
}

type Handler = dyn Fn(&'static str, &str, Request) + Send + Sync;

static METHODS: OnceLock<(Vec<&'static str>, Box<Handler>)> = OnceLock::new();

/// Registers methods; `handler` gets the method's name, its parameters as JSON text (empty without
/// any), and the request, on the app thread. To be called once, before SPDK starts.
pub fn register(
    methods: Vec<&'static str>,
    handler: impl Fn(&'static str, &str, Request) + Send + Sync + 'static,
) {
    if METHODS.set((methods, Box::new(handler))).is_err() {
        return;
    }
    for (i, name) in METHODS
        .get()
        .iter()
        .flat_map(|(names, _)| names.iter().enumerate())
    {
        let name = ffi::c_string(name);
        // SAFETY: SPDK copies the name.
        if !unsafe { ffi::sdm_rpc_register(i, name.as_ptr(), handle) } {
            log::error!("too many RPC methods: {name:?} is not available");
        }
    }
}

unsafe extern "C" fn handle(
    method: usize,
    request: *mut c_void,
    params: *const c_char,
    len: usize,
) {
    let request = Request(request);
    let Some((names, handler)) = METHODS.get() else {
        return;
    };
    let params = match params.is_null() {
        true => &[][..],
        // SAFETY: `len` bytes that live during the call.
        false => unsafe { std::slice::from_raw_parts(params.cast::<u8>(), len) },
    };
    if let Some(name) = names.get(method) {
        handler(name, &String::from_utf8_lossy(params), request);
    }
}
