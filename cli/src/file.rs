//! Files and block devices as metadata devices.

use crate::error::CliError;
use crate::progress::Progress;
use async_trait::async_trait;
use persistent_data::device::{BLOCK_BYTES, BlockBytes, BlockDevice, DeviceError};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;

const EIO: i32 = libc::EIO;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To be read, while nobody else has it open.
    Read,
    /// To be read, whoever else has it open.
    ReadShared,
    /// To be written.
    Write,
}

/// A file or block device. Calls block; they are never pending.
pub struct FileDevice {
    file: File,
    nr_blocks: u64,
    progress: Progress,
}

impl FileDevice {
    /// Opens it; what is read or written moves `progress` on.
    pub fn open(path: &Path, access: Access, progress: Progress) -> Result<Rc<Self>, CliError> {
        let (file, bytes) = open_file(path, access)?;
        Ok(Rc::new(FileDevice {
            file,
            nr_blocks: bytes / BLOCK_BYTES as u64,
            progress,
        }))
    }
}

/// Opens a file or block device, and tells its size in bytes.
pub fn open_file(path: &Path, access: Access) -> Result<(File, u64), CliError> {
    let file_type = std::fs::metadata(path)
        .map_err(CliError::io(path))?
        .file_type();
    if !file_type.is_file() && !file_type.is_block_device() {
        return Err(CliError::BadType(path.to_owned()));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Write);
    // Without O_CREAT this has a meaning for block devices only: not while they are in use.
    if file_type.is_block_device() && access != Access::ReadShared {
        options.custom_flags(libc::O_EXCL);
    }
    let mut file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => CliError::Busy(path.to_owned()),
        _ => CliError::io(path)(error),
    })?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(CliError::io(path))?;
    Ok((file, bytes))
}

/// Whether two paths are the same file or block device.
pub fn same(a: &Path, b: &Path) -> bool {
    let (Ok(a), Ok(b)) = (std::fs::metadata(a), std::fs::metadata(b)) else {
        return false;
    };
    match a.file_type().is_block_device() && b.file_type().is_block_device() {
        true => a.rdev() == b.rdev(),
        false => (a.dev(), a.ino()) == (b.dev(), b.ino()),
    }
}

fn errno(error: &io::Error) -> DeviceError {
    DeviceError {
        errno: error.raw_os_error().unwrap_or(EIO),
    }
}

#[async_trait(?Send)]
impl BlockDevice for FileDevice {
    fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    async fn read(&self, block: u64, buf: &mut BlockBytes) -> Result<(), DeviceError> {
        let at = block
            .checked_mul(BLOCK_BYTES as u64)
            .ok_or(DeviceError { errno: EIO })?;
        self.progress.advance(1);
        self.file.read_exact_at(buf, at).map_err(|e| errno(&e))
    }

    async fn write(&self, block: u64, buf: &BlockBytes) -> Result<(), DeviceError> {
        let at = block
            .checked_mul(BLOCK_BYTES as u64)
            .ok_or(DeviceError { errno: EIO })?;
        self.file.write_all_at(buf, at).map_err(|e| errno(&e))
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.file.sync_data().map_err(|e| errno(&e))
    }
}
