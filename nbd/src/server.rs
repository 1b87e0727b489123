//! The server's end: the handshake, requests in, replies out. Who calls it does the I/O, in any order.

use crate::wire::{
    self, Export, FIXED_NEWSTYLE, Kind, MAGIC, MAX_TRANSFER_BYTES, NO_ZEROES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, Reply, Request, answer, info, invalid, option, protocol_error,
};
use std::io::{self, Read, Write};

/// Longest option: a name of 4096 bytes and what stands around it.
const MAX_OPTION_BYTES: u32 = 8 << 10;

/// Options a client may ask for before it is thought to be lost.
const MAX_OPTIONS: usize = 64;

/// Shakes hands with a client, who gets the one export there is under any of its names: `name` and the empty
/// one. None: the client goes without wanting it.
pub fn shake_hands(
    stream: &mut (impl Read + Write),
    name: &str,
    export: &Export,
) -> io::Result<Option<()>> {
    stream.write_all(&MAGIC.to_be_bytes())?;
    stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
    stream.write_all(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes())?;
    stream.flush()?;
    let client = wire::read_u32(stream)?;
    for _ in 0..MAX_OPTIONS {
        wire::expect(stream, OPTION_MAGIC, 8, "an option")?;
        let number = wire::read_u32(stream)?;
        let length = wire::read_u32(stream)?;
        let data = wire::read_bytes(stream, length, MAX_OPTION_BYTES)?;
        let known = |asked: &[u8]| asked.is_empty() || asked == name.as_bytes();
        match number {
            option::EXPORT_NAME if known(&data) => {
                // The one option whose answer has no head.
                stream.write_all(&export.size_bytes.to_be_bytes())?;
                stream.write_all(&export.flags().to_be_bytes())?;
                if client & u32::from(NO_ZEROES) == 0 {
                    stream.write_all(&[0; 124])?;
                }
                stream.flush()?;
                return Ok(Some(()));
            }
            option::EXPORT_NAME => return Err(invalid("no export of this name".into())),
            option::ABORT => {
                reply(stream, number, answer::ACK, &[])?;
                return Ok(None);
            }
            option::LIST => {
                let mut entry = (name.len() as u32).to_be_bytes().to_vec();
                entry.extend(name.as_bytes());
                reply(stream, number, answer::SERVER, &entry)?;
                reply(stream, number, answer::ACK, &[])?;
            }
            option::INFO | option::GO => match asked_name(&data) {
                Some(asked) if known(asked) => {
                    describe(stream, number, export)?;
                    if number == option::GO {
                        return Ok(Some(()));
                    }
                }
                Some(_) => reply(stream, number, answer::UNKNOWN, b"no export of this name")?,
                None => reply(stream, number, answer::INVALID, b"malformed option")?,
            },
            _ => reply(stream, number, answer::UNSUPPORTED, &[])?,
        }
    }
    Err(invalid(format!("more than {MAX_OPTIONS} options")))
}

/// The name in an INFO or GO option: its length, it, and requests for information, which is sent anyway.
fn asked_name(data: &[u8]) -> Option<&[u8]> {
    let (length, rest) = data.split_first_chunk()?;
    rest.get(..u32::from_be_bytes(*length) as usize)
}

fn describe(stream: &mut impl Write, number: u32, export: &Export) -> io::Result<()> {
    let mut about = info::EXPORT.to_be_bytes().to_vec();
    about.extend(export.size_bytes.to_be_bytes());
    about.extend(export.flags().to_be_bytes());
    reply(stream, number, answer::INFO, &about)?;
    let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for bytes in [
        export.block_bytes,
        export.block_bytes.max(4096),
        MAX_TRANSFER_BYTES,
    ] {
        sizes.extend(bytes.to_be_bytes());
    }
    reply(stream, number, answer::INFO, &sizes)?;
    reply(stream, number, answer::ACK, &[])
}

fn reply(stream: &mut impl Write, number: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut raw = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    raw.extend(number.to_be_bytes());
    raw.extend(kind.to_be_bytes());
    raw.extend((data.len() as u32).to_be_bytes());
    raw.extend(data);
    stream.write_all(&raw)?;
    stream.flush()
}

/// What a client sends after the handshake.
#[derive(Debug)]
pub enum Received {
    /// To be carried out and answered. A write's bytes are in `data`.
    Request {
        /// What is asked for.
        request: Request,
        /// Empty but for writes.
        data: Vec<u8>,
    },
    /// Not to be carried out, only answered with this errno.
    Refused {
        /// The request's name.
        cookie: u64,
        /// Why.
        errno: i32,
    },
    /// The client goes.
    Disconnect,
}

/// Takes the next request. Error: the stream ended in between, or what came is not NBD.
pub fn receive(stream: &mut impl Read, export: &Export) -> io::Result<Received> {
    const EPERM: i32 = 1;
    const EINVAL: i32 = 22;
    const ENOTSUP: i32 = 95;
    let request = Request::read(stream)?;
    let data = match request.kind {
        Kind::Write => wire::read_bytes(stream, request.length, MAX_TRANSFER_BYTES)?,
        _ => Vec::new(),
    };
    let refused = |errno| {
        Ok(Received::Refused {
            cookie: request.cookie,
            errno,
        })
    };
    let end = request.offset.checked_add(u64::from(request.length));
    let inside = end.is_some_and(|end| end <= export.size_bytes);
    let block_bytes = u64::from(export.block_bytes.max(1));
    let aligned = request.offset.is_multiple_of(block_bytes)
        && u64::from(request.length).is_multiple_of(block_bytes);
    match request.kind {
        Kind::Disconnect => return Ok(Received::Disconnect),
        Kind::Unknown(_) => return refused(ENOTSUP),
        Kind::Trim if !export.trim => return refused(ENOTSUP),
        Kind::WriteZeroes if !export.write_zeroes => return refused(ENOTSUP),
        kind if kind.changes() && export.read_only => return refused(EPERM),
        Kind::Flush => {}
        Kind::Read if request.length > MAX_TRANSFER_BYTES => return refused(EINVAL),
        _ if !inside || !aligned || request.length == 0 => return refused(EINVAL),
        _ => {}
    }
    Ok(Received::Request { request, data })
}

/// Answers a request: `result` is a read's bytes in pieces (nothing for all others) or an errno.
pub fn answer<'a>(
    stream: &mut impl Write,
    cookie: u64,
    result: Result<impl IntoIterator<Item = &'a [u8]>, i32>,
) -> io::Result<()> {
    let error = result
        .as_ref()
        .err()
        .map_or(0, |errno| protocol_error(*errno));
    Reply { error, cookie }.write(stream)?;
    for piece in result.into_iter().flatten() {
        stream.write_all(piece)?;
    }
    stream.flush()
}
