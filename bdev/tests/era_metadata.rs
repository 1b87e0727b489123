//! Era metadata against a model, the strict checker, and the real tools of both generations.
//!
//! The tools are Debian's thin-provisioning-tools on PATH, and the strict 1.1 under
//! `SPDK_DM_STRICT_TOOLS` (both by `spdk-config/setup-tools`). Without them these tests fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use bdev::era::metadata::dump::EraInfo;
use bdev::era::metadata::restore::Restore;
use bdev::era::metadata::xml::{Layout, XmlWriter, write_blocks};
use bdev::era::metadata::{EraError, EraMetadata, OpenOptions, Step as Digested, View};
use futures::executor::block_on;
use persistent_data::block::get_u32;
use persistent_data::memory::{Event, MemoryDevice};
use proptest::prelude::*;
use std::ops::Range;
use std::rc::Rc;

mod thin_metadata_tools;
use thin_metadata_tools::{Temp, both, run};

fn options() -> OpenOptions {
    OpenOptions {
        data_block_size_sectors: 128,
        cache_bytes: 0,
        may_format: true,
    }
}

async fn open(device: &Rc<MemoryDevice>) -> EraMetadata {
    EraMetadata::open(device.clone(), options()).await.unwrap()
}

async fn begin_era(metadata: &mut EraMetadata) -> u32 {
    let era = metadata.rollover().await.unwrap();
    metadata.commit().await.unwrap();
    era
}

#[derive(Debug, Clone)]
enum Step {
    Mark(Vec<(u64, u64)>),
    Rollover,
    Digest(u32),
    DigestAll,
    Commit,
    Recover,
    TakeSnap,
    DropSnap,
    Resize(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let run = (
        any::<u64>(),
        prop_oneof![Just(1u64), 1..200u64, 1..40_000u64],
    );
    let nr = prop_oneof![1..4000u64, 1017..1020u64, 60_000..70_000u64];
    prop_oneof![
        8 => prop::collection::vec(run, 1..12).prop_map(Step::Mark),
        4 => Just(Step::Rollover),
        3 => (1..20u32).prop_map(Step::Digest),
        1 => Just(Step::DigestAll),
        2 => Just(Step::Commit),
        1 => Just(Step::Recover),
        2 => Just(Step::TakeSnap),
        1 => Just(Step::DropSnap),
        1 => nr.prop_map(Step::Resize),
        1 => Just(Step::Reopen),
    ]
}

/// The last era a block was written in: at least, and at most. They differ only for blocks that were
/// dropped by a shrink and came back.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    least: Vec<u32>,
    most: Vec<u32>,
    era: u32,
}

impl Model {
    fn resize(&mut self, nr: usize) {
        self.least.resize(nr, 0);
        if self.most.len() < nr {
            self.most.resize(nr, 0);
        }
    }

    fn mark(&mut self, ranges: &[Range<u64>]) {
        for block in ranges.iter().cloned().flatten() {
            self.least[block as usize] = self.era;
            self.most[block as usize] = self.era;
        }
    }

    fn check(&self, since: u32, found: &[Range<u64>]) {
        let mut listed = vec![false; self.least.len()];
        for block in found.iter().cloned().flatten() {
            listed[block as usize] = true;
        }
        for (block, listed) in listed.into_iter().enumerate() {
            let (least, most) = (self.least[block], self.most[block]);
            assert!(
                listed || least < since,
                "block {block} of era {least} is not since {since}"
            );
            assert!(
                !listed || most >= since,
                "block {block} of era {most} is since {since}"
            );
        }
    }
}

