//! `spdk-dm thin` on damaged metadata: it names the damaged block, ends, stays within its memory, and
//! repairs what is readable without inventing anything.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use futures::executor::block_on;
use persistent_data::block::{Kind, get_u32, no_rules};
use persistent_data::device::BlockBytes;
use persistent_data::node::NODE;
use persistent_data::space_map::{BITMAP, INDEX};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use support::files::{self, of_blocks};
use support::pools::{History, NR_METADATA, Step, make};
use support::tools::{Temp, both, run, thin_check};
use support::{damage, spdk_dm, succeed};

static SUPERBLOCK: Kind = Kind {
    name: "thin superblock",
    xor: 160_774,
    blocknr_offset: 8,
    validate: no_rules,
};

/// A pool with every kind of block: trees of two levels, sharing, a metadata snapshot.
fn pool() -> Vec<BlockBytes> {
    let write = |id, first, count, stride| Step::Write {
        id,
        first,
        count,
        stride,
    };
    let history = History {
        data_block_size_sectors: 128,
        steps: vec![
            Step::Create(1),
            write(1, 0, 1500, 2),
            Step::Snap(2, 1),
            write(2, 100, 400, 3),
            Step::Snap(3, 2),
            Step::ReserveSnap,
            write(1, 40, 10, 1),
            Step::Create(7),
            write(7, 0, 20, 1),
        ],
    };
    block_on(make(&history)).blocks()
}

static KINDS: [&Kind; 4] = [&NODE, &BITMAP, &INDEX, &SUPERBLOCK];

/// Blocks that are referred to; the root of the metadata device's map is at 192 (thin.md 1).
fn used(blocks: &[BlockBytes]) -> Vec<u64> {
    damage::used(blocks, damage::bitmap(blocks, 192))
}

fn blank(name: &str) -> Temp {
    files::blank(name, NR_METADATA)
}

/// Device, virtual block, data block, time of every mapping of a dump.
fn mappings(xml: &str) -> BTreeSet<(u64, u64, u64, u64)> {
    let mut device = 0;
    let mut found = BTreeSet::new();
    for line in xml.lines() {
        let values: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
        let number = |i: usize| values[i].parse::<u64>().unwrap();
        match line.trim().split(' ').next().unwrap() {
            "<device" => device = number(0),
            "<range_mapping" => found
                .extend((0..number(2)).map(|i| (device, number(0) + i, number(1) + i, number(3)))),
            "<single_mapping" => {
                found.insert((device, number(0), number(1), number(2)));
            }
            _ => {}
        }
    }
    found
}

/// What must hold whatever is damaged. Returns the report of the check.
fn survive(name: &str, damaged: &Temp) -> (bool, String) {
    let before = std::fs::read(&damaged.0).unwrap();
    let check = spdk_dm(args!["check", damaged.0]);
    spdk_dm(args!["check", "--json", "-m", damaged.0]);
    spdk_dm(args!["dump", damaged.0]);
    spdk_dm(args!["dump", "--format", "xml-shared", damaged.0]);
    spdk_dm(args!["dump", "-m", damaged.0]);
    spdk_dm(args!["thin", "ls", "--json", damaged.0]);
    spdk_dm(args!["delta", "--thin1", "1", "--thin2", "2", damaged.0]);
    spdk_dm(args!["rmap", "--region", "0..100000", damaged.0]);
    let repaired = blank(&format!("{name}-repaired"));
    let repair = spdk_dm(args!["repair", "-i", damaged.0, "-o", repaired.0]);
    if repair.code == Some(0) {
        thin_check(&repaired);
        succeed(args!["check", repaired.0]);
    }
    assert!(
        before == std::fs::read(&damaged.0).unwrap(),
        "the input was written"
    );
    (check.code == Some(0), check.out + &check.err)
}

