//! Random pools, made with the metadata code that serves real ones.

use bdev::thin::metadata::{OpenOptions, ThinError, ThinMetadata};
use persistent_data::memory::MemoryDevice;
use proptest::prelude::*;
use std::rc::Rc;

pub const NR_DATA: u64 = 40_000;
pub const NR_METADATA: u64 = 4096;

/// Something that is done to a pool.
#[derive(Debug, Clone)]
pub enum Step {
    Create(u32),
    Snap(u32, u32),
    Delete(u32),
    /// Every `stride`-th block.
    Write {
        id: u32,
        first: u64,
        count: u64,
        stride: u64,
    },
    Discard {
        id: u32,
        first: u64,
        count: u64,
    },
    ReserveSnap,
    ReleaseSnap,
    TransactionId(u64),
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let id = prop_oneof![0..5u32, Just(16_777_215u32)];
    prop_oneof![
        2 => id.clone().prop_map(Step::Create),
        4 => (id.clone(), id.clone()).prop_map(|(a, b)| Step::Snap(a, b)),
        1 => id.clone().prop_map(Step::Delete),
        8 => (id.clone(), 0..6000u64, 1..800u64, 1..4u64).prop_map(
            |(id, first, count, stride)| Step::Write { id, first, count, stride }
        ),
        4 => (id, 0..6000u64, 1..900u64)
            .prop_map(|(id, first, count)| Step::Discard { id, first, count }),
        1 => Just(Step::ReserveSnap),
        1 => Just(Step::ReleaseSnap),
        1 => any::<u64>().prop_map(Step::TransactionId),
        2 => Just(Step::Commit),
    ]
}

/// A pool's history: thousands of operations, counting each block.
#[derive(Debug, Clone)]
pub struct History {
    pub data_block_size_sectors: u32,
    pub steps: Vec<Step>,
}

pub fn history() -> impl Strategy<Value = History> {
    let size = prop_oneof![Just(128u32), Just(384), Just(2048), Just(2_097_152)];
    // Something to begin with, so that few pools are empty.
    let steps = prop::collection::vec(step(), 1..50).prop_map(|steps| {
        let mut all = vec![
            Step::Create(1),
            Step::Write {
                id: 1,
                first: 0,
                count: 2000,
                stride: 2,
            },
            Step::Snap(3, 1),
        ];
        all.extend(steps);
        all
    });
    (size, steps).prop_map(|(data_block_size_sectors, steps)| History {
        data_block_size_sectors,
        steps,
    })
}

/// Makes the pool; everything is committed.
pub async fn make(history: &History) -> Rc<MemoryDevice> {
    let device = Rc::new(MemoryDevice::new(NR_METADATA));
    let options = OpenOptions {
        data_block_size_sectors: history.data_block_size_sectors,
        cache_bytes: 1 << 20,
        may_format: true,
        read_only: false,
    };
    let mut metadata = ThinMetadata::open(device.clone(), options).await.unwrap();
    metadata.resize_data(NR_DATA).await.unwrap();
    metadata.commit().await.unwrap();
    for step in &history.steps {
        match apply(&mut metadata, step).await {
            Ok(()) => {}
            Err(error) if error.is_refusal() || error.is_no_data_space() => {}
            Err(error) => panic!("{step:?}: {error}"),
        }
    }
    metadata.commit().await.unwrap();
    device
}

async fn apply(metadata: &mut ThinMetadata, step: &Step) -> Result<(), ThinError> {
    match *step {
        Step::Create(id) => metadata.create_thin(id).await?,
        Step::Snap(id, origin) => metadata.create_snap(id, origin).await?,
        Step::Delete(id) => metadata.delete(id).await?,
        Step::Write {
            id,
            first,
            count,
            stride,
        } => {
            metadata.details(id).await?;
            for i in 0..count {
                let data = metadata.alloc_data_block().await?;
                metadata.insert(id, first + i * stride, data).await?;
            }
        }
        Step::Discard { id, first, count } => {
            metadata.details(id).await?;
            metadata.remove_range(id, first, first + count).await?;
        }
        Step::ReserveSnap => {
            metadata.commit().await?;
            metadata.reserve_metadata_snap().await?;
            metadata.commit().await?;
        }
        Step::ReleaseSnap => metadata.release_metadata_snap().await?,
        Step::TransactionId(id) => {
            let current = metadata.transaction_id();
            metadata.set_transaction_id(current, id)?;
        }
        Step::Commit => metadata.commit().await?,
    }
    Ok(())
}
