//! The client's end, with many requests under way at a time.

use crate::wire::{
    self, Export, FIXED_NEWSTYLE, Kind, MAGIC, MAX_TRANSFER_BYTES, NO_ZEROES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, Reply, Request, answer, info, invalid, option,
};
use std::collections::HashMap;
use std::io::{self, Read, Write};

/// Most requests under way. Servers take at least this many of up to 256 KiB without waiting for their
/// replies to be read, so that one thread may both send and receive.
pub const MAX_DEPTH: usize = 16;

/// Longest answer to an option.
const MAX_ANSWER_BYTES: u32 = 64 << 10;

/// A connection.
pub struct Client<S> {
    stream: S,
    export: Export,
    next_cookie: u64,
    /// Length of each request's answer, by cookie.
    under_way: HashMap<u64, u32>,
}

/// The server refused or could not do what was asked; the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", io::Error::from_raw_os_error(*.0))]
pub struct Refused(pub i32);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// What [`Client::send`] returned.
    pub cookie: u64,
    /// A read's bytes, nothing for all others.
    pub result: Result<Vec<u8>, Refused>,
}

impl<S: Read + Write> Client<S> {
    /// Shakes hands and takes the export of this name; the empty one is the server's only one.
    pub fn connect(mut stream: S, name: &str) -> io::Result<Self> {
        wire::expect(&mut stream, MAGIC, 8, "what it says first")?;
        wire::expect(&mut stream, OPTION_MAGIC, 8, "the handshake")?;
        let server = wire::read_u16(&mut stream)?;
        if server & FIXED_NEWSTYLE == 0 {
            return Err(invalid("the server is too old".into()));
        }
        let flags = server & (FIXED_NEWSTYLE | NO_ZEROES);
        stream.write_all(&u32::from(flags).to_be_bytes())?;
        let export = go(&mut stream, name)?;
        Ok(Client {
            stream,
            export,
            next_cookie: 1,
            under_way: HashMap::new(),
        })
    }

    /// What is served.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// How many requests are not answered yet.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Sends a request, with `data` if it is a write. Returns its cookie. At most [`MAX_DEPTH`] may be under
    /// way, and no piece be longer than [`MAX_TRANSFER_BYTES`].
    pub fn send(&mut self, kind: Kind, offset: u64, length: u32, data: &[u8]) -> io::Result<u64> {
        let fits = kind != Kind::Write || data.len() == length as usize;
        if self.under_way.len() >= MAX_DEPTH || length > MAX_TRANSFER_BYTES || !fits {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let request = Request {
            kind,
            fua: false,
            cookie,
            offset,
            length,
        };
        request.write(&mut self.stream)?;
        if kind == Kind::Write {
            self.stream.write_all(data)?;
        }
        self.stream.flush()?;
        let answered = if kind == Kind::Read { length } else { 0 };
        self.under_way.insert(cookie, answered);
        Ok(cookie)
    }

    /// The next answer, in whatever order the server answers.
    pub fn receive(&mut self) -> io::Result<Answer> {
        let reply = Reply::read(&mut self.stream)?;
        let Some(length) = self.under_way.remove(&reply.cookie) else {
            return Err(invalid("the server answers what was not asked".into()));
        };
        let result = match reply.error {
            0 => Ok(wire::read_bytes(
                &mut self.stream,
                length,
                MAX_TRANSFER_BYTES,
            )?),
            error => Err(Refused(i32::try_from(error).unwrap_or(5))),
        };
        Ok(Answer {
            cookie: reply.cookie,
            result,
        })
    }

    /// Sends one request and waits for its answer. Nothing else may be under way.
    pub fn call(
        &mut self,
        kind: Kind,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<Vec<u8>> {
        self.send(kind, offset, length, data)?;
        self.receive()?.result.map_err(io::Error::other)
    }

    /// Says goodbye.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.send(Kind::Disconnect, 0, 0, &[]).map(drop)
    }
}

fn go(stream: &mut (impl Read + Write), name: &str) -> io::Result<Export> {
    let mut raw = OPTION_MAGIC.to_be_bytes().to_vec();
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(1u16.to_be_bytes());
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    raw.extend(option::GO.to_be_bytes());
    raw.extend((data.len() as u32).to_be_bytes());
    raw.extend(data);
    stream.write_all(&raw)?;
    stream.flush()?;
    let mut export = None;
    let mut block_bytes = 1;
    loop {
        wire::expect(stream, OPTION_REPLY_MAGIC, 8, "an answer to an option")?;
        let _option = wire::read_u32(stream)?;
        let kind = wire::read_u32(stream)?;
        let length = wire::read_u32(stream)?;
        let data = wire::read_bytes(stream, length, MAX_ANSWER_BYTES)?;
        match kind {
            answer::ACK => break,
            answer::INFO => {
                let mut at = &data[..];
                match wire::read_u16(&mut at)? {
                    info::EXPORT => {
                        let size_bytes = wire::read_u64(&mut at)?;
                        export = Some(Export::from_flags(size_bytes, wire::read_u16(&mut at)?));
                    }
                    info::BLOCK_SIZE => block_bytes = wire::read_u32(&mut at)?,
                    _ => {}
                }
            }
            kind if kind & answer::REFUSED != 0 => {
                let why = String::from_utf8_lossy(&data);
                return Err(invalid(format!(
                    "the server refuses export '{name}': {why} ({kind:#x})"
                )));
            }
            _ => {}
        }
    }
    let export = export.ok_or_else(|| invalid("the server does not say how large it is".into()))?;
    Ok(Export {
        block_bytes,
        ..export
    })
}
