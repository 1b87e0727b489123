//! A pool's metadata on a damaged disk: opened, checked, read and changed.

use crate::damaged::{self, Trouble, look_at};
use crate::image::{Image, Mutation, THIN};
use arbitrary::{Arbitrary, Unstructured};
use bdev::errno::Errno;
use bdev::thin::metadata::{OpenOptions, ThinError, ThinMetadata};
use futures::executor::block_on;
use persistent_data::Error;
use persistent_data::memory::MemoryDevice;
use std::rc::Rc;

/// Metadata blocks of the device.
const NR_BLOCKS: u64 = 96;

#[derive(Debug, Arbitrary)]
struct Case {
    base: u8,
    read_only: bool,
    mutations: Vec<Mutation>,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
pub(crate) enum Step {
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

impl Trouble for ThinError {
    fn errno(&self) -> Errno {
        self.errno()
    }

    fn is_refusal(&self) -> bool {
        self.is_refusal()
    }

    fn is_harmless(&self) -> bool {
        matches!(
            self,
            ThinError::NoDataSpace
                | ThinError::ReadOnly
                | ThinError::Metadata(Error::NoSpace)
                | ThinError::Shrunk { .. }
        )
    }

    fn cause(&self) -> Option<&Error> {
        match self {
            ThinError::Metadata(error) => Some(error),
            _ => None,
        }
    }
}

async fn drive(case: &Case) {
    let number = usize::from(case.base) % 3;
    let blocks = BASES.with(|bases| bases[number].mutated(&case.mutations));
    let device = Rc::new(MemoryDevice::from_blocks(blocks));
    let opened = ThinMetadata::open(device.clone(), options(case.read_only)).await;
    let metadata = match opened {
        Ok(metadata) => metadata,
        Err(error) => return look_at(&error),
    };
    let checked = metadata.check().await;
    let is_clean = checked.as_ref().is_ok_and(Vec::is_empty);
    if let Err(error) = checked {
        look_at(&error);
    }
    damaged::drive(metadata, &device, is_clean, &case.steps).await;
}

impl damaged::Metadata for ThinMetadata {
    type Step = Step;
    type Error = ThinError;
    const TOUR: &'static [Step] = &[
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

    async fn take(&mut self, device: &Rc<MemoryDevice>, step: &Step) -> Result<(), ThinError> {
        take(self, device, step).await
    }

    fn is_usable(&self) -> bool {
        self.is_usable()
    }

    async fn recover(&mut self) -> Result<(), ThinError> {
        self.abort().await
    }

    async fn commit(&mut self) -> Result<(), ThinError> {
        self.commit().await
    }

    async fn assert_sound(&mut self) {
        assert_eq!(self.check().await, Ok(Vec::new()));
    }

    fn cache_used_bytes(&self) -> u64 {
        self.cache_used_bytes()
    }
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