/// Every block in turn is zeroed, and has a bit flipped: the check fails and names the block if it is
/// in use, else it does not mind; a repair keeps only what was there, and all but what that block held.
#[test]
fn every_block_damaged_in_turn() {
    let good = pool();
    let file = of_blocks("damage-good", &good);
    let original = mappings(&succeed(args!["dump", file.0]));
    let held = mappings(&succeed(args!["dump", "-m", file.0]));
    let used = used(&good);
    assert!(used.len() > 30, "{used:?}");
    for case in damage::one_by_one(&good, &used) {
        let (block, zero) = (case.block, case.zero);
        let name = format!("damage-{block}-{zero}");
        let damaged = of_blocks(&name, &case.blocks);
        let (ok, report) = survive(&name, &damaged);
        assert_eq!(ok, case.is_free, "{name}: {report}");
        let named = report.contains(&format!("metadata block {block}"));
        assert!(ok || named, "{name}: {report}");
        let repaired = blank(&format!("{name}-again"));
        let repair = spdk_dm(args!["repair", "-i", damaged.0, "-o", repaired.0]);
        if block == 0 && zero {
            assert_eq!(repair.code, Some(1), "a blank device is nothing to repair");
            continue;
        }
        assert_eq!(repair.code, Some(0), "{name}: {repair:?}");
        let kept = mappings(&succeed(args!["dump", repaired.0]));
        let invented = kept
            .iter()
            .find(|m| !original.contains(m) && !held.contains(m));
        assert_eq!(invented, None, "{name}");
        let lost = original.difference(&kept).count();
        assert!(
            lost == 0 || repair.err.contains("lost"),
            "{name}: {lost} {repair:?}"
        );
        let node = damage::kind(&KINDS, &good[block as usize], block)
            .is_some_and(|k| std::ptr::eq(k, &NODE));
        assert!(lost == 0 || node, "{name}: {lost} lost");
    }
}

/// With the superblock gone the trees are found, and the tools' repair finds the same.
#[test]
fn a_lost_superblock() {
    let good = pool();
    let file = of_blocks("lost-good", &good);
    let original = succeed(args!["dump", file.0]);
    let mut blocks = good.clone();
    blocks[0] = [0x55; 4096];
    let damaged = of_blocks("lost-superblock", &blocks);
    let output = blank("lost-output");
    let without = spdk_dm(args!["repair", "-i", damaged.0, "-o", output.0]);
    assert_eq!(without.code, Some(1));
    assert!(without.err.contains("--data-block-size"), "{without:?}");
    let said = [
        ["--data-block-size", "128"],
        ["--nr-data-blocks", "40000"],
        ["--transaction-id", "5"],
    ];
    let args = args!["repair", "-i", damaged.0, "-o", output.0];
    let ran = spdk_dm(
        args.into_iter()
            .chain(said.iter().flatten().map(OsStr::new)),
    );
    assert_eq!(ran.code, Some(0), "{ran:?}");
    thin_check(&output);
    assert_eq!(
        mappings(&succeed(args!["dump", output.0])),
        mappings(&original)
    );
    let theirs = blank("lost-theirs");
    let [_, mut repair] = both("thin_repair");
    repair.args(said.as_flattened());
    run(repair.arg("-i").arg(&damaged.0).arg("-o").arg(&theirs.0));
    assert_eq!(
        succeed(args!["dump", theirs.0]),
        succeed(args!["dump", output.0])
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(75))]

    /// Damage under right checksums, as by a bug or on purpose: nothing hangs, panics or takes memory
    /// without bound, and whatever a repair writes is sound.
    #[test]
    fn damage_with_right_checksums(
        changes in damage::changes(),
        number: u64,
    ) {
        let mut blocks = pool();
        let used = used(&blocks);
        // Values of full nodes.
        damage::change(&mut blocks, changes, &used, &KINDS, |at| 2048 + at % 400 / 8 * 8);
        let name = format!("sealed-{number}");
        let damaged = of_blocks(&name, &blocks);
        let (ok, report) = survive(&name, &damaged);
        // What we let pass, the strict thin_check does, too.
        if ok && get_u32(&blocks[0], 360) == 0 {
            let [_, mut strict] = both("thin_check");
            let output = strict.arg("-q").arg(&damaged.0).output().unwrap();
            prop_assert!(output.status.success(), "{} {:?}", report, output);
        }
    }
}
