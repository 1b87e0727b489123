//! A bdev with byte offsets, and files copied from and to it.

use futures::stream::{self, StreamExt, TryStreamExt};
use spdk::base::{BaseChannel, Descriptor, Info, IoKind};
use spdk::dma::DmaBuf;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

const PIECE_BYTES: u64 = 256 << 10;

/// Compared, and written where they differ: a data block.
const CHANGED_PIECE_BYTES: u64 = 64 << 10;

/// Many at a time: the drive may share its core with us.
const PIECES_AT_A_TIME: usize = 16;

/// An open bdev.
pub struct Disk {
    channel: BaseChannel,
    info: Info,
}

/// A file's contents in pieces, each with its place.
fn pieces(path: &Path, length: u64) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let mut file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut pieces = Vec::new();
    for at in (0..).step_by(length as usize) {
        let mut piece = Vec::new();
        let read = Read::by_ref(&mut file).take(length).read_to_end(&mut piece);
        if read.map_err(|e| e.to_string())? == 0 {
            break;
        }
        pieces.push((at, piece));
    }
    Ok(pieces)
}

fn fail(what: &str) -> impl Fn(i32) -> String {
    move |errno| format!("{what}: errno {errno}")
}

impl Disk {
    /// Opens a bdev by name, perhaps as if it had only so many bytes.
    pub fn open(name: &str, bytes: Option<u64>) -> Result<Self, String> {
        let desc = Descriptor::open(name, true, |_| {}).map_err(fail(&format!("open {name}")))?;
        let mut disk = Disk::new(&desc)?;
        if let Some(bytes) = bytes {
            let nr_blocks = bytes / u64::from(disk.info.block_bytes);
            disk.info.nr_blocks = disk.info.nr_blocks.min(nr_blocks);
        }
        Ok(disk)
    }

    /// An open bdev, for I/O on the running SPDK thread.
    pub fn new(desc: &Descriptor) -> Result<Self, String> {
        Ok(Disk {
            info: desc.info(),
            channel: desc.channel().ok_or("no channel")?,
        })
    }

    /// For further threads.
    pub fn descriptor(&self) -> &Descriptor {
        self.channel.descriptor()
    }

    fn blocks(&self, bytes: u64) -> Result<u64, String> {
        let block = u64::from(self.info.block_bytes);
        match bytes.is_multiple_of(block) {
            true => Ok(bytes / block),
            false => Err(format!(
                "{bytes} is not a multiple of the block size {block}"
            )),
        }
    }

    /// Block size.
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.info.block_bytes)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.info.nr_blocks * u64::from(self.info.block_bytes)
    }

    /// Reads from a byte offset.
    pub async fn read(&self, offset: u64, length: u64) -> Result<DmaBuf, String> {
        let buf = DmaBuf::new(length as usize).ok_or("out of memory")?;
        let at = self.blocks(offset)?;
        self.channel.read(buf, at).await.map_err(fail("read"))
    }

    /// Fills a buffer from a byte offset.
    pub async fn read_buf(&self, offset: u64, buf: DmaBuf) -> Result<DmaBuf, String> {
        let at = self.blocks(offset)?;
        self.channel.read(buf, at).await.map_err(fail("read"))
    }

    /// Writes at a byte offset.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), String> {
        let mut buf = DmaBuf::new(data.len()).ok_or("out of memory")?;
        buf.copy_from_slice(data);
        let at = self.blocks(offset)?;
        self.channel.write(buf, at).await.map_err(fail("write"))?;
        Ok(())
    }

    /// Writes a buffer at a byte offset, and gives it back.
    pub async fn write_buf(&self, offset: u64, buf: DmaBuf) -> Result<DmaBuf, String> {
        let at = self.blocks(offset)?;
        self.channel.write(buf, at).await.map_err(fail("write"))
    }

    /// Flushes all of it.
    pub async fn flush(&self) -> Result<(), String> {
        let all = self.info.nr_blocks;
        self.channel
            .range(IoKind::Flush, 0, all)
            .await
            .map_err(fail("flush"))
    }

    /// Unmaps or zeroes a range.
    pub async fn range(&self, how: &str, offset: u64, length: u64) -> Result<(), String> {
        let kind = match how {
            "unmap" => IoKind::Unmap,
            "zeroes" => IoKind::WriteZeroes,
            _ => return Err(format!("'{how}' is neither unmap nor zeroes")),
        };
        let (at, count) = (self.blocks(offset)?, self.blocks(length)?);
        self.channel.range(kind, at, count).await.map_err(fail(how))
    }

    /// Unmaps or zeroes a range, and flushes.
    pub async fn clear(&self, how: &str, offset: u64, length: u64) -> Result<(), String> {
        self.range(how, offset, length).await?;
        self.flush().await
    }

    /// Copies a file to the bdev, padded with zeroes to whole blocks, and flushes. With `since`, only the pieces that
    /// differ from that file.
    pub async fn write_file(
        &self,
        path: &Path,
        offset: u64,
        since: Option<&Path>,
    ) -> Result<(), String> {
        let block = self.info.block_bytes as usize;
        let length = since.map_or(PIECE_BYTES, |_| CHANGED_PIECE_BYTES);
        let mut pieces = pieces(path, length)?;
        if let Some(since) = since {
            let before: HashMap<_, _> = self::pieces(since, length)?.into_iter().collect();
            pieces.retain(|(at, piece)| before.get(at) != Some(piece));
        }
        for (_, piece) in &mut pieces {
            piece.resize(piece.len().next_multiple_of(block), 0);
        }
        let writes = pieces
            .iter()
            .map(|(at, piece)| self.write(offset + at, piece));
        let mut writes = stream::iter(writes).buffer_unordered(PIECES_AT_A_TIME);
        while writes.try_next().await?.is_some() {}
        self.flush().await
    }

    /// Copies from the bdev to a file.
    pub async fn read_file(&self, path: &Path, offset: u64, length: u64) -> Result<(), String> {
        let mut file = File::create(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let pieces = (0..length)
            .step_by(PIECE_BYTES as usize)
            .map(|at| self.read(offset + at, PIECE_BYTES.min(length - at)));
        let mut pieces = stream::iter(pieces).buffered(PIECES_AT_A_TIME);
        while let Some(data) = pieces.try_next().await? {
            file.write_all(&data).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}
