//! The exception store of a COW device with any bytes on it: opened, read, added to, merged away.
//!
//! What opens without an error keeps to the format (snapshot.md 1), takes exceptions until it is full, is the
//! same when it is opened again, and can be merged away to nothing.

use crate::sectors::Sectors;
use arbitrary::{Arbitrary, Unstructured};
use bdev::device::SECTOR_BYTES;
use bdev::snapshot::SnapshotError;
use bdev::snapshot::layout::{Exception, Layout};
use bdev::snapshot::store::{Opened, PersistentStore, check};
use futures::executor::block_on;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Sectors of the device: several areas of the smallest chunks.
const NR_SECTORS: u64 = 400;

/// Steps of one input that are taken.
const MAX_STEPS: usize = 48;

#[derive(Debug, Arbitrary)]
struct Case {
    /// Exceptions that the undamaged store has.
    nr_exceptions: u8,
    /// log2 of its sectors per chunk.
    chunk: u8,
    /// What the table says.
    asked: u32,
    /// Bytes that are put over it.
    damage: Vec<Damage>,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Damage {
    /// At a byte of the header.
    Header(u8, u32),
    /// An entry of an area: which, old chunk, new chunk.
    Entry(u8, u16, u16, u16),
    /// The same with any numbers.
    Numbers(u8, u16, u64, u64),
    /// Anywhere.
    Byte(u32, u8),
}

#[derive(Debug, Arbitrary)]
enum Step {
    Add(u16),
    AddMany(u8),
    Scan(u64, u64),
    Reopen,
    Merge(u8),
    Invalidate,
    Check,
}

type Found = BTreeMap<u64, u64>;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    if let Ok(case) = Case::arbitrary(&mut input) {
        block_on(drive(&case));
    }
}

async fn open(
    device: &Rc<Sectors>,
    asked: u64,
) -> Result<Option<(PersistentStore, Found)>, SnapshotError> {
    let mut found = Found::new();
    let opened = PersistentStore::open(device.clone(), asked, 512, |_, exception| {
        found
            .insert(exception.old_chunk, exception.new_chunk)
            .is_none()
    });
    Ok(match opened.await? {
        Opened::Valid(store) => Some((store, found)),
        Opened::Invalid(_) => None,
    })
}

/// No chunk of the device is used twice, or in the place of header and areas.
fn judge(store: &PersistentStore, found: &Found) {
    let layout = store.layout();
    let mut used: Vec<u64> = found.values().copied().collect();
    used.sort_unstable();
    assert!(used.windows(2).all(|pair| pair[0] != pair[1]), "{used:?}");
    let stride = layout.chunk_sectors() * SECTOR_BYTES / 16 + 1;
    for chunk in used {
        assert!(chunk > 1 && chunk % stride != 1, "{chunk}");
        assert!(
            (chunk + 1) * layout.chunk_sectors() <= NR_SECTORS,
            "{chunk}"
        );
    }
    assert!(store.metadata_sectors() > 0);
}

async fn base(case: &Case) -> Rc<Sectors> {
    let device = Sectors::zeroes(NR_SECTORS);
    let sectors = 1 << (case.chunk % 4);
    let (store, _) = open(&device, sectors).await.unwrap().unwrap();
    for number in 0..u64::from(case.nr_exceptions) {
        let Ok(new_chunk) = store.allocate() else {
            break;
        };
        // Runs and jumps.
        let old_chunk = number + number / 7 * 5;
        let exception = Exception {
            old_chunk,
            new_chunk,
        };
        store.commit(&[exception]).await.unwrap();
    }
    let layout = Layout::new(sectors);
    let mut bytes = device.0.borrow_mut();
    let per_area = sectors * SECTOR_BYTES / 16;
    let mut put = |at: u64, new: &[u8]| {
        let at = usize::try_from(at).unwrap();
        if let Some(place) = bytes.get_mut(at..at + new.len()) {
            place.copy_from_slice(new);
        }
    };
    for damage in &case.damage {
        let mut entry = |area: u8, index: u16, old: u64, new: u64| {
            let chunk = 1 + u64::from(area) * (per_area + 1);
            let at = layout.sector(chunk) * SECTOR_BYTES + u64::from(index) % per_area * 16;
            put(at, &old.to_le_bytes());
            put(at + 8, &new.to_le_bytes());
        };
        match *damage {
            Damage::Entry(area, index, old, new) => entry(area, index, old.into(), new.into()),
            Damage::Numbers(area, index, old, new) => entry(area, index, old, new),
            Damage::Header(at, value) => put(u64::from(at % 20), &value.to_le_bytes()),
            Damage::Byte(at, value) => put(u64::from(at) % (NR_SECTORS * SECTOR_BYTES), &[value]),
        }
    }
    drop(bytes);
    device
}

async fn drive(case: &Case) {
    let device = base(case).await;
    // Its findings are of the same bytes.
    let checked = check(device.clone()).await;
    let mut opened = match open(&device, case.asked.into()).await {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    drop(checked);
    judge(&opened.0, &opened.1);
    for step in case.steps.iter().take(MAX_STEPS) {
        let (store, found) = &mut opened;
        match *step {
            Step::Add(old) => add(store, found, old.into()).await,
            Step::AddMany(count) => {
                for old in 0..u64::from(count) {
                    add(store, found, 1000 + old).await;
                }
            }
            Step::Scan(first, count) => {
                let mut seen = Found::new();
                let scanned = store.scan(first, count, |exception| {
                    seen.insert(exception.old_chunk, exception.new_chunk);
                });
                scanned.await.unwrap();
                let wanted = found.range(first..first.saturating_add(count));
                let wanted: Found = wanted.map(|(old, new)| (*old, *new)).collect();
                assert_eq!(seen, wanted);
            }
            Step::Reopen => {
                let chunk = store.layout().chunk_sectors();
                let again = open(&device, chunk).await.unwrap().unwrap();
                assert_eq!(&again.1, found);
                judge(&again.0, &again.1);
                opened = again;
            }
            Step::Merge(most) => {
                store.begin_merge();
                merge(store, found, u64::from(most).max(1)).await;
                let chunk = store.layout().chunk_sectors();
                let again = open(&device, chunk).await.unwrap().unwrap();
                assert!(again.1.is_empty());
                return;
            }
            Step::Invalidate => {
                store.invalidate().await.unwrap();
                let chunk = store.layout().chunk_sectors();
                assert!(open(&device, chunk).await.unwrap().is_none());
                return;
            }
            Step::Check => {
                check(device.clone()).await.unwrap();
            }
        }
    }
}

async fn add(store: &PersistentStore, found: &mut Found, old_chunk: u64) {
    if found.contains_key(&old_chunk) {
        return;
    }
    match store.allocate() {
        Ok(new_chunk) => {
            let exception = Exception {
                old_chunk,
                new_chunk,
            };
            store.commit(&[exception]).await.unwrap();
            found.insert(old_chunk, new_chunk);
            judge(store, found);
        }
        Err(error) => assert_eq!(error, SnapshotError::NoSpace),
    }
}

async fn merge(store: &PersistentStore, found: &mut Found, most: u64) {
    while let Some(run) = store.last_run(most).await.unwrap() {
        assert!(run.nr_chunks > 0 && run.nr_chunks <= most);
        for number in 0..run.nr_chunks {
            let new = found.remove(&(run.old_chunk + number));
            assert_eq!(new, Some(run.new_chunk + number));
        }
        store.clear_last(run.nr_chunks).await.unwrap();
    }
    assert!(found.is_empty());
}
