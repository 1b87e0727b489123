//! Where the contents of a stream go: a file, or a bdev over NBD.

use super::stream::Piece;
use nbd::client::{Client, MAX_DEPTH};
use nbd::{Kind, MAX_TRANSFER_BYTES};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

/// Longest write.
const PIECE_BYTES: usize = 256 << 10;

/// Where contents go. Everything is zero or a hole at first, unless `zero` has to see to that.
pub trait Sink {
    /// Writes contents of whole sectors.
    fn write(&mut self, offset: u64, contents: &[u8]) -> io::Result<()>;
    /// Makes it read as zeroes, with a hole where there can be one.
    fn zero(&mut self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Has all of that reach the disk.
    fn finish(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn write(&mut self, offset: u64, contents: &[u8]) -> io::Result<()> {
        self.write_all_at(contents, offset)
    }

    fn zero(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        let zeroes = vec![0; bytes.min(1 << 20) as usize];
        let mut at = offset;
        while at < offset + bytes {
            let piece = (offset + bytes - at).min(zeroes.len() as u64);
            self.write_all_at(&zeroes[..piece as usize], at)?;
            at += piece;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl<S: Read + Write> Sink for Client<S> {
    fn write(&mut self, offset: u64, contents: &[u8]) -> io::Result<()> {
        for (at, piece) in (offset..)
            .step_by(PIECE_BYTES)
            .zip(contents.chunks(PIECE_BYTES))
        {
            make_room(self, MAX_DEPTH - 1)?;
            self.send(Kind::Write, at, piece.len() as u32, piece)?;
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        // Not a discard: that may leave parts of the pool's blocks, or everything, as it was. Whole blocks of a thin
        // device become holes by this, too.
        // What was written there before has ended by then.
        make_room(self, 0)?;
        let mut at = offset;
        while at < offset + bytes {
            let piece = (offset + bytes - at).min(u64::from(MAX_TRANSFER_BYTES));
            make_room(self, MAX_DEPTH - 1)?;
            self.send(Kind::WriteZeroes, at, piece as u32, &[])?;
            at += piece;
        }
        make_room(self, 0)
    }

    fn finish(&mut self) -> io::Result<()> {
        make_room(self, 0)?;
        self.call(Kind::Flush, 0, 0, &[]).map(drop)
    }
}

/// Waits until at most so many requests are under way.
fn make_room<S: Read + Write>(client: &mut Client<S>, most: usize) -> io::Result<()> {
    while client.under_way() > most {
        client.receive()?.result.map_err(io::Error::other)?;
    }
    Ok(())
}

/// Writes a piece of a stream in blocks of `block_bytes` to a device of `size_bytes`; what is beyond its end is
/// passed over.
pub fn apply(
    sink: &mut impl Sink,
    piece: &Piece,
    block_bytes: u64,
    size_bytes: u64,
) -> io::Result<()> {
    let room = |first: u64| size_bytes.saturating_sub(first.saturating_mul(block_bytes));
    match piece {
        Piece::Data { first, contents } => match room(*first).min(contents.len() as u64) as usize {
            0 => Ok(()),
            bytes => sink.write(first * block_bytes, &contents[..bytes]),
        },
        Piece::Unmapped { first, count } => {
            let bytes = room(*first).min(count.saturating_mul(block_bytes));
            sink.zero(first.saturating_mul(block_bytes), bytes)
        }
    }
}
