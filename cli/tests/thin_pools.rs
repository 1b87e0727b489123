//! `spdk-dm thin` on random pools, against both generations of Debian's tools: they accept what it
//! writes, and print what it prints.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use futures::executor::block_on;
use persistent_data::block::get_u64;
use proptest::prelude::*;
use std::collections::BTreeSet;
use support::pools::{NR_DATA, history, make};
use support::tools::{Temp, both, run, thin_check};
use support::{spdk_dm, succeed};

/// Ids of the devices in a dump.
fn ids(xml: &str) -> Vec<String> {
    xml.lines()
        .filter_map(|line| line.trim().strip_prefix("<device dev_id=\""))
        .filter_map(|rest| rest.split('"').next())
        .map(str::to_owned)
        .collect()
}

/// A dump without its first line, where the flags are.
fn body(xml: &str) -> String {
    xml.split_once('\n').unwrap().1.to_owned()
}

fn tool<const N: usize>(old: bool, name: &str, args: [&str; N], file: &Temp) -> String {
    let [zero, one] = both(name);
    let mut command = if old { zero } else { one };
    run(command.args(args).arg(&file.0))
}

fn blank(name: &str) -> Temp {
    support::files::blank(name, support::pools::NR_METADATA)
}

/// Who uses the data blocks of a region, from a dump with every mapping.
fn owners(xml: &str, region: std::ops::Range<u64>) -> BTreeSet<String> {
    let mut device = String::new();
    let mut found: Vec<(u64, u64, u64, String)> = Vec::new();
    for line in xml.lines() {
        let values: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
        let number = |i: usize| values[i].parse::<u64>().unwrap();
        let (v, d, length) = match line.trim().split(' ').next().unwrap() {
            "<device" => {
                device = values[0].to_owned();
                continue;
            }
            "<range_mapping" => (number(0), number(1), number(2)),
            "<single_mapping" => (number(0), number(1), 1),
            _ => continue,
        };
        for i in (0..length).filter(|i| region.contains(&(d + i))) {
            match found.last_mut() {
                Some((v0, d0, n, dev))
                    if *dev == device && *v0 + *n == v + i && *d0 + *n == d + i =>
                {
                    *n += 1;
                }
                _ => found.push((v + i, d + i, 1, device.clone())),
            }
        }
    }
    let line = |(v, d, n, dev): (u64, u64, u64, String)| {
        format!("data {d}..{} -> thin({dev}) {v}..{}", d + n, v + n)
    };
    found.into_iter().map(line).collect()
}

