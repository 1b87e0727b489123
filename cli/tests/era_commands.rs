//! `spdk-dm era`: what it refuses, what it says of damage, and its exit codes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use bdev::era::metadata::{EraMetadata, OpenOptions, SUPERBLOCK};
use futures::executor::block_on;
use persistent_data::array::ARRAY;
use persistent_data::block::{Kind, get_u64};
use persistent_data::device::BlockBytes;
use persistent_data::memory::MemoryDevice;
use persistent_data::node::NODE;
use persistent_data::space_map::{BITMAP, INDEX, store};
use proptest::prelude::*;
use std::rc::Rc;
use support::files::{self, of_blocks, restore, with};
use support::tools::{Temp, both, run};
use support::{damage, spdk_dm, succeed};

const XML: &str = r#"<superblock uuid="" block_size="128" nr_blocks="6" current_era="4">
  <writeset era="3" nr_bits="4">
    <bit block="0" value="false"/>
    <bit block="1" value="true"/>
    <bit block="2" value="true"/>
    <bit block="3" value="false"/>
  </writeset>
  <writeset era="4" nr_bits="6">
    <bit block="0" value="false"/>
    <bit block="1" value="false"/>
    <bit block="2" value="false"/>
    <bit block="3" value="false"/>
    <bit block="4" value="false"/>
    <bit block="5" value="true"/>
  </writeset>
  <era_array>
    <era block="0" era="2"/>
    <era block="1" era="1"/>
    <era block="2" era="0"/>
    <era block="3" era="0"/>
    <era block="4" era="2"/>
    <era block="5" era="0"/>
  </era_array>
</superblock>
"#;

const NR_METADATA: u64 = 128;

fn restored(name: &str) -> Temp {
    files::restored("era", name, XML, 1)
}

/// Each verb's answer to known contents, and how `marked` runs and values left out are read.
#[test]
fn known_contents() {
    let file = restored("era-known");
    assert_eq!(succeed(args!["era", "dump", file.0]), XML);
    for mut command in both("era_check") {
        run(command.arg(&file.0));
    }
    let listed = succeed(args!["era", "invalidate", "--written-since", "2", file.0]);
    assert_eq!(
        listed,
        "<blocks>\n  <range begin=\"0\" end=\"3\"/>\n  <range begin=\"4\" end=\"6\"/>\n</blocks>\n"
    );
    let logical = succeed(args!["era", "dump", "--logical", file.0]);
    let eras: Vec<&str> = logical
        .lines()
        .filter(|line| line.contains("<era block"))
        .map(|line| line.split('"').nth(3).unwrap())
        .collect();
    assert_eq!(eras, ["2", "3", "3", "0", "2", "4"]);
    let short = r#"<superblock block_size="128" nr_blocks="6" current_era="4">
      <writeset era="3" nr_bits="4"><marked block_begin="1" len="2"/></writeset>
      <writeset era="4" nr_bits="6"><bit block="5" value="true"/><marked block_begin="0" len="0"/></writeset>
      <era_array><era block="0" era="2"/><era block="1" era="1"/><era block="4" era="2"/></era_array>
    </superblock>"#;
    let xml = with("era-short.xml", short);
    let again = Temp::new("era-short");
    assert_eq!(restore("era", &xml, &again, 1, &[]).code, Some(0));
    assert_eq!(succeed(args!["era", "dump", again.0]), XML);
    let text = succeed(args!["era", "check", "--super-block-only", again.0]);
    assert!(
        text.contains("era 4, 6 data blocks of 128 sectors"),
        "{text}"
    );
    assert_eq!(succeed(args!["era", "check", "-q", again.0]), "");
}

/// Nothing that is there is overwritten without --force: neither of this target nor of another.
#[test]
fn nothing_is_overwritten_unasked() {
    let xml = with("era-over.xml", XML);
    let era = restored("era-over");
    let foreign = Temp::new("era-foreign");
    std::fs::write(&foreign.0, vec![7; 1 << 20]).unwrap();
    let text = r#"<superblock uuid="" time="0" transaction="0" version="2" data_block_size="128" nr_data_blocks="9">
</superblock>"#;
    let pool_xml = with("era-pool.xml", text);
    let pool = files::restored("thin", "era-pool", text, 1);
    for (output, what) in [
        (&era, "metadata of an era target"),
        (&foreign, "is not blank"),
        (&pool, "metadata of a pool"),
    ] {
        let before = std::fs::read(&output.0).unwrap();
        for verb in ["era", "thin"] {
            let input = if verb == "era" { &xml } else { &pool_xml };
            let ran = spdk_dm(args![verb, "restore", "-i", input.0, "-o", output.0]);
            assert_eq!(ran.code, Some(1), "{ran:?}");
            assert!(
                ran.err.contains(what) && ran.err.contains("--force"),
                "{ran:?}"
            );
            assert!(before == std::fs::read(&output.0).unwrap());
        }
    }
    succeed(args![
        "era", "restore", "--force", "-i", xml.0, "-o", foreign.0
    ]);
    assert_eq!(succeed(args!["era", "dump", foreign.0]), XML);
    // A pool is no era target.
    let ran = spdk_dm(args!["era", "check", pool.0]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("not an era superblock"), "{ran:?}");
}

