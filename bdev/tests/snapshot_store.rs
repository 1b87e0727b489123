//! Exception stores on a COW device: byte formats, what a crash leaves, corrupt bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cow_device;

use bdev::snapshot::SnapshotError;
use bdev::snapshot::layout::{Exception, Header, Layout};
use bdev::snapshot::store::{Opened, PersistentStore, Run, check};
use cow_device::CowFile;
use futures::executor::block_on;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::rc::Rc;

type Found = BTreeMap<u64, u64>;

/// Opens a store that must be valid; what is in it.
fn open(device: &Rc<CowFile>, chunk_sectors: u64) -> (PersistentStore, Found) {
    try_open(device, chunk_sectors).unwrap().unwrap()
}

fn try_open(
    device: &Rc<CowFile>,
    chunk_sectors: u64,
) -> Result<Option<(PersistentStore, Found)>, SnapshotError> {
    let mut found = Found::new();
    let opened = PersistentStore::open(device.clone(), chunk_sectors, 512, |_, exception| {
        let before = found.insert(exception.old_chunk, exception.new_chunk);
        before.is_none()
    });
    Ok(match block_on(opened)? {
        Opened::Valid(store) => Some((store, found)),
        Opened::Invalid(_) => None,
    })
}

fn add(store: &PersistentStore, old_chunk: u64) -> Result<Exception, SnapshotError> {
    let exception = Exception {
        old_chunk,
        new_chunk: store.allocate()?,
    };
    block_on(store.commit(&[exception]))?;
    Ok(exception)
}

/// The bytes and figures of snapshot.md 12, first example.
#[test]
fn as_the_kernel_writes_it() {
    let device = CowFile::new(8192);
    let (store, found) = open(&device, 16);
    assert!(found.is_empty());
    let figures = |store: &PersistentStore| (store.allocated_sectors(), store.metadata_sectors());
    assert_eq!(figures(&store), (32, 32));
    for old_chunk in [100, 50, 51, 10] {
        add(&store, old_chunk).unwrap();
    }
    assert_eq!(figures(&store), (96, 32));
    assert_eq!(
        Header::decode(&device.bytes(0, 16)),
        Header {
            magic: 0x7041_6e53,
            valid: 1,
            version: 1,
            chunk_sectors: 16
        }
    );
    let entries: Vec<_> = [(100u64, 2u64), (50, 3), (51, 4), (10, 5), (0, 0)]
        .iter()
        .flat_map(|(old, new)| [old.to_le_bytes(), new.to_le_bytes()].concat())
        .collect();
    assert_eq!(device.bytes(16 * 512, entries.len()), entries);
    block_on(store.invalidate()).unwrap();
    assert_eq!(device.bytes(4, 4), [0; 4]);
    assert!(try_open(&device, 16).unwrap().is_none());
}

/// A full area is followed by a zeroed one, also where there was garbage (snapshot.md 12, second example).
#[test]
fn areas_follow_each_other() {
    let device = CowFile::new(16384);
    device.fill(8 * 512 * 258, 0xA5, 4096);
    let (store, _) = open(&device, 8);
    for old_chunk in 0..256 {
        add(&store, old_chunk).unwrap();
    }
    assert_eq!(
        (store.allocated_sectors(), store.metadata_sectors()),
        (2072, 24)
    );
    let (store, found) = open(&device, 8);
    assert_eq!((found.len(), found.get(&255)), (256, Some(&257)));
    assert_eq!(add(&store, 999).unwrap().new_chunk, 259);
    let report = block_on(check(device.clone())).unwrap();
    assert_eq!((report.nr_exceptions, report.in_order), (257, true));
    assert_eq!(report.findings, []);
}

/// The exception that fills an area is refused where the next area does not fit (snapshot.md 1, Edge), and
/// made when the device has grown.
#[test]
fn no_room_for_the_next_area() {
    let device = CowFile::new(514 * 16);
    let (store, _) = open(&device, 16);
    for old_chunk in 0..511 {
        add(&store, old_chunk).unwrap();
    }
    assert_eq!(add(&store, 511), Err(SnapshotError::NoSpace));
    device.grow(16);
    assert_eq!(add(&store, 511).unwrap().new_chunk, 513);
    assert_eq!(add(&store, 512), Err(SnapshotError::NoSpace));
    let (_, found) = open(&device, 0);
    assert_eq!(found.len(), 512);
}

