//! The backup stream, written and read (docs/backup.md, The format).
//!
//! Records follow each other, each with its own checksum, so that a stream that was cut off is good up to the
//! last whole record. Nothing in it is trusted: lengths are bounded before memory is taken, and what was
//! decompressed is checked against the checksum of each block.

pub use super::header::Header;
use super::ranges::Ranges;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

/// What a stream begins with, and then the version.
const MAGIC: &[u8; 15] = b"spdk-dm backup ";

/// The last version there is.
const LAST_VERSION: u8 = 2;

/// Longest piece of data in a record, before compression.
pub const MAX_PIECE_BYTES: u64 = 4 << 20;

/// Longest record: a piece that does not compress, and its checksums.
const MAX_RECORD_BYTES: u32 = (MAX_PIECE_BYTES + (1 << 20)) as u32;

/// zstd's fastest ordinary level: twice as fast as its default for about a tenth more bytes.
const LEVEL: i32 = 1;

mod kind {
    pub const HEADER: u8 = b'H';
    pub const DATA: u8 = b'D';
    pub const UNMAPPED: u8 = b'U';
    pub const END: u8 = b'E';
}

/// What a complete backup ends with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Blocks with contents.
    pub data_blocks: u64,
    /// Blocks that became holes since the parent.
    pub unmapped_blocks: u64,
    /// SHA-256 of the contents of all blocks, in their order.
    pub sha256: String,
}

/// A piece of a backup. Pieces come in ascending order of blocks, unless the header says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Contents of whole blocks from `first` on.
    Data {
        /// First block.
        first: u64,
        /// What they hold.
        contents: Vec<u8>,
    },
    /// Blocks that are holes.
    Unmapped {
        /// First block.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// What is wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ends in the middle.
    #[error("the backup is not complete; it is good for {good_bytes} bytes")]
    Incomplete {
        /// Whole records before.
        good_bytes: u64,
    },
    /// It is something else, or was changed.
    #[error("at byte {at}: {what}")]
    Damaged {
        /// Where the record begins.
        at: u64,
        /// What does not fit.
        what: String,
    },
}

/// Counts and hashes what a stream holds, in both directions.
#[derive(Default)]
struct Sums {
    data_blocks: u64,
    unmapped_blocks: u64,
    hash: Sha256,
}

