//! A strict check of era metadata (era.md 2, 10): structure, eras, and every reference count.

use super::writesets::Writeset;
use super::{EraError, EraMetadata, Superblock};
use persistent_data::check::{Counts, Finding, check_space_map, check_tree, note};
use persistent_data::{array, bitset};
use std::cell::RefCell;

impl EraMetadata {
    /// Checks the committed state. Nothing may be uncommitted. Error: something could not be read.
    pub async fn check(&self) -> Result<Vec<Finding>, EraError> {
        let mut counts = Counts::default();
        let mut findings = Vec::new();
        counts.add(0);
        counts.add(self.tm.index_block());
        self.check_trees(&self.sb, &mut counts, &mut findings)
            .await?;
        if self.sb.writeset_root != 0 {
            let current = Writeset {
                nr_bits: self.sb.writeset_bits,
                root: self.sb.writeset_root,
            };
            self.check_writeset(current, &mut counts, &mut findings)
                .await?;
            if self.sb.writeset_bits != self.sb.nr_blocks {
                note(&mut findings, 0, || {
                    "the current writeset has another length than the era array".to_owned()
                });
            }
        }
        if let Some(block) = self.metadata_snap() {
            counts.add(block);
            match self.held_superblock().await {
                Ok(held) => self.check_trees(&held, &mut counts, &mut findings).await?,
                Err(error) => note(&mut findings, block, || {
                    format!("the metadata snapshot: {error}")
                }),
            }
        }
        let map = self.tm.map();
        check_space_map(&self.tm, map, &mut counts, &mut findings).await?;
        counts
            .compare(&self.tm, map, "metadata", &mut findings)
            .await?;
        Ok(findings)
    }

    async fn check_trees(
        &self,
        sb: &Superblock,
        counts: &mut Counts,
        findings: &mut Vec<Finding>,
    ) -> Result<(), EraError> {
        let root = sb.writeset_tree_root;
        let mut writesets = Vec::new();
        check_tree(&self.tm, root, counts, findings, |_, w: Writeset| {
            writesets.push(w);
        })
        .await?;
        for writeset in writesets {
            self.check_writeset(writeset, counts, findings).await?;
        }
        let eras: Vec<u32> = self
            .writesets(root)
            .await?
            .into_iter()
            .map(|(era, _)| era)
            .collect();
        for pair in eras.windows(2) {
            if let [a, b] = pair
                && a.checked_add(1) != Some(*b)
            {
                note(findings, root, || {
                    format!("there is no writeset between eras {a} and {b}")
                });
            }
        }
        // A current writeset is not among the archived ones. The copy in a metadata snapshot has one
        // that is only not to be followed.
        let newest = u64::from(sb.current_era) + u64::from(sb.writeset_root == 0);
        if let Some(last) = eras.last()
            && u64::from(*last) + 1 != newest
        {
            note(findings, root, || {
                format!(
                    "the newest archived writeset is of era {last}, the current era is {}",
                    sb.current_era
                )
            });
        }
        let late = RefCell::new(Vec::new());
        array::check(
            &self.tm,
            sb.era_array_root,
            u64::from(sb.nr_blocks),
            counts,
            findings,
            |block, era: u32| {
                if era > sb.current_era {
                    late.borrow_mut().push((block, era));
                }
            },
        )
        .await?;
        for (block, era) in late.into_inner() {
            note(findings, sb.era_array_root, || {
                format!("data block {block} was written in era {era}, which has not begun")
            });
        }
        Ok(())
    }

    async fn check_writeset(
        &self,
        writeset: Writeset,
        counts: &mut Counts,
        findings: &mut Vec<Finding>,
    ) -> Result<(), EraError> {
        let words = bitset::nr_words(u64::from(writeset.nr_bits));
        array::check(
            &self.tm,
            writeset.root,
            words,
            counts,
            findings,
            |_, _: u64| {},
        )
        .await?;
        Ok(())
    }
}
