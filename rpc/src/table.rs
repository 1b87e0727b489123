//! Device-mapper table lines with bdev names for devices (thin.md 11.1, 11.2; era.md 4;
//! snapshot.md 3; ploop.md, Table line).

use crate::RpcError;
use crate::params::{EraCreate, POOL_FEATURES, PloopCreate, ThinActivate, ThinPoolCreate};
use bdev::ploop::messages::PloopTable;
use bdev::snapshot::table::{SnapshotTable, parse_origin};

/// A table line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Table {
    /// thin-pool, with the length in sectors.
    ThinPool(u64, ThinPoolCreate),
    /// thin.
    Thin(ThinActivate),
    /// era.
    Era(EraCreate),
    /// snapshot-origin: the length in sectors, and the origin bdev.
    SnapshotOrigin(u64, String),
    /// snapshot, with the length in sectors.
    Snapshot(u64, SnapshotTable),
    /// snapshot-merge, with the length in sectors.
    SnapshotMerge(u64, SnapshotTable),
    /// ploop, with its length as the size.
    Ploop(PloopCreate),
}

const TARGETS: &str = "thin-pool, thin, era, snapshot-origin, snapshot, snapshot-merge, ploop";

fn number<T: std::str::FromStr>(what: &str, word: &str) -> Result<T, RpcError> {
    // The kernel takes no signs.
    word.parse()
        .ok()
        .filter(|_| word.bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(|| RpcError::invalid(format!("Invalid {what}: '{word}' is not a number")))
}

/// Reads a table line for a device of this name.
pub fn parse(name: &str, line: &str) -> Result<Table, RpcError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [start, length, target, arguments @ ..] = words.as_slice() else {
        return Err(RpcError::invalid(format!(
            "table '{line}' of '{name}' has no start, length and target"
        )));
    };
    if number::<u64>("start sector", start)? != 0 {
        return Err(RpcError::invalid(format!(
            "table of '{name}' starts at sector {start}; one target from sector 0 is supported"
        )));
    }
    let length: u64 = number("length", length)?;
    match *target {
        "thin-pool" => thin_pool(name, length, arguments),
        "thin" => thin(name, length, arguments),
        "era" => era(name, length, arguments),
        "ploop" => ploop(name, length, &arguments.join(" ")),
        "snapshot-origin" => parse_origin(&arguments.join(" "))
            .map(|origin| Table::SnapshotOrigin(length, origin))
            .map_err(|error| RpcError::invalid(format!("snapshot-origin '{name}': {error}"))),
        "snapshot" | "snapshot-merge" => {
            let is_merge = *target == "snapshot-merge";
            SnapshotTable::parse(&arguments.join(" "), is_merge)
                .map(|found| match is_merge {
                    true => Table::SnapshotMerge(length, found),
                    false => Table::Snapshot(length, found),
                })
                .map_err(|error| RpcError::invalid(format!("{target} '{name}': {error}")))
        }
        other => Err(RpcError::invalid(format!(
            "'{name}': unknown target type '{other}'; there are {TARGETS}"
        ))),
    }
}

fn thin_pool(name: &str, length: u64, arguments: &[&str]) -> Result<Table, RpcError> {
    let [metadata, data, block_size, low_water, rest @ ..] = arguments else {
        return Err(RpcError::invalid(format!(
            "thin-pool '{name}': Invalid argument count: metadata bdev, data bdev, block size and low water mark are needed"
        )));
    };
    let mut pool = ThinPoolCreate::new(name, metadata, data);
    pool.data_block_size_sectors = number("block size", block_size)?;
    pool.low_water_mark_blocks = number("low water mark", low_water)?;
    if let [count, features @ ..] = rest {
        if number::<usize>("number of pool features", count)? != features.len() {
            return Err(RpcError::invalid(format!(
                "thin-pool '{name}': Invalid number of pool feature arguments"
            )));
        }
        pool.features = features.iter().map(|f| f.to_ascii_lowercase()).collect();
    }
    crate::params::Validate::validate(&pool)?;
    Ok(Table::ThinPool(length, pool))
}

