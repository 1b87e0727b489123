//! Which blocks were written since an era (era.md 10, `era_invalidate`).

use super::{EraError, EraMetadata, Superblock};
use persistent_data::{array, bitset};
use std::ops::Range;

/// Which state is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The metadata snapshot, which does not change: all eras before the current one of its making.
    Snapshot,
    /// As it is now, with the current era.
    Live,
}

impl EraMetadata {
    async fn view(&self, view: View) -> Result<Superblock, EraError> {
        match view {
            View::Live => Ok(self.sb),
            View::Snapshot => self.held_superblock().await,
        }
    }

    /// Data blocks a view covers, and its current era. Error: EINVAL without a metadata snapshot.
    pub async fn extent(&self, view: View) -> Result<(u64, u32), EraError> {
        let sb = self.view(view).await?;
        Ok((u64::from(sb.nr_blocks), sb.current_era))
    }

    /// The blocks of `range` that were written in `era` or later, as ranges in ascending order that do
    /// not touch. Era 0 lists every block. Writes let through before the call are among them.
    ///
    /// Of what is past the end nothing is said. Error: EINVAL without a metadata snapshot.
    pub async fn written_since(
        &self,
        view: View,
        era: u32,
        range: Range<u64>,
    ) -> Result<Vec<Range<u64>>, EraError> {
        let sb = self.view(view).await?;
        let range = range.start..range.end.min(u64::from(sb.nr_blocks)).max(range.start);
        // A bit per block: answers come in pages of the caller's choice.
        let mut written = vec![false; (range.end - range.start) as usize];
        let mut put = |block: u64| {
            if let Some(slot) = written.get_mut((block - range.start) as usize) {
                *slot = true;
            }
        };
        array::walk(
            &self.tm,
            sb.era_array_root,
            range.clone(),
            |block, last: u32| {
                if last >= era {
                    put(block);
                }
                true
            },
        )
        .await?;
        let mut writesets = self.writesets(sb.writeset_tree_root).await?;
        // That of a metadata snapshot is a copy of a root long gone.
        if view == View::Live && sb.writeset_root != 0 {
            writesets.push((
                sb.current_era,
                super::Writeset {
                    nr_bits: sb.writeset_bits,
                    root: sb.writeset_root,
                },
            ));
        }
        for (_, writeset) in writesets.iter().filter(|(of, _)| *of >= era) {
            let bits = range.start..range.end.min(u64::from(writeset.nr_bits));
            bitset::walk(&self.tm, writeset.root, bits, |block| {
                put(block);
                true
            })
            .await?;
        }
        Ok(runs(range.start, &written))
    }
}

/// Runs of true values, the first value standing for `first`.
fn runs(first: u64, values: &[bool]) -> Vec<Range<u64>> {
    let mut at = first;
    let mut found = Vec::new();
    for run in values.chunk_by(|a, b| a == b) {
        let end = at + run.len() as u64;
        if run.first() == Some(&true) {
            found.push(at..end);
        }
        at = end;
    }
    found
}
