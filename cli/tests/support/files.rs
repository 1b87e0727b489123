//! Files that `spdk-dm` reads and writes, and what puts metadata into them.

use super::tools::Temp;
use super::{Ran, spdk_dm};
use crate::args;
use persistent_data::device::{BLOCK_BYTES, BlockBytes};
use std::ffi::OsStr;

/// A file with this text.
pub fn with(name: &str, text: &str) -> Temp {
    let file = Temp::new(name);
    std::fs::write(&file.0, text).unwrap();
    file
}

/// A file of these metadata blocks.
pub fn of_blocks(name: &str, blocks: &[BlockBytes]) -> Temp {
    let file = Temp::new(name);
    std::fs::write(&file.0, blocks.concat()).unwrap();
    file
}

/// A file of so many metadata blocks of zeroes.
pub fn blank(name: &str, nr_blocks: u64) -> Temp {
    let file = Temp::new(name);
    let made = std::fs::File::create(&file.0).unwrap();
    made.set_len(nr_blocks * BLOCK_BYTES as u64).unwrap();
    file
}

/// `spdk-dm TARGET restore` of an XML into a new file of a size.
pub fn restore(target: &str, xml: &Temp, output: &Temp, size_mib: u32, more: &[&str]) -> Ran {
    let size_mib = size_mib.to_string();
    let fixed = args![
        target,
        "restore",
        "-i",
        xml.0,
        "-o",
        output.0,
        "--size-mib",
        size_mib
    ];
    spdk_dm(fixed.into_iter().chain(more.iter().map(OsStr::new)))
}

/// A new file that this XML has been restored into.
pub fn restored(target: &str, name: &str, xml: &str, size_mib: u32) -> Temp {
    let input = with(&format!("{name}.xml"), xml);
    let output = Temp::new(name);
    let ran = restore(target, &input, &output, size_mib, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    output
}
