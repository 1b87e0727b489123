//! Parameters, schema, table lines and messages: they agree with each other, and nothing that a user
//! can send makes them panic.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;
use rpc::message::PoolMessage;
use rpc::params::*;
use rpc::schema::{Kind, METHODS};
use rpc::table::{self, Table};
use serde_json::{Value, json};

/// The committed rpc.py plugin is the one the schema gives.
#[test]
fn python_module_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/python/spdk_dm_rpc.py");
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(
        committed == rpc::python::module(),
        "run: cargo run -p rpc --bin rpc-python > rpc/python/spdk_dm_rpc.py"
    );
}

/// Python accepts the module, and each command has help.
#[test]
fn python_module_works() {
    let script = r"
import argparse, sys, io, contextlib
sys.path.insert(0, sys.argv[1])
import spdk_dm_rpc
calls = []
class Client:
    def call(self, method, params):
        calls.append((method, params))
        return {}
parser = argparse.ArgumentParser()
spdk_dm_rpc.spdk_rpc_plugin_initialize(parser.add_subparsers())
for method in sys.argv[2:]:
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            parser.parse_args([method, '--help'])
    except SystemExit as end:
        assert end.code == 0
    assert 'usage' in out.getvalue()
args = parser.parse_args(['thin_pool_create', 'p', 'm', 'd', '--features', 'read_only,ignore_discard', '--wait'])
args.client = Client()
with contextlib.redirect_stdout(io.StringIO()):
    args.func(args)
assert calls == [('thin_pool_create', {'name': 'p', 'metadata_bdev': 'm', 'data_bdev': 'd',
    'features': ['read_only', 'ignore_discard'], 'wait': True})], calls
args = parser.parse_args(['thin_create', 'p', '0'])
args.client = Client()
with contextlib.redirect_stdout(io.StringIO()):
    args.func(args)
assert calls[1] == ('thin_create', {'pool': 'p', 'id': 0}), calls
args = parser.parse_args(['thin_dump', 'p', '--file', '/f', '--ids', '0,2', '--format', 'xml_shared'])
args.client = Client()
with contextlib.redirect_stdout(io.StringIO()):
    args.func(args)
assert calls[2] == ('thin_dump', {'pool': 'p', 'file': '/f', 'ids': [0, 2], 'format': 'xml_shared'}), calls
";
    let status = std::process::Command::new("python3")
        .args(["-c", script, concat!(env!("CARGO_MANIFEST_DIR"), "/python")])
        .args(METHODS.iter().map(|method| method.name))
        .status()
        .unwrap();
    assert!(status.success());
}

fn sample(kind: Kind) -> Value {
    match kind {
        Kind::String => json!("x"),
        Kind::Unsigned => json!(128),
        Kind::Flag => json!(true),
        Kind::Strings => json!(["read_only"]),
        Kind::Numbers => json!([1, 2]),
        Kind::DumpFormat => json!("xml_shared"),
    }
}

macro_rules! accepts {
    ($($method:ident: $params:ident),* $(,)?) => {
        fn accepts(method: &str, params: Value) -> bool {
            match method {
                $(stringify!($method) => serde_json::from_value::<$params>(params).is_ok(),)*
                _ => panic!("the schema has a method '{method}', and the backend has not"),
            }
        }
    };
}
rpc::for_each_method!(accepts);

/// The structs take exactly what the schema says: all of it, only the required part of it, nothing
/// less and nothing else.
#[test]
fn schema_and_structs_agree() {
    for method in METHODS {
        let object =
            |filter: &dyn Fn(&rpc::schema::Parameter) -> bool| -> serde_json::Map<String, Value> {
                method
                    .parameters
                    .iter()
                    .filter(|p| filter(p))
                    .map(|p| (p.name.to_owned(), sample(p.kind)))
                    .collect()
            };
        assert!(
            accepts(method.name, object(&|_| true).into()),
            "{}",
            method.name
        );
        assert!(
            accepts(method.name, object(&|p| p.required).into()),
            "{}",
            method.name
        );
        for missing in method.parameters.iter().filter(|p| p.required) {
            let params = object(&|p| p.name != missing.name);
            assert!(
                !accepts(method.name, params.into()),
                "{} without {}",
                method.name,
                missing.name
            );
        }
        let mut more = object(&|_| true);
        more.insert("unheard_of".to_owned(), json!(1));
        assert!(!accepts(method.name, more.into()), "{}", method.name);
    }
}

