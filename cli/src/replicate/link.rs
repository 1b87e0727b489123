//! The source's end of a connection.

use super::Failure;
use super::state::Role;
use super::wire::{Message, Partly, Secret, VERSION, nonce};
use crate::backup::stream::StreamError;
use std::io::{self, BufReader, BufWriter, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(10);

/// How long the receiver may say nothing: it may have to wait for its disks.
const SILENCE: Duration = Duration::from_secs(120);

/// A stream that counts what goes through it.
pub struct Counted {
    stream: TcpStream,
    bytes: Arc<AtomicU64>,
}

impl Write for Counted {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(buf)?;
        self.bytes.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A connection to a receiver that knows us.
pub struct Link {
    peer: String,
    input: BufReader<TcpStream>,
    out: BufWriter<Counted>,
}

/// What the receiver has.
pub struct Known {
    /// Its role; None: nothing.
    pub role: Option<Role>,
    /// Identities, oldest first.
    pub snapshots: Vec<String>,
    /// Part of the next.
    pub receiving: Option<Partly>,
}

/// What goes wrong with a peer.
fn failed(peer: &str, error: StreamError) -> Failure {
    let what = match error {
        StreamError::Io(error) => error.to_string(),
        StreamError::Incomplete { .. } => "it has closed the connection".into(),
        StreamError::Damaged { what, .. } => what,
    };
    Failure::again(format!("{peer}: {what}"))
}

fn odd(peer: &str) -> Failure {
    Failure::again(format!("{peer}: not what a receiver says"))
}

/// The next message that is not a refusal.
fn hear(peer: &str, input: &mut BufReader<TcpStream>) -> Result<Message, Failure> {
    match Message::read(input).map_err(|error| failed(peer, error))? {
        Message::Refused { why, is_final } => Err(Failure::refused(peer, &why, is_final)),
        message => Ok(message),
    }
}

impl Link {
    /// Connects, and lets each side prove that it knows the secret.
    pub fn connect(
        peer: &str,
        secret: Option<&Secret>,
        sent_bytes: &Arc<AtomicU64>,
    ) -> Result<Link, Failure> {
        let broken = |error: io::Error| Failure::again(format!("{peer}: {error}"));
        let mut addresses = peer.to_socket_addrs().map_err(broken)?;
        let address = addresses
            .next()
            .ok_or_else(|| Failure::again(format!("{peer}: no such host")))?;
        let stream = TcpStream::connect_timeout(&address, CONNECT).map_err(broken)?;
        let prepare = || {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(SILENCE))?;
            stream.set_write_timeout(Some(SILENCE))?;
            stream.try_clone()
        };
        let counted = Counted {
            stream: prepare().map_err(broken)?,
            bytes: sent_bytes.clone(),
        };
        let mut link = Link {
            peer: peer.to_owned(),
            input: BufReader::new(stream),
            out: BufWriter::with_capacity(1 << 20, counted),
        };
        link.log_in(secret)?;
        Ok(link)
    }

    fn log_in(&mut self, secret: Option<&Secret>) -> Result<(), Failure> {
        let peer = self.peer.clone();
        let Message::Hello {
            version,
            nonce: theirs,
            secret: asked,
        } = self.hear()?
        else {
            return Err(odd(&peer));
        };
        if version != VERSION {
            return Err(Failure::last(format!(
                "{peer}: speaks version {version}, and this is {VERSION}; use the same spdk-dm on both sides"
            )));
        }
        match (asked, secret.is_some()) {
            (true, false) => {
                let what = "asks for a secret; give the file with it by --token-file";
                return Err(Failure::last(format!("{peer}: {what}")));
            }
            (false, true) => {
                let what = "asks for no secret, so it may be anybody; start it with --token-file";
                return Err(Failure::last(format!("{peer}: {what}")));
            }
            _ => {}
        }
        let ours = nonce()?;
        self.say(&Message::Login {
            proof: secret.map(|secret| secret.prove(Role::Source, &theirs, &ours)),
            nonce: ours.clone(),
        })?;
        let Message::Welcome { proof } = self.hear()? else {
            return Err(odd(&peer));
        };
        match (secret, proof) {
            (None, _) => Ok(()),
            (Some(secret), Some(proof))
                if secret.is_proven(Role::Replica, &theirs, &ours, &proof) =>
            {
                Ok(())
            }
            _ => Err(Failure::last(format!("{peer}: does not know the secret"))),
        }
    }

    /// What the receiver has of a replication.
    pub fn query(&mut self, chain: &str) -> Result<Known, Failure> {
        self.say(&Message::Query {
            chain: chain.to_owned(),
        })?;
        match self.hear()? {
            Message::Known {
                role,
                snapshots,
                receiving,
            } => Ok(Known {
                role,
                snapshots,
                receiving,
            }),
            _ => Err(odd(&self.peer)),
        }
    }

    fn hear(&mut self) -> Result<Message, Failure> {
        hear(&self.peer, &mut self.input)
    }

    /// Says something.
    pub fn say(&mut self, message: &Message) -> Result<(), Failure> {
        let said = message.write(&mut self.out);
        said.map_err(|error| Failure::again(format!("{}: {error}", self.peer)))
    }

    /// What is to be written to, and what is said meanwhile.
    pub fn split(self) -> (BufWriter<Counted>, Listener) {
        let Link { peer, input, out } = self;
        let stream = input.get_ref().try_clone().ok();
        let thread = std::thread::spawn(move || listen(&peer, input));
        (out, Listener { stream, thread })
    }
}

/// Hears what the receiver says while changes are sent.
pub struct Listener {
    stream: Option<TcpStream>,
    thread: JoinHandle<Result<String, Failure>>,
}

impl Listener {
    /// Whether there is nothing more to be heard.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// The snapshot that the replica is now. `is_sent`: all changes were sent.
    pub fn end(self, is_sent: bool) -> Result<String, Failure> {
        if let (Some(stream), false) = (&self.stream, is_sent) {
            // What was said before is still heard.
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        }
        let lost = |_| Failure::again("the receiver cannot be heard any more".into());
        self.thread.join().map_err(lost)?
    }
}

fn listen(peer: &str, mut input: BufReader<TcpStream>) -> Result<String, Failure> {
    loop {
        match hear(peer, &mut input)? {
            // It is at work.
            Message::Reached { .. } => {}
            Message::Finished { uuid } => return Ok(uuid),
            _ => return Err(odd(peer)),
        }
    }
}