/// A device with something else, another version, an impossible chunk size is refused.
#[test]
fn foreign_headers() {
    let device = CowFile::new(8192);
    let (_, found) = open(&device, 16);
    assert!(found.is_empty());
    device.put(8, &[2]);
    assert_eq!(try_open(&device, 16).err(), Some(SnapshotError::Version(2)));
    device.put(8, &[1]);
    device.put(12, &[17]);
    assert!(matches!(
        try_open(&device, 16).err(),
        Some(SnapshotError::ChunkSize {
            chunk_sectors: 17,
            ..
        })
    ));
    device.put(0, &[1]);
    assert!(matches!(
        try_open(&device, 16).err(),
        Some(SnapshotError::Foreign(_))
    ));
    for chunk_sectors in [3, 1 << 22, u64::MAX] {
        let fresh = CowFile::new(64);
        assert!(matches!(
            try_open(&fresh, chunk_sectors).err(),
            Some(SnapshotError::ChunkSize { .. })
        ));
    }
}

/// Every entry that points where it must not, or twice at one place, is refused and found by the check.
#[test]
fn impossible_entries() {
    for (old, new) in [
        (9, 1),
        (9, 258),
        (9, 1 << 60),
        (9, u64::MAX),
        (9, 2),
        (7, 3),
    ] {
        let device = CowFile::new(16384);
        let (store, _) = open(&device, 8);
        let good = add(&store, 7).unwrap();
        assert_eq!(good.new_chunk, 2);
        let bad = Exception {
            old_chunk: old,
            new_chunk: new,
        };
        device.put(8 * 512 + 16, &bad.encode());
        assert!(
            matches!(
                try_open(&device, 8).err(),
                Some(SnapshotError::Entry {
                    area: 0,
                    index: 1,
                    ..
                })
            ),
            "{bad:?}"
        );
        let report = block_on(check(device)).unwrap();
        assert_eq!(report.findings.len(), 1, "{bad:?}");
    }
}

/// What a torn write left behind the marker never comes back when the gap is filled.
#[test]
fn stale_entries_are_cleaned() {
    for chunk_sectors in [1, 8, 16] {
        let device = CowFile::new(16384);
        let (store, _) = open(&device, chunk_sectors);
        add(&store, 7).unwrap();
        let stale = Exception {
            old_chunk: 8,
            new_chunk: 9,
        };
        let entries = Layout::new(chunk_sectors).entries_per_area();
        for index in [2, entries - 1] {
            device.put(chunk_sectors * 512 + index * 16, &stale.encode());
        }
        let (store, found) = open(&device, chunk_sectors);
        assert_eq!(found.len(), 1);
        for old_chunk in 100..99 + entries {
            add(&store, old_chunk).unwrap();
        }
        let (_, found) = open(&device, chunk_sectors);
        assert_eq!(found.get(&8), None, "chunks of {chunk_sectors}");
        assert_eq!(found.len() as u64, entries);
    }
}

/// A merge takes runs from the end, as far as they go down by one, within a unit; then the store is empty.
#[test]
fn runs_from_the_end() {
    let device = CowFile::new(16384);
    let (store, _) = open(&device, 8);
    let olds: Vec<u64> = (1000..1252)
        .chain([5])
        .chain([8, 9])
        .chain([3, 77])
        .collect();
    for old_chunk in &olds {
        add(&store, *old_chunk).unwrap();
    }
    let (store, _) = open(&device, 8);
    store.begin_merge();
    let mut sizes = Vec::new();
    let mut left = olds;
    while let Some(Run {
        old_chunk,
        nr_chunks,
        ..
    }) = block_on(store.last_run(1000)).unwrap()
    {
        let taken = left.split_off(left.len() - nr_chunks as usize);
        let expected: Vec<u64> = (old_chunk..old_chunk + nr_chunks).collect();
        assert_eq!(taken, expected);
        sizes.push(nr_chunks);
        block_on(store.clear_last(nr_chunks)).unwrap();
        let (_, found) = open(&device, 8);
        assert_eq!(found.len(), left.len());
    }
    assert_eq!(sizes, [1, 1, 2, 1, 252]);
    assert_eq!(
        (store.allocated_sectors(), store.metadata_sectors()),
        (16, 16)
    );
}