impl Sums {
    fn end(&self) -> End {
        let digest = self.hash.clone().finalize();
        End {
            data_blocks: self.data_blocks,
            unmapped_blocks: self.unmapped_blocks,
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    fn add(&mut self, piece: &Piece, block_bytes: u64) {
        match piece {
            Piece::Data { contents, .. } => {
                self.data_blocks += contents.len() as u64 / block_bytes;
                self.hash.update(contents);
            }
            Piece::Unmapped { count, .. } => self.unmapped_blocks += count,
        }
    }
}

/// Writes a stream.
pub struct Writer<W> {
    out: W,
    block_bytes: u64,
    sums: Sums,
}

impl<W: Write> Writer<W> {
    /// Begins a stream.
    pub fn begin(mut out: W, header: &Header) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        out.write_all(&[b'0' + header.version()])?;
        let mut writer = Writer {
            out,
            block_bytes: header.block_bytes,
            sums: Sums::default(),
        };
        writer.record(kind::HEADER, &header.encode()?)?;
        Ok(writer)
    }

    /// Goes on behind what `reader` has read, which is there already.
    pub fn resume<R>(out: W, reader: Reader<R>) -> Self {
        Writer {
            out,
            block_bytes: reader.header.block_bytes,
            sums: reader.sums,
        }
    }

    /// Writes a piece, of at most [`MAX_PIECE_BYTES`] and of whole blocks.
    pub fn piece(&mut self, piece: &Piece) -> io::Result<()> {
        self.sums.add(piece, self.block_bytes);
        match piece {
            Piece::Data { first, contents } => {
                let mut payload = first.to_le_bytes().to_vec();
                payload.extend((contents.len() as u32).to_le_bytes());
                for block in contents.chunks(self.block_bytes as usize) {
                    payload.extend(crc32c::crc32c(block).to_le_bytes());
                }
                payload.extend(zstd::bulk::compress(contents, LEVEL)?);
                self.record(kind::DATA, &payload)
            }
            Piece::Unmapped { first, count } => {
                let payload = [first.to_le_bytes(), count.to_le_bytes()].concat();
                self.record(kind::UNMAPPED, &payload)
            }
        }
    }

    /// Has all that was written reach the other side.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the stream.
    pub fn end(mut self) -> io::Result<(W, End)> {
        let end = self.sums.end();
        self.record(kind::END, &serde_json::to_vec(&end)?)?;
        self.out.flush()?;
        Ok((self.out, end))
    }

    fn record(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        write_record(&mut self.out, kind, payload)
    }
}

/// Writes one record.
pub fn write_record(out: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let head = head(kind, payload.len() as u32);
    out.write_all(&head)?;
    out.write_all(payload)?;
    out.write_all(&checksum(&head, payload).to_le_bytes())
}

/// Reads one record with a payload of at most `limit_bytes`: its kind and payload.
pub fn read_record(input: &mut impl Read, limit_bytes: u32) -> Result<(u8, Vec<u8>), StreamError> {
    record(input, &mut 0, limit_bytes)
}

fn head(kind: u8, length: u32) -> [u8; 5] {
    let mut head = [kind; 5];
    head[1..].copy_from_slice(&length.to_le_bytes());
    head
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

/// Reads a stream.
pub struct Reader<R> {
    input: R,
    header: Header,
    sums: Sums,
    good_bytes: u64,
    next_block: u64,
    /// What has come, of a stream without an order.
    seen: Ranges,
    end: Option<End>,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    pub fn begin(mut input: R) -> Result<Self, StreamError> {
        let damaged = |what: &str| StreamError::Damaged {
            at: 0,
            what: what.to_owned(),
        };
        let mut magic = [0; MAGIC.len() + 1];
        let got = read_up_to(&mut input, &mut magic)?;
        let magic = &magic[..got];
        if got <= MAGIC.len() && MAGIC.starts_with(magic) {
            return Err(StreamError::Incomplete { good_bytes: 0 });
        }
        let version = magic.strip_prefix(MAGIC).and_then(|rest| rest.first());
        let version = version.map(|version| version.wrapping_sub(b'0'));
        let Some(version) = version.filter(|version| (1..=LAST_VERSION).contains(version)) else {
            return Err(damaged(
                "this is no backup of spdk-dm, or of a later version",
            ));
        };
        let mut good_bytes = magic.len() as u64;
        let (kind, payload) = record(&mut input, &mut good_bytes, MAX_RECORD_BYTES)?;
        if kind != kind::HEADER {
            return Err(damaged("there is no header"));
        }
        let header = Header::decode(&payload);
        let header = header.map_err(|error| damaged(&format!("its header: {error}")))?;
        if header.version() > version {
            return Err(damaged("its header is one of a later version"));
        }
        let sane = (512..=MAX_PIECE_BYTES).contains(&header.block_bytes)
            && header.block_bytes.is_multiple_of(512);
        if !sane {
            return Err(damaged("its header has an impossible block size"));
        }
        Ok(Reader {
            input,
            header,
            sums: Sums::default(),
            good_bytes,
            next_block: 0,
            seen: Ranges::default(),
            end: None,
        })
    }

    /// What it is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the whole records that were read.
    pub fn good_bytes(&self) -> u64 {
        self.good_bytes
    }

    /// Where the next piece begins at the earliest; where the last one ends, in a stream without an order.
    pub fn next_block(&self) -> u64 {
        self.next_block
    }

    /// How it ended, once [`Reader::piece`] has said that there is no more.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The next piece; None at the end of a complete stream, whose sums are right.
    pub fn piece(&mut self) -> Result<Option<Piece>, StreamError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let at = self.good_bytes;
        let damaged = |what: String| StreamError::Damaged { at, what };
        let mut good_bytes = at;
        let (kind, payload) = record(&mut self.input, &mut good_bytes, MAX_RECORD_BYTES)?;
        let piece = match kind {
            kind::DATA => self.data(&payload).map_err(damaged)?,
            kind::UNMAPPED => match number(&payload, 0).zip(number(&payload, 8)) {
                Some((first, count)) => Piece::Unmapped { first, count },
                None => return Err(damaged("a short record".into())),
            },
            kind::END => {
                let end: End = serde_json::from_slice(&payload)
                    .map_err(|error| damaged(format!("its end: {error}")))?;
                if end != self.sums.end() {
                    let what = "the sums at its end are not those of what is before it";
                    return Err(damaged(what.into()));
                }
                self.good_bytes = good_bytes;
                self.end = Some(end);
                return Ok(None);
            }
            kind => return Err(damaged(format!("a record of unknown kind {kind}"))),
        };
        let (first, count) = match &piece {
            Piece::Data { first, contents } => {
                (*first, contents.len() as u64 / self.header.block_bytes)
            }
            Piece::Unmapped { first, count } => (*first, *count),
        };
        let nr_blocks = self.header.size_bytes.div_ceil(self.header.block_bytes);
        let end = first.checked_add(count).filter(|end| *end <= nr_blocks);
        match end {
            Some(end) if count > 0 && self.may_begin(first, end) => self.next_block = end,
            _ => {
                let what = format!("blocks {first} and {count} of them, out of place");
                return Err(damaged(what));
            }
        }
        self.sums.add(&piece, self.header.block_bytes);
        self.good_bytes = good_bytes;
        Ok(Some(piece))
    }

    /// Whether a piece may be here.
    fn may_begin(&mut self, first: u64, end: u64) -> bool {
        match self.header.is_unordered() {
            true => self.seen.insert(first..end),
            false => first >= self.next_block,
        }
    }

    fn data(&self, payload: &[u8]) -> Result<Piece, String> {
        let short = || "a short record".to_owned();
        let first = number(payload, 0).ok_or_else(short)?;
        let bytes = payload.get(8..12).ok_or_else(short)?;
        let bytes = u64::from(u32::from_le_bytes(bytes.try_into().map_err(|_| short())?));
        let block_bytes = self.header.block_bytes;
        if bytes > MAX_PIECE_BYTES || !bytes.is_multiple_of(block_bytes) {
            return Err(format!("a piece of {bytes} bytes"));
        }
        let sums_bytes = (bytes / block_bytes * 4) as usize;
        let sums = payload.get(12..12 + sums_bytes).ok_or_else(short)?;
        let packed = payload.get(12 + sums_bytes..).ok_or_else(short)?;
        let contents = zstd::bulk::decompress(packed, bytes as usize).map_err(|e| e.to_string())?;
        if contents.len() as u64 != bytes {
            return Err("a piece of another length than it says".into());
        }
        let blocks = contents.chunks(block_bytes as usize).zip(sums.chunks(4));
        for (at, (block, sum)) in (first..).zip(blocks) {
            if crc32c::crc32c(block).to_le_bytes() != sum {
                return Err(format!("block {at} has a wrong checksum"));
            }
        }
        Ok(Piece::Data { first, contents })
    }
}

/// Whether the last record of a file is its end, and none but it says that it is; `from` is where records begin.
/// Contents are not read.
pub fn ends_with_its_end(file: &File, mut from: u64) -> io::Result<bool> {
    let size = file.metadata()?.len();
    loop {
        let mut head = [0; 5];
        let left = size.saturating_sub(from);
        if left < head.len() as u64 {
            return Ok(false);
        }
        file.read_exact_at(&mut head, from)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        from += 5 + u64::from(length) + 4;
        if from > size || head[0] == kind::END {
            return Ok(from == size);
        }
    }
}

fn number(payload: &[u8], at: usize) -> Option<u64> {
    let bytes = payload.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// The next record. `good_bytes` is where it begins, and afterwards where it ends.
fn record(
    input: &mut impl Read,
    good_bytes: &mut u64,
    limit_bytes: u32,
) -> Result<(u8, Vec<u8>), StreamError> {
    let at = *good_bytes;
    let incomplete = StreamError::Incomplete { good_bytes: at };
    let mut head = [0; 5];
    if read_up_to(input, &mut head)? < head.len() {
        return Err(incomplete);
    }
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    if length > limit_bytes {
        let what = format!("a record of {length} bytes");
        return Err(StreamError::Damaged { at, what });
    }
    let mut payload = vec![0; length as usize + 4];
    if read_up_to(input, &mut payload)? < payload.len() {
        return Err(incomplete);
    }
    let sum = payload.split_off(length as usize);
    if checksum(&head, &payload).to_le_bytes() != sum[..] {
        let what = "a record with a wrong checksum".to_owned();
        return Err(StreamError::Damaged { at, what });
    }
    *good_bytes += 5 + u64::from(length) + 4;
    Ok((head[0], payload))
}

/// As much as there is, at most the whole buffer.
fn read_up_to(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buf.len() {
        match input.read(&mut buf[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