/// XML that is no dump is refused, with the place and the reason, and leaves nothing valid behind.
#[test]
fn bad_xml_is_refused() {
    for (from, to, reason) in [
        ("</superblock>", "", "the end is missing"),
        (
            "<era_array>",
            "<mapping><era_array>",
            "unknown tag <mapping>",
        ),
        ("nr_blocks=\"6\" ", "", "nr_blocks is missing"),
        ("nr_blocks=\"6\"", "nr_blocks=\"six\"", "is no number"),
        ("nr_blocks=\"6\"", "nr_blocks=\"4294967296\"", "too large"),
        (
            "block_size=\"128\"",
            "block_size=\"100\"",
            "not a multiple of 8",
        ),
        (
            "value=\"true\"",
            "value=\"maybe\"",
            "neither true nor false",
        ),
        (
            "era=\"4\" nr_bits=\"6\"",
            "era=\"5\" nr_bits=\"6\"",
            "newer than the current era",
        ),
        (
            "era=\"4\" nr_bits=\"6\"",
            "era=\"3\" nr_bits=\"6\"",
            "two writesets",
        ),
        ("nr_bits=\"6\"", "nr_bits=\"5\"", "past its end"),
        ("<era block=\"5\"", "<era block=\"6\"", "past the end"),
        ("<era block=\"5\"", "<era block=\"4\"", "out of order"),
        (
            "<era block=\"5\" era=\"0\"",
            "<era block=\"5\" era=\"7\"",
            "era 7",
        ),
        (
            "<era_array>",
            "<era_array><bit block=\"0\" value=\"true\"/>",
            "does not belong here",
        ),
        (
            "<writeset era=\"4\"",
            "<bit block=\"0\" value=\"true\"/><writeset era=\"4\"",
            "does not belong",
        ),
        (
            "<superblock ",
            "<other/><superblock ",
            "in one <superblock>",
        ),
        ("nr_blocks=\"6\"", "nr_blocks=\"2147483647\"", "too little"),
    ] {
        assert!(XML.contains(from), "{from}");
        let xml = with(
            "era-bad.xml",
            &XML.replacen(from, to, if from == "value=\"true\"" { 1 } else { 9 }),
        );
        let file = Temp::new("era-bad");
        let ran = restore("era", &xml, &file, 1, &[]);
        assert_eq!(ran.code, Some(1), "{to}: {ran:?}");
        assert!(ran.err.contains(reason), "{to}: {ran:?}");
        let dump = spdk_dm(args!["era", "dump", file.0]);
        assert_eq!(dump.code, Some(1), "{to}");
        assert!(dump.err.contains("all zeroes"), "{dump:?}");
    }
}

/// Several eras, half digested, a metadata snapshot and a current writeset: every kind of block.
fn eras() -> Vec<BlockBytes> {
    block_on(async {
        let device = Rc::new(MemoryDevice::new(NR_METADATA));
        let options = OpenOptions {
            data_block_size_sectors: 128,
            cache_bytes: 1 << 20,
            may_format: true,
        };
        let mut metadata = EraMetadata::open(device.clone(), options).await.unwrap();
        metadata.resize(3000).await.unwrap();
        for era in 1..6 {
            metadata.rollover().await.unwrap();
            metadata.commit().await.unwrap();
            metadata
                .mark(&[era..era + 40, 400 * era..400 * era + 7])
                .await
                .unwrap();
        }
        metadata.digest_step().await.unwrap();
        metadata.rollover().await.unwrap();
        metadata.commit().await.unwrap();
        metadata.take_metadata_snap().await.unwrap();
        metadata.commit().await.unwrap();
        for _ in 0..3 {
            metadata.digest_step().await.unwrap();
        }
        metadata.mark(&[0..64, 2999..3000]).await.unwrap();
        metadata.commit().await.unwrap();
        assert_eq!(metadata.check().await.unwrap(), []);
        device.blocks()
    })
}

static KINDS: [&Kind; 5] = [&SUPERBLOCK, &NODE, &ARRAY, &BITMAP, &INDEX];

/// The bitmap of the metadata device; the root of its map is at 44 (era.md 1).
fn bitmap(blocks: &[BlockBytes]) -> usize {
    damage::bitmap(blocks, 44)
}

fn used(blocks: &[BlockBytes]) -> Vec<u64> {
    damage::used(blocks, bitmap(blocks))
}

