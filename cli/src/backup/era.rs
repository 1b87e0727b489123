//! Backups of what an era target lies on: what was written since the era that began before the last backup was
//! frozen, read from what is frozen now.
//!
//! The order is what the promise rests on. An era begins first; then the data is frozen; then the list is made. So a
//! block that is in what was frozen, and was not before, is in the list; and what was written between the beginning
//! of the era and the freezing is in this backup and in the list of the next one.

use super::copy::What;
use super::create::Job;
use super::freeze::{Frozen, Way};
use super::header::{Era, Header, Source, Thin};
use super::output::{self, Begun};
use super::ranges::Ranges;
use super::source::{BLOCK_BYTES, Extent, Pool};
use super::stream::{End, MAX_PIECE_BYTES};
use super::thin::{copy_all, say_how_to_resume};
use super::{new_uuid, now_unix_s};
use crate::dm::odd;
use crate::error::CliError;
use crate::rpc_client::{RpcClient, RpcError};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;

/// Blocks that are looked for again, to see that a target is still the same.
const WITNESSES: u64 = 256;

/// An era target.
struct Info {
    data_bdev: String,
    block_bytes: u64,
    current_era: u64,
    size_bytes: u64,
}

impl Info {
    fn ask(client: &mut RpcClient, name: &str) -> Result<Self, CliError> {
        let status = client.call("era_status", json!({ "name": name }))?;
        if status["state"].as_str() != Some("open") {
            return Err(CliError::Usage(format!(
                "era '{name}' is not open; see era_status"
            )));
        }
        let info = Some(Info {
            data_bdev: status["origin_bdev"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            block_bytes: status["block_size_sectors"].as_u64().unwrap_or(0) * 512,
            current_era: status["current_era"].as_u64().unwrap_or(0),
            size_bytes: bdev_bytes(client, name)?,
        });
        info.filter(|info| info.block_bytes > 0 && info.current_era > 0)
            .ok_or_else(|| odd("era_status"))
    }
}

fn bdev_bytes(client: &mut RpcClient, name: &str) -> Result<u64, CliError> {
    let bdevs = client.call("bdev_get_bdevs", json!({ "name": name }))?;
    let bdev = &bdevs[0];
    let bytes = bdev["num_blocks"].as_u64().zip(bdev["block_size"].as_u64());
    bytes
        .map(|(blocks, size)| blocks * size)
        .ok_or_else(|| odd("bdev_get_bdevs"))
}

/// The size of a stream's blocks, where what is listed comes in units of `unit_bytes`: 512 or more, and a part of it.
pub fn stream_block_bytes(unit_bytes: u64) -> u64 {
    match unit_bytes {
        _ if unit_bytes <= MAX_PIECE_BYTES => unit_bytes,
        _ if unit_bytes.is_multiple_of(BLOCK_BYTES) => BLOCK_BYTES,
        _ => 512,
    }
}

/// What the metadata snapshot of an era target says.
struct Written {
    /// Blocks written since an era, if that was asked for.
    since: Option<Ranges>,
    /// Blocks that were ever written.
    ever: Ranges,
}

/// The era target of the backup before, if `header` is of one.
fn era_of(header: &Header) -> Option<&Era> {
    match &header.source {
        Source::Era(era) => Some(era),
        _ => None,
    }
}

/// Backs up what an era target lies on. Nothing stays on the target for the next one.
pub fn back_up(client: &mut RpcClient, name: &str, job: &Job<'_>) -> Result<(), CliError> {
    let info = Info::ask(client, name)?;
    let base = job.base.as_ref().and_then(|base| era_of(&base.header));
    if let Some(base) = base {
        let is_older = info.current_era < u64::from(base.era);
        if is_older || info.block_bytes != base.era_block_bytes {
            return Err(another(name));
        }
    }
    let (begun, frozen, written) = match job.how.resume {
        true => resume(client, name, base, job)?,
        false => begin(client, name, &info, base, job)?,
    };
    let result = read(client, begun, &frozen, &written, job);
    let can_resume = matches!(frozen, Frozen::Thin(_)) && job.how.output != Path::new("-");
    match result {
        Ok(_) => frozen.thaw(client),
        Err(error) => {
            let error = frozen.explain(client, error);
            if can_resume {
                say_how_to_resume(&job.how.output);
            } else {
                // The first error is the one to tell.
                let _ = frozen.thaw(client);
                output::discard(&job.how.output);
            }
            Err(error)
        }
    }
}

/// A target that does not know of what the backup before has seen.
fn another(name: &str) -> CliError {
    CliError::Usage(format!(
        "era '{name}' is not the one the backup before was made of: its metadata was made anew or rolled back since \
         then; make a full backup"
    ))
}

fn begin(
    client: &mut RpcClient,
    name: &str,
    info: &Info,
    base: Option<&Era>,
    job: &Job<'_>,
) -> Result<(Begun, Frozen, Written), CliError> {
    let how = job.how;
    let socket = how.server.socket();
    let way = Way::find(client, name, &info.data_bdev, how.cow.as_deref(), socket)?;
    let uuid = new_uuid()?;
    let out = output::open(&how.output)?;
    let started = checkpoint(client, name).and_then(|era| Ok((era, way.freeze(client, &uuid)?)));
    let (era, frozen) = started.inspect_err(|_| output::discard(&how.output))?;
    let made = written(client, name, base).and_then(|written| {
        check(name, base, &written.ever)?;
        let count = written.ever.count();
        let spread = (0..count.min(WITNESSES)).map(|at| at * count / count.min(WITNESSES));
        let header = Header {
            uuid,
            parent: job.base.as_ref().map(|base| base.header.uuid.clone()),
            source: Source::Era(Era {
                target: name.to_owned(),
                era,
                era_block_bytes: info.block_bytes,
                witnesses: spread.filter_map(|at| written.ever.nth(at)).collect(),
                frozen: match &frozen {
                    Frozen::Thin(thin) => Some(thin.clone()),
                    Frozen::Origin { .. } => None,
                },
            }),
            size_bytes: info.size_bytes,
            block_bytes: stream_block_bytes(info.block_bytes),
            began_unix_s: now_unix_s(),
        };
        Ok((output::begin(out, header, &how.output)?, written))
    });
    match made {
        Ok((begun, written)) => Ok((begun, frozen, written)),
        Err(error) => {
            // The first error is the one to tell.
            let _ = frozen.thaw(client);
            output::discard(&how.output);
            Err(error)
        }
    }
}

/// What a target knows of is what it knew of before.
fn check(name: &str, base: Option<&Era>, ever: &Ranges) -> Result<(), CliError> {
    let witnesses = base.map_or(&[][..], |base| &base.witnesses);
    match witnesses
        .iter()
        .all(|block| ever.contains(*block..block + 1))
    {
        true => Ok(()),
        false => Err(another(name)),
    }
}

fn resume(
    client: &mut RpcClient,
    name: &str,
    base: Option<&Era>,
    job: &Job<'_>,
) -> Result<(Begun, Frozen, Written), CliError> {
    let path = &job.how.output;
    let parent = job.base.as_ref().map(|base| &base.header.uuid);
    let mut frozen: Option<Thin> = None;
    let begun = output::resume(path, |header| {
        let era = era_of(header).filter(|era| era.target == name);
        let era = era.filter(|_| header.parent.as_ref() == parent);
        let era = era.ok_or_else(|| output::another(path))?;
        let gone = || {
            output::not_resumable(
                path,
                "the snapshot it was read from lasted for as long as it was read",
            )
        };
        let thin = era.frozen.as_ref().ok_or_else(gone)?;
        Pool::new(client, &thin.pool).snapshot_of(thin)?;
        frozen = Some(thin.clone());
        Ok(())
    })?;
    let frozen = Frozen::Thin(frozen.ok_or_else(|| output::another(path))?);
    // It names more than then; what was not written until then is as in the backup before.
    let written = written(client, name, base)?;
    check(name, base, &written.ever)?;
    Ok((begun, frozen, written))
}

fn read(
    client: &mut RpcClient,
    begun: Begun,
    frozen: &Frozen,
    written: &Written,
    job: &Job<'_>,
) -> Result<End, CliError> {
    let Header {
        size_bytes,
        block_bytes,
        ..
    } = begun.header;
    let era_block_bytes = era_of(&begun.header).map_or(block_bytes, |era| era.era_block_bytes);
    let mapped = match frozen {
        Frozen::Thin(thin) => {
            let mut pool = Pool::new(client, &thin.pool);
            let found = pool.extents(u64::from(thin.snapshot_id), None, size_bytes)?;
            Ranges::of(found.iter().map(|run| {
                let end = (run.first + run.count) * BLOCK_BYTES;
                run.first * BLOCK_BYTES / block_bytes..end.div_ceil(block_bytes)
            }))
        }
        Frozen::Origin { .. } => Ranges::of(std::iter::once(0..u64::MAX)),
    };
    let per = era_block_bytes / block_bytes;
    let changed = written.since.as_ref().map(|since| {
        Ranges::of(
            since
                .iter()
                .map(|run| run.start.saturating_mul(per)..run.end.saturating_mul(per)),
        )
    });
    let all = 0..size_bytes.div_ceil(block_bytes);
    let extents = extents(changed.as_ref(), &mapped, all);
    let socket = job.how.server.socket();
    let uuid = begun.header.uuid.clone();
    let mut access = frozen.open(client, &uuid, size_bytes, socket)?;
    let what = What {
        extents: &extents,
        block_bytes,
        next_block: begun.next_block,
        size_bytes,
    };
    let copied = copy_all(&mut access, begun, &what, job);
    let closed = frozen.close(client, access);
    copied.and_then(|end| closed.map(|()| end))
}

/// What is to be read: of what has changed, or of all, that for which there is something; and of what has changed,
/// what there is nothing for any more.
fn extents(changed: Option<&Ranges>, mapped: &Ranges, all: Range<u64>) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut add = |run: Range<u64>, data: bool| {
        if !run.is_empty() {
            extents.push(Extent {
                first: run.start,
                count: run.end - run.start,
                data,
            });
        }
    };
    let Some(changed) = changed else {
        mapped.within(all).for_each(|run| add(run, true));
        return extents;
    };
    for run in changed.within(all) {
        let mut at = run.start;
        for data in mapped.within(run.clone()) {
            add(at..data.start, false);
            at = data.end;
            add(data, true);
        }
        add(at..run.end, false);
    }
    extents
}

