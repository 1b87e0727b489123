//! The backup stream, written and read (docs/backup.md, The format).
//!
//! Records follow each other, each with its own checksum, so that a stream that was cut off is good up to the
//! last whole record. Nothing in it is trusted: lengths are bounded before memory is taken, and what was
//! decompressed is checked against the checksum of each block.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};

/// What a stream begins with.
const MAGIC: &[u8; 16] = b"spdk-dm backup 1";

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

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The backup's own, 32 hexadecimal digits.
    pub uuid: String,
    /// Of the backup this one is to be applied to; None: it is full.
    pub parent: Option<String>,
    /// The pool's name at that time.
    pub pool: String,
    /// The thin device that was backed up.
    pub device_id: u32,
    /// The snapshot of it that this holds.
    pub snapshot_id: u32,
    /// `creation_time` of the snapshot: with its id it says whether a snapshot is still the same.
    pub snapshot_time: u64,
    /// Size of the device.
    pub size_bytes: u64,
    /// Size of a data block.
    pub block_bytes: u64,
    /// When it began, in seconds since 1970.
    pub began_unix_s: u64,
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

/// A piece of a backup. Pieces come in ascending order of blocks.
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
        let mut writer = Writer {
            out,
            block_bytes: header.block_bytes,
            sums: Sums::default(),
        };
        writer.record(kind::HEADER, &serde_json::to_vec(header)?)?;
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
    end: Option<End>,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    pub fn begin(mut input: R) -> Result<Self, StreamError> {
        let damaged = |what: &str| StreamError::Damaged {
            at: 0,
            what: what.to_owned(),
        };
        let mut magic = [0; MAGIC.len()];
        let got = read_up_to(&mut input, &mut magic)?;
        if got < magic.len() && MAGIC.starts_with(&magic[..got]) {
            return Err(StreamError::Incomplete { good_bytes: 0 });
        }
        if &magic != MAGIC {
            return Err(damaged(
                "this is no backup of spdk-dm, or of a later version",
            ));
        }
        let mut good_bytes = MAGIC.len() as u64;
        let (kind, payload) = record(&mut input, &mut good_bytes, MAX_RECORD_BYTES)?;
        if kind != kind::HEADER {
            return Err(damaged("there is no header"));
        }
        let header: Header = serde_json::from_slice(&payload)
            .map_err(|error| damaged(&format!("its header: {error}")))?;
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

    /// Where the next piece begins at the earliest.
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
            Some(end) if first >= self.next_block && count > 0 => self.next_block = end,
            _ => {
                let what = format!("blocks {first} and {count} of them, out of place");
                return Err(damaged(what));
            }
        }
        self.sums.add(&piece, self.header.block_bytes);
        self.good_bytes = good_bytes;
        Ok(Some(piece))
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = 512;
    const BLOCKS: u64 = 100;

    fn header() -> Header {
        Header {
            uuid: "0".repeat(32),
            parent: None,
            pool: "pool".into(),
            device_id: 1,
            snapshot_id: 2,
            snapshot_time: 3,
            size_bytes: BLOCKS * BLOCK,
            block_bytes: BLOCK,
            began_unix_s: 4,
        }
    }

    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        let piece = (0..5u64, 1..5u64, any::<Option<u8>>());
        prop::collection::vec(piece, 0..12).prop_map(|parts| {
            let mut at = 0;
            let piece = |(gap, count, value): (u64, u64, Option<u8>)| {
                let first = at + gap;
                at = first + count;
                match value {
                    Some(value) => {
                        let contents = vec![value; (count * BLOCK) as usize];
                        Piece::Data { first, contents }
                    }
                    None => Piece::Unmapped { first, count },
                }
            };
            parts.into_iter().map(piece).collect()
        })
    }

    fn written(pieces: &[Piece]) -> Vec<u8> {
        let mut writer = Writer::begin(Vec::new(), &header()).unwrap();
        for piece in pieces {
            writer.piece(piece).unwrap();
        }
        writer.end().unwrap().0
    }

    fn read(stream: &[u8]) -> Result<Vec<Piece>, StreamError> {
        let mut reader = Reader::begin(stream)?;
        let mut pieces = Vec::new();
        while let Some(piece) = reader.piece()? {
            pieces.push(piece);
        }
        Ok(pieces)
    }

    proptest! {
        /// What is written is read.
        #[test]
        fn round_trip(pieces in pieces()) {
            prop_assert_eq!(read(&written(&pieces)).unwrap(), pieces);
        }

        /// A stream that is cut anywhere says so, and one that goes on there is the same as one in a go.
        #[test]
        fn cut_and_resumed(pieces in pieces(), cut in 0..10_000usize) {
            let whole = written(&pieces);
            let cut = cut % whole.len();
            match Reader::begin(&whole[..cut]) {
                Err(StreamError::Incomplete { .. }) => {}
                Err(error) => prop_assert!(false, "{}", error),
                Ok(mut reader) => {
                    let error = loop {
                        match reader.piece() {
                            Ok(Some(_)) => {}
                            Ok(None) => panic!("a cut stream seems complete"),
                            Err(error) => break error,
                        }
                    };
                    let incomplete = matches!(error, StreamError::Incomplete { .. });
                    prop_assert!(incomplete, "{}", error);
                    let (good, next) = (reader.good_bytes() as usize, reader.next_block());
                    let mut writer = Writer::resume(whole[..good].to_vec(), reader);
                    for piece in &pieces {
                        let (Piece::Data { first, .. } | Piece::Unmapped { first, .. }) = piece;
                        if *first >= next {
                            writer.piece(piece).unwrap();
                        }
                    }
                    prop_assert_eq!(writer.end().unwrap().0, whole);
                }
            }
        }

        /// No changed byte goes unnoticed.
        #[test]
        fn damage(pieces in pieces(), at in 0..10_000usize, change in 1..=255u8) {
            let mut stream = written(&pieces);
            let at = at % stream.len();
            stream[at] ^= change;
            prop_assert!(read(&stream).is_err());
        }

        /// Records with good checksums and any contents neither panic nor take much memory.
        #[test]
        fn nonsense(records in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..64)), 0..5)) {
            let mut writer = Writer::begin(Vec::new(), &header()).unwrap();
            for (kind, payload) in &records {
                let kind = [b'D', b'U', b'E', *kind][*kind as usize % 4];
                writer.record(kind, payload).unwrap();
            }
            prop_assert!(read(&writer.out).is_err());
        }
    }
}
