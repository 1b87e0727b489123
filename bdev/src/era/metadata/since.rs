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
    pub(super) async fn view(&self, view: View) -> Result<Superblock, EraError> {
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
        let eras = self
            .last_eras(&sb, view == View::Live, era, range.clone())
            .await?;
        Ok(runs(range.start, &eras, era))
    }

    /// The last era each block of `range` was written in, whether digested or not. Writesets of eras
    /// before `from_era` are left out. Four bytes per block: ranges are pages of the caller's choice.
    pub(super) async fn last_eras(
        &self,
        sb: &Superblock,
        with_current: bool,
        from_era: u32,
        range: Range<u64>,
    ) -> Result<Vec<u32>, EraError> {
        let mut eras = Vec::new();
        array::walk(&self.tm, sb.era_array_root, range.clone(), |_, era: u32| {
            eras.push(era);
            true
        })
        .await?;
        let writesets = self.all_writesets(sb, with_current).await?;
        for (era, writeset) in writesets.iter().filter(|(era, _)| *era >= from_era) {
            let bits = range.start..range.end.min(u64::from(writeset.nr_bits));
            bitset::walk(&self.tm, writeset.root, bits, |block| {
                if let Some(last) = eras.get_mut((block - range.start) as usize) {
                    *last = (*last).max(*era);
                }
                true
            })
            .await?;
        }
        Ok(eras)
    }
}

/// Runs of eras from `era` on, the first value standing for block `first`.
fn runs(first: u64, eras: &[u32], era: u32) -> Vec<Range<u64>> {
    let mut at = first;
    let mut found = Vec::new();
    for run in eras.chunk_by(|a, b| (*a >= era) == (*b >= era)) {
        let end = at + run.len() as u64;
        if run.first().is_some_and(|last| *last >= era) {
            found.push(at..end);
        }
        at = end;
    }
    found
}
