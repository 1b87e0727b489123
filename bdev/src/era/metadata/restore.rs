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
    eras: Vec<(u64, u32)>,
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
            eras: Vec::new(),
        })
    }

    /// The writeset of an era; `marked` ascends without overlap. Error: EINVAL for bits past its end, or
    /// an era that comes twice or after the current one.
    pub async fn writeset(
        &mut self,
        era: u32,
        nr_bits: u32,
        marked: &[Range<u64>],
    ) -> Result<(), EraError> {
        let metadata = &mut self.metadata;
        let current_era = metadata.sb.current_era;
        if era > current_era {
            return Err(EraError::BadInput(format!(
                "the writeset of era {era} is newer than the current era {current_era}"
            )));
        }
        if marked.iter().any(|range| range.end > u64::from(nr_bits)) {
            return Err(EraError::BadInput(format!(
                "the writeset of era {era} has bits past its end"
            )));
        }
        metadata.enter()?;
        let root = bitset::create(&metadata.tm, u64::from(nr_bits)).await?;
        let root = bitset::set(&metadata.tm, root, marked).await?;
        let (root, is_new) = btree::insert(
            &metadata.tm,
            metadata.sb.writeset_tree_root,
            u64::from(era),
            Writeset { nr_bits, root },
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
    /// or out of order.
    pub async fn era(&mut self, block: u64, era: u32) -> Result<(), EraError> {
        let nr_blocks = self.metadata.nr_blocks();
        if block >= nr_blocks {
            return Err(EraError::NoBlock { block, nr_blocks });
        }
        if self.eras.last().is_some_and(|(last, _)| *last >= block) {
            return Err(EraError::BadInput(format!(
                "block {block} of the era array is out of order"
            )));
        }
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
        self.put_eras().await?;
        self.metadata.sb_changed = true;
        self.metadata.commit().await?;
        Ok(self.metadata)
    }
}