/// Ascending ranges inside `nr` blocks that do not overlap.
fn ranges(runs: &[(u64, u64)], nr: u64) -> Vec<Range<u64>> {
    let mut blocks: Vec<Range<u64>> = runs
        .iter()
        .map(|(begin, len)| begin % nr..(begin % nr + len).min(nr))
        .collect();
    blocks.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in blocks {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

struct World {
    device: Rc<MemoryDevice>,
    metadata: EraMetadata,
    model: Model,
    committed: Model,
    held: Option<Model>,
}

impl World {
    async fn new(nr: u64) -> World {
        let device = Rc::new(MemoryDevice::new(2500));
        let mut metadata = open(&device).await;
        metadata.resize(nr).await.unwrap();
        let mut model = Model::default();
        model.resize(nr as usize);
        model.era = begin_era(&mut metadata).await;
        assert_eq!(model.era, 1);
        World {
            device,
            metadata,
            committed: model.clone(),
            model,
            held: None,
        }
    }

    async fn commit(&mut self) {
        self.metadata.commit().await.unwrap();
        self.committed = self.model.clone();
    }

    async fn rollover(&mut self) {
        self.model.era += 1;
        assert_eq!(self.metadata.rollover().await.unwrap(), self.model.era);
        self.commit().await;
    }

    async fn apply(&mut self, step: &Step) {
        match step {
            Step::Mark(runs) => {
                let ranges = ranges(runs, self.metadata.nr_blocks());
                self.metadata.mark(&ranges).await.unwrap();
                self.model.mark(&ranges);
            }
            Step::Rollover => self.rollover().await,
            Step::Digest(steps) => {
                for _ in 0..*steps {
                    self.metadata.digest_step().await.unwrap();
                }
            }
            Step::DigestAll => {
                while self.metadata.digest_step().await.unwrap() != Digested::Idle {}
            }
            Step::Commit => self.commit().await,
            Step::Recover => {
                self.metadata.recover().await.unwrap();
                self.model = self.committed.clone();
            }
            Step::TakeSnap => {
                if self.held.is_some() {
                    let refused = self.metadata.take_metadata_snap().await;
                    assert_eq!(refused, Err(EraError::SnapHeld));
                    return;
                }
                self.rollover().await;
                let block = self.metadata.take_metadata_snap().await.unwrap();
                assert_eq!(self.metadata.metadata_snap(), Some(block));
                self.held = Some(self.model.clone());
                self.commit().await;
            }
            Step::DropSnap => {
                let result = self.metadata.drop_metadata_snap().await;
                match self.held.take() {
                    Some(_) => result.unwrap(),
                    None => assert_eq!(result, Err(EraError::NoSnapHeld)),
                }
                self.commit().await;
            }
            Step::Resize(nr) => {
                self.metadata.resize(*nr).await.unwrap();
                self.model.resize(*nr as usize);
                self.rollover().await;
            }
            Step::Reopen => {
                self.metadata.archive().await.unwrap();
                self.commit().await;
                self.metadata = open(&self.device).await;
                self.rollover().await;
            }
        }
    }

    async fn compare(&self, view: View, model: &Model) {
        for since in 0..=model.era + 1 {
            let (nr, era) = self.metadata.extent(view).await.unwrap();
            assert_eq!((nr, era), (model.least.len() as u64, model.era));
            let whole = self
                .metadata
                .written_since(view, since, 0..nr)
                .await
                .unwrap();
            model.check(since, &whole);
            // Pages say the same.
            let mut pages: Vec<u64> = Vec::new();
            for begin in (0..nr).step_by(777) {
                let page = self
                    .metadata
                    .written_since(view, since, begin..begin + 777)
                    .await;
                pages.extend(page.unwrap().into_iter().flatten());
            }
            assert!(pages.into_iter().eq(whole.into_iter().flatten()));
        }
    }

    async fn dump(&self, layout: Layout) -> String {
        let mut xml = XmlWriter::new(Vec::new(), layout);
        let with_current = layout == Layout::V1;
        self.metadata
            .dump(View::Live, with_current, &mut xml)
            .await
            .unwrap();
        String::from_utf8(xml.into_inner()).unwrap()
    }

    async fn check(&mut self) {
        self.commit().await;
        assert_eq!(self.metadata.check().await.unwrap(), []);
        self.compare(View::Live, &self.model).await;
        if let Some(held) = &self.held {
            self.compare(View::Snapshot, held).await;
        }
    }

    async fn check_with_tools(&mut self) {
        self.check().await;
        let file = Temp::with_blocks("era", &self.device);
        for mut command in both("era_check") {
            run(command.arg(&file.0));
        }
        let dumps = [self.dump(Layout::V0).await, self.dump(Layout::V1).await];
        for (mut command, ours) in both("era_dump").into_iter().zip(dumps) {
            assert!(run(command.arg(&file.0)) == ours, "{command:?} differs");
        }
        // The tools do not look at the current writeset: it is archived first, as by a suspend.
        self.metadata.archive().await.unwrap();
        self.commit().await;
        assert_eq!(self.metadata.check().await.unwrap(), []);
        let file = Temp::with_blocks("era", &self.device);
        for mut command in both("era_check") {
            run(command.arg(&file.0));
        }
        let (nr, era) = self.metadata.extent(View::Live).await.unwrap();
        for since in [0, 1, era / 2, era.saturating_sub(1), era, era + 1] {
            let ours = self.blocks_since(View::Live, since).await;
            for command in both("era_invalidate") {
                let listed = invalidated(command, &file, since, None);
                // 0.9 also lists what lies past the end after a shrink.
                let listed: Vec<u64> = listed.into_iter().filter(|block| *block < nr).collect();
                assert!(listed == ours, "since {since}: {listed:?}, ours {ours:?}");
            }
            if self.held.is_some() {
                let ours = self.blocks_since(View::Snapshot, since).await;
                // 0.9 reads the live roots even so.
                let [_, strict] = both("era_invalidate");
                let listed = invalidated(strict, &file, since, self.metadata.metadata_snap());
                assert!(
                    listed == ours,
                    "snapshot since {since}: {listed:?}, ours {ours:?}"
                );
            }
        }
    }

    async fn blocks_since(&self, view: View, since: u32) -> Vec<u64> {
        let (nr, _) = self.metadata.extent(view).await.unwrap();
        let ranges = self
            .metadata
            .written_since(view, since, 0..nr)
            .await
            .unwrap();
        let mut xml = Vec::new();
        write_blocks(&mut xml, ranges.clone()).unwrap();
        let blocks: Vec<u64> = ranges.into_iter().flatten().collect();
        assert_eq!(parse(&String::from_utf8(xml).unwrap()), blocks);
        blocks
    }
}

fn invalidated(
    mut command: std::process::Command,
    file: &Temp,
    since: u32,
    snapshot: Option<u64>,
) -> Vec<u64> {
    command
        .args(["--written-since", &since.to_string()])
        .arg(&file.0);
    if let Some(block) = snapshot {
        // 1.1 wants to be told where it is, and believes it; later ones ask the superblock.
        command.args(["--metadata-snapshot", &block.to_string()]);
    }
    parse(&run(&mut command))
}

/// The blocks of `era_invalidate`'s XML.
fn parse(xml: &str) -> Vec<u64> {
    let mut blocks = Vec::new();
    for line in xml.lines() {
        let numbers: Vec<u64> = line
            .split('"')
            .filter_map(|part| part.parse().ok())
            .collect();
        match numbers[..] {
            [block] => blocks.push(block),
            [begin, end] => blocks.extend(begin..end),
            _ => assert!(line.contains("blocks"), "{line}"),
        }
    }
    blocks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Every block is reported since the era it was last written in and since none after, whatever is
    /// digested, held, resized, or given up; counts and structure are always right.
    #[test]
    fn eras_are_remembered(nr in 1..3000u64, steps in prop::collection::vec(step(), 1..30)) {
        block_on(async {
            let mut world = World::new(nr).await;
            for step in &steps {
                world.apply(step).await;
            }
            world.check().await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// era_check of both generations is content, era_dump prints what we dump, and era_invalidate lists
    /// what we list.
    #[test]
    fn the_tools_agree(nr in 1..3000u64, steps in prop::collection::vec(step(), 1..24)) {
        block_on(async {
            let mut world = World::new(nr).await;
            for step in &steps {
                world.apply(step).await;
            }
            world.check_with_tools().await;
        });
    }

    /// A device that fails, then a power cut: what was committed is there, or what was being committed.
    #[test]
    fn failures_keep_a_committed_state(
        nr in 1..3000u64,
        steps in prop::collection::vec(step(), 1..12),
        fail_after in 0..60u64,
        survivors: u64,
        recovered: bool,
    ) {
        block_on(async {
            let mut world = World::new(nr).await;
            for step in &steps {
                world.apply(step).await;
            }
            world.commit().await;
            let before = world.model.clone();
            world.device.fail_after(Some(fail_after));
            let result = async {
                world.metadata.mark(&[0..nr.min(world.metadata.nr_blocks())]).await?;
                world.metadata.rollover().await?;
                world.metadata.commit().await?;
                while world.metadata.digest_step().await? != Digested::Idle {}
                world.metadata.commit().await
            }
            .await;
            let mut after = before.clone();
            after.mark(&[0..nr.min(world.metadata.nr_blocks())]);
            after.era += 1;
            if recovered && result.is_err() {
                world.device.fail_after(None);
                assert!(!world.metadata.is_usable());
                world.metadata.recover().await.unwrap();
                // Work goes on, and must not have touched what a power cut brings back.
                let era = world.metadata.rollover().await.unwrap();
                for model in [&before, &after] {
                    if model.era + 1 == era {
                        let mut model = model.clone();
                        model.era = era;
                        world.compare(View::Live, &model).await;
                    }
                }
                world.device.fail_after(Some(survivors % 3));
                let _ = world.metadata.commit().await;
            }
            let mut seed = survivors;
            let left = world.device.after_crash(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                seed >> 63 == 1
            });
            let device = Rc::new(MemoryDevice::from_blocks(left));
            world.metadata = open(&device).await;
            prop_assert_eq!(world.metadata.check().await.unwrap(), []);
            let era = world.metadata.current_era();
            let mut found = if era == before.era { before } else { after };
            prop_assert!(era == found.era || (recovered && result.is_err()));
            if result.is_ok() {
                prop_assert_eq!(era, found.era);
            }
            found.era = era;
            world.compare(View::Live, &found).await;
            Ok(())
        })?;
    }

    /// What era_restore wrote can be opened and gone on with; what we restore, the tools read.
    #[test]
    fn restored_both_ways(nr in 1..2000u64, steps in prop::collection::vec(step(), 1..12)) {
        block_on(async {
            let mut world = World::new(nr).await;
            for step in &steps {
                world.apply(step).await;
            }
            world.check().await;
            world.metadata.archive().await.unwrap();
            world.commit().await;
            for (mut command, layout) in both("era_restore").into_iter().zip([Layout::V0, Layout::V1]) {
                let xml = Temp::new("era.xml");
                std::fs::write(&xml.0, world.dump(layout).await).unwrap();
                let file = Temp::with_blocks("era-restored", &MemoryDevice::new(2500));
                run(command.arg("-i").arg(&xml.0).arg("-o").arg(&file.0));
                let device = file.to_device();
                let mut metadata = open(&device).await;
                prop_assert_eq!(metadata.check().await.unwrap(), []);
                let era = metadata.current_era();
                prop_assert_eq!(era, world.model.era);
                let mut model = world.model.clone();
                model.era = begin_era(&mut metadata).await;
                prop_assert_eq!(model.era, era + 1);
                metadata.mark(&[0..1]).await.unwrap();
                model.mark(&[0..1]);
                while metadata.digest_step().await.unwrap() != Digested::Idle {}
                metadata.commit().await.unwrap();
                prop_assert_eq!(metadata.check().await.unwrap(), []);
                for since in [1, era, era + 1] {
                    let all = 0..metadata.nr_blocks();
                    let found = metadata.written_since(View::Live, since, all).await.unwrap();
                    model.check(since, &found);
                }
            }
        Ok(())
        })?;
    }
}

/// The numbers of blocks in use that the kernel shows (era.md 3, 11).
#[test]
fn fresh_metadata_takes_ten_blocks() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(1024));
        let mut metadata = open(&device).await;
        metadata.resize(1024).await.unwrap();
        assert_eq!(begin_era(&mut metadata).await, 1);
        assert_eq!(metadata.nr_used_metadata(), 10);
        assert_eq!(metadata.nr_metadata_blocks(), 1024);
        metadata.mark(&[5..8]).await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 10);
        begin_era(&mut metadata).await;
        // `8 12/1024 2 -`, and 10 again once digested (era.md 11).
        assert_eq!(metadata.nr_used_metadata(), 12);
        while metadata.digest_step().await.unwrap() != Digested::Idle {}
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 10);
        metadata.mark(&[9..10]).await.unwrap();
        begin_era(&mut metadata).await;
        metadata.take_metadata_snap().await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 13);
        let since = metadata.written_since(View::Snapshot, 1, 0..1024).await;
        assert_eq!(since.unwrap(), [5..8, 9..10]);
        while metadata.digest_step().await.unwrap() != Digested::Idle {}
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 16);
        metadata.drop_metadata_snap().await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.nr_used_metadata(), 10);
    });
}

