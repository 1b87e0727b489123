//! `spdk-dm era` on random eras, against both generations of Debian's tools: they accept what it
//! writes, print what it prints, and list the blocks it lists.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::single_range_in_vec_init,
    reason = "a test fails by panicking; ranges are what blocks are listed as"
)]

mod support;

// The names by which that file knows them.
use support::tools as thin_metadata_tools;
#[path = "../../bdev/tests/era_world/mod.rs"]
mod era_world;

use era_world::{World, invalidated, parse, step};
use futures::executor::block_on;
use proptest::prelude::*;
use std::collections::BTreeMap;
use support::tools::{Temp, both, run};
use support::{spdk_dm, succeed};

/// Metadata blocks of a device; `World` makes them.
const NR_METADATA: u64 = 2500;

fn world(nr: u64, steps: &[era_world::Step]) -> World {
    block_on(async {
        let mut world = World::new(nr).await;
        for step in steps {
            world.apply(step).await;
        }
        world.commit().await;
        world
    })
}

/// As after a clean suspend.
fn archive(world: &mut World) {
    block_on(async {
        world.metadata.archive().await.unwrap();
        world.commit().await;
    });
}

/// What both generations of a tool print.
fn tools(name: &str, file: &Temp) -> [String; 2] {
    both(name).map(|mut command| run(command.arg(&file.0)))
}

fn blank(name: &str) -> Temp {
    support::files::blank(name, NR_METADATA)
}

/// Of each block the highest era a dump has it in.
fn last_eras(xml: &str) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    let mut writeset = 0;
    for line in xml.lines() {
        let values: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
        let number = |i: usize| values[i].parse::<u64>().unwrap();
        let (block, era) = match line.trim().split(' ').next().unwrap() {
            "<writeset" => {
                writeset = number(0);
                continue;
            }
            "<bit" if values[1] == "true" => (number(0), writeset),
            "<era" => (number(0), number(1)),
            _ => continue,
        };
        let last = found.entry(block).or_insert(0);
        *last = era.max(*last);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    /// Metadata in use, in the state of a crash: sound for everybody, and the dump is 1.1's to the byte;
    /// closed cleanly, it is 0.9's, too. The input is never written.
    #[test]
    fn check_and_dump(nr in 1..3000u64, steps in prop::collection::vec(step(), 1..24)) {
        let mut world = world(nr, &steps);
        for clean in [false, true] {
            if clean {
                archive(&mut world);
            }
            let file = Temp::with_blocks("era-dump", &world.device);
            let before = std::fs::read(&file.0).unwrap();
            tools("era_check", &file);
            let report = succeed(args!["era", "check", "--json", file.0]);
            prop_assert!(report.contains("\"problems\": []"), "{}", report);
            let [old, new] = tools("era_dump", &file);
            let ours = succeed(args!["era", "dump", file.0]);
            prop_assert_eq!(succeed(args!["era", "dump", "--format", "xml-padded", file.0]), new);
            if clean {
                prop_assert_eq!(&ours, &old);
            }
            let logical = succeed(args!["era", "dump", "--logical", file.0]);
            prop_assert!(!logical.contains("writeset"));
            let nr = world.metadata.nr_blocks();
            let mut last = last_eras(&ours);
            last.retain(|block, _| *block < nr);
            prop_assert_eq!(last_eras(&logical), last);
            prop_assert!(before == std::fs::read(&file.0).unwrap(), "the input was written");
        }
    }

    /// The blocks written since an era are era_invalidate's, of the metadata and of its snapshot, and
    /// after a crash all that the model knows.
    #[test]
    fn invalidate(nr in 1..3000u64, steps in prop::collection::vec(step(), 1..24)) {
        let mut world = world(nr, &steps);
        let crashed = Temp::with_blocks("era-crashed", &world.device);
        archive(&mut world);
        let file = Temp::with_blocks("era-invalidate", &world.device);
        let nr = world.metadata.nr_blocks();
        let era = world.model.era;
        for since in [0, 1, era / 2, era.saturating_sub(1), era, era + 1] {
            let text = since.to_string();
            let ours = succeed(args!["era", "invalidate", "--written-since", text, file.0]);
            let ours = parse(&ours);
            let now = succeed(args!["era", "invalidate", "--written-since", text, crashed.0]);
            prop_assert_eq!(&parse(&now), &ours, "the current writeset counts");
            for command in both("era_invalidate") {
                let mut theirs = invalidated(command, &file, since, None);
                // 0.9 also lists what lies past the end after a shrink.
                theirs.retain(|block| *block < nr);
                prop_assert_eq!(&theirs, &ours, "since {}", since);
            }
            let listed = Temp::new("era-listed");
            let held = spdk_dm(args!["era", "invalidate", "--metadata-snapshot", "--written-since",
                                     text, "-o", listed.0, file.0]);
            match world.metadata.metadata_snap() {
                Some(block) => {
                    prop_assert_eq!(held.code, Some(0), "{:?}", held);
                    let ours = parse(&std::fs::read_to_string(&listed.0).unwrap());
                    // 0.9 reads the live roots even so.
                    let [_, strict] = both("era_invalidate");
                    prop_assert_eq!(invalidated(strict, &file, since, Some(block)), ours);
                    let here = format!("-m={block}");
                    succeed(args!["era", "invalidate", here, "--written-since", text, file.0]);
                    let elsewhere = format!("-m={}", block + 1);
                    let ran = spdk_dm(args!["era", "dump", elsewhere, file.0]);
                    prop_assert_eq!(ran.code, Some(1));
                    prop_assert!(ran.err.contains(&format!("in block {block}")), "{:?}", ran);
                }
                None => {
                    prop_assert_eq!(held.code, Some(1));
                    prop_assert!(held.err.contains("no metadata snapshot"), "{:?}", held);
                }
            }
        }
    }

    /// What is restored from either form of dump satisfies every checker and has the same contents;
    /// what the tools restore is the same for us.
    #[test]
    fn restore(nr in 1..2000u64, steps in prop::collection::vec(step(), 1..16)) {
        let mut world = world(nr, &steps);
        archive(&mut world);
        let file = Temp::with_blocks("era-restore", &world.device);
        for format in ["xml", "xml-padded"] {
            let xml = Temp::new("era-restore.xml");
            succeed(args!["era", "dump", "--format", format, "-o", xml.0, file.0]);
            let text = std::fs::read_to_string(&xml.0).unwrap();
            let ours = blank("era-ours");
            succeed(args!["era", "restore", "-i", xml.0, "-o", ours.0]);
            let mut restored = vec![ours];
            for (i, mut theirs) in both("era_restore").into_iter().enumerate() {
                // 0.9 does not take bits past the end of a writeset, be they false.
                if format == "xml-padded" && i == 0 {
                    continue;
                }
                let file = blank("era-theirs");
                run(theirs.arg("-i").arg(&xml.0).arg("-o").arg(&file.0));
                restored.push(file);
            }
            for file in restored {
                tools("era_check", &file);
                let report = succeed(args!["era", "check", "--json", file.0]);
                prop_assert!(report.contains("\"problems\": []"), "{}", report);
                prop_assert_eq!(succeed(args!["era", "dump", "--format", format, file.0]), &text[..]);
            }
        }
    }
}
