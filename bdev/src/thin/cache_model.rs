//! The mapping cache beside a model: whatever is cached is true, and no frame is two pages'.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::cache::{MappingCache, PAGE_BLOCKS, PageTable, Paged, UNMAPPED, held, pack};
use super::pages::Page;
use crate::owner::Channels;
use crate::runtime::Runtime;
use futures::executor::block_on;
use futures::future::LocalBoxFuture;
use proptest::prelude::*;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// More pages than the smallest cache has frames, the last one not whole.
const NR_BLOCKS: u64 = 80 * PAGE_BLOCKS as u64 - 100;

struct NoRuntime;

impl Runtime for NoRuntime {
    fn spawn(&self, _: LocalBoxFuture<'static, ()>) {}

    fn sleep(&self, _: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

struct Device(PageTable);

impl Paged for Device {
    const STEP: Option<u64> = Some(1 << super::pages::TIME_BITS);

    fn pages(&self) -> &PageTable {
        &self.0
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Somebody looks at a page, so the owner reads it.
    Load(u64),
    /// First writes to blocks in order, to data blocks in order, these two of them the other way round.
    Write(Range<u64>, u64, u32, usize),
    /// Something else is mapped at a block.
    Map(u64, u64),
    Unmap(Range<u64>),
    /// Held, then looked at, then not held any more.
    Hold(Range<u64>),
    Forget,
}

fn range() -> impl Strategy<Value = Range<u64>> {
    let len = prop_oneof![1u64..8, 1..4 * PAGE_BLOCKS as u64];
    (0..NR_BLOCKS, len).prop_map(|(begin, len)| begin..(begin + len).min(NR_BLOCKS))
}

/// From the first block of a page.
fn aligned() -> impl Strategy<Value = Range<u64>> {
    let align = |range: Range<u64>| range.start - range.start % PAGE_BLOCKS as u64..range.end;
    range().prop_map(align)
}

fn step() -> impl Strategy<Value = Step> {
    let write = |blocks: Range<u64>, data, time, at| Step::Write(blocks, data, time, at);
    let blocks = prop_oneof![range(), aligned()];
    prop_oneof![
        6 => (0..NR_BLOCKS / PAGE_BLOCKS as u64 + 1).prop_map(Step::Load),
        4 => (blocks, 0..1u64 << 30, 0..3u32, 0..2000usize)
            .prop_map(move |(blocks, data, time, at)| write(blocks, data, time, at)),
        2 => (0..NR_BLOCKS, 0..1u64 << 39).prop_map(|(block, data)| Step::Map(block, data)),
        2 => range().prop_map(Step::Unmap),
        2 => aligned().prop_map(Step::Unmap),
        1 => range().prop_map(Step::Hold),
        1 => Just(Step::Forget),
    ]
}

struct Lab {
    cache: MappingCache<Device>,
    dev: Arc<Device>,
    channels: Channels,
    truth: Vec<u64>,
}

impl Lab {
    fn load(&self, page: u64, held_blocks: &Range<u64>) {
        let first = page * PAGE_BLOCKS as u64;
        let values: Vec<u64> = (first..first + PAGE_BLOCKS as u64)
            .map(|block| self.value(block, held_blocks))
            .collect();
        let frame = block_on(self.cache.take_frame(&self.channels)).unwrap();
        self.cache.publish(&self.dev, page, frame, &values);
        assert!(self.dev.0.is_cached(first));
    }

    fn value(&self, block: u64, held_blocks: &Range<u64>) -> u64 {
        let value = self.truth.get(block as usize).copied().unwrap_or(UNMAPPED);
        match held_blocks.contains(&block) {
            true => held(value),
            false => value,
        }
    }

    fn check(&self, held_blocks: &Range<u64>) {
        for block in 0..NR_BLOCKS {
            let cached = self.dev.0.value(block);
            assert!(cached.is_none() || cached == Some(self.value(block, held_blocks)));
        }
        let pages = (0..NR_BLOCKS).step_by(PAGE_BLOCKS);
        let frames: Vec<u32> = pages
            .filter_map(|block| match self.dev.0.page(block) {
                Page::Frame(frame) => Some(frame),
                _ => None,
            })
            .collect();
        let different: HashSet<u32> = frames.iter().copied().collect();
        assert_eq!(different.len(), frames.len());
        let stats = self.cache.stats();
        assert!(stats.used_bytes <= stats.limit_bytes);
        assert!(frames.len() * PAGE_BLOCKS * 8 <= stats.used_bytes as usize);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Load(page) => self.load(page, &(0..0)),
            Step::Write(blocks, data, time, at) => {
                let mut order: Vec<u64> = blocks.clone().collect();
                if at + 1 < order.len() {
                    order.swap(at, at + 1);
                }
                for block in order {
                    let value = pack(data + (block - blocks.start), time);
                    self.truth[block as usize] = value;
                    self.cache.set(&self.dev, block, value);
                }
            }
            Step::Map(block, data) => {
                self.truth[block as usize] = pack(data, 0);
                self.cache.set(&self.dev, block, pack(data, 0));
            }
            Step::Unmap(blocks) => {
                self.truth[blocks.start as usize..blocks.end as usize].fill(UNMAPPED);
                self.dev.0.unmap(blocks.start, blocks.end);
            }
            Step::Hold(blocks) => {
                self.dev.0.hold(blocks.start, blocks.end, true);
                self.check(&blocks);
                self.load(blocks.start / PAGE_BLOCKS as u64, &blocks);
                self.check(&blocks);
                self.dev.0.hold(blocks.start, blocks.end, false);
            }
            Step::Forget => block_on(self.cache.forget(&self.dev, &self.channels)),
        }
    }
}

/// A size nobody has the memory for is refused; it comes from whoever activates a device.
#[test]
fn absurd_sizes_are_refused() {
    assert!(MappingCache::<Device>::new(u64::MAX, &NoRuntime).is_none());
    let cache = MappingCache::<Device>::new(0, &NoRuntime).unwrap();
    assert!(cache.page_table(u64::MAX).is_none());
    assert!(cache.page_table(1000).is_some());
}

fn lab() -> Lab {
    let cache = MappingCache::new(0, &NoRuntime).unwrap();
    let dev = Arc::new(Device(cache.page_table(NR_BLOCKS).unwrap()));
    Lab {
        cache,
        dev,
        channels: Channels::default(),
        truth: vec![UNMAPPED; NR_BLOCKS as usize],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the order of looks, first writes, changes, discards and merges.
    #[test]
    fn what_is_cached_is_true(steps in prop::collection::vec(step(), 1..150)) {
        let mut lab = lab();
        for step in steps {
            lab.take(step);
            lab.check(&(0..0));
        }
    }
}

/// What is in order takes no frames: not when it is read, and not when it was written while it was cached.
#[test]
fn runs_take_no_frames() {
    let mut lab = lab();
    let used = |lab: &Lab| lab.cache.stats().used_bytes;
    let nr_pages = NR_BLOCKS.div_ceil(PAGE_BLOCKS as u64);
    (0..nr_pages).for_each(|page| lab.load(page, &(0..0)));
    assert_eq!(used(&lab), 0, "nothing is mapped");
    for begin in (0..NR_BLOCKS).step_by(PAGE_BLOCKS) {
        // Meanwhile it was forgotten if there were no frames.
        lab.load(begin / PAGE_BLOCKS as u64, &(0..0));
        let end = (begin + PAGE_BLOCKS as u64).min(NR_BLOCKS);
        // In disorder at the end of the page, as I/Os finish.
        lab.take(Step::Write(begin..end - 3, 7 + begin, 1, 0));
        for block in [end - 1, end - 3, end - 2] {
            lab.take(Step::Write(block..block + 1, 7 + block, 1, 0));
        }
    }
    let is_run = |page: &u64| matches!(lab.dev.0.page(page * PAGE_BLOCKS as u64), Page::Run(_));
    // The last one has nobody behind it, by whom its end is noticed.
    assert!((0..nr_pages - 1).all(|page| is_run(&page)));
    block_on(lab.cache.forget(&lab.dev, &lab.channels));
    let before = lab.cache.stats();
    (0..nr_pages).for_each(|page| lab.load(page, &(0..0)));
    let after = lab.cache.stats();
    assert_eq!(after.used_bytes, before.used_bytes);
    assert_eq!(after.loads - before.loads, nr_pages);
    lab.check(&(0..0));
}
