//! What the two sides say to each other, and how each knows the other.
//!
//! Messages are records as those of a backup stream, of kind `M`, with JSON. Both sides speak in turn, except while
//! changes are sent: those are a backup stream, and the receiver says in between how far they are on its disk.
//! Nothing that comes is trusted: a message is short, an identity has 32 hexadecimal digits, and who does not know
//! the secret gets nothing but its refusal.

use super::state::Role;
use crate::backup::random;
use crate::backup::stream::{StreamError, read_record, write_record};
use crate::error::CliError;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Of this protocol.
pub const VERSION: u32 = 1;

const KIND: u8 = b'M';
const MAX_MESSAGE_BYTES: u32 = 64 << 10;

/// A secret has so many bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=4096;

/// Changes of which a part has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partly {
    /// Of this snapshot.
    pub uuid: String,
    /// Since this one.
    pub parent: Option<String>,
    /// What is before this block is there.
    pub next_block: u64,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// Receiver, first.
    Hello {
        /// Of the protocol.
        version: u32,
        /// 32 random bytes in hexadecimal digits.
        nonce: String,
        /// Whether a proof is asked for.
        secret: bool,
    },
    /// Source: who it is.
    Login {
        /// As above.
        nonce: String,
        /// That it knows the secret.
        proof: Option<String>,
    },
    /// Receiver.
    Welcome {
        /// That it knows the secret.
        proof: Option<String>,
    },
    /// Source: what is there of this?
    Query {
        /// The replication.
        chain: String,
    },
    /// Receiver.
    Known {
        /// Its role; None: nothing is known.
        role: Option<Role>,
        /// Identities, oldest first.
        snapshots: Vec<String>,
        /// What has come of the next.
        receiving: Option<Partly>,
    },
    /// Source: a stream follows.
    Begin {
        /// The replication.
        chain: String,
        /// What is before this block is there.
        from_block: u64,
        /// Of the snapshot.
        number: u64,
    },
    /// Receiver: so far it is on the disk.
    Reached {
        /// What is before this block.
        next_block: u64,
    },
    /// Receiver: the replica is this snapshot now.
    Finished {
        /// Its identity.
        uuid: String,
    },
    /// Receiver.
    Refused {
        /// Why.
        why: String,
        /// It is of no use to try again.
        is_final: bool,
    },
}

impl Message {
    /// Sends it.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        // In one piece: it is one packet.
        let mut record = Vec::with_capacity(text.len() + 16);
        write_record(&mut record, KIND, &text)?;
        out.write_all(&record)?;
        out.flush()
    }

    /// The next one.
    pub fn read(input: &mut impl Read) -> Result<Message, StreamError> {
        let (kind, text) = read_record(input, MAX_MESSAGE_BYTES)?;
        let odd = |what: String| StreamError::Damaged { at: 0, what };
        if kind != KIND {
            return Err(odd("not a message of spdk-dm replicate".into()));
        }
        let message: Message =
            serde_json::from_slice(&text).map_err(|error| odd(error.to_string()))?;
        match message.is_sane() {
            true => Ok(message),
            false => Err(odd("a message with an impossible identity".into())),
        }
    }

    fn is_sane(&self) -> bool {
        match self {
            Message::Hello { nonce, .. } => is_hex(nonce, 64),
            Message::Login { nonce, proof } => is_hex(nonce, 64) && is_proof(proof),
            Message::Welcome { proof } => is_proof(proof),
            Message::Query { chain } | Message::Begin { chain, .. } => is_uuid(chain),
            Message::Known {
                snapshots,
                receiving,
                ..
            } => {
                let parts = receiving.iter();
                let parts = parts.flat_map(|part| part.parent.iter().chain([&part.uuid]));
                snapshots.iter().chain(parts).all(|uuid| is_uuid(uuid))
            }
            Message::Finished { uuid } => is_uuid(uuid),
            Message::Reached { .. } | Message::Refused { .. } => true,
        }
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == length && text.bytes().all(digit)
}

/// Whether this names a snapshot or a replication.
pub fn is_uuid(text: &str) -> bool {
    is_hex(text, 32)
}

fn is_proof(proof: &Option<String>) -> bool {
    proof.as_ref().is_none_or(|proof| is_hex(proof, 64))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.map(byte).collect()
}

/// 32 bytes that were never said before.
pub fn nonce() -> Result<String, CliError> {
    Ok(hex(&random::<32>()?))
}