/// What must hold whatever is damaged. Returns what the check said.
fn survive(damaged: &Temp) -> (bool, String) {
    let before = std::fs::read(&damaged.0).unwrap();
    let check = spdk_dm(args!["era", "check", damaged.0]);
    let json = spdk_dm(args!["era", "check", "--json", damaged.0]);
    assert_eq!(check.code, json.code);
    for format in ["xml", "xml-padded"] {
        let xml = Temp::new("era-survive.xml");
        spdk_dm(args![
            "era", "dump", "--format", format, "-o", xml.0, damaged.0
        ]);
    }
    spdk_dm(args!["era", "dump", "--logical", damaged.0]);
    spdk_dm(args!["era", "dump", "-m", damaged.0]);
    spdk_dm(args![
        "era",
        "invalidate",
        "--written-since",
        "2",
        damaged.0
    ]);
    spdk_dm(args![
        "era",
        "invalidate",
        "-m",
        "--written-since",
        "2",
        damaged.0
    ]);
    assert!(
        before == std::fs::read(&damaged.0).unwrap(),
        "the input was written"
    );
    (check.code == Some(0), check.out + &check.err)
}

/// Every block in turn is zeroed, and has a bit flipped: the check fails and names the block if it is
/// in use, else it does not mind.
#[test]
fn every_block_damaged_in_turn() {
    let good = eras();
    let used = used(&good);
    assert!(used.len() > 20, "{used:?}");
    for case in damage::one_by_one(&good, &used) {
        let (block, zero) = (case.block, case.zero);
        let (ok, report) = survive(&of_blocks("era-damaged", &case.blocks));
        assert_eq!(ok, case.is_free, "{block} {zero}: {report}");
        let named = report.contains(&format!("metadata block {block}"));
        assert!(ok || named, "{block} {zero}: {report}");
    }
}

/// A block that nobody refers to is a leak, which can be ignored; one whose count is too low is not. A
/// restored dump has neither.
#[test]
fn leaks_and_damage() {
    let good = eras();
    let bitmap = bitmap(&good);
    let used = used(&good);
    let free = (0..NR_METADATA)
        .rev()
        .find(|block| !used.contains(block))
        .unwrap();
    let wrong = |block: u64, count: u32, allocated: i64| {
        let mut blocks = good.clone();
        store(&mut blocks[bitmap], block, count);
        BITMAP.seal(&mut blocks[bitmap], bitmap as u64);
        let index = get_u64(&blocks[0], 44 + 16) as usize;
        let said = get_u64(&blocks[0], 44 + 8).wrapping_add_signed(allocated);
        blocks[0][52..60].copy_from_slice(&said.to_le_bytes());
        SUPERBLOCK.seal(&mut blocks[0], 0);
        // The index counts free blocks, too.
        let nr_free = persistent_data::block::get_u32(&blocks[index], 24);
        let nr_free = nr_free.wrapping_add_signed(-allocated as i32);
        blocks[index][24..28].copy_from_slice(&nr_free.to_le_bytes());
        INDEX.seal(&mut blocks[index], index as u64);
        of_blocks("era-counts", &blocks)
    };
    let leaked = wrong(free, 1, 1);
    let ran = spdk_dm(args!["era", "check", leaked.0]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.err.contains(&format!("leak: metadata block {free}")),
        "{ran:?}"
    );
    succeed(args!["era", "check", "--ignore-non-fatal-errors", leaked.0]);
    let xml = Temp::new("era-leaked.xml");
    succeed(args!["era", "dump", "-o", xml.0, leaked.0]);
    let dumped = std::fs::read_to_string(&xml.0).unwrap();
    succeed(args![
        "era", "restore", "--force", "-i", xml.0, "-o", leaked.0
    ]);
    succeed(args!["era", "check", leaked.0]);
    assert_eq!(succeed(args!["era", "dump", leaked.0]), dumped);
    let array = get_u64(&good[0], 208);
    let low = wrong(array, 0, -1);
    let ran = spdk_dm(args!["era", "check", "--ignore-non-fatal-errors", low.0]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.err.contains(&format!("damage: metadata block {array}")),
        "{ran:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Damage under right checksums, as by a bug or on purpose: nothing hangs, panics or takes memory
    /// without bound.
    #[test]
    fn damage_with_right_checksums(changes in damage::changes()) {
        let mut blocks = eras();
        let used = used(&blocks);
        // Fields of the superblock.
        damage::change(&mut blocks, changes, &used, &KINDS, |at| 160 + at % 64 / 4 * 4);
        let damaged = of_blocks("era-sealed", &blocks);
        let (ok, report) = survive(&damaged);
        // What we let pass, the strict era_check does, too.
        if ok {
            let [_, mut strict] = both("era_check");
            let output = strict.arg("-q").arg(&damaged.0).output().unwrap();
            prop_assert!(output.status.success(), "{} {:?}", report, output);
        }
    }
}

/// Every verb explains itself; a wrong command has exit code 1.
#[test]
fn help_is_there() {
    for verb in ["check", "dump", "restore", "invalidate"] {
        let help = succeed(args!["era", verb, "--help"]);
        assert!(
            help.contains(&format!("Usage: spdk-dm era {verb}")),
            "{help}"
        );
    }
    assert_eq!(spdk_dm(args!["era", "invalidate"]).code, Some(1));
    let missing = spdk_dm(args!["era", "check", "/nonexistent/era"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.err.contains("/nonexistent/era"), "{missing:?}");
}
