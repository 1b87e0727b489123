//! Digestion: archived writesets are worked into the era array, oldest first (era.md 6).

use super::writesets::{Writeset, WritesetRefs};
use super::{EraError, EraMetadata};
use persistent_data::bitset::BITS_PER_BLOCK;
use persistent_data::{array, bitset, btree};

/// Bits of a writeset that one step works in: between steps others get at the metadata.
const STEP_BITS: usize = 2048;

/// The writeset that is being digested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest {
    era: u32,
    /// Blocks below this are done.
    next_block: u64,
}

/// What a step of digestion has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is no archived writeset.
    Idle,
    /// Part of a writeset.
    Some,
    /// The rest of one: it is gone.
    Finished,
}

impl EraMetadata {
    /// Does a step of digestion. It is committed by whichever commit comes next; until then a crash
    /// has it repeated.
    pub async fn digest_step(&mut self) -> Result<Step, EraError> {
        let first: Option<(u64, Writeset)> =
            btree::next(&self.tm, self.sb.writeset_tree_root, 0).await?;
        let Some((key, writeset)) = first else {
            self.digest = None;
            return Ok(Step::Idle);
        };
        let era = u32::try_from(key).map_err(|_| persistent_data::Error::Corrupt {
            block: self.sb.writeset_tree_root,
            what: "an archived writeset's era has more than 32 bits",
        })?;
        let from = match self.digest {
            Some(digest) if digest.era == era => digest.next_block,
            _ => 0,
        };
        // Bits past the end are of blocks that are no more.
        let end = u64::from(writeset.nr_bits).min(self.nr_blocks());
        self.enter()?;
        let step = match from < end {
            true => {
                let until = end.min((from / BITS_PER_BLOCK + 1) * BITS_PER_BLOCK);
                let next_block = self.digest_range(era, writeset.root, from, until).await?;
                self.digest = Some(Digest { era, next_block });
                Step::Some
            }
            false => {
                let (root, removed) = btree::remove::<Writeset, _>(
                    &self.tm,
                    self.sb.writeset_tree_root,
                    key,
                    &WritesetRefs,
                )
                .await?;
                // Else the same writeset would be found again and again.
                if removed.is_none() {
                    return Err(persistent_data::Error::Corrupt {
                        block: root,
                        what: "an archived writeset is not in the leaf where it belongs",
                    }
                    .into());
                }
                self.sb.writeset_tree_root = root;
                self.sb_changed = true;
                self.digest = None;
                Step::Finished
            }
        };
        self.usable = true;
        Ok(step)
    }

    /// Returns up to where it got.
    async fn digest_range(
        &mut self,
        era: u32,
        root: u64,
        from: u64,
        until: u64,
    ) -> Result<u64, EraError> {
        let mut blocks = Vec::new();
        bitset::walk(&self.tm, root, from..until, |block| {
            blocks.push(block);
            blocks.len() < STEP_BITS
        })
        .await?;
        if !blocks.is_empty() {
            // Never backwards, whatever order writesets came in.
            let newest = |old: u32, _: &u64| old.max(era);
            self.sb.era_array_root = array::update(
                &self.tm,
                self.sb.era_array_root,
                &blocks,
                |block| *block,
                newest,
            )
            .await?;
            self.sb_changed = true;
        }
        Ok(match blocks.last() {
            Some(last) if blocks.len() >= STEP_BITS => last + 1,
            _ => until,
        })
    }
}
