//! The tables of `spdk-dm top`.

use crate::metrics::collect::{Found, Object};
use indicatif::HumanBytes;
use serde_json::Value;
use std::fmt::Write;

/// Sectors of 512 bytes.
const BYTES_PER_SECTOR: f64 = 512.0;

/// A table: names to the left, figures to the right.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new<const N: usize>(header: [&str; N]) -> Self {
        Table {
            rows: vec![header.map(str::to_owned).to_vec()],
        }
    }

    /// Writes it, unless nothing is in it.
    fn put(&self, text: &mut String) {
        if self.rows.len() < 2 {
            return;
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = match column {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text.push('\n');
    }
}

/// A field of a look as a number.
fn figure(object: &Object, field: &str) -> f64 {
    object
        .status
        .get(field)
        .and_then(Value::as_f64)
        .unwrap_or(0.0)
}

fn word<'a>(object: &'a Object, field: &str) -> &'a str {
    let word = object.status.get(field).and_then(Value::as_str);
    word.unwrap_or("-")
}

/// An object's growth since the look before: nothing for one that is new, or begins again.
struct Growth<'a> {
    before: Option<&'a Object>,
    now: &'a Object,
    seconds: f64,
}

impl<'a> Growth<'a> {
    fn of(before: &'a [Object], now: &'a Object, seconds: f64) -> Self {
        Growth {
            before: before.iter().find(|object| object.labels == now.labels),
            now,
            seconds,
        }
    }

    fn total(&self, field: &str) -> f64 {
        let before = self.before.map(|before| figure(before, field));
        before.map_or(0.0, |before| (figure(self.now, field) - before).max(0.0))
    }

    fn per_second(&self, field: &str) -> f64 {
        match self.seconds > 0.0 {
            true => self.total(field) / self.seconds,
            false => 0.0,
        }
    }

    fn rate(&self, field: &str) -> String {
        format!("{:.0}", self.per_second(field))
    }

    fn bytes(&self, field: &str) -> String {
        format!("{}/s", size(self.per_second(field)))
    }

