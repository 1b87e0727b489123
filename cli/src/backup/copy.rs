//! Reading what is to be sent: many requests to the target under way, records in order.

use super::source::Extent;
use super::stream::{End, Piece, Writer};
use nbd::Kind;
use nbd::client::{Client, MAX_DEPTH};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// What is read at a time, unless a block is larger.
const PIECE_BYTES: u64 = 256 << 10;

/// So much may have to be read again when a stream is cut off.
const FLUSH_BYTES: u64 = 256 << 20;

/// Keeps reading below a rate.
pub struct Limit {
    began: Instant,
    bytes_per_s: Option<u64>,
}

impl Limit {
    /// At most so many MiB per second; None: as fast as it goes.
    pub fn new(mib: Option<u64>) -> Self {
        Limit {
            began: Instant::now(),
            bytes_per_s: mib.map(|mib| mib << 20),
        }
    }

    /// Waits until so many bytes in all are not too many.
    fn wait(&self, bytes: u64) {
        std::thread::sleep(self.due(bytes));
    }

    /// How long it takes until so many bytes in all are not too many.
    pub fn due(&self, bytes: u64) -> Duration {
        let Some(rate) = self.bytes_per_s else {
            return Duration::ZERO;
        };
        let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
        due.saturating_sub(self.began.elapsed())
    }
}

/// Which side has failed.
pub enum CopyError {
    /// The device.
    Read(io::Error),
    /// The stream.
    Write(io::Error),
}

/// What of a device goes into a stream.
pub struct What<'a> {
    /// In ascending order.
    pub extents: &'a [Extent],
    /// Size of a block.
    pub block_bytes: u64,
    /// What is before this block is there already.
    pub next_block: u64,
    /// Size of the device.
    pub size_bytes: u64,
}

impl What<'_> {
    /// How many blocks that is.
    pub fn blocks(&self) -> u64 {
        self.pieces().map(|extent| extent.count).sum()
    }

    /// Extents from `next_block` on, in pieces.
    fn pieces(&self) -> impl Iterator<Item = Extent> + '_ {
        let piece_blocks = (PIECE_BYTES / self.block_bytes).max(1);
        pieces(self.extents, self.next_block, piece_blocks)
    }
}

/// Extents from `next_block` on, in pieces.
fn pieces(
    extents: &[Extent],
    next_block: u64,
    piece_blocks: u64,
) -> impl Iterator<Item = Extent> + '_ {
    extents.iter().flat_map(move |extent| {
        let end = extent.first + extent.count;
        let (mut at, data) = (extent.first.max(next_block), extent.data);
        std::iter::from_fn(move || {
            let first = at;
            let most = if data { piece_blocks } else { u64::MAX };
            let count = end.checked_sub(first).filter(|left| *left > 0)?.min(most);
            at += count;
            Some(Extent { first, count, data })
        })
    })
}

/// Reads with many requests under way, and hands out the pieces in order.
pub fn read_pieces<S: Read + Write>(
    data: &mut Client<S>,
    what: &What<'_>,
    limit: &Limit,
    take: &mut dyn FnMut(Piece) -> io::Result<()>,
) -> Result<(), CopyError> {
    let mut to_read = what.pieces().peekable();
    // By first block: what was asked for and is not handed out yet.
    let mut waiting: BTreeMap<u64, (Extent, Option<Vec<u8>>)> = BTreeMap::new();
    let mut asked: HashMap<u64, u64> = HashMap::new();
    let mut read_bytes = 0;
    loop {
        while waiting.len() < MAX_DEPTH {
            let Some(extent) = to_read.next() else { break };
            let offset = extent.first * what.block_bytes;
            let bytes =
                (extent.count * what.block_bytes).min(what.size_bytes.saturating_sub(offset));
            let mut contents = None;
            match extent.data {
                true => {
                    limit.wait(read_bytes);
                    read_bytes += bytes;
                    let sent = data.send(Kind::Read, offset, bytes as u32, &[]);
                    asked.insert(sent.map_err(CopyError::Read)?, extent.first);
                }
                false => contents = Some(Vec::new()),
            }
            waiting.insert(extent.first, (extent, contents));
        }
        while let Some(entry) = waiting.first_entry() {
            if entry.get().1.is_none() {
                break;
            }
            let (extent, contents) = entry.remove();
            let first = extent.first;
            let piece = match extent.data {
                true => {
                    let mut contents = contents.unwrap_or_default();
                    // The device may end within a block.
                    contents.resize((extent.count * what.block_bytes) as usize, 0);
                    Piece::Data { first, contents }
                }
                false => Piece::Unmapped {
                    first,
                    count: extent.count,
                },
            };
            take(piece).map_err(CopyError::Write)?;
        }
        if waiting.is_empty() && to_read.peek().is_none() {
            return Ok(());
        }
        if data.under_way() > 0 {
            let answer = data.receive().map_err(CopyError::Read)?;
            let contents = answer
                .result
                .map_err(|refused| CopyError::Read(io::Error::other(refused)))?;
            let first = asked.remove(&answer.cookie);
            if let Some((_, waiting)) = first.and_then(|first| waiting.get_mut(&first)) {
                *waiting = Some(contents);
            }
        }
    }
}

/// Reads into a stream, to its end. `advance` hears of each number of blocks that was written, and can end it
/// by an error.
pub fn copy<S: Read + Write, W: Write>(
    data: &mut Client<S>,
    mut writer: Writer<W>,
    what: &What<'_>,
    limit: &Limit,
    advance: &mut dyn FnMut(u64) -> io::Result<()>,
) -> Result<(W, End), CopyError> {
    let mut unflushed_bytes = 0;
    read_pieces(data, what, limit, &mut |piece| {
        let blocks = match &piece {
            Piece::Data { contents, .. } => {
                unflushed_bytes += contents.len() as u64;
                contents.len() as u64 / what.block_bytes
            }
            Piece::Unmapped { count, .. } => *count,
        };
        writer.piece(&piece)?;
        if unflushed_bytes >= FLUSH_BYTES {
            unflushed_bytes = 0;
            writer.flush()?;
        }
        advance(blocks)
    })?;
    writer.end().map_err(CopyError::Write)
}