fn thin(name: &str, length: u64, arguments: &[&str]) -> Result<Table, RpcError> {
    let (pool, id, origin) = match arguments {
        [pool, id] => (pool, id, None),
        [pool, id, origin] => (pool, id, Some((*origin).to_owned())),
        _ => {
            return Err(RpcError::invalid(format!(
                "thin '{name}': Invalid argument count: pool and device id are needed, an external origin bdev may follow"
            )));
        }
    };
    let thin = ThinActivate {
        pool: (*pool).to_owned(),
        id: number("device id", id)?,
        bdev_name: Some(name.to_owned()),
        size_mib: None,
        size_sectors: Some(length),
        origin_bdev: origin,
        create: false,
        wait: false,
    };
    crate::params::Validate::validate(&thin)?;
    Ok(Table::Thin(thin))
}

fn era(name: &str, length: u64, arguments: &[&str]) -> Result<Table, RpcError> {
    let [metadata, origin, block_size] = arguments else {
        return Err(RpcError::invalid(format!(
            "era '{name}': Invalid argument count: metadata bdev, origin bdev and block size are needed"
        )));
    };
    let era = EraCreate {
        block_size_sectors: number("block size", block_size)?,
        size_sectors: Some(length),
        ..EraCreate::new(name, metadata, origin)
    };
    crate::params::Validate::validate(&era)?;
    Ok(Table::Era(era))
}

fn ploop(name: &str, length: u64, arguments: &str) -> Result<Table, RpcError> {
    let found: PloopTable = arguments
        .parse()
        .map_err(|why| RpcError::invalid(format!("ploop '{name}': {why}")))?;
    let ploop = PloopCreate {
        lower_bdevs: found.lower.iter().map(ToString::to_string).collect(),
        size_sectors: Some(length),
        cluster_size_sectors: Some(1 << found.cluster_log),
        ..PloopCreate::new(name, &found.top)
    };
    crate::params::Validate::validate(&ploop)?;
    Ok(Table::Ploop(ploop))
}

/// Writes a pool's table line, as the kernel echoes it.
pub fn pool_line(length: u64, pool: &ThinPoolCreate) -> String {
    let features: Vec<&str> = POOL_FEATURES
        .into_iter()
        .filter(|feature| pool.has(feature))
        .collect();
    let mut line = format!(
        "0 {length} thin-pool {} {} {} {} {} ",
        pool.metadata_bdev,
        pool.data_bdev,
        pool.data_block_size_sectors,
        pool.low_water_mark_blocks,
        features.len()
    );
    for feature in features {
        line.push_str(feature);
        line.push(' ');
    }
    line
}

/// Writes a thin device's table line.
pub fn thin_line(length: u64, thin: &ThinActivate) -> String {
    let origin = thin.origin_bdev.as_ref();
    let origin = origin.map_or_else(String::new, |origin| format!(" {origin}"));
    format!("0 {length} thin {} {}{origin}", thin.pool, thin.id)
}

/// Writes an era target's table line.
pub fn era_line(length: u64, era: &EraCreate) -> String {
    format!(
        "0 {length} era {} {} {}",
        era.metadata_bdev, era.origin_bdev, era.block_size_sectors
    )
}

/// Writes an origin's table line.
pub fn snapshot_origin_line(length: u64, origin_bdev: &str) -> String {
    format!("0 {length} snapshot-origin {origin_bdev}")
}

/// Writes the table line of a snapshot or a snapshot-merge; the chunk size is to be the real one.
pub fn snapshot_line(length: u64, target: &str, table: &SnapshotTable) -> String {
    format!("0 {length} {target} {table}")
}

/// Writes a ploop target's table line. A cluster size that is no power of two, which the line cannot say, is
/// rounded down.
pub fn ploop_line(length: u64, cluster_sectors: u64, ploop: &PloopCreate) -> String {
    let log = cluster_sectors.max(1).ilog2();
    let deltas = std::iter::once(&ploop.top_bdev).chain(&ploop.lower_bdevs);
    let deltas: Vec<&str> = deltas.map(String::as_str).collect();
    format!("0 {length} ploop {log} {}", deltas.join(" "))
}
