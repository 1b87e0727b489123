//! LVM's metadata: what the real tools wrote is understood, and nothing that could be in such a text makes the
//! reader panic.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;
use spdk_dm_cli::lvm::group::{Group, GroupError, Part, mapper_name};
use spdk_dm_cli::lvm::text::{Section, Value, parse};

/// Written by vgcfgbackup of LVM 2.03.16.
const REAL: &str = include_str!("lvm/vg.txt");

fn part(physical: &str, first_sector: u64, nr_sectors: u64) -> Part {
    Part {
        physical: physical.to_owned(),
        first_sector,
        nr_sectors,
    }
}

/// A pool of several segments, its thin volumes, and an external origin: their places and ids.
#[test]
fn what_lvm_wrote() {
    let group = Group::read(REAL.as_bytes()).unwrap();
    assert_eq!((group.name.as_str(), group.seqno), ("vg", 14));
    let pools = group.thin_pools(None).unwrap();
    let [pool] = &pools[..] else {
        panic!("{pools:?}")
    };
    assert_eq!(
        (pool.data.as_str(), pool.metadata.as_str()),
        ("pool_tdata", "pool_tmeta")
    );
    assert_eq!((pool.chunk_sectors, pool.features.len()), (128, 0));
    let data = group.parts("pool_tdata", "pool").unwrap();
    assert_eq!(
        data,
        [
            part("pv0", 2048 + 14 * 2048, 20 * 2048),
            part("pv2", 2048, 30 * 2048)
        ]
    );
    let metadata = group.parts("pool_tmeta", "pool").unwrap();
    assert_eq!(metadata, [part("pv0", 2048 + 34 * 2048, 4 * 2048)]);
    let volumes = group.thin_volumes("pool").unwrap();
    let found: Vec<_> = volumes
        .iter()
        .map(|v| {
            (
                v.name.as_str(),
                v.id,
                v.nr_sectors,
                v.external_origin.as_deref(),
                v.read_only,
            )
        })
        .collect();
    let expected = [
        ("ext", 3, 60 * 2048, Some("base"), false),
        ("t0", 1, 64 * 2048, None, false),
        ("t1", 2, 64 * 2048, None, false),
    ];
    assert_eq!(found, expected);
    let names: Vec<_> = group.physical().map(|p| p.device.as_str()).collect();
    assert_eq!(names, ["/dev/ubda", "/dev/ubdb", "/dev/ubdc"]);
    assert_eq!(mapper_name("my-vg", "a-b"), "my--vg-a--b");
}

/// Of the texts in a metadata area, which lie between zeroes and old halves, the youngest counts.
#[test]
fn the_youngest_text_of_an_area() {
    let older = REAL
        .replace("seqno = 14", "seqno = 9")
        .replace("vg {", "old {");
    let half = &REAL[REAL.len() / 2..];
    let area = [
        older.as_bytes(),
        half.as_bytes(),
        REAL.as_bytes(),
        b"\x20LVM2\x01\xff",
        older.as_bytes(),
    ]
    .join(&[0, 0][..]);
    assert_eq!(
        Group::read(&area).unwrap(),
        Group::read(REAL.as_bytes()).unwrap()
    );
}