/// What both sides know and nobody else.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// The contents of a file, without the end of its line.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(CliError::io(path))?;
        file.take(*SECRET_BYTES.end() as u64 + 2)
            .read_to_end(&mut bytes)
            .map_err(CliError::io(path))?;
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        match Secret::new(&bytes) {
            Some(secret) => Ok(secret),
            None => Err(CliError::Usage(format!(
                "{}: a secret has 16 to 4096 bytes; make one: openssl rand -hex 32 > FILE",
                path.display()
            ))),
        }
    }

    fn new(bytes: &[u8]) -> Option<Self> {
        let fits = SECRET_BYTES.contains(&bytes.len());
        let mac = <Hmac<Sha256> as Mac>::new_from_slice(bytes).ok();
        mac.filter(|_| fits).map(Secret)
    }

    fn mac(&self, side: Role, receiver: &str, source: &str) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(format!("spdk-dm replicate {side} {receiver} {source}").as_bytes());
        mac
    }

    /// The proof of one side, for these two nonces.
    pub fn prove(&self, side: Role, receiver: &str, source: &str) -> String {
        let mac = self.mac(side, receiver, source);
        hex(&mac.finalize().into_bytes())
    }

    /// Whether a proof is right, in a time that does not depend on how wrong it is.
    pub fn is_proven(&self, side: Role, receiver: &str, source: &str, proof: &str) -> bool {
        let mac = self.mac(side, receiver, source);
        from_hex(proof).is_some_and(|proof| mac.verify_slice(&proof).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uuid() -> impl Strategy<Value = String> {
        "[0-9a-f]{32}"
    }

    fn message() -> impl Strategy<Value = Message> {
        let partly = (uuid(), prop::option::of(uuid()), any::<u64>()).prop_map(
            |(uuid, parent, next_block)| Partly {
                uuid,
                parent,
                next_block,
            },
        );
        let role = prop::option::of(prop_oneof![Just(Role::Source), Just(Role::Replica)]);
        prop_oneof![
            ("[0-9a-f]{64}", any::<bool>(), any::<u32>()).prop_map(|(nonce, secret, version)| {
                Message::Hello {
                    version,
                    nonce,
                    secret,
                }
            }),
            ("[0-9a-f]{64}", prop::option::of("[0-9a-f]{64}"))
                .prop_map(|(nonce, proof)| Message::Login { nonce, proof }),
            prop::option::of("[0-9a-f]{64}").prop_map(|proof| Message::Welcome { proof }),
            uuid().prop_map(|chain| Message::Query { chain }),
            (
                role,
                prop::collection::vec(uuid(), 0..64),
                prop::option::of(partly)
            )
                .prop_map(|(role, snapshots, receiving)| Message::Known {
                    role,
                    snapshots,
                    receiving
                }),
            (uuid(), any::<u64>(), any::<u64>()).prop_map(|(chain, from_block, number)| {
                Message::Begin {
                    chain,
                    from_block,
                    number,
                }
            }),
            any::<u64>().prop_map(|next_block| Message::Reached { next_block }),
            uuid().prop_map(|uuid| Message::Finished { uuid }),
            (".{0,200}", any::<bool>())
                .prop_map(|(why, is_final)| Message::Refused { why, is_final }),
        ]
    }

    proptest! {
        /// What is said is heard; a part of it is not, and no changed byte goes unnoticed.
        #[test]
        fn round_trip(message in message(), at in 0..10_000usize, change in 1..=255u8) {
            let mut said = Vec::new();
            message.write(&mut said).unwrap();
            prop_assert_eq!(&Message::read(&mut &said[..]).unwrap(), &message);
            let at = at % said.len();
            prop_assert!(Message::read(&mut &said[..at]).is_err());
            said[at] ^= change;
            prop_assert!(Message::read(&mut &said[..]).is_err());
        }

        /// Any bytes, also in a record that is whole, are refused without taking much memory.
        #[test]
        fn nonsense(kind in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..100), text in ".{0,60}") {
            prop_assert!(Message::read(&mut &bytes[..]).is_err());
            for payload in [bytes, text.clone().into_bytes(), format!("{{\"query\":{{\"chain\":{text:?}}}}}").into_bytes()] {
                for kind in [kind, KIND] {
                    let mut record = Vec::new();
                    write_record(&mut record, kind, &payload).unwrap();
                    prop_assert!(Message::read(&mut &record[..]).is_err());
                }
            }
        }

        /// A proof is of one side, one secret and these nonces.
        #[test]
        fn proofs(a in "[0-9a-f]{64}", b in "[0-9a-f]{64}", secret in prop::collection::vec(any::<u8>(), 16..100), other in any::<u8>()) {
            let right = Secret::new(&secret).unwrap();
            let proof = right.prove(Role::Source, &a, &b);
            prop_assert!(right.is_proven(Role::Source, &a, &b, &proof));
            prop_assert!(!right.is_proven(Role::Replica, &a, &b, &proof));
            prop_assert!(a == b || !right.is_proven(Role::Source, &b, &a, &proof));
            let wrong = Secret::new(&[&secret[..], &[other]].concat()).unwrap();
            prop_assert!(other == 0 || !wrong.is_proven(Role::Source, &a, &b, &proof));
            prop_assert!(!right.is_proven(Role::Source, &a, &b, &proof[1..]));
        }
    }

    /// A record that says it is long is refused before memory is taken for it.
    #[test]
    fn length_is_bounded() {
        let mut record = vec![KIND];
        record.extend(u32::MAX.to_le_bytes());
        let refused = Message::read(&mut &record[..]);
        assert!(matches!(refused, Err(StreamError::Damaged { .. })));
    }
}