#[derive(Debug, Clone)]
enum Step {
    Add(Vec<u64>),
    Reopen,
    Crash(u64),
    Grow(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(0..5000u64, 1..90).prop_map(Step::Add),
        1 => Just(Step::Reopen),
        3 => any::<u64>().prop_map(Step::Crash),
        1 => (0..200u64).prop_map(Step::Grow),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What a commit answered is there after a crash at any moment; nothing else but a prefix of what was
    /// being committed; and a page of the table is found by a scan.
    #[test]
    fn committed_is_there(
        shift in 0..4u32,
        steps in prop::collection::vec(step(), 1..25),
        garbage: bool,
    ) {
        let chunk_sectors = 1 << shift;
        let device = CowFile::new(4000);
        if garbage {
            device.fill(u64::from(512u32 * chunk_sectors as u32), 0x5A, 200_000);
        }
        let (mut store, _) = open(&device, chunk_sectors);
        let mut model = Found::new();
        for step in steps {
            match step {
                Step::Add(olds) => {
                    let mut batch = Vec::new();
                    for old_chunk in olds {
                        if model.contains_key(&old_chunk) {
                            continue;
                        }
                        let Ok(new_chunk) = store.allocate() else { break };
                        model.insert(old_chunk, new_chunk);
                        batch.push(Exception { old_chunk, new_chunk });
                    }
                    block_on(store.commit(&batch)).unwrap();
                }
                Step::Grow(sectors) => device.grow(sectors),
                Step::Reopen | Step::Crash(_) => {
                    if let Step::Crash(seed) = step {
                        device.crash(seed);
                    }
                    let (again, found) = open(&device, chunk_sectors);
                    prop_assert_eq!(&found, &model);
                    store = again;
                }
            }
            let mut scanned = Found::new();
            block_on(store.scan(1000, 512, |e| { scanned.insert(e.old_chunk, e.new_chunk); })).unwrap();
            let page: Found = model.range(1000..1512).map(|(old, new)| (*old, *new)).collect();
            prop_assert_eq!(scanned, page);
        }
    }

    /// A commit that is cut short leaves a prefix of it, in order.
    #[test]
    fn cut_short(shift in 0..4u32, before in 0..300u64, batch in 1..300u64, left in 0..12u64, seed: u64) {
        let device = CowFile::new(16384);
        let (store, _) = open(&device, 1 << shift);
        for old_chunk in 0..before {
            add(&store, old_chunk).unwrap();
        }
        let exceptions: Vec<_> = (1000..1000 + batch)
            .map(|old_chunk| Exception { old_chunk, new_chunk: store.allocate().unwrap() })
            .collect();
        device.fail_after(Some(left));
        let done = block_on(store.commit(&exceptions)).is_ok();
        device.fail_after(None);
        device.crash(seed);
        let (store, found) = open(&device, 1 << shift);
        let kept = found.len() as u64 - before;
        prop_assert!(kept <= batch && (!done || kept == batch));
        for exception in exceptions.iter().take(kept as usize) {
            prop_assert_eq!(found.get(&exception.old_chunk), Some(&exception.new_chunk));
        }
        // What the crash left behind the marker is not in the way.
        for old_chunk in 5000..5600 {
            add(&store, old_chunk).unwrap();
        }
        let (_, found) = open(&device, 1 << shift);
        prop_assert_eq!(found.len() as u64, before + kept + 600);
        prop_assert_eq!(block_on(check(device)).unwrap().findings, []);
    }

    /// Loading and checking any bytes ends, with an answer.
    #[test]
    fn any_bytes(
        shift in 0..4u32,
        pieces in prop::collection::vec((0..200_000u64, prop::collection::vec(any::<u8>(), 1..40)), 0..40),
        fill in prop::option::of(any::<u8>()),
    ) {
        let device = CowFile::new(600);
        let _ = open(&device, 1 << shift);
        if let Some(fill) = fill {
            device.fill(512 << shift, fill, 100_000);
        }
        for (at, bytes) in pieces {
            device.put(at, &bytes);
        }
        let _ = block_on(check(device.clone()));
        if let Ok(Some((store, found))) = try_open(&device, 0) {
            prop_assert!(found.len() < 600);
            store.begin_merge();
            while let Some(run) = block_on(store.last_run(64)).unwrap() {
                block_on(store.clear_last(run.nr_chunks)).unwrap();
            }
        }
    }
}
