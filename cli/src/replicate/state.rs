//! What one side knows of a replication, as it stands in the pool.
//!
//! It is kept in a thin device of its own, so it is found again wherever the pool goes. Two slots are written in
//! turn, each with a sequence number and a checksum: when a write of one is cut off, the other is good.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Both slots.
pub const STATE_BYTES: usize = 64 << 10;

const SLOT_BYTES: usize = STATE_BYTES / 2;
const MAGIC: &[u8; 16] = b"spdk-dm replica\n";
/// Magic, sequence number, length; and the checksum behind the text.
const HEAD_BYTES: usize = 16 + 8 + 4;

/// Most snapshots that one side keeps: so many fit into a slot.
pub const MAX_SNAPSHOTS: usize = 64;

/// Which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// From here.
    Source,
    /// To here.
    Replica,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Replica => "replica",
        })
    }
}

/// A snapshot of the source, here. Nobody writes to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The same on both sides.
    pub uuid: String,
    /// One more than the one before.
    pub number: u64,
    /// When the source took it.
    pub taken_unix_s: u64,
    /// Size of the device then.
    pub size_bytes: u64,
    /// The thin device that it is in this pool.
    pub id: u64,
    /// That one's creation time, in the pool's counting: with the id it says whether it is still the same.
    pub creation_time: u64,
    /// The other side has it, too, or had it.
    pub common: bool,
}

/// The thin device into which changes are written. Nobody else looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Its id.
    pub id: u64,
    /// None: it was about to be made.
    pub creation_time: Option<u64>,
    /// The replica it is equal to; None: changes have been written to it, or it is empty.
    pub holds: Option<String>,
    /// Nothing is mapped beyond.
    pub size_bytes: u64,
}

/// Changes that have not all come yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiving {
    /// Of this snapshot.
    pub uuid: String,
    /// Since this one; None: all of it.
    pub parent: Option<String>,
    /// What is before this block is on the disk.
    pub next_block: u64,
}

/// What a snapshot is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// To be sent, or because it has come.
    Replicate,
    /// To be written to: this side becomes the source.
    Promote,
}

/// A snapshot about to be taken. Whether it was is told by whether it is there: its id was free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taking {
    /// What for.
    pub purpose: Purpose,
    /// What it will be; `creation_time` is that of the youngest device before.
    pub snapshot: Snapshot,
}

/// What one side knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Names the replication on both sides.
    pub chain: String,
    /// The thin device in which this stands.
    pub id: u64,
    /// Its creation time: a copy of it is not it.
    pub creation_time: u64,
    /// Which way.
    pub role: Role,
    /// At the source: the thin device.
    pub device: Option<u64>,
    /// Oldest first.
    pub snapshots: Vec<Snapshot>,
    /// At the replica.
    pub work: Option<Work>,
    /// At the replica.
    pub receiving: Option<Receiving>,
    /// See there.
    pub taking: Option<Taking>,
    /// A device to be deleted: it was the source's.
    pub discard: Option<u64>,
    /// When both sides had the newest snapshot.
    pub last_success_unix_s: Option<u64>,
}

impl State {
    /// The newest snapshot that both sides have.
    pub fn newest_common(&self) -> Option<&Snapshot> {
        self.snapshots.iter().rev().find(|snapshot| snapshot.common)
    }

    /// The snapshot of this identity.
    pub fn snapshot(&self, uuid: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.uuid == uuid)
    }

    /// Number of the next snapshot.
    pub fn next_number(&self) -> u64 {
        let newest = self.snapshots.iter().map(|snapshot| snapshot.number).max();
        newest.unwrap_or(0).saturating_add(1)
    }

    /// A slot with this state. None: it does not fit.
    fn slot(&self, sequence: u64) -> Option<Vec<u8>> {
        let text = serde_json::to_vec(self).ok()?;
        if HEAD_BYTES + text.len() + 4 > SLOT_BYTES {
            return None;
        }
        let mut slot = MAGIC.to_vec();
        slot.extend(sequence.to_le_bytes());
        slot.extend((text.len() as u32).to_le_bytes());
        slot.extend(text);
        slot.extend(crc32c::crc32c(&slot).to_le_bytes());
        slot.resize(SLOT_BYTES, 0);
        Some(slot)
    }

    /// What is written for it: where, and what.
    pub fn encode(&self, sequence: u64) -> Option<(u64, Vec<u8>)> {
        let at = sequence % 2 * SLOT_BYTES as u64;
        Some((at, self.slot(sequence)?))
    }

    /// The newer of two slots. None: neither is good.
    pub fn decode(slots: &[u8]) -> Option<(u64, State)> {
        let slots = slots.chunks(SLOT_BYTES).filter_map(from_slot);
        slots.max_by_key(|(sequence, _)| *sequence)
    }
}