/// What cannot be served is named, with who needs it.
#[test]
fn refusals() {
    let stripes = REAL.replace(
        "stripe_count = 1\t# linear\n\n\t\t\t\tstripes = [\n\t\t\t\t\t\"pv2\", 0\n",
        "stripe_count = 2\n\n\t\t\t\tstripes = [\n\t\t\t\t\t\"pv2\", 0,\n\t\t\t\t\t\"pv1\", 0\n",
    );
    assert_ne!(stripes, REAL);
    let group = Group::read(stripes.as_bytes()).unwrap();
    let refused = group.parts("pool_tdata", "pool").unwrap_err();
    let GroupError::Kind { name, by, .. } = &refused else {
        panic!("{refused}")
    };
    assert_eq!((name.as_str(), by.as_str()), ("pool_tdata", "pool"));
    assert!(refused.to_string().contains("striped over several"));
    let group = Group::read(REAL.as_bytes()).unwrap();
    let refused = group.thin_pools(Some("none")).unwrap_err().to_string();
    assert!(
        refused.contains("vg") && refused.contains("none"),
        "{refused}"
    );
    assert!(matches!(
        Group::read(b"contents = 1"),
        Err(GroupError::NoGroup)
    ));
    assert!(matches!(Group::read(b""), Err(GroupError::NoGroup)));
    let gap = REAL.replace("start_extent = 20", "start_extent = 21");
    let group = Group::read(gap.as_bytes()).unwrap();
    assert!(matches!(
        group.parts("pool_tdata", "pool"),
        Err(GroupError::Numbers { .. })
    ));
}

/// Asks everything of a group.
fn ask_all(group: &Group) {
    for pool in group.thin_pools(None).unwrap_or_default() {
        let _ = group.parts(&pool.data, &pool.name);
        let _ = group.parts(&pool.metadata, &pool.name);
        for volume in group.thin_volumes(&pool.name).unwrap_or_default() {
            let origin = volume.external_origin.unwrap_or_default();
            let _ = (group.parts(&origin, &volume.name), group.is_thin(&origin));
        }
    }
}

fn key() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_.+/@-]{1,8}"
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::Number),
        any::<String>().prop_map(Value::Text),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop::collection::vec(inner, 0..4).prop_map(Value::List)
    })
}

fn section() -> impl Strategy<Value = Section> {
    let values = || prop::collection::btree_map(key(), value(), 0..4);
    let leaf = values().prop_map(|values| Section {
        values,
        ..Section::default()
    });
    leaf.prop_recursive(3, 16, 3, move |inner| {
        let sections = prop::collection::btree_map(key(), inner, 0..3);
        (values(), sections).prop_map(|(values, sections)| Section { values, sections })
    })
}

fn print_value(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::Text(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        Value::List(list) => {
            let words: Vec<_> = list.iter().map(print_value).collect();
            format!("[ {} ]", words.join(", # a remark: ]\n"))
        }
    }
}

fn print(section: &Section) -> String {
    let values = section
        .values
        .iter()
        .map(|(key, value)| format!("{key} = {}\n", print_value(value)));
    let sections = section
        .sections
        .iter()
        .map(|(key, inner)| format!("{key} {{ # }}\n{}}}\n", print(inner)));
    values.chain(sections).collect()
}

proptest! {
    /// What is printed is read back.
    #[test]
    fn round_trip(section in section()) {
        prop_assert_eq!(parse(&print(&section)).unwrap(), section);
    }

    /// No bytes make it panic.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Group::read(&bytes);
    }

    /// No damage to a real text makes it panic, whatever is asked of it then.
    #[test]
    fn damaged(at in 0..REAL.len(), with in prop::sample::select(vec!["", "}", "{", "\"", "[", "9999999999999999999", "-1", "\0", "pv9", "="]), cut in 0_usize..40) {
        let mut bytes = REAL.as_bytes()[..at].to_vec();
        bytes.extend(with.as_bytes());
        bytes.extend(&REAL.as_bytes()[(at + cut).min(REAL.len())..]);
        if let Ok(group) = Group::read(&bytes) {
            ask_all(&group);
        }
    }

    /// Nor do numbers of any size.
    #[test]
    fn any_numbers(key in prop::sample::select(vec!["extent_size = 2048", "start_extent = 0", "extent_count = 30", "pe_start = 2048", "\"pv2\", 0", "segment_count = 2"]), number in any::<i64>()) {
        let with = match key.split_once(" = ") {
            Some((key, _)) => format!("{key} = {number}"),
            None => format!("\"pv2\", {number}"),
        };
        if let Ok(group) = Group::read(REAL.replace(key, &with).as_bytes()) {
            ask_all(&group);
        }
    }
}
