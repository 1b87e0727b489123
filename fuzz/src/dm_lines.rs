//! Table and message lines.

use rpc::message::PoolMessage;
use rpc::table::{self, Table};

/// Runs one input: the first byte chooses what the text is.
pub fn run(data: &[u8]) {
    let Some((which, text)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let error = match which % 4 {
        0 => table("x", &text).err(),
        1 => table("x", &format!("0 2048 thin-pool {text}")).err(),
        2 => PoolMessage::parse(&text).err(),
        _ => table(&text, "0 8 thin p 1").err(),
    };
    if let Some(error) = error {
        assert!(
            !error.message.is_empty() && error.errno.0 == 22,
            "{error:?}"
        );
    }
}

/// A table that is understood means the same when it is written and read again.
fn table(name: &str, line: &str) -> Result<(), rpc::RpcError> {
    let parsed = table::parse(name, line)?;
    let written = match &parsed {
        Table::ThinPool(length, pool) => table::pool_line(*length, pool),
        Table::Thin(thin) => table::thin_line(thin.nr_sectors()?, thin),
        Table::Era(era) => table::era_line(era.size_sectors.unwrap_or(0), era),
        Table::SnapshotOrigin(length, origin) => table::snapshot_origin_line(*length, origin),
        Table::Snapshot(length, found) => table::snapshot_line(*length, "snapshot", found),
        Table::SnapshotMerge(length, found) => {
            table::snapshot_line(*length, "snapshot-merge", found)
        }
        Table::Ploop(ploop) => {
            let cluster_sectors = ploop.cluster_size_sectors.unwrap_or(0);
            table::ploop_line(
                ploop.size_sectors.unwrap_or(0),
                cluster_sectors.into(),
                ploop,
            )
        }
    };
    let again = table::parse(name, &written).expect("what is written can be read");
    match (parsed, again) {
        (Table::ThinPool(length, pool), Table::ThinPool(length_again, pool_again)) => {
            assert_eq!((length, &pool.name), (length_again, &pool_again.name));
            for feature in rpc::params::POOL_FEATURES {
                assert_eq!(pool.has(feature), pool_again.has(feature), "{feature}");
            }
        }
        (Table::Thin(thin), Table::Thin(thin_again)) => assert_eq!(thin, thin_again),
        (Table::Era(era), Table::Era(era_again)) => assert_eq!(era, era_again),
        (
            found @ (Table::SnapshotOrigin(..)
            | Table::Snapshot(..)
            | Table::SnapshotMerge(..)
            | Table::Ploop(..)),
            again,
        ) => assert_eq!(found, again),
        _ => panic!("another target: {written}"),
    }
    Ok(())
}