/// Only the second phase of a commit touches block 0, and a second commit without a change writes
/// nothing.
#[test]
fn a_mark_is_four_blocks_and_a_superblock() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(1024));
        let mut metadata = open(&device).await;
        metadata.resize(1024).await.unwrap();
        begin_era(&mut metadata).await;
        device.take_events();
        metadata.mark(&[7..8]).await.unwrap();
        metadata.commit().await.unwrap();
        metadata.commit().await.unwrap();
        let events = device.take_events();
        let [blocks @ .., Event::Flush, Event::Write(0), Event::Flush] = events.as_slice() else {
            panic!("wrong order: {events:?}");
        };
        // Index, bitmap, root and block of the writeset: as the kernel (era.md 11).
        assert_eq!(blocks.len(), 4, "{events:?}");
    });
}

/// Reading block 0 refuses what is not era metadata, each with its own errno (era.md 1).
#[test]
fn superblock_refusals() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(100));
        open(&device).await;
        let good = device.blocks();
        assert_eq!(get_u32(&good[0], 40), 1);
        let mut cases = Vec::new();
        for (at, errno) in [(8, 15), (32, 84), (100, 84)] {
            let mut blocks = good.clone();
            blocks[0][at] ^= 1;
            cases.push((blocks, errno));
        }
        let mut blocks = good.clone();
        blocks[0][40] = 2;
        bdev::era::metadata::SUPERBLOCK.seal(&mut blocks[0], 0);
        cases.push((blocks, 22));
        for (blocks, errno) in cases {
            let device = Rc::new(MemoryDevice::from_blocks(blocks));
            let error = EraMetadata::open(device, options()).await.err().unwrap();
            assert_eq!(error.errno().0, errno, "{error}");
        }
        let other = OpenOptions {
            data_block_size_sectors: 64,
            ..options()
        };
        let error = EraMetadata::open(device.clone(), other)
            .await
            .err()
            .unwrap();
        assert_eq!(error.errno().0, 22);
        let blank = Rc::new(MemoryDevice::new(100));
        let error = EraMetadata::open_any(blank, 0).await.err().unwrap();
        assert_eq!(error, EraError::Blank);
    });
}

