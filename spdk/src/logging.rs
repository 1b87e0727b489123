//! The `log` crate's records go to SPDK's log; events go to SPDK's notifications.

use crate::ffi;
use log::{Level, LevelFilter, Log, Metadata, Record};

struct SpdkLog;

impl Log for SpdkLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            Level::Error => 0,
            Level::Warn => 1,
            Level::Info => 2,
            Level::Debug => 3,
            Level::Trace => 4,
        };
        let file = ffi::c_string(record.file().unwrap_or("?"));
        let target = ffi::c_string(record.target());
        let text = ffi::c_string(&record.args().to_string());
        // SAFETY: the strings live during the call.
        unsafe {
            ffi::sdm_log(
                level,
                file.as_ptr(),
                record.line().unwrap_or(0) as i32,
                target.as_ptr(),
                text.as_ptr(),
            );
        }
    }

    fn flush(&self) {}
}

/// Sends all records to SPDK's log. What SPDK then shows is set with its own options.
pub fn init() {
    if log::set_logger(&SpdkLog).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

/// Makes a kind of notification known, so that `notify_get_types` lists it. Error: ENOMEM.
pub fn register_notification(kind: &str) -> Result<(), i32> {
    // SAFETY: the string is copied during the call.
    match unsafe { ffi::sdm_notify_register(ffi::c_string(kind).as_ptr()) } {
        0 => Ok(()),
        rc => Err(-rc),
    }
}

/// Sends an SPDK notification, on an SPDK thread.
pub fn notify(kind: &str, context: &str) {
    // SAFETY: the strings are copied during the call.
    unsafe {
        ffi::sdm_notify(
            ffi::c_string(kind).as_ptr(),
            ffi::c_string(context).as_ptr(),
        );
    }
}
