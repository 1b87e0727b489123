//! The real tools, for tests of the metadata: Debian's thin-provisioning-tools on PATH, and the
//! strict 1.1 under `SPDK_DM_STRICT_TOOLS` (both by `spdk-config/setup-tools`). Without them the
//! tests fail.

#![allow(dead_code, reason = "not every test program uses all of it")]

pub mod pool;

use persistent_data::device::BLOCK_BYTES;
use persistent_data::memory::MemoryDevice;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How long a tool may take before it counts as hung; seconds, as `timeout` takes them.
const TOOL_SECONDS: &str = "300";

/// A file that is removed when dropped.
pub struct Temp(pub PathBuf);

impl Temp {
    /// A name in the temporary directory that no other `Temp` has: tests of one program run at the same
    /// time, and a tool that reads what another test is writing may never end.
    pub fn new(name: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let id = std::process::id();
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        Temp(std::env::temp_dir().join(format!("spdk-dm-{id}-{made}-{name}")))
    }

    /// A metadata device's contents as a file.
    pub fn with_blocks(name: &str, device: &MemoryDevice) -> Self {
        let file = Temp::new(name);
        std::fs::write(&file.0, device.blocks().concat()).unwrap();
        file
    }

    /// The file's contents as a metadata device.
    pub fn to_device(&self) -> Rc<MemoryDevice> {
        let bytes = std::fs::read(&self.0).unwrap();
        let blocks = bytes
            .chunks_exact(BLOCK_BYTES)
            .map(|chunk| chunk.try_into().unwrap())
            .collect();
        Rc::new(MemoryDevice::from_blocks(blocks))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A tool that is ended when it hangs.
fn bounded(tool: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.arg(TOOL_SECONDS).arg(tool);
    command
}

/// Both generations of a tool: Debian 12's 0.9 and the strict 1.1.
pub fn both(tool: &str) -> [Command; 2] {
    let strict = std::env::var("SPDK_DM_STRICT_TOOLS")
        .expect("SPDK_DM_STRICT_TOOLS is not set: run the tests by `make test`");
    let mut new = bounded(Path::new(&strict).join("pdata_tools"));
    new.arg(tool);
    [bounded(tool), new]
}

/// Runs a tool that must succeed; returns what it prints.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; run spdk-config/setup-tools"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Both generations of `thin_check` must be content.
pub fn thin_check(file: &Temp) {
    for mut command in both("thin_check") {
        run(command.arg(&file.0));
    }
}
