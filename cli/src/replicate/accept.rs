//! `replicate receive`: connections, and who may do what on them.

use super::Failure;
use super::apply::{Begin, Receiver, bad};
use super::state::Role;
use super::wire::{Message, Secret, VERSION, nonce};
use crate::Global;
use crate::dm::Server;
use crate::error::CliError;
use clap::Args;
use std::collections::HashMap;
use std::io::{self, BufReader};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// How long somebody who has not proven who he is may take to say something.
const STRANGER: Duration = Duration::from_secs(10);

/// How long the source may look for what has changed.
const SEARCH: Duration = Duration::from_secs(600);

/// How long nothing may come while changes do. Then the network is cut, and the source will try again.
const SILENCE: Duration = Duration::from_secs(60);

/// Arguments of `replicate receive`.
#[derive(Args)]
pub struct ReceiveArgs {
    /// The pool for the replicas
    pool: String,
    /// Where to listen; who can connect can fill the pool. Without --token-file only addresses of this host are taken
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9760")]
    listen: SocketAddr,
    /// A file with a secret that both sides know
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// So many snapshots of each source stay, the newest one included
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    keep: u64,
    #[command(flatten)]
    server: Server,
}

struct Shared {
    receiver: Receiver,
    secret: Option<Secret>,
    connections: AtomicUsize,
    /// Who is sending changes of which replication; the last one who asks is right.
    senders: Mutex<HashMap<String, (u64, TcpStream)>>,
    quiet: bool,
}

impl ReceiveArgs {
    /// Receives until the program is ended.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let address = self.listen;
        let secret = self.token_file.as_deref().map(Secret::read).transpose()?;
        if secret.is_none() && !address.ip().is_loopback() {
            let what = "others can reach it, and could fill the pool: give --token-file, or listen on 127.0.0.1";
            return Err(CliError::Usage(format!("{address}: {what}")));
        }
        let failed = |error: io::Error| CliError::Listen {
            address,
            what: error.to_string(),
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !global.quiet {
            eprintln!("spdk-dm: receiving on {address}");
        }
        let shared = Arc::new(Shared {
            receiver: Receiver {
                pool: self.pool,
                server: self.server,
                keep: self.keep as usize,
            },
            secret,
            connections: AtomicUsize::new(0),
            senders: Mutex::default(),
            quiet: global.quiet,
        });
        for number in 0.. {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Of this connection, or there are too many files open: others may go better.
                    log::warn!("{address}: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if shared.connections.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
                shared.connections.fetch_sub(1, Ordering::SeqCst);
                log::warn!("{address}: more than {MAX_CONNECTIONS} connections");
                continue;
            }
            let shared = shared.clone();
            std::thread::spawn(move || {
                let ended = shared.serve(stream, number);
                shared.connections.fetch_sub(1, Ordering::SeqCst);
                if let (Err(error), false) = (ended, shared.quiet) {
                    eprintln!("spdk-dm: {error}");
                }
            });
        }
        Ok(true)
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream, number: u64) -> Result<(), CliError> {
        let peer = match stream.peer_addr() {
            Ok(peer) => peer.to_string(),
            // It has gone already.
            Err(_) => return Ok(()),
        };
        let setup = |error: io::Error| CliError::Usage(format!("{peer}: {error}"));
        stream.set_nodelay(true).map_err(setup)?;
        stream.set_read_timeout(Some(STRANGER)).map_err(setup)?;
        stream.set_write_timeout(Some(SILENCE)).map_err(setup)?;
        let mut input = BufReader::with_capacity(1 << 20, stream.try_clone().map_err(setup)?);
        let mut chain = None;
        let served = self.converse(&mut input, &stream, &peer, number, &mut chain);
        if let Some(chain) = chain {
            let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
            if senders
                .get(&chain)
                .is_some_and(|(other, _)| *other == number)
            {
                senders.remove(&chain);
            }
        }
        match served {
            Ok(()) => Ok(()),
            Err(failure) => {
                let refusal = Message::Refused {
                    why: failure.error.to_string(),
                    is_final: failure.is_final,
                };
                // It may have gone.
                let _ = refusal.write(&mut &stream);
                // What it has sent meanwhile is read, or the refusal would be lost on its way.
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = io::copy(&mut io::Read::take(input, 64 << 20), &mut io::sink());
                Err(CliError::Usage(format!("{peer}: {}", failure.error)))
            }
        }
    }

    fn converse(
        &self,
        input: &mut BufReader<TcpStream>,
        stream: &TcpStream,
        peer: &str,
        number: u64,
        known_as: &mut Option<String>,
    ) -> Result<(), Failure> {
        let hear = |input: &mut BufReader<TcpStream>| Message::read(input).map_err(bad);
        let say = |message: Message| {
            let said = message.write(&mut &*stream);
            said.map_err(|error| bad(error.into()))
        };
        let wait = |limit: Duration| {
            let set = stream.set_read_timeout(Some(limit));
            set.map_err(|error| bad(error.into()))
        };
        let odd = || Failure::last("not what a source says".into());
        let ours = nonce()?;
        say(Message::Hello {
            version: VERSION,
            nonce: ours.clone(),
            secret: self.secret.is_some(),
        })?;
        let Message::Login {
            nonce: theirs,
            proof,
        } = hear(input)?
        else {
            return Err(odd());
        };
        if let Some(secret) = &self.secret {
            let proof = proof.unwrap_or_default();
            if !secret.is_proven(Role::Source, &ours, &theirs, &proof) {
                return Err(Failure::last("that is not the secret".into()));
            }
        }
        let secret = self.secret.as_ref();
        say(Message::Welcome {
            proof: secret.map(|secret| secret.prove(Role::Replica, &ours, &theirs)),
        })?;
        let Message::Query { chain } = hear(input)? else {
            return Err(odd());
        };
        // A connection that was cut can be waiting still.
        self.supersede(&chain, number, stream);
        *known_as = Some(chain.clone());
        say(self.receiver.known(&chain)?)?;
        wait(SEARCH)?;
        let begin = match hear(input)? {
            Message::Begin {
                chain: of,
                from_block,
                number,
            } if of == chain => Begin {
                chain,
                from_block,
                number,
            },
            _ => return Err(odd()),
        };
        wait(SILENCE)?;
        let reached = |next_block| say(Message::Reached { next_block });
        let finished = |uuid| say(Message::Finished { uuid });
        self.receiver
            .receive(&begin, input, peer, &reached, &finished)
    }

    fn supersede(&self, chain: &str, number: u64, stream: &TcpStream) {
        let Ok(stream) = stream.try_clone() else {
            return;
        };
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, before)) = senders.insert(chain.to_owned(), (number, stream)) {
            // It sees that, ends, and lets the state go, for which the new one waits.
            let _ = before.shutdown(Shutdown::Both);
        }
    }
}
