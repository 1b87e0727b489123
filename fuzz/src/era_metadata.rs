//! An era target's metadata on a damaged disk: opened, checked, read and changed.

use crate::damaged::{self, Trouble, look_at};
use crate::image::{ERA, Image, Mutation};
use arbitrary::{Arbitrary, Unstructured};
use bdev::era::metadata::dump::DumpError;
use bdev::era::metadata::xml::{Layout, XmlWriter};
use bdev::era::metadata::{EraError, EraMetadata, OpenOptions, Step as Digested};
use bdev::era::metadata::{MAX_BLOCKS, View};
use bdev::errno::Errno;
use futures::executor::block_on;
use persistent_data::Error;
use persistent_data::device::BlockDevice;
use persistent_data::memory::MemoryDevice;
use std::io::{self, Write};
use std::rc::Rc;

/// Metadata blocks of the device.
const NR_BLOCKS: u64 = 96;

/// No dump of the metadata of such a device is longer: per metadata block as many bits as it has.
const MAX_DUMP_BYTES: usize = 256 << 20;

#[derive(Debug, Arbitrary)]
struct Case {
    base: u8,
    mutations: Vec<Mutation>,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
pub(crate) enum Step {
    Check,
    Dump { snapshot: bool, old: bool },
    DumpLogical { snapshot: bool },
    Since(bool, u32, u32, u16),
    Mark(u16, u16),
    MarkAt(u64),
    Rollover,
    Archive,
    Digest(u8),
    DigestAll,
    Resize(u16),
    ResizeTo(u64),
    GrowMetadata(u8),
    TakeSnap,
    DropSnap,
    Commit,
    Recover,
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

async fn new_era(metadata: &mut EraMetadata) -> Result<(), EraError> {
    metadata.rollover().await?;
    metadata.commit().await
}

/// The undamaged images: one era; several eras and a metadata snapshot, half digested; a writeset of
/// two blocks after a shrink.
async fn base(number: u8) -> Result<Image, EraError> {
    let device = Rc::new(MemoryDevice::new(NR_BLOCKS));
    let options = OpenOptions {
        data_block_size_sectors: 128,
        cache_bytes: 0,
        may_format: true,
    };
    let mut metadata = EraMetadata::open(device.clone(), options).await?;
    metadata
        .resize([1000, 3000, 40_000][usize::from(number)])
        .await?;
    new_era(&mut metadata).await?;
    metadata.mark(&[5..8, 100..101, 990..1000]).await?;
    if number == 1 {
        for era in 2..6 {
            new_era(&mut metadata).await?;
            metadata
                .mark(&[era..era + 40, 900 * era / 2..900 * era / 2 + 7])
                .await?;
        }
        metadata.digest_step().await?;
        new_era(&mut metadata).await?;
        metadata.take_metadata_snap().await?;
        metadata.commit().await?;
        metadata.digest_step().await?;
        metadata.digest_step().await?;
        metadata.digest_step().await?;
        metadata.mark(&[0..64, 2999..3000]).await?;
    }
    if number == 2 {
        metadata.mark(&[32_500..32_700, 39_999..40_000]).await?;
        metadata.resize(33_000).await?;
        new_era(&mut metadata).await?;
    }
    metadata.commit().await?;
    assert_eq!(metadata.check().await?, []);
    Ok(Image::new(device.blocks(), ERA))
}

thread_local! {
    static BASES: [Image; 3] = [0, 1, 2].map(|number| block_on(base(number)).unwrap());
}

impl Trouble for EraError {
    fn errno(&self) -> Errno {
        self.errno()
    }

    fn is_refusal(&self) -> bool {
        self.is_refusal()
    }

    fn is_harmless(&self) -> bool {
        matches!(
            self,
            EraError::Metadata(Error::NoSpace) | EraError::Unusable
        )
    }

    fn cause(&self) -> Option<&Error> {
        match self {
            EraError::Metadata(error) => Some(error),
            _ => None,
        }
    }
}

async fn drive(case: &Case) {
    let number = usize::from(case.base) % 3;
    let blocks = BASES.with(|bases| bases[number].mutated(&case.mutations));
    let device = Rc::new(MemoryDevice::from_blocks(blocks));
    let metadata = match EraMetadata::open_any(device.clone(), 0).await {
        Ok(metadata) => metadata,
        Err(error) => return look_at(&error),
    };
    let report = metadata.survey().await;
    let is_clean = report.is_clean();
    for error in report.unreadable {
        look_at(&EraError::from(error));
    }
    damaged::drive(metadata, &device, is_clean, &case.steps).await;
}

impl damaged::Metadata for EraMetadata {
    type Step = Step;
    type Error = EraError;
    const TOUR: &'static [Step] = &[
        Step::Dump {
            snapshot: false,
            old: false,
        },
        Step::DumpLogical { snapshot: false },
        Step::Since(false, 2, 0, 40_000),
        Step::Since(true, 2, 0, 40_000),
        Step::Rollover,
        Step::Mark(3, 70),
        Step::Commit,
        Step::DigestAll,
        Step::DropSnap,
        Step::TakeSnap,
        Step::Mark(500, 9),
        Step::Resize(1500),
        Step::DigestAll,
        Step::Check,
    ];

