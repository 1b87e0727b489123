//! A small pool to start from.

use bdev::thin::metadata::{OpenOptions, ThinError, ThinMetadata};
use persistent_data::memory::MemoryDevice;
use std::rc::Rc;

/// The smallest cache, so that blocks are also written before a commit.
pub fn options() -> OpenOptions {
    OpenOptions {
        data_block_size_sectors: 128,
        cache_bytes: 0,
        may_format: true,
        read_only: false,
    }
}

/// Opens, formatting if need be.
pub async fn open(device: &Rc<MemoryDevice>) -> ThinMetadata {
    ThinMetadata::open(device.clone(), options()).await.unwrap()
}

/// Maps each block to a new data block.
pub async fn write(
    metadata: &mut ThinMetadata,
    id: u32,
    blocks: std::ops::Range<u64>,
) -> Result<(), ThinError> {
    for block in blocks {
        let data = metadata.alloc_data_block().await?;
        metadata.insert(id, block, data).await?;
    }
    Ok(())
}

/// A pool with 5000 data blocks, two devices that share, and one block broken out.
pub async fn sample(nr_blocks: u64) -> (Rc<MemoryDevice>, ThinMetadata) {
    let device = Rc::new(MemoryDevice::new(nr_blocks));
    let mut metadata = open(&device).await;
    metadata.resize_data(5000).await.unwrap();
    metadata.create_thin(1).await.unwrap();
    write(&mut metadata, 1, 0..100).await.unwrap();
    metadata.create_snap(2, 1).await.unwrap();
    write(&mut metadata, 1, 50..51).await.unwrap();
    metadata.commit().await.unwrap();
    (device, metadata)
}
