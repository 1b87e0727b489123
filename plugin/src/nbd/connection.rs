//! One client of an export. Two ordinary threads wait for the socket, so that no SPDK thread does; the app
//! thread does the I/O.
//!
//! What a client may have under way is bounded in bytes and in number, so its memory is. A request
//! that gets lost on the way (the target ends) is answered with an error when it is dropped.

use super::Shared;
use nbd::server::{self, Received};
use nbd::{Kind, Request};
use spdk::base::{BaseChannel, IoKind};
use spdk::dma::DmaBuf;
use spdk::executor::sleep;
use std::io::{self, BufReader, BufWriter};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest single I/O; longer requests are several. Memory that devices reach is scarce and in pieces.
const PIECE_BYTES: u32 = 128 << 10;

/// Bytes of all requests of a client under way, if there is more than one.
const BUDGET_BYTES: u64 = 8 << 20;

/// What a request counts at least: not more than 512 are under way.
const LEAST_BYTES: u64 = BUDGET_BYTES / 512;

/// How long a request waits for memory that others give back.
const PATIENCE: Duration = Duration::from_secs(10);

const ENOMEM: i32 = 12;
const ESHUTDOWN: i32 = 108;

type Outcome = Result<Vec<DmaBuf>, i32>;

/// Bytes that requests may still take.
struct Budget {
    free: Mutex<u64>,
    more: Condvar,
}

impl Budget {
    fn take(&self, bytes: u64) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .more
            .wait_while(free, |free| *free < bytes)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
    }

    fn give_back(&self, bytes: u64) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        self.more.notify_one();
    }
}

/// An answer on its way to the client.
struct Answered {
    cookie: u64,
    outcome: Outcome,
    cost_bytes: u64,
}

/// A request's right to be answered.
struct Reply {
    answers: Sender<Answered>,
    cookie: u64,
    cost_bytes: u64,
    sent: bool,
}

impl Reply {
    fn send(mut self, outcome: Outcome) {
        self.put(outcome);
    }

    fn put(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.sent, true) {
            // The writer has ended if the client is gone.
            let _ = self.answers.send(Answered {
                cookie: self.cookie,
                outcome,
                cost_bytes: self.cost_bytes,
            });
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.put(Err(ESHUTDOWN));
    }
}

/// Serves a client to its end: the work of the connection's thread.
pub fn serve(mut stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    if server::shake_hands(&mut stream, &shared.bdev_name, &shared.export)?.is_none() {
        return Ok(());
    }
    let budget = Arc::new(Budget {
        free: Mutex::new(BUDGET_BYTES),
        more: Condvar::new(),
    });
    let (answers, to_write) = channel();
    let (out, writer_budget) = (stream.try_clone()?, budget.clone());
    spdk::thread::spawn_blocking("sdm_nbd_out", move || {
        write_answers(&out, &to_write, &writer_budget);
    })?;
    let mut requests = BufReader::with_capacity(64 << 10, stream);
    // Waits for room first.
    let reply = |cookie, bytes: u64| {
        let cost_bytes = bytes.clamp(LEAST_BYTES, BUDGET_BYTES);
        budget.take(cost_bytes);
        Reply {
            answers: answers.clone(),
            cookie,
            cost_bytes,
            sent: false,
        }
    };
    loop {
        let (request, data) = match server::receive(&mut requests, &shared.export)? {
            Received::Disconnect => return Ok(()),
            Received::Refused { cookie, errno } => {
                reply(cookie, 0).send(Err(errno));
                continue;
            }
            Received::Request { request, data } => (request, data),
        };
        let bytes = match request.kind {
            Kind::Read | Kind::Write => u64::from(request.length),
            _ => 0,
        };
        let reply = reply(request.cookie, bytes);
        let shared = shared.clone();
        let thread = shared.thread;
        thread.send(move || start(shared, request, data, reply));
    }
}

/// On the app thread.
fn start(shared: Arc<Shared>, request: Request, data: Vec<u8>, reply: Reply) {
    let Some(channel) = super::channel(&shared) else {
        return reply.send(Err(ESHUTDOWN));
    };
    spdk::executor::spawn(async move {
        let outcome = carry_out(&channel, &request, &data).await;
        if outcome.is_ok() {
            let counted = match request.kind {
                Kind::Read => Some(&shared.bytes_read),
                Kind::Write => Some(&shared.bytes_written),
                _ => None,
            };
            if let Some(counter) = counted {
                counter.fetch_add(u64::from(request.length), Ordering::Relaxed);
            }
        }
        reply.send(outcome);
    });
}

async fn buffer(bytes: usize) -> Result<DmaBuf, i32> {
    let began = Instant::now();
    loop {
        match DmaBuf::new(bytes) {
            Some(buf) => return Ok(buf),
            None if began.elapsed() > PATIENCE => return Err(ENOMEM),
            None => sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn carry_out(channel: &BaseChannel, request: &Request, data: &[u8]) -> Outcome {
    let info = channel.descriptor().info();
    let block_bytes = u64::from(info.block_bytes);
    let (at, count) = (
        request.offset / block_bytes,
        u64::from(request.length) / block_bytes,
    );
    let mut found = Vec::new();
    match request.kind {
        Kind::Read => {
            for piece in (0..request.length).step_by(PIECE_BYTES as usize) {
                let bytes = PIECE_BYTES.min(request.length - piece);
                let buf = buffer(bytes as usize).await?;
                found.push(
                    channel
                        .read(buf, at + u64::from(piece) / block_bytes)
                        .await?,
                );
            }
        }
        Kind::Write => {
            let mut at = at;
            for piece in data.chunks(PIECE_BYTES as usize) {
                let mut buf = buffer(piece.len()).await?;
                buf.copy_from_slice(piece);
                channel.write(buf, at).await?;
                at += piece.len() as u64 / block_bytes;
            }
        }
        Kind::Trim => channel.range(IoKind::Unmap, at, count).await?,
        Kind::WriteZeroes => channel.range(IoKind::WriteZeroes, at, count).await?,
        Kind::Flush | Kind::Disconnect | Kind::Unknown(_) => {}
    }
    // A bdev without flush has no volatile cache.
    let durable = request.kind == Kind::Flush || request.fua && request.kind.changes();
    if durable && info.supports(IoKind::Flush) {
        channel.range(IoKind::Flush, 0, info.nr_blocks).await?;
    }
    Ok(found)
}

fn write_answers(stream: &UnixStream, answers: &Receiver<Answered>, budget: &Budget) {
    let mut out = BufWriter::with_capacity(4 << 10, stream);
    // Ends when the reader and all requests under way are gone.
    while let Ok(answered) = answers.recv() {
        let result = answered.outcome.as_ref().map_err(|errno| *errno);
        let result = result.map(|buffers| buffers.iter().map(|buf| &buf[..]));
        let written = server::answer(&mut out, answered.cookie, result);
        budget.give_back(answered.cost_bytes);
        if let Err(error) = written {
            log::debug!("NBD client went: {error}");
            // The reader may be waiting for the socket, or for what it may have under way.
            let _ = stream.shutdown(Shutdown::Both);
            while let Ok(answered) = answers.recv() {
                budget.give_back(answered.cost_bytes);
            }
            return;
        }
    }
}