    async fn take(&mut self, device: &Rc<MemoryDevice>, step: &Step) -> Result<(), EraError> {
        take(self, device, step).await
    }

    fn is_usable(&self) -> bool {
        self.is_usable()
    }

    async fn recover(&mut self) -> Result<(), EraError> {
        self.recover().await
    }

    async fn commit(&mut self) -> Result<(), EraError> {
        self.commit().await
    }

    async fn assert_sound(&mut self) {
        assert_eq!(self.check().await, Ok(Vec::new()));
    }

    fn cache_used_bytes(&self) -> u64 {
        self.cache_used_bytes()
    }
}

/// Takes so much and no more.
struct Limited(usize);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).expect("a dump without end");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn view(snapshot: bool) -> View {
    match snapshot {
        true => View::Snapshot,
        false => View::Live,
    }
}

fn dumped(result: Result<(), DumpError<io::Error>>) -> Result<(), EraError> {
    result.map_err(|error| match error {
        DumpError::Metadata(error) => error,
        DumpError::Sink(error) => panic!("{error}"),
    })
}

async fn take(
    metadata: &mut EraMetadata,
    device: &Rc<MemoryDevice>,
    step: &Step,
) -> Result<(), EraError> {
    match *step {
        Step::Check => {
            metadata.commit().await?;
            metadata.check().await.map(|_| ())
        }
        Step::Dump { snapshot, old } => {
            let layout = if old { Layout::V0 } else { Layout::V1 };
            let mut xml = XmlWriter::new(Limited(MAX_DUMP_BYTES), layout);
            dumped(metadata.dump(view(snapshot), !old, &mut xml).await)
        }
        Step::DumpLogical { snapshot } => {
            let mut xml = XmlWriter::new(Limited(MAX_DUMP_BYTES), Layout::V1);
            dumped(metadata.dump_logical(view(snapshot), &mut xml).await)
        }
        Step::Since(snapshot, era, from, length) => {
            let from = u64::from(from) % (2 * metadata.nr_blocks().max(1));
            let range = from..from + u64::from(length);
            let found = metadata
                .written_since(view(snapshot), era % 10, range.clone())
                .await?;
            assert!(found.iter().all(|run| run.start < run.end
                && run.start >= range.start
                && run.end <= range.end));
            assert!(found.is_sorted_by(|a, b| a.end < b.start), "{found:?}");
            Ok(())
        }
        Step::Mark(at, count) => {
            let nr = metadata.nr_blocks();
            let at = u64::from(at) % nr.max(1);
            let end = nr.min(at + u64::from(count));
            metadata.mark(std::slice::from_ref(&(at..end))).await
        }
        Step::MarkAt(at) => {
            let at = at % MAX_BLOCKS;
            metadata.mark(std::slice::from_ref(&(at..at + 1))).await
        }
        Step::Rollover => {
            let before = metadata.current_era();
            let era = metadata.rollover().await?;
            assert_eq!(era, before + 1);
            metadata.commit().await
        }
        Step::Archive => {
            metadata.archive().await?;
            metadata.rollover().await?;
            metadata.commit().await
        }
        Step::Digest(steps) => {
            for _ in 0..steps {
                metadata.digest_step().await?;
            }
            Ok(())
        }
        Step::DigestAll => {
            // A step works in a block of bits, or all 2048 bits it takes, or ends a writeset.
            for _ in 0..100_000 {
                if metadata.digest_step().await? == Digested::Idle {
                    return Ok(());
                }
            }
            panic!("digestion without end");
        }
        Step::Resize(nr) => resize(metadata, u64::from(nr)).await,
        Step::ResizeTo(nr) => resize(metadata, nr).await,
        Step::GrowMetadata(by) => {
            device.grow((device.nr_blocks() + u64::from(by)).min(4 * NR_BLOCKS));
            metadata.resize_metadata().await
        }
        Step::TakeSnap => {
            if metadata.metadata_snap().is_some() {
                return metadata.take_metadata_snap().await.map(|_| ());
            }
            metadata.rollover().await?;
            metadata.commit().await?;
            metadata.take_metadata_snap().await?;
            metadata.commit().await
        }
        Step::DropSnap => metadata.drop_metadata_snap().await,
        Step::Commit => metadata.commit().await,
        Step::Recover => metadata.recover().await,
    }
}

/// A new length takes effect with a new era.
async fn resize(metadata: &mut EraMetadata, nr: u64) -> Result<(), EraError> {
    metadata.resize(nr).await?;
    metadata.rollover().await?;
    metadata.commit().await
}
