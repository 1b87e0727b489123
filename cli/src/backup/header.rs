//! What a stream begins with: what it is of, and what the next backup is made since (docs/backup.md, The format).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The backup's own, 32 hexadecimal digits.
    pub uuid: String,
    /// Of the backup this one is to be applied to; None: it is full.
    pub parent: Option<String>,
    /// What was backed up.
    #[serde(flatten)]
    pub source: Source,
    /// Size of the device.
    pub size_bytes: u64,
    /// Size of a block.
    pub block_bytes: u64,
    /// When it began, in seconds since 1970.
    pub began_unix_s: u64,
}

/// What was backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "lowercase")]
pub enum Source {
    /// A thin device.
    Thin(Thin),
    /// What an era target lies on.
    Era(Era),
    /// A ploop target.
    Ploop(Ploop),
}

/// A thin device, and the snapshot of it that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thin {
    /// The pool's name at that time.
    pub pool: String,
    /// The thin device that was backed up.
    pub device_id: u32,
    /// The snapshot of it that this holds.
    pub snapshot_id: u32,
    /// `creation_time` of the snapshot: with its id it says whether a snapshot is still the same.
    pub snapshot_time: u64,
}

/// An era target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    /// Its name.
    pub target: String,
    /// The era that began before its data was frozen: the next backup is of what was written since.
    pub era: u32,
    /// Size of the target's blocks.
    pub era_block_bytes: u64,
    /// Some of the blocks that had been written: the target still knows of them, or it is another one.
    pub witnesses: Vec<u64>,
    /// The thin snapshot that is read, until the backup is complete.
    pub frozen: Option<Thin>,
}

/// A ploop target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ploop {
    /// Its name.
    pub target: String,
    /// Size of its clusters.
    pub cluster_bytes: u64,
}

impl Header {
    /// Which version of the format it needs: 1 where that is enough.
    pub fn version(&self) -> u8 {
        match self.source {
            Source::Thin(_) => 1,
            Source::Era(_) | Source::Ploop(_) => 2,
        }
    }

    /// Blocks come in the order in which a guest waited for them; none comes twice.
    pub fn is_unordered(&self) -> bool {
        matches!(self.source, Source::Ploop(_))
    }

    /// As JSON.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// From JSON. The first version had nothing but thin devices, and did not say so.
    pub fn decode(json: &[u8]) -> serde_json::Result<Self> {
        let mut value: Value = serde_json::from_slice(json)?;
        if let Value::Object(fields) = &mut value {
            fields.entry("source").or_insert(json!("thin"));
        }
        serde_json::from_value(value)
    }
}

impl Source {
    /// In words.
    pub fn described(&self) -> String {
        match self {
            Source::Thin(thin) => format!("thin device {} of pool '{}'", thin.device_id, thin.pool),
            Source::Era(era) => format!("era '{}'", era.target),
            Source::Ploop(ploop) => format!("ploop '{}'", ploop.target),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Thin(thin) => write!(f, "{}/{}", thin.pool, thin.device_id),
            Source::Era(era) => write!(f, "era {}", era.target),
            Source::Ploop(ploop) => write!(f, "ploop {}", ploop.target),
        }
    }
}