const FIELDS: &str = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS,MAPPED_SECTORS,EXCLUSIVE_SECTORS,SHARED_SECTORS,\
MAPPED_BYTES,EXCLUSIVE_BYTES,SHARED_BYTES,TRANSACTION,CREATE_TIME,SNAP_TIME";
/// Only 1.x has the highest ones, and 0.9 writes a rounded zero without its unit.
const NEW_FIELDS: &str = "MAPPED,EXCLUSIVE,SHARED,HIGHEST_BLOCK,HIGHEST_SECTOR,HIGHEST_BYTE";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    /// A pool that was served is sound for everybody, and every dump is the tools' to the byte: 0.9's
    /// with every mapping, 1.1's with shared mappings once, of one device, and of the metadata
    /// snapshot.
    #[test]
    fn check_and_dump(history in history(), name: u64) {
        let device = block_on(make(&history));
        let file = Temp::with_blocks(&format!("dump-{name}"), &device);
        let before = std::fs::read(&file.0).unwrap();
        thin_check(&file);
        succeed(args!["thin", "check", file.0]);
        let full = tool(true, "thin_dump", [], &file);
        prop_assert_eq!(&succeed(args!["thin", "dump", file.0]), &full);
        prop_assert_eq!(
            succeed(args!["dump", "--format", "xml-shared", file.0]),
            tool(false, "thin_dump", [], &file)
        );
        for id in ids(&full) {
            prop_assert_eq!(
                succeed(args!["dump", "--dev-id", id, file.0]),
                tool(true, "thin_dump", ["--dev-id", &id], &file)
            );
        }
        let held = get_u64(&before, 56) != 0;
        if held {
            prop_assert_eq!(
                succeed(args!["dump", "-m", file.0]),
                tool(true, "thin_dump", ["-m"], &file)
            );
            prop_assert_eq!(
                succeed(args!["dump", "-m", "--format", "xml-shared", file.0]),
                tool(false, "thin_dump", ["-m"], &file)
            );
            succeed(args!["check", "-m", file.0]);
        } else {
            prop_assert_eq!(spdk_dm(args!["dump", "-m", file.0]).code, Some(1));
        }
        prop_assert!(before == std::fs::read(&file.0).unwrap(), "the input was written");
    }

    /// What is restored from either form of dump satisfies every checker and has the same contents;
    /// what the tools restore and repair satisfies ours.
    #[test]
    fn restore_and_repair(history in history(), name: u64) {
        let device = block_on(make(&history));
        let file = Temp::with_blocks(&format!("restore-{name}"), &device);
        let full = tool(true, "thin_dump", [], &file);
        for format in ["xml", "xml-shared"] {
            let xml = Temp::new(&format!("restore-{name}-{format}"));
            succeed(args!["dump", "--format", format, "-o", xml.0, file.0]);
            let restored = blank(&format!("restored-{name}-{format}"));
            succeed(args!["restore", "-i", xml.0, "-o", restored.0]);
            thin_check(&restored);
            let report = succeed(args!["check", "--json", restored.0]);
            prop_assert!(report.contains("\"problems\": []"), "{}", report);
            prop_assert_eq!(body(&tool(true, "thin_dump", [], &restored)), body(&full));
            prop_assert_eq!(body(&succeed(args!["dump", restored.0])), body(&full));
            for (i, mut theirs) in both("thin_restore").into_iter().enumerate() {
                // 0.9 does not know shared mappings.
                if format == "xml-shared" && i == 0 {
                    continue;
                }
                let file = blank(&format!("theirs-{name}-{format}-{i}"));
                run(theirs.arg("-i").arg(&xml.0).arg("-o").arg(&file.0));
                succeed(args!["check", file.0]);
                prop_assert_eq!(body(&succeed(args!["dump", file.0])), body(&full));
            }
        }
        let repaired = blank(&format!("repaired-{name}"));
        succeed(args!["repair", "-i", file.0, "-o", repaired.0]);
        thin_check(&repaired);
        prop_assert_eq!(body(&tool(true, "thin_dump", [], &repaired)), body(&full));
        for (i, mut theirs) in both("thin_repair").into_iter().enumerate() {
            let repaired = blank(&format!("their-repair-{name}-{i}"));
            run(theirs.arg("-i").arg(&file.0).arg("-o").arg(&repaired.0));
            succeed(args!["check", repaired.0]);
            prop_assert_eq!(body(&succeed(args!["dump", repaired.0])), body(&full));
        }
    }

    /// Differences, lists and owners are the tools'. (1.1's verbose form joins ranges whose right data
    /// blocks are not consecutive, and both reverse maps leave out all but one user of a shared leaf:
    /// there ours is compared with 0.9, and with the dump.)
    #[test]
    fn delta_ls_and_rmap(history in history(), name: u64, begin in 0..NR_DATA) {
        let device = block_on(make(&history));
        let file = Temp::with_blocks(&format!("delta-{name}"), &device);
        let full = tool(true, "thin_dump", [], &file);
        let ids = ids(&full);
        for left in &ids {
            for right in &ids {
                let pair = ["--thin1", left, "--thin2", right];
                let ours = succeed(args!["delta", "--thin1", left, "--thin2", right, file.0]);
                prop_assert_eq!(&ours, &strip(&tool(true, "thin_delta", pair, &file)));
                prop_assert_eq!(ours.trim_end(), &tool(false, "thin_delta", pair, &file));
                let pair = ["--verbose", "--thin1", left, "--thin2", right];
                let ours =
                    succeed(args!["delta", "--verbose", "--thin1", left, "--thin2", right, file.0]);
                prop_assert_eq!(ours, strip(&tool(true, "thin_delta", pair, &file)));
            }
        }
        prop_assert_eq!(
            succeed(args!["thin", "ls", "-o", FIELDS, file.0]),
            tool(true, "thin_ls", ["-o", FIELDS], &file)
        );
        let mut all = format!("{FIELDS},{NEW_FIELDS}");
        // With larger blocks 1.1 prints less for it than its own HIGHEST_BYTE comes to.
        if history.data_block_size_sectors == 128 {
            all += ",HIGHEST_MAPPED";
        }
        prop_assert_eq!(
            succeed(args!["thin", "ls", "-o", all, file.0]),
            tool(false, "thin_ls", ["-o", &all], &file)
        );
        let region = format!("{begin}..{}", (begin + 3000).min(NR_DATA + 1));
        let ours = succeed(args!["rmap", "--region", region, file.0]);
        let lines: BTreeSet<String> = ours.lines().map(str::to_owned).collect();
        prop_assert_eq!(&lines, &owners(&full, begin..begin + 3000));
    }
}

