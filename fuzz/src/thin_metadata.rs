//! A pool's metadata on a damaged disk: opened, checked, read and changed.
//!
//! Where the strict check has found nothing, the metadata is as good as undamaged: then every
//! operation must succeed and the check must find nothing at the end either.

use crate::image::{Image, Mutation, THIN};
use arbitrary::{Arbitrary, Unstructured};
use bdev::thin::metadata::{OpenOptions, ThinError, ThinMetadata};
use futures::executor::block_on;
use persistent_data::Error;
use persistent_data::memory::MemoryDevice;
use std::rc::Rc;

/// Metadata blocks of the device.
const NR_BLOCKS: u64 = 96;

/// Steps of one input that are taken.
const MAX_STEPS: usize = 24;

#[derive(Debug, Arbitrary)]
struct Case {
    base: u8,
    read_only: bool,
    mutations: Vec<Mutation>,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Check,
    Dump,
    Details(u16),
    Devices,
    Lookup(u16, u64),
    LookupRange(u16, u64, u8),
    NextMapped(u16, u64),
    Highest(u16),
    Create(u16),
    Snap(u16, u16),
    Delete(u16),
    Insert(u16, u16, u8),
    InsertAt(u16, u64),
    Remove(u16, u16, u16),
    RemoveAll(u16),
    Reserve,
    Release,
    GrowData(u16),
    GrowMetadata(u8),
    Commit,
    Abort,
    Reopen,
    SetTransactionId(u64, u64),
    DataCount(u64),
    NeedsCheck,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(case) = Case::arbitrary(&mut input) else {
        return;
    };
    // Built on first use, which takes an executor of its own.
    BASES.with(|_| ());
    block_on(drive(&case));
}

fn options(read_only: bool) -> OpenOptions {
    OpenOptions {
        data_block_size_sectors: 128,
        cache_bytes: 0,
        may_format: true,
        read_only,
    }
}

async fn write(
    metadata: &mut ThinMetadata,
    id: u32,
    blocks: impl Iterator<Item = u64>,
) -> Result<(), ThinError> {
    for block in blocks {
        let data = metadata.alloc_data_block().await?;
        if let Err(error) = metadata.insert(id, block, data).await {
            metadata.free_data_block(data);
            return Err(error);
        }
    }
    Ok(())
}

/// The undamaged images: small; sharing, with two levels and a metadata snapshot; many devices.
async fn base(number: u8) -> Result<Image, ThinError> {
    let device = Rc::new(MemoryDevice::new(NR_BLOCKS));
    let mut metadata = ThinMetadata::open(device.clone(), options(false)).await?;
    metadata.resize_data(1500).await?;
    metadata.create_thin(0).await?;
    match number {
        0 => {
            write(&mut metadata, 0, 0..20).await?;
            metadata.create_snap(1, 0).await?;
            write(&mut metadata, 1, 5..8).await?;
        }
        1 => {
            write(&mut metadata, 0, 0..600).await?;
            for id in 1..4 {
                metadata.create_snap(id, 0).await?;
                write(&mut metadata, id, 40 * u64::from(id)..45 * u64::from(id)).await?;
            }
            metadata.commit().await?;
            metadata.reserve_metadata_snap().await?;
            metadata.commit().await?;
            metadata.remove_range(2, 300, 500).await?;
            metadata.delete(3).await?;
        }
        _ => {
            write(&mut metadata, 0, (0..20).map(|i| i << 30)).await?;
            for id in 1..260 {
                metadata.create_snap(id, 0).await?;
            }
            write(&mut metadata, 5, 0..2).await?;
        }
    }
    metadata.commit().await?;
    assert_eq!(metadata.check().await?, []);
    Ok(Image::new(device.blocks(), THIN))
}

thread_local! {
    static BASES: [Image; 3] = [0, 1, 2].map(|number| block_on(base(number)).unwrap());
}

/// Whether an error is also possible without damage.
fn is_harmless(error: &ThinError) -> bool {
    error.is_refusal()
        || matches!(
            error,
            ThinError::NoDataSpace
                | ThinError::ReadOnly
                | ThinError::Metadata(Error::NoSpace)
                | ThinError::Shrunk { .. }
        )
}

/// Says no more than it must: an error that blames the disk says where.
fn look_at(error: &ThinError) {
    let text = error.to_string();
    assert!(!text.is_empty() && error.errno().0 > 0);
    assert!(
        !matches!(error, ThinError::Metadata(Error::Flush(_))),
        "{text}"
    );
}

