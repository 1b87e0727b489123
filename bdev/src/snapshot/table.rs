//! Table lines of the three targets (snapshot.md 3), refused in the kernel's words.

use super::error::SnapshotError;
use super::map::Discards;
use std::fmt;

const NO_STORE: SnapshotError = SnapshotError::Table("Couldn't create exception store");

/// The kind of an exception store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// On the COW device, for ever.
    Persistent {
        /// A write to a snapshot that finds no room makes it overflow, not invalid.
        overflow: bool,
    },
    /// In memory.
    Transient,
}

impl StoreKind {
    /// The word of a table line; letters in any case.
    pub fn parse(word: &str) -> Result<Self, SnapshotError> {
        let mut letters = word.chars().map(|letter| letter.to_ascii_uppercase());
        match (letters.next(), letters.next(), letters.next()) {
            (Some('N'), _, _) => Ok(StoreKind::Transient),
            (Some('P'), None, _) => Ok(StoreKind::Persistent { overflow: false }),
            (Some('P'), Some('O'), None) => Ok(StoreKind::Persistent { overflow: true }),
            _ => Err(NO_STORE),
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreKind::Persistent { overflow: false } => "P",
            StoreKind::Persistent { overflow: true } => "PO",
            StoreKind::Transient => "N",
        })
    }
}

/// The table of a snapshot or a snapshot-merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotTable {
    /// The origin device.
    pub origin: String,
    /// The COW device.
    pub cow: String,
    /// The kind of store.
    pub store: StoreKind,
    /// 0: the default.
    pub chunk_sectors: u64,
    /// How discards are treated.
    pub discards: Discards,
}

impl SnapshotTable {
    /// The arguments of a `snapshot` table, or of a `snapshot-merge` one.
    pub fn parse(arguments: &str, is_merge: bool) -> Result<Self, SnapshotError> {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let [origin, cow, letter, chunk, rest @ ..] = words.as_slice() else {
            return Err(SnapshotError::Table("requires 4 or more arguments"));
        };
        let discards = parse_features(rest)?;
        if origin == cow {
            return Err(SnapshotError::Table(
                "COW device cannot be the same as origin device",
            ));
        }
        let store = StoreKind::parse(letter)?;
        let chunk_sectors: u64 = chunk.parse().map_err(|_| NO_STORE)?;
        let possible = match chunk_sectors {
            0 => store != StoreKind::Transient,
            sectors => sectors.is_power_of_two() && sectors <= super::layout::MAX_CHUNK_SECTORS,
        };
        if !possible {
            return Err(NO_STORE);
        }
        if is_merge && store == StoreKind::Transient {
            return Err(SnapshotError::CannotMerge);
        }
        Ok(SnapshotTable {
            origin: (*origin).to_owned(),
            cow: (*cow).to_owned(),
            store,
            chunk_sectors,
            discards,
        })
    }
}

fn parse_features(words: &[&str]) -> Result<Discards, SnapshotError> {
    const NUMBER: SnapshotError = SnapshotError::Table("Invalid number of feature arguments");
    let mut discards = Discards::default();
    let Some((count, features)) = words.split_first() else {
        return Ok(discards);
    };
    let count: usize = count.parse().map_err(|_| NUMBER)?;
    if count > 2 || count > features.len() {
        return Err(NUMBER);
    }
    for feature in features.iter().take(count) {
        match feature.to_ascii_lowercase().as_str() {
            "discard_zeroes_cow" => discards.zeroes_cow = true,
            "discard_passdown_origin" => discards.passdown_origin = true,
            _ => return Err(SnapshotError::Table("Unrecognised feature requested")),
        }
    }
    match discards.passdown_origin && !discards.zeroes_cow {
        true => Err(SnapshotError::Table(
            "discard_passdown_origin feature depends on discard_zeroes_cow",
        )),
        false => Ok(discards),
    }
}

/// As the kernel shows it; the chunk size is to be the real one.
impl fmt::Display for SnapshotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SnapshotTable {
            origin, cow, store, ..
        } = self;
        write!(f, "{origin} {cow} {store} {}", self.chunk_sectors)?;
        match (self.discards.zeroes_cow, self.discards.passdown_origin) {
            (false, _) => Ok(()),
            (true, false) => f.write_str(" 1 discard_zeroes_cow"),
            (true, true) => f.write_str(" 2 discard_zeroes_cow discard_passdown_origin"),
        }
    }
}

/// The argument of a `snapshot-origin` table: the origin device.
pub fn parse_origin(arguments: &str) -> Result<String, SnapshotError> {
    let mut words = arguments.split_whitespace();
    match (words.next(), words.next()) {
        (Some(origin), None) => Ok(origin.to_owned()),
        _ => Err(SnapshotError::Table(
            "origin: incorrect number of arguments",
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each refusal of snapshot.md 3 has its text.
    #[test]
    fn refusals() {
        for (line, text) in [
            ("a b P", "requires 4 or more arguments"),
            ("a b X 16", "Couldn't create exception store"),
            ("a b PX 16", "Couldn't create exception store"),
            ("a b Persistent 16", "Couldn't create exception store"),
            ("a b P 17", "Couldn't create exception store"),
            ("a b P 4194304", "Couldn't create exception store"),
            ("a b P -8", "Couldn't create exception store"),
            ("a b N 0", "Couldn't create exception store"),
            ("a a P 16", "COW device cannot be the same as origin device"),
            ("a b P 16 3 x y z", "Invalid number of feature arguments"),
            ("a b P 16 1", "Invalid number of feature arguments"),
            ("a b P 16 1 x", "Unrecognised feature requested"),
            (
                "a b P 16 1 discard_passdown_origin",
                "discard_passdown_origin feature depends on discard_zeroes_cow",
            ),
        ] {
            let refused = SnapshotTable::parse(line, false).unwrap_err();
            assert_eq!(refused.to_string(), text, "{line}");
            assert_eq!(refused.errno(), crate::errno::Errno::EINVAL);
        }
        assert_eq!(
            SnapshotTable::parse("a b N 16", true).unwrap_err(),
            SnapshotError::CannotMerge
        );
        for line in ["", "a b"] {
            let refused = parse_origin(line).unwrap_err().to_string();
            assert_eq!(refused, "origin: incorrect number of arguments");
        }
    }

    /// What is accepted is shown in the kernel's way.
    #[test]
    fn lines() {
        for (line, shown) in [
            ("a b p 16", "a b P 16"),
            ("a b pO 8 0", "a b PO 8"),
            ("a b nonsense 1", "a b N 1"),
            ("a b P 0", "a b P 0"),
            (
                "a b P 8 2 DISCARD_passdown_origin discard_zeroes_cow",
                "a b P 8 2 discard_zeroes_cow discard_passdown_origin",
            ),
        ] {
            let table = SnapshotTable::parse(line, false).unwrap();
            assert_eq!(table.to_string(), shown);
        }
    }

    proptest! {
        /// Any line is parsed or refused, and what is parsed is shown as a line of the same meaning.
        #[test]
        fn any_line(line in "[abPON0-9 ]{0,20}( [0-3]( discard_zeroes_cow| discard_passdown_origin){0,2})?") {
            if let Ok(table) = SnapshotTable::parse(&line, false) {
                prop_assert_eq!(SnapshotTable::parse(&table.to_string(), false), Ok(table));
            }
        }
    }
}