fn checkpoint(client: &mut RpcClient, name: &str) -> Result<u32, CliError> {
    let answer = client.call("era_checkpoint", json!({ "name": name }))?;
    let era = answer["era"]
        .as_u64()
        .and_then(|era| u32::try_from(era).ok());
    era.ok_or_else(|| odd("era_checkpoint"))
}

/// What was written, up to the era that ends now.
fn written(client: &mut RpcClient, name: &str, base: Option<&Era>) -> Result<Written, CliError> {
    let taken = client.call("era_take_metadata_snap", json!({ "name": name }));
    taken.map_err(|error| match error {
        RpcError::Refused { message, .. } => CliError::Usage(format!(
            "{message}: the metadata snapshot of era '{name}' is needed for a moment; era_drop_metadata_snap the one \
             that is held"
        )),
        error => error.into(),
    })?;
    let listed = written_since(client, name, 1).and_then(|ever| {
        let since = base.map(|base| written_since(client, name, base.era));
        Ok(Written {
            ever,
            since: since.transpose()?,
        })
    });
    let dropped = client.call("era_drop_metadata_snap", json!({ "name": name }));
    let listed = listed?;
    dropped?;
    Ok(listed)
}

fn written_since(client: &mut RpcClient, name: &str, era: u32) -> Result<Ranges, CliError> {
    let method = "era_written_since";
    let mut params = json!({ "name": name, "era": era, "limit": 16_384 });
    let mut runs: Vec<Range<u64>> = Vec::new();
    loop {
        let page = client.call(method, params.clone())?;
        for run in page["ranges"].as_array().ok_or_else(|| odd(method))? {
            let run = run["begin"].as_u64().zip(run["length"].as_u64());
            let (begin, length) = run.ok_or_else(|| odd(method))?;
            runs.push(begin..begin.saturating_add(length));
        }
        match &page["next_block"] {
            Value::Null => return Ok(Ranges::of(runs)),
            next => params["begin_block"] = next.clone(),
        }
        params["snapshot"] = page["snapshot"].clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what has changed, what is mapped is read, the rest are holes; in a full backup, nothing is said of holes.
    #[test]
    fn what_is_read() {
        let extent = |first, count, data| Extent { first, count, data };
        let mapped = Ranges::of([2..5, 8..9, 20..40]);
        let changed = Ranges::of([0..3, 4..10, 38..90]);
        assert_eq!(
            extents(Some(&changed), &mapped, 0..50),
            [
                extent(0, 2, false),
                extent(2, 1, true),
                extent(4, 1, true),
                extent(5, 3, false),
                extent(8, 1, true),
                extent(9, 1, false),
                extent(38, 2, true),
                extent(40, 10, false),
            ]
        );
        assert_eq!(
            extents(None, &mapped, 0..30),
            [extent(2, 3, true), extent(8, 1, true), extent(20, 10, true)]
        );
    }
}
