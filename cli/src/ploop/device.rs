//! Files and block devices as images.

use crate::error::CliError;
use crate::file::{Access, open_file};
use async_trait::async_trait;
use bdev::device::{ByteDevice, Contents, DataDevice, SECTOR_BYTES};
use bdev::errno::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

/// Zeroes that are written at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// A file or block device, in sectors. Calls block; they are never pending.
pub struct ImageFile {
    file: File,
    /// What there is of it.
    nr_bytes: u64,
    /// What there seems to be: behind the end there are zeroes.
    nr_sectors: u64,
}

impl ImageFile {
    /// Opens it. Bytes behind its last whole sector are not seen.
    pub fn open(path: &Path, access: Access) -> Result<Rc<Self>, CliError> {
        let (file, nr_bytes) = open_file(path, access)?;
        Ok(Rc::new(ImageFile {
            file,
            nr_bytes,
            nr_sectors: nr_bytes / SECTOR_BYTES,
        }))
    }

    /// Opens it to be read, with zeroes behind its end up to a multiple of so many sectors. Its size without
    /// them, in whole sectors.
    pub fn open_padded(path: &Path, multiple: u64) -> Result<(Rc<Self>, u64), CliError> {
        let (file, nr_bytes) = open_file(path, Access::Read)?;
        let nr_sectors = nr_bytes.div_ceil(SECTOR_BYTES);
        let padded = ImageFile {
            file,
            nr_bytes,
            nr_sectors: nr_sectors.next_multiple_of(multiple.max(1)),
        };
        Ok((Rc::new(padded), nr_sectors))
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}

#[async_trait(?Send)]
impl DataDevice for ImageFile {
    fn nr_sectors(&self) -> u64 {
        self.nr_sectors
    }

    fn block_bytes(&self) -> u32 {
        SECTOR_BYTES as u32
    }

    fn supports_discard(&self) -> bool {
        false
    }

    async fn zero(&self, offset_sectors: u64, len_sectors: u64) -> Result<(), Errno> {
        let end = (offset_sectors + len_sectors) * SECTOR_BYTES;
        let mut at = offset_sectors * SECTOR_BYTES;
        let zeroes = vec![0; PIECE_BYTES.min(end.saturating_sub(at)) as usize];
        while at < end {
            let len = PIECE_BYTES.min(end - at);
            let piece = zeroes.get(..len as usize).ok_or(Errno::EIO)?;
            self.file.write_all_at(piece, at).map_err(|e| errno(&e))?;
            at += len;
        }
        Ok(())
    }

    async fn read(&self, offset_sectors: u64, len_sectors: u64) -> Result<Contents, Errno> {
        let mut bytes = vec![0; (len_sectors * SECTOR_BYTES) as usize];
        self.read_bytes(offset_sectors, &mut bytes).await?;
        Ok(Box::new(bytes))
    }

    async fn write(&self, offset_sectors: u64, contents: Contents) -> Result<(), Errno> {
        let bytes = contents.downcast::<Vec<u8>>().map_err(|_| Errno::EINVAL)?;
        self.write_bytes(offset_sectors, &bytes).await
    }

    async fn discard(&self, _: u64, _: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.file.sync_data().map_err(|e| errno(&e))
    }
}

#[async_trait(?Send)]
impl ByteDevice for ImageFile {
    async fn read_bytes(&self, offset_sectors: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let at = offset_sectors
            .checked_mul(SECTOR_BYTES)
            .ok_or(Errno::EINVAL)?;
        let there = self.nr_bytes.saturating_sub(at).min(buf.len() as u64);
        let (there, behind) = buf.split_at_mut(there as usize);
        behind.fill(0);
        self.file.read_exact_at(there, at).map_err(|e| errno(&e))
    }

    async fn write_bytes(&self, offset_sectors: u64, buf: &[u8]) -> Result<(), Errno> {
        let at = offset_sectors
            .checked_mul(SECTOR_BYTES)
            .ok_or(Errno::EINVAL)?;
        self.file.write_all_at(buf, at).map_err(|e| errno(&e))
    }
}