/// The refusals of thin.md 11.1 and 13.
#[test]
fn table_refusals() {
    for (line, words) in [
        ("0 100 thin-pool m d 100 0", "Invalid block size"),
        ("0 100 thin-pool m d 128", "Invalid argument count"),
        ("0 100 thin-pool m m 128 0", "both be on bdev 'm'"),
        (
            "0 100 thin-pool m d 128 0 1 nonsense",
            "Unrecognised pool feature",
        ),
        (
            "0 100 thin-pool m d 128 0 2 read_only",
            "Invalid number of pool feature",
        ),
        ("0 100 thin p 16777216", "larger than 16777215"),
        ("0 100 era m o", "Invalid argument count"),
        ("0 100 era m o 128 0", "Invalid argument count"),
        ("0 100 era m o 128x", "block size"),
        ("0 100 era m o 0", "Invalid block size"),
        ("0 100 era m o 4", "Invalid block size"),
        ("0 100 era m o 12", "Invalid block size"),
        (
            "0 100 snapshot-origin a b",
            "origin: incorrect number of arguments",
        ),
        ("0 100 snapshot o c P", "requires 4 or more arguments"),
        ("0 100 snapshot o o P 8", "COW device cannot be the same"),
        (
            "0 100 snapshot-merge o c N 8",
            "does not support snapshot-merge",
        ),
        ("0 100 ploop 11", "top delta is missing"),
        ("0 100 ploop 19 top", "cluster size"),
        ("0 100 ploop 11 top a a", "'a' is named twice"),
        ("0 100 ploop 11 top a raw@b", "only the oldest"),
        ("0 100 cache m d", "unknown target type 'cache'"),
        ("5 100 thin p 1", "starts at sector 5"),
        ("", "no start"),
    ] {
        let error = table::parse("name", line).unwrap_err();
        assert!(error.message.contains(words), "{line}: {}", error.message);
        assert_eq!(error.errno.0, 22);
    }
}

proptest! {
    /// What is printed as a table is read as the same pool.
    #[test]
    fn table_lines_round_trip(
        length: u64, blocks in 1u32..16384, low_water: u64,
        features in prop::sample::subsequence(POOL_FEATURES.to_vec(), 0..4),
    ) {
        let mut pool = ThinPoolCreate::new("p", "meta", "data");
        pool.data_block_size_sectors = blocks * 128;
        pool.low_water_mark_blocks = low_water;
        pool.features = features.iter().map(|f| (*f).to_owned()).collect();
        let line = table::pool_line(length, &pool);
        prop_assert_eq!(table::parse("p", &line).unwrap(), Table::ThinPool(length, pool));
    }

    /// So is an era target's.
    #[test]
    fn era_lines_round_trip(length in 1u64.., blocks in 1u32..16384) {
        let mut era = EraCreate::new("e", "meta", "origin");
        era.block_size_sectors = blocks * 8;
        era.size_sectors = Some(length);
        let line = table::era_line(length, &era);
        prop_assert_eq!(table::parse("e", &line).unwrap(), Table::Era(era));
    }

    /// So are those of snapshots and merges, with all features.
    #[test]
    fn snapshot_lines_round_trip(
        length: u64, store in "P|PO|N", chunk in 0u32..=21, zeroes: bool, passdown: bool, merge: bool,
    ) {
        let features = match (zeroes, passdown) {
            (true, true) => " 2 discard_zeroes_cow discard_passdown_origin",
            (true, false) => " 1 discard_zeroes_cow",
            _ => "",
        };
        let target = if merge && store != "N" { "snapshot-merge" } else { "snapshot" };
        let line = format!("0 {length} {target} o c {store} {}{features}", 1u64 << chunk);
        let written = match table::parse("s", &line).unwrap() {
            Table::Snapshot(length, found) => table::snapshot_line(length, "snapshot", &found),
            Table::SnapshotMerge(length, found) => table::snapshot_line(length, "snapshot-merge", &found),
            _ => String::new(),
        };
        prop_assert_eq!(written, line);
    }

    /// So are those of ploop targets.
    #[test]
    fn ploop_lines_round_trip(
        length in 1u64..1 << 40, log in 0u32..=18, lower in prop::collection::btree_set("[a-z]{2,3}", 0..4), raw: bool,
    ) {
        let mut lower: Vec<String> = lower.into_iter().collect();
        if let Some(oldest) = lower.first_mut().filter(|_| raw) {
            oldest.insert_str(0, "raw@");
        }
        let words: String = lower.iter().map(|delta| format!(" {delta}")).collect();
        let line = format!("0 {length} ploop {log} Top{words}");
        let Table::Ploop(found) = table::parse("p", &line).unwrap() else {
            return Err(TestCaseError::fail(line));
        };
        prop_assert_eq!((found.size_sectors, &found.lower_bdevs), (Some(length), &lower));
        let cluster = found.cluster_size_sectors.unwrap_or(0);
        prop_assert_eq!(table::ploop_line(length, cluster.into(), &found), line);
    }

    /// Any words at all are an answer or a refusal.
    #[test]
    fn any_text_is_answered(text in "[a-z_0-9 -]{0,60}", name in ".{0,8}") {
        let _ = table::parse(&name, &text);
        let _ = table::parse(&name, &format!("0 8 thin-pool {text}"));
        let _ = table::parse(&name, &format!("0 8 era {text}"));
        let _ = PoolMessage::parse(&text);
        let _ = PoolMessage::parse(&format!("create_snap {text}"));
    }
}