/// Our own restore gives what was asked for, and refuses nonsense.
#[test]
fn restore_from_parts() {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(200));
        let info = EraInfo {
            block_size_sectors: 8,
            nr_blocks: 1500,
            current_era: 7,
        };
        let mut restore = Restore::begin(device.clone(), 0, &info).await.unwrap();
        restore.writeset(6, 1500, &[1..3, 70..71]).await.unwrap();
        restore.writeset(7, 1500, &[1..2]).await.unwrap();
        restore.era(0, 5).await.unwrap();
        restore.era(1400, 3).await.unwrap();
        assert!(restore.era(1400, 3).await.is_err());
        assert!(restore.era(1500, 3).await.is_err());
        assert!(restore.writeset(8, 10, &[]).await.is_err());
        assert!(restore.writeset(5, 10, &[3..11]).await.is_err());
        let metadata = restore.finish().await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
        let file = Temp::with_blocks("era-ours", &device);
        for mut command in both("era_check") {
            run(command.arg(&file.0));
        }
        let metadata = EraMetadata::open_any(device, 0).await.unwrap();
        for (since, expected) in [
            (6, vec![1..3, 70..71]),
            (7, vec![1..2]),
            (4, vec![0..3, 70..71]),
        ] {
            let found = metadata
                .written_since(View::Live, since, 0..1500)
                .await
                .unwrap();
            assert_eq!(found, expected);
        }
    });
}
