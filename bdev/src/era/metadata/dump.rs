//! The contents of era metadata as a stream, as `era_dump` shows them (era.md 10).

use super::{EraError, EraMetadata, Superblock, View, Writeset};
use persistent_data::{array, bitset};

/// What is true of the whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EraInfo {
    /// Sectors per data block.
    pub block_size_sectors: u32,
    /// Data blocks.
    pub nr_blocks: u32,
    /// The era now.
    pub current_era: u32,
}

/// Takes contents in this order: `begin`; of each writeset, by ascending era, `writeset_begin`, every
/// bit, `writeset_end` (no writeset in a logical dump); `array_begin`, the era of every block; `end`.
pub trait Sink {
    /// Why it may not be taken.
    type Error;

    /// The metadata.
    fn begin(&mut self, info: &EraInfo) -> Result<(), Self::Error>;
    /// The writeset of an era.
    fn writeset_begin(&mut self, era: u32, nr_bits: u32) -> Result<(), Self::Error>;
    /// Whether a block was written in it.
    fn bit(&mut self, block: u64, value: bool) -> Result<(), Self::Error>;
    /// It is through.
    fn writeset_end(&mut self) -> Result<(), Self::Error>;
    /// The era array follows.
    fn array_begin(&mut self) -> Result<(), Self::Error>;
    /// The last era known to have written a block.
    fn era(&mut self, block: u64, era: u32) -> Result<(), Self::Error>;
    /// All is through.
    fn end(&mut self) -> Result<(), Self::Error>;
}

/// Why a dump ended early.
#[derive(Debug, thiserror::Error)]
pub enum DumpError<E> {
    /// The metadata.
    #[error(transparent)]
    Metadata(#[from] EraError),
    /// Where it was to go.
    #[error("{0}")]
    Sink(E),
}

impl<E> From<persistent_data::Error> for DumpError<E> {
    fn from(error: persistent_data::Error) -> Self {
        DumpError::Metadata(error.into())
    }
}

/// Bits shown per look at the metadata.
const PORTION: u64 = bitset::BITS_PER_BLOCK;

impl EraMetadata {
    /// Dumps a view. `with_current` shows the current writeset of [`View::Live`] as that of the current
    /// era: `era_dump` 1.x does, 0.9 does not.
    pub async fn dump<S: Sink>(
        &self,
        view: View,
        with_current: bool,
        sink: &mut S,
    ) -> Result<(), DumpError<S::Error>> {
        let sb = self.begin_dump(view, sink).await?;
        let writesets = self.all_writesets(&sb, with_current && view == View::Live);
        for (era, writeset) in writesets.await? {
            self.dump_writeset(era, writeset, sink).await?;
        }
        self.dump_array(&sb, sink).await?;
        sink.end().map_err(DumpError::Sink)
    }

    /// Dumps a view with all writesets, the current one of [`View::Live`] too, worked into the era
    /// array: of each block the last era it was written in.
    pub async fn dump_logical<S: Sink>(
        &self,
        view: View,
        sink: &mut S,
    ) -> Result<(), DumpError<S::Error>> {
        let sb = self.begin_dump(view, sink).await?;
        let nr_blocks = u64::from(sb.nr_blocks);
        sink.array_begin().map_err(DumpError::Sink)?;
        let mut begin = 0;
        while begin < nr_blocks {
            let end = nr_blocks.min(begin + PORTION);
            let eras = self.last_eras(&sb, view == View::Live, 0, begin..end);
            for (block, era) in (begin..end).zip(eras.await?) {
                sink.era(block, era).map_err(DumpError::Sink)?;
            }
            begin = end;
        }
        sink.end().map_err(DumpError::Sink)
    }

    async fn begin_dump<S: Sink>(
        &self,
        view: View,
        sink: &mut S,
    ) -> Result<Superblock, DumpError<S::Error>> {
        let sb = self.view(view).await?;
        // A number of blocks that is not that of the array would make a dump of any length.
        if let Some(last) = sb.nr_blocks.checked_sub(1) {
            array::get::<u32>(&self.tm, sb.era_array_root, u64::from(last)).await?;
        }
        let info = EraInfo {
            block_size_sectors: sb.data_block_size_sectors,
            nr_blocks: sb.nr_blocks,
            current_era: sb.current_era,
        };
        sink.begin(&info).map_err(DumpError::Sink)?;
        Ok(sb)
    }

    async fn dump_writeset<S: Sink>(
        &self,
        era: u32,
        writeset: Writeset,
        sink: &mut S,
    ) -> Result<(), DumpError<S::Error>> {
        let nr_bits = u64::from(writeset.nr_bits);
        sink.writeset_begin(era, writeset.nr_bits)
            .map_err(DumpError::Sink)?;
        let mut begin = 0;
        while begin < nr_bits {
            let end = nr_bits.min(begin + PORTION);
            let mut set = Vec::new();
            bitset::walk(&self.tm, writeset.root, begin..end, |bit| {
                set.push(bit);
                true
            })
            .await?;
            let mut set = set.into_iter().peekable();
            for bit in begin..end {
                let value = set.next_if_eq(&bit).is_some();
                sink.bit(bit, value).map_err(DumpError::Sink)?;
            }
            begin = end;
        }
        sink.writeset_end().map_err(DumpError::Sink)
    }

    async fn dump_array<S: Sink>(
        &self,
        sb: &Superblock,
        sink: &mut S,
    ) -> Result<(), DumpError<S::Error>> {
        sink.array_begin().map_err(DumpError::Sink)?;
        let mut failed = None;
        array::walk(
            &self.tm,
            sb.era_array_root,
            0..u64::from(sb.nr_blocks),
            |block, era: u32| {
                failed = sink.era(block, era).err();
                failed.is_none()
            },
        )
        .await?;
        failed.map_or(Ok(()), |error| Err(DumpError::Sink(error)))
    }
}