fn from_slot(slot: &[u8]) -> Option<(u64, State)> {
    let rest = slot.strip_prefix(MAGIC)?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let text = rest.get(..length)?;
    let sum = rest.get(length..length.checked_add(4)?)?;
    let summed = slot.get(..HEAD_BYTES + length)?;
    if crc32c::crc32c(summed).to_le_bytes() != sum {
        return None;
    }
    let state: State = serde_json::from_slice(text).ok()?;
    let sane = state.snapshots.len() <= MAX_SNAPSHOTS;
    sane.then_some((u64::from_le_bytes(*sequence), state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(snapshots: usize) -> State {
        let snapshot = |number: usize| Snapshot {
            uuid: format!("{number:032x}"),
            number: u64::MAX,
            taken_unix_s: u64::MAX,
            size_bytes: u64::MAX,
            id: 16_777_215,
            creation_time: u64::MAX,
            common: false,
        };
        State {
            chain: "c".repeat(32),
            id: 16_777_215,
            creation_time: u64::MAX,
            role: Role::Replica,
            device: Some(u64::MAX),
            snapshots: (0..snapshots).map(snapshot).collect(),
            work: Some(Work {
                id: 16_777_215,
                creation_time: Some(u64::MAX),
                holds: Some("a".repeat(32)),
                size_bytes: u64::MAX,
            }),
            receiving: Some(Receiving {
                uuid: "a".repeat(32),
                parent: Some("b".repeat(32)),
                next_block: u64::MAX,
            }),
            taking: Some(Taking {
                purpose: Purpose::Replicate,
                snapshot: snapshot(1),
            }),
            discard: Some(u64::MAX),
            last_success_unix_s: Some(u64::MAX),
        }
    }

    /// The largest state there can be fits.
    #[test]
    fn the_largest_fits() {
        assert!(state(MAX_SNAPSHOTS).encode(1).is_some());
    }

    proptest! {
        /// What was written last is read; if that write is cut off anywhere, or a byte of it changed, it is what
        /// was written before.
        #[test]
        fn cut_off(cut in 0..SLOT_BYTES, change in 1..=255u8, old in 1..5usize, new in 1..5usize) {
            let mut slots = vec![0; STATE_BYTES];
            for (sequence, count) in [(6, old), (7, new)] {
                let (at, slot) = state(count).encode(sequence).unwrap();
                slots[at as usize..][..slot.len()].copy_from_slice(&slot);
            }
            prop_assert_eq!(State::decode(&slots), Some((7, state(new))));
            let (at, next) = state(9).encode(8).unwrap();
            let written = next.iter().rposition(|byte| *byte != 0).unwrap_or_default();
            let mut torn = slots.clone();
            torn[at as usize..][..cut].copy_from_slice(&next[..cut]);
            let expected = if cut > written { (8, state(9)) } else { (7, state(new)) };
            prop_assert_eq!(State::decode(&torn), Some(expected));
            let changed = SLOT_BYTES + cut.min(written);
            if slots[changed] != 0 {
                slots[changed] ^= change;
                prop_assert_eq!(State::decode(&slots), Some((6, state(old))));
            }
        }

        /// Any bytes are taken or refused.
        #[test]
        fn nonsense(mut slots in prop::collection::vec(any::<u8>(), 0..200), length in any::<u32>()) {
            prop_assert_eq!(State::decode(&slots), None);
            let mut slot = MAGIC.to_vec();
            slot.extend(1u64.to_le_bytes());
            slot.extend(length.to_le_bytes());
            slot.append(&mut slots);
            prop_assert_eq!(State::decode(&slot), None);
        }
    }
}
