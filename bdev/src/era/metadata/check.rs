//! A strict check of era metadata (era.md 2, 10): structure, eras, and every reference count.

use super::writesets::Writeset;
use super::{EraError, EraMetadata, Superblock};
use persistent_data::check::{Counts, Finding, check_space_map, check_tree, note};
use persistent_data::{array, bitset};

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What breaks the format.
    pub damages: Vec<Finding>,
    /// Odd, but harmless: nobody minds, or only `era_dump` 1.x.
    pub oddities: Vec<Finding>,
    /// Wrong reference counts; some are leaks.
    pub counts: Vec<Finding>,
    /// What could not be read; each names its block. With any, no count was compared.
    pub unreadable: Vec<persistent_data::Error>,
}

impl CheckReport {
    /// Whether nothing has been found.
    pub fn is_clean(&self) -> bool {
        *self == CheckReport::default()
    }

    /// Notes what could not be read.
    fn part<V>(&mut self, result: persistent_data::Result<V>) -> Option<V> {
        result.map_err(|error| self.unreadable.push(error)).ok()
    }
}

impl EraMetadata {
    /// Checks the committed state, and finds nothing where all is as we would have written it. Nothing
    /// may be uncommitted. Error: something could not be read.
    pub async fn check(&self) -> Result<Vec<Finding>, EraError> {
        let report = self.survey().await;
        match report.unreadable.into_iter().next() {
            Some(error) => Err(error.into()),
            None => Ok([report.damages, report.oddities, report.counts].concat()),
        }
    }

    /// Checks the committed state; what cannot be read of one part keeps it from no other.
    pub async fn survey(&self) -> CheckReport {
        let mut report = CheckReport::default();
        let mut counts = Counts::default();
        counts.add(0);
        counts.add(self.tm.index_block());
        if self.sb.writeset_root != 0 {
            let current = Writeset {
                nr_bits: self.sb.writeset_bits,
                root: self.sb.writeset_root,
            };
            self.check_writeset(current, &mut counts, &mut report).await;
            if self.sb.writeset_bits != self.sb.nr_blocks {
                note(&mut report.damages, 0, || {
                    "the current writeset has another length than the era array".to_owned()
                });
            }
        }
        self.check_trees(&self.sb, &mut counts, &mut report).await;
        if let Some(block) = self.metadata_snap() {
            counts.add(block);
            match self.held_superblock().await {
                Ok(held) => self.check_trees(&held, &mut counts, &mut report).await,
                Err(EraError::Metadata(error)) => report.unreadable.push(error),
                Err(error) => note(&mut report.damages, block, || {
                    format!("the metadata snapshot: {error}")
                }),
            }
        }
        let map = self.tm.map();
        let own = check_space_map(&self.tm, map, &mut counts, &mut report.damages).await;
        report.part(own);
        if report.unreadable.is_empty() {
            let compared = counts.compare(&self.tm, map, "metadata", &mut report.counts);
            let compared = compared.await;
            report.part(compared);
        }
        report
    }

    async fn check_trees(&self, sb: &Superblock, counts: &mut Counts, report: &mut CheckReport) {
        let root = sb.writeset_tree_root;
        let mut writesets = Vec::new();
        let walked = check_tree(
            &self.tm,
            root,
            counts,
            &mut report.damages,
            |_, w: Writeset| {
                writesets.push(w);
            },
        );
        let walked = walked.await;
        report.part(walked);
        for writeset in writesets {
            self.check_writeset(writeset, counts, report).await;
        }
        match self.writesets(root).await {
            Ok(writesets) => self.check_eras(sb, &writesets, report),
            Err(EraError::Metadata(error)) => report.unreadable.push(error),
            Err(error) => note(&mut report.damages, root, || error.to_string()),
        }
        let mut late = Vec::new();
        let walked = array::check(
            &self.tm,
            sb.era_array_root,
            u64::from(sb.nr_blocks),
            counts,
            &mut report.damages,
            |block, era: u32| {
                if era > sb.current_era {
                    late.push((block, era));
                }
            },
        );
        let walked = walked.await;
        report.part(walked);
        for (block, era) in late {
            note(&mut report.damages, sb.era_array_root, || {
                format!("data block {block} was written in era {era}, which has not begun")
            });
        }
    }

    /// Archived writesets are of consecutive eras up to the current one.
    fn check_eras(&self, sb: &Superblock, writesets: &[(u32, Writeset)], report: &mut CheckReport) {
        let root = sb.writeset_tree_root;
        for pair in writesets.windows(2) {
            if let [(a, _), (b, _)] = pair
                && a.checked_add(1) != Some(*b)
            {
                note(&mut report.oddities, root, || {
                    format!("there is no writeset between eras {a} and {b}")
                });
            }
        }
        // A current writeset is not among the archived ones. The copy in a metadata snapshot has one
        // that is only not to be followed.
        let newest = u64::from(sb.current_era) + u64::from(sb.writeset_root == 0);
        if let Some((last, _)) = writesets.last()
            && u64::from(*last) + 1 != newest
        {
            let what = || {
                format!(
                    "the newest archived writeset is of era {last}, the current era is {}",
                    sb.current_era
                )
            };
            match u64::from(*last) < newest {
                true => note(&mut report.oddities, root, what),
                false => note(&mut report.damages, root, what),
            }
        }
    }

    async fn check_writeset(
        &self,
        writeset: Writeset,
        counts: &mut Counts,
        report: &mut CheckReport,
    ) {
        let words = bitset::nr_words(u64::from(writeset.nr_bits));
        let walked = array::check(
            &self.tm,
            writeset.root,
            words,
            counts,
            &mut report.damages,
            |_, _: u64| {},
        );
        let walked = walked.await;
        report.part(walked);
    }
}
