//! Runs `spdk-dm`, and makes pools to run it on.
//!
//! Every run has a limit on memory and on processor time, so that none of them can hide an endless loop
//! or memory without bound.

#![allow(dead_code, reason = "not every test program uses all of it")]

#[path = "../../../bdev/tests/thin_metadata_tools/mod.rs"]
pub mod tools;

pub mod damage;
pub mod files;
pub mod pools;

use std::ffi::OsStr;
use std::process::{Command, Output};

/// Address space of a run, in KiB.
const MEMORY_KIB: u32 = 600_000;
/// Processor time of a run.
const CPU_SECONDS: u32 = 60;

/// What a run gave.
#[derive(Debug)]
pub struct Ran {
    pub out: String,
    pub err: String,
    /// None: killed by a signal.
    pub code: Option<i32>,
}

/// Runs `spdk-dm`. It must not have panicked or been killed.
pub fn spdk_dm<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    let limits = format!("ulimit -v {MEMORY_KIB}; ulimit -t {CPU_SECONDS}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(limits);
    command.arg(env!("CARGO_BIN_EXE_spdk-dm")).args(args);
    let Output {
        stdout,
        stderr,
        status,
    } = command.output().unwrap();
    let ran = Ran {
        out: String::from_utf8_lossy(&stdout).into_owned(),
        err: String::from_utf8_lossy(&stderr).into_owned(),
        code: status.code(),
    };
    assert!(
        matches!(ran.code, Some(0 | 1)) && !ran.err.contains("panicked"),
        "{command:?}: {ran:?}"
    );
    ran
}

/// Runs `spdk-dm`, which must succeed; returns what it prints.
pub fn succeed<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let ran = spdk_dm(args);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.out
}

/// Arguments of different types as one list.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { [$(std::ffi::OsStr::new(&$arg)),*] };
}
