//! A new file, written by a thread of its own, so that no SPDK thread waits for a file system.
//!
//! What is written is handed over in pieces through a short queue: memory is bounded, and who produces
//! faster than the file system takes waits without blocking its thread. A file that does not get to
//! its end is removed.

use bdev::errno::Errno;
use futures::channel::{mpsc, oneshot};
use futures::executor::block_on;
use futures::{SinkExt, StreamExt};
use rpc::RpcError;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};

/// Pieces are handed over when they have this size; a few are under way at a time.
pub const PIECE_BYTES: usize = 256 << 10;
const PIECES: usize = 4;

enum Message {
    Piece(Vec<u8>),
    End,
}

/// A file being written.
pub struct NewFile {
    path: String,
    thread: mpsc::Sender<Message>,
    written: oneshot::Receiver<io::Result<u64>>,
}

impl NewFile {
    /// Starts the thread, which makes the file. That it exists already turns out later.
    pub fn create(path: &str) -> Result<Self, RpcError> {
        let (thread, pieces) = mpsc::channel(PIECES);
        let (done, written) = oneshot::channel();
        let owned = path.to_owned();
        let started = spdk::thread::spawn_blocking("sdm_file", move || {
            // Nobody waits: the dump was given up.
            let _ = done.send(write(&owned, pieces));
        });
        started.map_err(|error| refuse(path, &error))?;
        Ok(NewFile {
            path: path.to_owned(),
            thread,
            written,
        })
    }

    /// Writes a piece. Error: the file could not be made or written.
    pub async fn write(&mut self, piece: Vec<u8>) -> Result<(), RpcError> {
        match self.thread.send(Message::Piece(piece)).await {
            Ok(()) => Ok(()),
            Err(_) => self.end().await.map(drop),
        }
    }

    /// Waits until all is on the disk. Returns the file's size in bytes.
    pub async fn end(&mut self) -> Result<u64, RpcError> {
        // An error: the thread has ended, and says why.
        let _ = self.thread.send(Message::End).await;
        let written = (&mut self.written).await;
        let written = written.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        written.map_err(|error| refuse(&self.path, &error))
    }
}

fn refuse(path: &str, error: &io::Error) -> RpcError {
    let remedy = match error.kind() {
        io::ErrorKind::AlreadyExists => {
            "; nothing is overwritten: remove it or choose another name"
        }
        io::ErrorKind::NotFound => "; make the folder first",
        _ => "",
    };
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno);
    RpcError::new(errno, format!("file '{path}': {error}{remedy}"))
}

/// The thread's work.
fn write(path: &str, pieces: mpsc::Receiver<Message>) -> io::Result<u64> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let written = fill(&mut file, pieces);
    if written.is_err() {
        // It is ours: it did not exist.
        let _ = fs::remove_file(path);
    }
    written
}

fn fill(file: &mut fs::File, mut pieces: mpsc::Receiver<Message>) -> io::Result<u64> {
    let mut bytes = 0;
    loop {
        match block_on(pieces.next()) {
            Some(Message::Piece(piece)) => {
                file.write_all(&piece)?;
                bytes += piece.len() as u64;
            }
            Some(Message::End) => {
                file.sync_all()?;
                return Ok(bytes);
            }
            None => return Err(io::Error::other("given up")),
        }
    }
}
