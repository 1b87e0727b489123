//! Parameters of the methods for linear bdevs.

use super::{Validate, check_name};
use crate::RpcError;
use serde::{Deserialize, Serialize};

/// `linear_create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearCreate {
    /// Name of the bdev.
    pub name: String,
    /// What it consists of, in order: `bdev:first sector:sectors`.
    pub segments: Vec<String>,
    /// The bdevs may appear later.
    #[serde(default)]
    pub wait: bool,
}

/// A part of a bdev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSegment {
    /// The bdev.
    pub bdev: String,
    /// Where it begins there.
    pub first_sector: u64,
    /// How long it is, above 0.
    pub nr_sectors: u64,
}

impl LinearCreate {
    /// The segments.
    pub fn parsed(&self) -> Result<Vec<LinearSegment>, RpcError> {
        let refuse = |segment: &str, why: &str| {
            RpcError::invalid(format!(
                "linear bdev '{}': segment '{segment}' {why}; give bdev:first_sector:sectors",
                self.name
            ))
        };
        let mut total: u64 = 0;
        let mut segments = Vec::with_capacity(self.segments.len());
        for text in &self.segments {
            let mut words = text.rsplitn(3, ':');
            let (nr, first, bdev) = (words.next(), words.next(), words.next());
            let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok());
            let (Some(nr_sectors), Some(first_sector), Some(bdev)) = (
                number(nr),
                number(first),
                bdev.filter(|bdev| !bdev.is_empty()),
            ) else {
                return Err(refuse(text, "is not of that form"));
            };
            if nr_sectors == 0 {
                return Err(refuse(text, "is empty"));
            }
            let end = first_sector.checked_add(nr_sectors);
            total = end
                .and(total.checked_add(nr_sectors))
                .ok_or_else(|| refuse(text, "is too long"))?;
            segments.push(LinearSegment {
                bdev: bdev.to_owned(),
                first_sector,
                nr_sectors,
            });
        }
        match segments.is_empty() {
            true => Err(RpcError::invalid(format!(
                "linear bdev '{}': it has no segments",
                self.name
            ))),
            false => Ok(segments),
        }
    }
}

impl Validate for LinearCreate {
    fn validate(&self) -> Result<(), RpcError> {
        check_name("linear bdev", &self.name)?;
        self.parsed().map(drop)
    }
}
