//! New era metadata from the contents of a dump (era.md 10, `era_restore`).

use super::dump::EraInfo;
use super::writesets::{Writeset, WritesetRefs};
use super::{EraError, EraMetadata, MAX_BLOCKS, OpenOptions};
use persistent_data::device::{BLOCK_BYTES, BlockDevice};
use persistent_data::{array, bitset, btree};
use std::ops::Range;
use std::rc::Rc;

/// Eras of blocks collected before they go to the array.
const PORTION: usize = 4096;

/// Metadata that is being restored. Nothing is valid before [`Restore::finish`].
pub struct Restore {
    metadata: EraMetadata,
    /// What is being marked, and its era.
    writeset: Option<(u32, Writeset)>,
    /// Eras of blocks, ascending, that are not in the array yet.
    eras: Vec<(u64, u32)>,
    /// Blocks below this have had their turn.
    next_block: u64,
}

impl Restore {
    /// Begins: whatever was on the device is given up.
    pub async fn begin(
        device: Rc<dyn BlockDevice>,
        cache_bytes: usize,
        info: &EraInfo,
    ) -> Result<Self, EraError> {
        let nr_blocks = u64::from(info.nr_blocks);
        if nr_blocks > MAX_BLOCKS {
            return Err(EraError::TooManyBlocks(nr_blocks));
        }
        if info.block_size_sectors == 0 || !info.block_size_sectors.is_multiple_of(8) {
            return Err(EraError::BadInput(format!(
                "block size {} is not a multiple of 8 sectors",
                info.block_size_sectors
            )));
        }
        device
            .write(0, &[0; BLOCK_BYTES])
            .await
            .map_err(|source| persistent_data::Error::Device { block: 0, source })?;
        let options = OpenOptions {
            data_block_size_sectors: info.block_size_sectors,
            cache_bytes,
            may_format: true,
        };
        let mut metadata = EraMetadata::format_uncommitted(device, options).await?;
        metadata.resize(nr_blocks).await?;
        metadata.sb.current_era = info.current_era;
        Ok(Restore {
            metadata,
            writeset: None,
            eras: Vec::new(),
            next_block: 0,
        })
    }

    /// Begins the writeset of an era, of which nothing is marked. Error: EINVAL for an era that comes
    /// twice or after the current one, or a writeset that is too long.
    pub async fn writeset_begin(&mut self, era: u32, nr_bits: u32) -> Result<(), EraError> {
        self.writeset_end().await?;
        let current_era = self.metadata.sb.current_era;
        if era > current_era {
            return Err(EraError::BadInput(format!(
                "the writeset of era {era} is newer than the current era {current_era}"
            )));
        }
        if u64::from(nr_bits) > MAX_BLOCKS {
            return Err(EraError::TooManyBlocks(u64::from(nr_bits)));
        }
        self.metadata.enter()?;
        let root = bitset::create(&self.metadata.tm, u64::from(nr_bits)).await?;
        self.metadata.usable = true;
        self.writeset = Some((era, Writeset { nr_bits, root }));
        Ok(())
    }

    /// Marks blocks in the writeset that was begun: ascending ranges without overlap in each call.
    /// Error: EINVAL for bits past its end, or without a writeset.
    pub async fn mark(&mut self, ranges: &[Range<u64>]) -> Result<(), EraError> {
        let Some((era, writeset)) = &mut self.writeset else {
            return Err(EraError::BadInput("bits outside a writeset".to_owned()));
        };
        let nr_bits = u64::from(writeset.nr_bits);
        if ranges.iter().any(|range| range.end > nr_bits) {
            return Err(EraError::BadInput(format!(
                "the writeset of era {era} has bits past its end"
            )));
        }
        self.metadata.enter()?;
        writeset.root = bitset::set(&self.metadata.tm, writeset.root, ranges).await?;
        self.metadata.usable = true;
        Ok(())
    }

    /// The writeset that was begun, if any, is complete.
    pub async fn writeset_end(&mut self) -> Result<(), EraError> {
        let Some((era, writeset)) = self.writeset.take() else {
            return Ok(());
        };
        let metadata = &mut self.metadata;
        metadata.enter()?;
        let (root, is_new) = btree::insert(
            &metadata.tm,
            metadata.sb.writeset_tree_root,
            u64::from(era),
            writeset,
            &WritesetRefs,
        )
        .await?;
        if !is_new {
            return Err(EraError::BadInput(format!(
                "there are two writesets of era {era}"
            )));
        }
        metadata.sb.writeset_tree_root = root;
        metadata.usable = true;
        Ok(())
    }

    /// The era of a block; what is left out is 0. Blocks ascend. Error: EINVAL for a block past the end
    /// or out of order, or an era after the current one.
    pub async fn era(&mut self, block: u64, era: u32) -> Result<(), EraError> {
        let nr_blocks = self.metadata.nr_blocks();
        if block >= nr_blocks {
            return Err(EraError::NoBlock { block, nr_blocks });
        }
        let current_era = self.metadata.sb.current_era;
        if era > current_era {
            return Err(EraError::BadInput(format!(
                "block {block} has era {era}, the current era is {current_era}"
            )));
        }
        if block < self.next_block {
            return Err(EraError::BadInput(format!(
                "block {block} of the era array is out of order"
            )));
        }
        self.next_block = block + 1;
        self.eras.push((block, era));
        match self.eras.len() >= PORTION {
            true => self.put_eras().await,
            false => Ok(()),
        }
    }

    async fn put_eras(&mut self) -> Result<(), EraError> {
        let eras = std::mem::take(&mut self.eras);
        let metadata = &mut self.metadata;
        metadata.enter()?;
        metadata.sb.era_array_root = array::update(
            &metadata.tm,
            metadata.sb.era_array_root,
            &eras,
            |(block, _)| *block,
            |_: u32, (_, era)| *era,
        )
        .await?;
        metadata.usable = true;
        Ok(())
    }

    /// Makes it valid and durable.
    pub async fn finish(mut self) -> Result<EraMetadata, EraError> {
        self.writeset_end().await?;
        self.put_eras().await?;
        self.metadata.sb_changed = true;
        self.metadata.commit().await?;
        Ok(self.metadata)
    }
}
