//! Numbers of the protocol, and what both ends read and write. All big-endian.

use std::io::{self, Read, Write};

/// Most bytes of one read or write. Every NBD client keeps to it without asking.
pub const MAX_TRANSFER_BYTES: u32 = 32 << 20;

pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub(crate) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Flags of both ends in the handshake: options have a fixed form, no 124 zeroes at its end.
pub(crate) const FIXED_NEWSTYLE: u16 = 1;
pub(crate) const NO_ZEROES: u16 = 2;

/// Options a client asks for.
pub(crate) mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
}

/// Answers to options. Those with the highest bit set are refusals.
pub(crate) mod answer {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const REFUSED: u32 = 1 << 31;
    pub const UNSUPPORTED: u32 = REFUSED | 1;
    pub const INVALID: u32 = REFUSED | 3;
    pub const UNKNOWN: u32 = REFUSED | 6;
}

/// Pieces of information about an export.
pub(crate) mod info {
    pub const EXPORT: u16 = 0;
    pub const BLOCK_SIZE: u16 = 3;
}

mod flag {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const FLUSH: u16 = 1 << 2;
    pub const FUA: u16 = 1 << 3;
    pub const TRIM: u16 = 1 << 5;
    pub const WRITE_ZEROES: u16 = 1 << 6;
}

/// The flag of a request whose writing must be durable before it is answered.
const COMMAND_FUA: u16 = 1;

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Offsets and lengths are multiples of it: a power of two up to 64 KiB.
    pub block_bytes: u32,
    /// Writing, trimming and write-zeroes are refused.
    pub read_only: bool,
    /// Flushes and FUA are understood.
    pub flush: bool,
    /// Trims are understood.
    pub trim: bool,
    /// Write-zeroes is understood.
    pub write_zeroes: bool,
}

impl Export {
    pub(crate) fn flags(&self) -> u16 {
        let of = |on, bit| if on { bit } else { 0 };
        flag::HAS_FLAGS
            | of(self.read_only, flag::READ_ONLY)
            | of(self.flush, flag::FLUSH | flag::FUA)
            | of(self.trim, flag::TRIM)
            | of(self.write_zeroes, flag::WRITE_ZEROES)
    }

    pub(crate) fn from_flags(size_bytes: u64, flags: u16) -> Self {
        Export {
            size_bytes,
            block_bytes: 1,
            read_only: flags & flag::READ_ONLY != 0,
            flush: flags & flag::FLUSH != 0,
            trim: flags & flag::TRIM != 0,
            write_zeroes: flags & flag::WRITE_ZEROES != 0,
        }
    }
}

/// Kinds of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the export.
    Read,
    /// Changes bytes of the export.
    Write,
    /// The client goes; there is no reply.
    Disconnect,
    /// What was answered before is durable when this is answered.
    Flush,
    /// The range's contents are no longer needed.
    Trim,
    /// The range is zero afterwards.
    WriteZeroes,
    /// Something that was not offered.
    Unknown(u16),
}

impl Kind {
    fn number(self) -> u16 {
        match self {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::Disconnect => 2,
            Kind::Flush => 3,
            Kind::Trim => 4,
            Kind::WriteZeroes => 6,
            Kind::Unknown(number) => number,
        }
    }

    fn from_number(number: u16) -> Self {
        [
            Kind::Read,
            Kind::Write,
            Kind::Disconnect,
            Kind::Flush,
            Kind::Trim,
            Kind::WriteZeroes,
        ]
        .into_iter()
        .find(|kind| kind.number() == number)
        .unwrap_or(Kind::Unknown(number))
    }

    /// Whether it changes what is stored.
    pub fn changes(self) -> bool {
        matches!(self, Kind::Write | Kind::Trim | Kind::WriteZeroes)
    }
}

/// A request. A write's bytes follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub kind: Kind,
    /// Durable before it is answered.
    pub fua: bool,
    /// The client's name for it, which the reply repeats.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u32,
}

impl Request {
    pub(crate) fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut raw = Vec::with_capacity(28);
        raw.extend(REQUEST_MAGIC.to_be_bytes());
        raw.extend(if self.fua { COMMAND_FUA } else { 0 }.to_be_bytes());
        raw.extend(self.kind.number().to_be_bytes());
        raw.extend(self.cookie.to_be_bytes());
        raw.extend(self.offset.to_be_bytes());
        raw.extend(self.length.to_be_bytes());
        stream.write_all(&raw)
    }

    pub(crate) fn read(stream: &mut impl Read) -> io::Result<Self> {
        expect(stream, u64::from(REQUEST_MAGIC), 4, "request")?;
        let flags = read_u16(stream)?;
        Ok(Request {
            kind: Kind::from_number(read_u16(stream)?),
            fua: flags & COMMAND_FUA != 0,
            cookie: read_u64(stream)?,
            offset: read_u64(stream)?,
            length: read_u32(stream)?,
        })
    }
}

/// A reply's head: a read's bytes follow if `error` is 0.
pub(crate) struct Reply {
    pub error: u32,
    pub cookie: u64,
}

impl Reply {
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut raw = Vec::with_capacity(16);
        raw.extend(REPLY_MAGIC.to_be_bytes());
        raw.extend(self.error.to_be_bytes());
        raw.extend(self.cookie.to_be_bytes());
        stream.write_all(&raw)
    }

    pub fn read(stream: &mut impl Read) -> io::Result<Self> {
        expect(stream, u64::from(REPLY_MAGIC), 4, "reply")?;
        Ok(Reply {
            error: read_u32(stream)?,
            cookie: read_u64(stream)?,
        })
    }
}

/// An error number of the protocol for a Linux errno: those it knows are the same there.
pub(crate) fn protocol_error(errno: i32) -> u32 {
    match errno {
        1 | 5 | 12 | 22 | 28 | 75 | 95 | 108 => errno.unsigned_abs(),
        13 | 30 => 1,
        _ => 5,
    }
}

pub(crate) fn read_u16(stream: &mut impl Read) -> io::Result<u16> {
    Ok(u16::from_be_bytes(read_array(stream)?))
}

pub(crate) fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    Ok(u32::from_be_bytes(read_array(stream)?))
}

pub(crate) fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    Ok(u64::from_be_bytes(read_array(stream)?))
}

fn read_array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut raw = [0; N];
    stream.read_exact(&mut raw)?;
    Ok(raw)
}

/// A run of bytes of at most `limit`.
pub(crate) fn read_bytes(stream: &mut impl Read, length: u32, limit: u32) -> io::Result<Vec<u8>> {
    if length > limit {
        return Err(invalid(format!(
            "the other end sends {length} bytes where {limit} are the limit"
        )));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A magic number of 4 or 8 bytes.
pub(crate) fn expect(stream: &mut impl Read, magic: u64, bytes: u8, what: &str) -> io::Result<()> {
    let found = match bytes {
        4 => u64::from(read_u32(stream)?),
        _ => read_u64(stream)?,
    };
    if found == magic {
        return Ok(());
    }
    Err(invalid(format!(
        "the other end does not speak NBD: {what} begins with {found:#x}"
    )))
}

pub(crate) fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