    /// The time of one, in microseconds.
    fn micros(&self, time: &str, number: &str) -> String {
        match self.total(number) {
            0.0 => "-".to_owned(),
            number => format!("{:.0}", self.total(time) / number * 1e6),
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates"
)]
fn size(bytes: f64) -> String {
    HumanBytes(bytes as u64).to_string()
}

fn percent(part: f64, whole: f64) -> String {
    match whole > 0.0 {
        true => format!("{:.1}%", 100.0 * part / whole),
        false => "-".to_owned(),
    }
}

fn name(object: &Object) -> String {
    let last = object.labels.last();
    last.map_or_else(String::new, |(_, name)| name.clone())
}

/// What a target does.
pub fn text(before: &Found, now: &Found, seconds: f64) -> String {
    let mut text = String::new();
    let mut pools = Table::new([
        "POOL",
        "STATE",
        "DATA",
        "OF",
        "METADATA",
        "THINS",
        "NEW/s",
        "COPIES/s",
        "COMMITS/s",
        "LOADS/s",
    ]);
    for pool in &now.pools {
        let growth = Growth::of(&before.pools, pool, seconds);
        let block_bytes = figure(pool, "data_block_size_sectors") * BYTES_PER_SECTOR;
        let total = figure(pool, "total_data_blocks");
        let state = match word(pool, "state") {
            "open" => word(pool, "mode"),
            state => state,
        };
        pools.rows.push(vec![
            name(pool),
            state.to_owned(),
            percent(figure(pool, "used_data_blocks"), total),
            size(total * block_bytes),
            percent(
                figure(pool, "used_metadata_blocks"),
                figure(pool, "total_metadata_blocks"),
            ),
            format!("{:.0}", figure(pool, "active_devices")),
            growth.rate("provisioned_blocks"),
            growth.rate("shares_broken"),
            growth.rate("commits"),
            growth.rate("mapping_cache_page_loads"),
        ]);
    }
    pools.put(&mut text);
    let mut eras = Table::new([
        "ERA TARGET",
        "STATE",
        "ERA",
        "METADATA",
        "FIRST WRITES/s",
        "COMMITS/s",
    ]);
    for era in &now.eras {
        let growth = Growth::of(&before.eras, era, seconds);
        eras.rows.push(vec![
            name(era),
            word(era, "state").to_owned(),
            format!("{:.0}", figure(era, "current_era")),
            percent(
                figure(era, "used_metadata_blocks"),
                figure(era, "total_metadata_blocks"),
            ),
            growth.rate("first_writes"),
            growth.rate("commits"),
        ]);
    }
    eras.put(&mut text);
    let mut origins = Table::new([
        "ORIGIN",
        "STATE",
        "COPIES/s",
        "EXCEPTIONS/s",
        "MERGED/s",
        "COMMITS/s",
    ]);
    for origin in &now.origins {
        let growth = Growth::of(&before.origins, origin, seconds);
        origins.rows.push(vec![
            name(origin),
            word(origin, "state").to_owned(),
            growth.rate("copied_chunks"),
            growth.rate("exceptions"),
            growth.rate("merged_chunks"),
            growth.rate("commits"),
        ]);
    }
    origins.put(&mut text);
    let mut snapshots = Table::new(["SNAPSHOT", "CONDITION", "MERGE", "COW", "OF"]);
    for snapshot in &now.snapshots {
        let total = figure(snapshot, "total_sectors");
        snapshots.rows.push(vec![
            name(snapshot),
            word(snapshot, "condition").to_owned(),
            word(snapshot, "merge").to_owned(),
            percent(figure(snapshot, "allocated_sectors"), total),
            size(total * BYTES_PER_SECTOR),
        ]);
    }
    snapshots.put(&mut text);
    let mut bdevs = Table::new([
        "BDEV", "READS/s", "WRITES/s", "READ", "WRITTEN", "READ us", "WRITE us",
    ]);
    let mut busy: Vec<_> = now
        .bdevs
        .iter()
        .map(|bdev| {
            let growth = Growth::of(&before.bdevs, bdev, seconds);
            let total = growth.total("num_read_ops") + growth.total("num_write_ops");
            (total, growth)
        })
        .collect();
    // Who does most comes first.
    busy.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, growth) in busy {
        bdevs.rows.push(vec![
            name(growth.now),
            growth.rate("num_read_ops"),
            growth.rate("num_write_ops"),
            growth.bytes("bytes_read"),
            growth.bytes("bytes_written"),
            growth.micros("read_seconds", "num_read_ops"),
            growth.micros("write_seconds", "num_write_ops"),
        ]);
    }
    bdevs.put(&mut text);
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "a test fails by panicking")]
    use super::*;
    use serde_json::{Map, json};

    fn bdev(name: &str, status: Value) -> Object {
        let Value::Object(status) = status else {
            panic!("{status}")
        };
        Object {
            labels: vec![("bdev".to_owned(), name.to_owned())],
            status,
        }
    }

    /// Rates are over the time between; the busiest comes first; what began again counts from nothing.
    #[test]
    fn rates() {
        let look = |busy: u64, seconds: f64| Found {
            bdevs: vec![
                bdev("idle", json!({ "num_read_ops": 70 - busy })),
                bdev(
                    "busy",
                    json!({ "num_read_ops": busy, "bytes_read": busy * 4096, "read_seconds": seconds }),
                ),
            ],
            ..Found::default()
        };
        let shown = text(&look(10, 1.0), &look(50, 1.2), 4.0);
        let mut lines = shown.lines().skip(1);
        let words = |line: Option<&str>| -> Vec<String> {
            let line = line.unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(
            words(lines.next()),
            ["busy", "10", "0", "40.00", "KiB/s", "0", "B/s", "5000", "-"]
        );
        assert_eq!(
            words(lines.next()),
            ["idle", "0", "0", "0", "B/s", "0", "B/s", "-", "-"]
        );
        let new = Found {
            bdevs: vec![bdev("new", Value::Object(Map::new()))],
            ..Found::default()
        };
        assert!(text(&Found::default(), &new, 0.0).contains("new"));
        assert_eq!(text(&Found::default(), &Found::default(), 1.0), "");
    }
}