/// thin_delta 0.9 names the metadata snapshot in its first line, 1.1 and we do not.
fn strip(xml: &str) -> String {
    let (first, rest) = xml.split_once('\n').unwrap();
    let first = match first.find(" metadata_snap=\"") {
        Some(at) => format!("{}>", &first[..at]),
        None => first.to_owned(),
    };
    format!("{first}\n{rest}")
}

/// Without shared leaves the reverse map is the tools', but for the order among runs that begin
/// alike.
#[test]
fn rmap_is_the_tools() {
    let xml = Temp::new("rmap.xml");
    std::fs::write(
        &xml.0,
        r#"<superblock uuid="" time="1" transaction="0" version="2" data_block_size="128" nr_data_blocks="2000">
  <device dev_id="1" mapped_blocks="35" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="10" time="0"/>
    <range_mapping origin_begin="20" data_begin="20" length="10" time="0"/>
    <range_mapping origin_begin="30" data_begin="500" length="10" time="0"/>
    <range_mapping origin_begin="300" data_begin="300" length="2" time="0"/>
    <range_mapping origin_begin="302" data_begin="302" length="3" time="1"/>
  </device>
  <device dev_id="2" mapped_blocks="25" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="10" time="0"/>
    <range_mapping origin_begin="20" data_begin="20" length="5" time="0"/>
    <range_mapping origin_begin="30" data_begin="502" length="10" time="0"/>
  </device>
</superblock>"#,
    )
    .unwrap();
    let file = blank("rmap");
    succeed(args!["restore", "-i", xml.0, "-o", file.0]);
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for region in ["0..2000", "5..22", "303..304", "505..506", "1000..2000"] {
        let ours = sorted(succeed(args!["rmap", "--region", region, file.0]));
        for old in [true, false] {
            let theirs = tool(old, "thin_rmap", ["--region", region], &file);
            assert_eq!(ours, sorted(theirs), "{region}, 0.9: {old}");
        }
    }
}

/// Every verb explains itself, with and without the word `thin`; a wrong command has exit code 1.
#[test]
fn help_is_there() {
    for verb in ["check", "dump", "restore", "repair", "delta", "rmap"] {
        let long = succeed(args!["thin", verb, "--help"]);
        assert_eq!(
            long.replace("spdk-dm thin", "spdk-dm"),
            succeed(args![verb, "--help"])
        );
        assert!(long.contains("Usage: spdk-dm thin"), "{long}");
    }
    let usage = spdk_dm(args!["thin", "check"]);
    assert_eq!(usage.code, Some(1));
}
