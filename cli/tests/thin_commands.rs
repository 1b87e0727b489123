//! `spdk-dm thin`: what it refuses, what it says, and its exit codes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use persistent_data::block::get_u32;
use proptest::prelude::*;
use support::files::{self, restore, with};
use support::tools::{Temp, both, run, thin_check};
use support::{spdk_dm, succeed};

const XML: &str = r#"<superblock uuid="" time="2" transaction="8" flags="1" version="2" data_block_size="128" nr_data_blocks="2000">
  <device dev_id="1" mapped_blocks="10" transaction="3" creation_time="1" snap_time="2">
    <range_mapping origin_begin="5" data_begin="100" length="9" time="1"/>
    <single_mapping origin_block="20" data_block="7" time="2"/>
  </device>
</superblock>
"#;

fn restored(name: &str) -> Temp {
    files::restored("thin", name, XML, 4)
}

/// A pool, or anything that is not blank, is not overwritten without --force; the input of a repair
/// is never its output.
#[test]
fn nothing_is_overwritten_unasked() {
    let xml = with("over-input.xml", XML);
    let file = restored("over");
    let other = Temp::new("over-foreign");
    std::fs::write(&other.0, vec![7; 4 << 20]).unwrap();
    for output in [&file, &other] {
        let before = std::fs::read(&output.0).unwrap();
        for args in [
            args!["restore", "-i", xml.0, "-o", output.0],
            args!["repair", "-i", file.0, "-o", output.0],
        ] {
            let ran = spdk_dm(args);
            assert_eq!(ran.code, Some(1), "{ran:?}");
            assert!(before == std::fs::read(&output.0).unwrap());
        }
    }
    let same = spdk_dm(args!["repair", "--force", "-i", file.0, "-o", file.0]);
    assert_eq!(same.code, Some(1));
    assert!(same.err.contains("another file"), "{same:?}");
    assert_eq!(restore("thin", &xml, &file, 4, &[]).code, Some(1));
    succeed(args!["restore", "--force", "-i", xml.0, "-o", other.0]);
    thin_check(&other);
    assert_eq!(
        succeed(args!["dump", other.0]),
        XML.replace("flags=\"1\"", "flags=\"0\"")
    );
}

/// The flag that a check is needed is reported, and cleared only when asked and when all is well.
#[test]
fn needs_check_is_cleared() {
    let file = restored("flag");
    let set = |damage: bool| {
        let mut bytes = std::fs::read(&file.0).unwrap();
        let mut sb: [u8; 4096] = bytes[..4096].try_into().unwrap();
        sb[4] = 1;
        let kind = persistent_data::block::Kind {
            name: "",
            xor: 160_774,
            blocknr_offset: 8,
            validate: persistent_data::block::no_rules,
        };
        kind.seal(&mut sb, 0);
        bytes[..4096].copy_from_slice(&sb);
        if damage {
            let bitmap = &mut bytes[3 * 4096..4 * 4096];
            bitmap[1000] ^= 1;
        }
        std::fs::write(&file.0, bytes).unwrap();
    };
    let flags = || get_u32(&std::fs::read(&file.0).unwrap(), 4);
    set(false);
    assert!(succeed(args!["check", file.0]).contains("--clear-needs-check"));
    assert!(succeed(args!["check", "--json", file.0]).contains("\"needs_check\": true"));
    assert_eq!(flags(), 1);
    succeed(args!["check", "-q", "--clear-needs-check", file.0]);
    assert_eq!(flags(), 0);
    thin_check(&file);
    set(true);
    let ran = spdk_dm(args!["check", "--clear-needs-check", file.0]);
    assert_eq!((ran.code, flags()), (Some(1), 1), "{ran:?}");
}

/// `-q` leaves nothing but the exit code, JSON is JSON, and XML goes in by a pipe.
#[test]
fn output_is_as_asked() {
    let file = restored("quiet");
    let quiet = spdk_dm(args!["check", "-q", file.0]);
    assert_eq!(
        (quiet.out + &quiet.err, quiet.code),
        (String::new(), Some(0))
    );
    for args in [
        args!["check", "--json", file.0].as_slice(),
        &args!["thin", "ls", "--json", file.0],
        &args!["rmap", "--json", "--region", "0..200", file.0],
    ] {
        let text = succeed(args);
        serde_json::from_str::<serde_json::Value>(&text).expect(&text);
    }
    let lines = succeed(args![
        "delta",
        "--json",
        "--verbose",
        "--thin1",
        "1",
        "--thin2",
        "1",
        file.0
    ]);
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect(line);
    }
    let missing = spdk_dm(args!["delta", "--thin1", "1", "--thin2", "9", file.0]);
    assert!(
        missing.code == Some(1) && missing.err.contains("no thin device 9"),
        "{missing:?}"
    );
    let absent = spdk_dm(args!["check", "/nonexistent/file"]);
    assert!(
        absent.code == Some(1) && absent.err.contains("/nonexistent/file"),
        "{absent:?}"
    );
    let directory = spdk_dm(args!["check", "/"]);
    assert!(
        directory.err.contains("neither a file nor a block device"),
        "{directory:?}"
    );
}

