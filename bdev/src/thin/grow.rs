//! Growth of an open pool with its bdevs (thin.md 11.1, resume).

use super::error::PoolError;
use super::events::PoolEvent;
use super::map::PoolMode;
use super::metadata::ThinMetadata;
use super::pool::Pool;

impl Pool {
    /// Takes what data and metadata devices have grown by into use. Writes that wait for space go on.
    ///
    /// Nothing changes while a check is needed, as in the kernel, or in a read-only or failed pool. A
    /// device that shrank is an error (EINVAL) where recorded blocks are gone.
    pub async fn grow(&self) -> Result<(), PoolError> {
        self.check_open()?;
        let mut change = self.begin_change().await;
        let metadata = &mut *change.metadata;
        let block_sectors = u64::from(self.config.data_block_size_sectors);
        let nr_data = self.data.nr_sectors() / block_sectors;
        if nr_data < metadata.nr_data_blocks() {
            return Err(PoolError::Invalid {
                pool: self.config.name.clone(),
                reason: format!(
                    "the data bdev holds {nr_data} blocks, the metadata records {}; grow it back",
                    metadata.nr_data_blocks()
                ),
            });
        }
        let grows = nr_data > metadata.nr_data_blocks() || metadata.metadata_device_has_grown();
        if !grows {
            return Ok(());
        }
        if metadata.needs_check() {
            log::warn!(
                "pool '{}': not grown, its metadata needs a check first",
                self.config.name
            );
            return Ok(());
        }
        match self.shared.mode() {
            PoolMode::Write | PoolMode::OutOfDataSpace => {}
            // More metadata is what this mode waits for; more data alone would need some.
            PoolMode::OutOfMetadataSpace if metadata.metadata_device_has_grown() => {
                self.change_mode(PoolMode::Write);
            }
            PoolMode::OutOfMetadataSpace | PoolMode::ReadOnly | PoolMode::Fail => {
                return self.writable();
            }
        }
        let result = extend(metadata, nr_data).await;
        self.low_water_triggered.set(false);
        let (data_blocks, metadata_blocks) =
            (metadata.nr_data_blocks(), metadata.nr_metadata_blocks());
        self.settle(change, result).await?;
        log::info!(
            "pool '{}': {data_blocks} data blocks, {metadata_blocks} metadata blocks now",
            self.config.name,
        );
        self.emit(PoolEvent::Grown {
            data_blocks,
            metadata_blocks,
        });
        Ok(())
    }
}

async fn extend(
    metadata: &mut ThinMetadata,
    nr_data: u64,
) -> Result<(), super::metadata::ThinError> {
    // Metadata first: a larger data map needs some.
    metadata.resize_metadata().await?;
    metadata.resize_data(nr_data).await
}