async fn drive(case: &Case) {
    let number = usize::from(case.base) % 3;
    let blocks = BASES.with(|bases| bases[number].mutated(&case.mutations));
    let device = Rc::new(MemoryDevice::from_blocks(blocks));
    let opened = ThinMetadata::open(device.clone(), options(case.read_only)).await;
    let mut metadata = match opened {
        Ok(metadata) => metadata,
        Err(error) => return look_at(&error),
    };
    let checked = metadata.check().await;
    let is_clean = checked.as_ref().is_ok_and(Vec::is_empty);
    let outcome = |error: ThinError| {
        look_at(&error);
        assert!(
            !is_clean || is_harmless(&error),
            "checked, and yet: {error}"
        );
        error
    };
    if let Err(error) = checked {
        outcome(error);
    }
    let tour = [
        Step::Dump,
        Step::Snap(500, 0),
        Step::Insert(0, 1, 9),
        Step::Remove(0, 5, 9),
        Step::RemoveAll(1),
        Step::Delete(2),
        Step::Delete(0),
        Step::Commit,
        Step::Check,
    ];
    let is_tour = case.steps.is_empty();
    let steps = if is_tour { &tour[..] } else { &case.steps[..] };
    for step in steps.iter().take(MAX_STEPS) {
        let Err(error) = take(&mut metadata, &device, step).await else {
            continue;
        };
        let error = outcome(error);
        if !error.is_refusal()
            && let Err(error) = metadata.abort().await
        {
            // What was read before is read again.
            outcome(error);
            return;
        }
    }
    if let Err(error) = metadata.commit().await {
        outcome(error);
        return;
    }
    if is_clean {
        assert_eq!(metadata.check().await, Ok(Vec::new()));
    }
    assert!(metadata.cache_used_bytes() <= 128 * 4096);
}

async fn take(
    metadata: &mut ThinMetadata,
    device: &Rc<MemoryDevice>,
    step: &Step,
) -> Result<(), ThinError> {
    let id = |id: u16| u32::from(id % 512);
    match *step {
        Step::Check => {
            metadata.commit().await?;
            metadata.check().await.map(|_| ())
        }
        Step::Dump => metadata.dump_xml().await.map(|_| ()),
        Step::Details(dev) => metadata.details(id(dev)).await.map(|_| ()),
        Step::Devices => metadata.devices().await.map(|_| ()),
        Step::Lookup(dev, block) => metadata.lookup(id(dev), block).await.map(|_| ()),
        Step::LookupRange(dev, first, count) => {
            let mut values = vec![u64::MAX; usize::from(count) * 4];
            metadata.lookup_range(id(dev), first, &mut values).await?;
            let outside = |value: &u64| value >> 24 >= metadata.nr_data_blocks();
            assert!(values.iter().all(|v| *v == u64::MAX || !outside(v)));
            Ok(())
        }
        Step::NextMapped(dev, from) => {
            let next = metadata.next_mapped(id(dev), from).await?;
            assert!(next.is_none_or(|next| next >= from), "a step back");
            Ok(())
        }
        Step::Highest(dev) => metadata.highest_mapped(id(dev)).await.map(|_| ()),
        Step::Create(dev) => metadata.create_thin(id(dev)).await,
        Step::Snap(dev, origin) => metadata.create_snap(id(dev), id(origin)).await,
        Step::Delete(dev) => metadata.delete(id(dev)).await,
        Step::Insert(dev, at, count) => {
            let at = u64::from(at % 1024);
            write(metadata, id(dev), at..at + u64::from(count)).await
        }
        Step::InsertAt(dev, at) => write(metadata, id(dev), std::iter::once(at)).await,
        Step::Remove(dev, at, count) => {
            let at = u64::from(at % 1024);
            let removed = metadata
                .remove_range(id(dev), at, at + u64::from(count))
                .await?;
            assert!(removed.count <= u64::from(count), "removed {removed:?}");
            Ok(())
        }
        Step::RemoveAll(dev) => metadata
            .remove_range(id(dev), 0, u64::MAX)
            .await
            .map(|_| ()),
        Step::Reserve => {
            metadata.commit().await?;
            metadata.reserve_metadata_snap().await?;
            metadata.commit().await
        }
        Step::Release => metadata.release_metadata_snap().await,
        Step::GrowData(by) => {
            let nr = metadata.nr_data_blocks() + u64::from(by);
            metadata.resize_data(nr).await
        }
        Step::GrowMetadata(by) => {
            use persistent_data::device::BlockDevice;
            device.grow((device.nr_blocks() + u64::from(by)).min(4 * NR_BLOCKS));
            metadata.resize_metadata().await
        }
        Step::Commit => metadata.commit().await,
        Step::Abort => metadata.abort().await,
        Step::Reopen => {
            metadata.commit().await?;
            metadata.abort().await
        }
        Step::SetTransactionId(current, new) => metadata.set_transaction_id(current, new),
        Step::DataCount(block) => match metadata.data_count(block).await {
            Err(ThinError::Metadata(Error::OutOfRange { .. })) => Ok(()),
            other => other.map(|_| ()),
        },
        Step::NeedsCheck => metadata.set_needs_check().await,
    }
}