/// XML that is no pool is refused with the place and the reason, and leaves nothing that could be
/// taken for a pool.
#[test]
fn wrong_xml_is_refused() {
    let cases = [
        (
            "nr_data_blocks=\"2000\"",
            "nr_data_blocks=\"100\"",
            "outside the data device",
        ),
        (
            "data_block_size=\"128\"",
            "data_block_size=\"100\"",
            "data block size 100",
        ),
        ("origin_block=\"20\"", "origin_block=\"13\"", "ascending"),
        ("length=\"9\"", "length=\"0\"", "empty"),
        ("length=\"9\"", "length=\"nine\"", "no number"),
        (
            "length=\"9\"",
            "length=\"18446744073709551615\"",
            "too long",
        ),
        ("time=\"1\"/>", "time=\"16777216\"/>", "24 bits"),
        ("time=\"1\"/>", "/>", "time is missing"),
        (
            "dev_id=\"1\"",
            "dev_id=\"16777216\"",
            "larger than 16777215",
        ),
        ("<single_mapping", "<mapping", "unknown tag"),
        (
            "<single_mapping",
            "<ref name=\"x\"/><single_mapping",
            "not defined",
        ),
        ("</superblock>", "", "the end is missing"),
        ("</device>", "", "superblock"),
        (
            "</superblock>",
            "</superblock><device/>",
            "one <superblock>",
        ),
        (
            "nr_data_blocks=\"2000\"",
            "nr_data_blocks=\"18446744073709551615\"",
            "larger one",
        ),
    ];
    for (i, (from, to, expected)) in cases.into_iter().enumerate() {
        let xml = with(&format!("wrong-{i}.xml"), &XML.replacen(from, to, 1));
        let file = Temp::new(&format!("wrong-{i}"));
        let ran = restore("thin", &xml, &file, 1, &[]);
        assert!(
            ran.code == Some(1) && ran.err.contains(expected),
            "{to}: {ran:?}"
        );
        assert_eq!(spdk_dm(args!["check", "-q", file.0]).code, Some(1), "{to}");
    }
}

/// Mapped blocks are what there is, whatever the XML says; overrides override.
#[test]
fn overrides_and_corrections() {
    let xml = with(
        "fix.xml",
        &XML.replace("mapped_blocks=\"10\"", "mapped_blocks=\"11\""),
    );
    let file = Temp::new("fix");
    let overrides = [
        ["--transaction-id", "77"],
        ["--nr-data-blocks", "3000"],
        ["--data-block-size", "256"],
    ];
    let ran = restore("thin", &xml, &file, 4, overrides.as_flattened());
    assert!(
        ran.code == Some(0) && ran.err.contains("11 mapped blocks"),
        "{ran:?}"
    );
    thin_check(&file);
    let dump = run(both("thin_dump")[0].arg(&file.0));
    assert!(dump.contains("transaction=\"77\" flags=\"0\" version=\"2\" data_block_size=\"256\" nr_data_blocks=\"3000\""));
    assert!(dump.contains("mapped_blocks=\"10\""));
}

/// A leak is told and has exit code 1, unless leaks are no reason; a repair reclaims it.
#[test]
fn a_leak() {
    let file = restored("leak");
    let mut bytes = std::fs::read(&file.0).unwrap();
    let mut bitmap: [u8; 4096] = bytes[3 * 4096..4 * 4096].try_into().unwrap();
    // One reference for metadata block 800 (persistent-data.md 3).
    bitmap[16 + 200] |= 2;
    persistent_data::space_map::BITMAP.seal(&mut bitmap, 3);
    bytes[3 * 4096..4 * 4096].copy_from_slice(&bitmap);
    std::fs::write(&file.0, bytes).unwrap();
    let ran = spdk_dm(args!["check", file.0]);
    assert!(
        ran.code == Some(1) && ran.err.contains("leak: metadata block 800"),
        "{ran:?}"
    );
    succeed(args!["check", "--ignore-non-fatal-errors", file.0]);
    let output = Temp::new("leak-output");
    succeed(args![
        "repair",
        "-i",
        file.0,
        "-o",
        output.0,
        "--size-mib",
        "4"
    ]);
    thin_check(&output);
    succeed(args!["check", output.0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is done to the XML, restoring ends with an error or with a pool that is sound.
    #[test]
    fn any_xml(changes in prop::collection::vec((0..XML.len(), any::<u8>(), 0..3u8), 1..8), number: u64) {
        let mut text = XML.as_bytes().to_vec();
        for (at, byte, how) in changes {
            let at = at % text.len();
            match how {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                _ => drop(text.remove(at)),
            }
        }
        let xml = Temp::new(&format!("any-{number}.xml"));
        std::fs::write(&xml.0, text).unwrap();
        let file = Temp::new(&format!("any-{number}"));
        let ran = restore("thin", &xml, &file, 1, &[]);
        if ran.code == Some(0) {
            let [mut old, mut strict] = both("thin_check");
            run(old.arg(&file.0));
            succeed(args!["check", file.0]);
            if !strict.arg(&file.0).output().unwrap().status.success() {
                // It counts once what a device maps twice within a node, and so dislikes its own tool's, too.
                let theirs = Temp::new(&format!("any-{number}-theirs"));
                std::fs::File::create(&theirs.0).unwrap().set_len(1 << 20).unwrap();
                let [_, mut restore] = both("thin_restore");
                run(restore.args(["-i".as_ref(), xml.0.as_os_str(), "-o".as_ref(), theirs.0.as_os_str()]));
                let [_, mut strict] = both("thin_check");
                prop_assert!(!strict.arg(&theirs.0).output().unwrap().status.success());
            }
        }
    }
}

/// One device maps a data block twice, which no pool does but XML can say: it is counted twice, as the
/// tools' restore does.
#[test]
fn a_block_mapped_twice() {
    let twice = XML.replace("data_begin=\"100\"", "data_begin=\"00\"");
    let file = files::restored("thin", "twice", &twice, 1);
    succeed(args!["check", file.0]);
    let [mut old, _] = both("thin_check");
    run(old.arg(&file.0));
}
