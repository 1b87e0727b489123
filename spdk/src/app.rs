//! SPDK applications with a main in Rust.

use crate::thread::Thread;
use crate::{executor, ffi};
use futures::channel::oneshot;
use std::ffi::{CString, c_char, c_int, c_void};

/// How to start an application.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Name, for the log.
    pub name: String,
    /// Path of the RPC socket.
    pub rpc_socket: Option<String>,
    /// Path of a JSON configuration.
    pub json_config: Option<String>,
    /// Cores, as a hexadecimal mask.
    pub core_mask: Option<String>,
    /// Memory in MiB.
    pub mem_mb: i32,
    /// Do without hugepages.
    pub no_huge: bool,
}

type Main = Box<dyn FnOnce()>;

/// Runs `main` on the app thread once SPDK is up, never touching PCI devices; its result is the
/// program's exit code. Returns when SPDK has stopped.
pub fn run<F: Future<Output = i32> + 'static>(
    options: &Options,
    main: impl FnOnce() -> F + 'static,
) -> i32 {
    unsafe extern "C" fn start(ctx: *mut c_void) {
        // SAFETY: `ctx` is the box below, used once.
        let main = unsafe { Box::from_raw(ctx.cast::<Main>()) };
        main();
    }
    let main: Main = Box::new(move || {
        executor::spawn(async move {
            let code = main().await;
            stop(code);
        });
    });
    let ctx = Box::into_raw(Box::new(main));
    let text = |value: &Option<String>| value.as_deref().map(ffi::c_string);
    let (socket, config, mask) = (
        text(&options.rpc_socket),
        text(&options.json_config),
        text(&options.core_mask),
    );
    let pointer = |value: &Option<CString>| {
        value
            .as_ref()
            .map_or(std::ptr::null(), |value| value.as_ptr())
    };
    let name = ffi::c_string(&options.name);
    let params = ffi::AppParams {
        name: name.as_ptr(),
        rpc_socket: pointer(&socket),
        json_config: pointer(&config),
        core_mask: pointer(&mask),
        mem_mb: options.mem_mb,
        no_huge: options.no_huge,
    };
    // SAFETY: all strings outlive the call, which returns when SPDK has stopped.
    unsafe { ffi::sdm_app_run(&params, start, ctx.cast()) }
}

/// Stops the application with an exit code.
pub fn stop(code: i32) {
    // SAFETY: no preconditions on an SPDK thread.
    unsafe { ffi::sdm_app_stop(code) };
}

/// Runs `work` on an SPDK thread of its own, on the n-th of the application's cores, counted from 0. The
/// thread ends with it. The receiver gets what it returns. None where there is no such core, or no memory
/// for a thread.
pub fn on_core<T: Send + 'static, F: Future<Output = T> + 'static>(
    n: u32,
    work: impl FnOnce() -> F + Send + 'static,
) -> Option<oneshot::Receiver<T>> {
    let (tx, rx) = oneshot::channel();
    let name = ffi::c_string(&format!("core{n}"));
    // SAFETY: the name lives during the call.
    let raw = unsafe { ffi::sdm_thread_on_core(name.as_ptr(), n) };
    if raw.is_null() {
        return None;
    }
    Thread::from_raw(raw).send(move || {
        executor::spawn(async move {
            let _ = tx.send(work().await);
            // SAFETY: on the thread made above, whose only task ends here.
            unsafe { ffi::sdm_thread_exit() };
        });
    });
    Some(rx)
}

/// What the stock spdk_tgt's main does, for a program that has our module linked in.
pub fn spdk_tgt_main() -> i32 {
    let args: Vec<CString> = std::env::args().map(|arg| ffi::c_string(&arg)).collect();
    let mut pointers: Vec<*mut c_char> = args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    pointers.push(std::ptr::null_mut());
    // SAFETY: a C argument vector, alive during the call, whose strings getopt only permutes.
    unsafe { ffi::sdm_spdk_tgt_main(args.len() as c_int, pointers.as_mut_ptr()) }
}
