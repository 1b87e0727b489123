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
use persistent_data::block::{Kind, get_u32, get_u64, no_rules};
use persistent_data::device::BlockBytes;
use persistent_data::node::NODE;
use persistent_data::space_map::{BITMAP, INDEX, stored};
use proptest::prelude::*;
use std::collections::BTreeSet;
use support::pools::{History, NR_METADATA, Step, make};
use support::tools::{Temp, both, run, thin_check};
use support::{spdk_dm, succeed};

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

/// Blocks that are referred to.
fn used(blocks: &[BlockBytes]) -> Vec<u64> {
    let index = get_u64(&blocks[0], 192 + 16);
    let bitmap = get_u64(&blocks[index as usize], 16);
    (0..NR_METADATA)
        .filter(|block| stored(&blocks[bitmap as usize], *block) > 0)
        .collect()
}

fn kind(bytes: &BlockBytes, block: u64) -> Option<&'static Kind> {
    let kinds = [&NODE, &BITMAP, &INDEX, &SUPERBLOCK];
    kinds
        .into_iter()
        .find(|kind| kind.verify(bytes, block).is_ok())
}

fn blank(name: &str) -> Temp {
    let file = Temp::new(name);
    let made = std::fs::File::create(&file.0).unwrap();
    made.set_len(NR_METADATA * 4096).unwrap();
    file
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
    spdk_dm(args!["ls", "--json", damaged.0]);
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
    let file = Temp::new("damage-good");
    std::fs::write(&file.0, good.concat()).unwrap();
    let original = mappings(&succeed(args!["dump", file.0]));
    let held = mappings(&succeed(args!["dump", "-m", file.0]));
    let used = used(&good);
    assert!(used.len() > 30, "{used:?}");
    let free = (0..NR_METADATA)
        .find(|block| !used.contains(block))
        .unwrap();
    for block in used.iter().copied().chain([free]) {
        for zero in [true, false] {
            let name = format!("damage-{block}-{zero}");
            let mut blocks = good.clone();
            let bytes = &mut blocks[block as usize];
            match zero {
                true => *bytes = [0; 4096],
                false => bytes[(block as usize * 97 + 20) % 4096] ^= 0x10,
            }
            let damaged = Temp::new(&name);
            std::fs::write(&damaged.0, blocks.concat()).unwrap();
            let (ok, report) = survive(&name, &damaged);
            assert_eq!(ok, block == free, "{name}: {report}");
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
            let node = kind(&good[block as usize], block).is_some_and(|k| std::ptr::eq(k, &NODE));
            assert!(lost == 0 || node, "{name}: {lost} lost");
        }
    }
}

/// With the superblock gone the trees are found, and the tools' repair finds the same.
#[test]
fn a_lost_superblock() {
    let good = pool();
    let file = Temp::new("lost-good");
    std::fs::write(&file.0, good.concat()).unwrap();
    let original = succeed(args!["dump", file.0]);
    let mut blocks = good.clone();
    blocks[0] = [0x55; 4096];
    let damaged = Temp::new("lost-superblock");
    std::fs::write(&damaged.0, blocks.concat()).unwrap();
    let output = blank("lost-output");
    let without = spdk_dm(args!["repair", "-i", damaged.0, "-o", output.0]);
    assert_eq!(without.code, Some(1));
    assert!(without.err.contains("--data-block-size"), "{without:?}");
    let ran = spdk_dm(args![
        "repair",
        "--data-block-size",
        "128",
        "--nr-data-blocks",
        "40000",
        "--transaction-id",
        "5",
        "-i",
        damaged.0,
        "-o",
        output.0
    ]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    thin_check(&output);
    assert_eq!(
        mappings(&succeed(args!["dump", output.0])),
        mappings(&original)
    );
    let theirs = blank("lost-theirs");
    let [_, mut repair] = both("thin_repair");
    repair.args([
        "--data-block-size",
        "128",
        "--nr-data-blocks",
        "40000",
        "--transaction-id",
        "5",
    ]);
    run(repair.arg("-i").arg(&damaged.0).arg("-o").arg(&theirs.0));
    assert_eq!(
        succeed(args!["dump", theirs.0]),
        succeed(args!["dump", output.0])
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Damage under right checksums, as by a bug or on purpose: nothing hangs, panics or takes memory
    /// without bound, and whatever a repair writes is sound.
    #[test]
    fn damage_with_right_checksums(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..4088usize, any::<u64>(), 0..4u8), 1..6),
        number: u64,
    ) {
        let mut blocks = pool();
        let used = used(&blocks);
        for (block, at, value, how) in changes {
            let nr = *block.get(&used);
            let bytes = &mut blocks[nr as usize];
            let Some(kind) = kind(bytes, nr) else { continue };
            // Half of the changes hit fields that are in use, with numbers that mean something.
            let at = match how {
                0 => at,
                1 => at % 64 / 4 * 4,
                2 => 32 + at % 400 / 8 * 8,
                _ => 2048 + at % 400 / 8 * 8,
            };
            let value = match value % 3 {
                0 => used[value as usize % used.len()],
                1 => get_u64(bytes, at).wrapping_add(value % 7).wrapping_sub(3),
                _ => value,
            };
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            kind.seal(bytes, nr);
        }
        let name = format!("sealed-{number}");
        let damaged = Temp::new(&name);
        std::fs::write(&damaged.0, blocks.concat()).unwrap();
        let (ok, report) = survive(&name, &damaged);
        // What we let pass, the strict thin_check does, too.
        if ok && get_u32(&blocks[0], 360) == 0 {
            let [_, mut strict] = both("thin_check");
            let output = strict.arg("-q").arg(&damaged.0).output().unwrap();
            prop_assert!(output.status.success(), "{} {:?}", report, output);
        }
    }
}
