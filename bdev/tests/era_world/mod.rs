//! Era metadata beside a model of it, and what the real tools say of both.

#![allow(dead_code, reason = "not every test program uses all of it")]

use crate::thin_metadata_tools::{Temp, both, run};
use bdev::era::metadata::xml::{Layout, XmlWriter, write_blocks};
use bdev::era::metadata::{EraError, EraMetadata, OpenOptions, Step as Digested, View};
use persistent_data::memory::MemoryDevice;
use proptest::prelude::*;
use std::ops::Range;
use std::rc::Rc;

pub fn options() -> OpenOptions {
    OpenOptions {
        data_block_size_sectors: 128,
        cache_bytes: 0,
        may_format: true,
    }
}

pub async fn open(device: &Rc<MemoryDevice>) -> EraMetadata {
    EraMetadata::open(device.clone(), options()).await.unwrap()
}

pub async fn begin_era(metadata: &mut EraMetadata) -> u32 {
    let era = metadata.rollover().await.unwrap();
    metadata.commit().await.unwrap();
    era
}

#[derive(Debug, Clone)]
pub enum Step {
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

pub fn step() -> impl Strategy<Value = Step> {
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
pub struct Model {
    pub least: Vec<u32>,
    pub most: Vec<u32>,
    pub era: u32,
}

impl Model {
    pub fn resize(&mut self, nr: usize) {
        self.least.resize(nr, 0);
        if self.most.len() < nr {
            self.most.resize(nr, 0);
        }
    }

    pub fn mark(&mut self, ranges: &[Range<u64>]) {
        for block in ranges.iter().cloned().flatten() {
            self.least[block as usize] = self.era;
            self.most[block as usize] = self.era;
        }
    }

    pub fn check(&self, since: u32, found: &[Range<u64>]) {
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
pub fn ranges(runs: &[(u64, u64)], nr: u64) -> Vec<Range<u64>> {
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

pub struct World {
    pub device: Rc<MemoryDevice>,
    pub metadata: EraMetadata,
    pub model: Model,
    pub committed: Model,
    pub held: Option<Model>,
}

impl World {
    pub async fn new(nr: u64) -> World {
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

    pub async fn commit(&mut self) {
        self.metadata.commit().await.unwrap();
        self.committed = self.model.clone();
    }

    pub async fn rollover(&mut self) {
        self.model.era += 1;
        assert_eq!(self.metadata.rollover().await.unwrap(), self.model.era);
        self.commit().await;
    }

    pub async fn apply(&mut self, step: &Step) {
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

    pub async fn compare(&self, view: View, model: &Model) {
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

    pub async fn dump(&self, layout: Layout) -> String {
        let mut xml = XmlWriter::new(Vec::new(), layout);
        let with_current = layout == Layout::V1;
        self.metadata
            .dump(View::Live, with_current, &mut xml)
            .await
            .unwrap();
        String::from_utf8(xml.into_inner()).unwrap()
    }

    pub async fn check(&mut self) {
        self.commit().await;
        assert_eq!(self.metadata.check().await.unwrap(), []);
        self.compare(View::Live, &self.model).await;
        if let Some(held) = &self.held {
            self.compare(View::Snapshot, held).await;
        }
    }

    pub async fn check_with_tools(&mut self) {
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

    pub async fn blocks_since(&self, view: View, since: u32) -> Vec<u64> {
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

pub fn invalidated(
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
pub fn parse(xml: &str) -> Vec<u64> {
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
