//! Backups of ploop targets, by push backup: nothing is overwritten before it has been read, and what the guest waits
//! for is read first.
//!
//! The target records what is written from the beginning of a backup on. It takes what was written since the one
//! before, and begins, in one moment; and it gives up what it has recorded only when it hears that the file is safe.
//! A backup that ends otherwise, by whatever cause, leaves the next one with the changes of both.

use super::copy::Limit;
use super::create::Job;
use super::era::stream_block_bytes;
use super::header::{Header, Ploop, Source};
use super::output::{self, Begun};
use super::pushed::{Guest, Reader};
use super::ranges::Ranges;
use super::source::Access;
use super::stream::{MAX_PIECE_BYTES, Piece};
use super::{bdev_name, new_uuid, now_unix_s};
use crate::dm::odd;
use crate::error::CliError;
use crate::progress::Progress;
use crate::rpc_client::RpcClient;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// What is read before it is written to the stream, unless a cluster is larger.
const BATCH_BYTES: u64 = 8 << 20;

/// The same, with a rate limit.
const LIMITED_BATCH_BYTES: u64 = 1 << 20;

/// How long a rate limit is slept for between two looks at what the guest waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A ploop target.
struct Info {
    cluster_bytes: u64,
    size_bytes: u64,
}

impl Info {
    fn ask(client: &mut RpcClient, name: &str, job: &Job<'_>) -> Result<Self, CliError> {
        let status = client.call("ploop_status", json!({ "name": name }))?;
        if status["state"].as_str() != Some("open") {
            return Err(CliError::Usage(format!(
                "ploop '{name}' is not open; see ploop_status"
            )));
        }
        if let Some(uuid) = status["push_backup"]["uuid"].as_str() {
            clear(client, name, uuid, &status["recorded_since"], job)?;
        }
        let sectors = |field: &str| status[field].as_u64().filter(|sectors| *sectors > 0);
        match sectors("cluster_size_sectors").zip(sectors("size_sectors")) {
            Some((cluster, size)) => Ok(Info {
                cluster_bytes: cluster * 512,
                size_bytes: size * 512,
            }),
            None => Err(odd("ploop_status")),
        }
    }
}

/// Ends a push backup that one which was killed has left. Errors if it is somebody else's, or goes on.
fn clear(
    client: &mut RpcClient,
    name: &str,
    uuid: &str,
    recorded: &Value,
    job: &Job<'_>,
) -> Result<(), CliError> {
    let mut records = recorded.as_array().into_iter().flatten();
    let is_ours = uuid.len() == 32 && records.any(|record| record["uuid"] == uuid);
    let socket = job.how.server.socket();
    if !is_ours || Access::is_used(client, &bdev_name(uuid), socket)? {
        return Err(CliError::Usage(format!(
            "push backup {uuid} of ploop '{name}' is under way; wait for its end, or ploop_push_backup_stop it"
        )));
    }
    Access::clear(client, &bdev_name(uuid), socket)?;
    // It did not get to say so.
    let is_complete = job
        .base
        .as_ref()
        .is_some_and(|base| base.header.uuid == uuid);
    let params = json!({ "name": name, "uuid": uuid, "complete": is_complete, "keep": true });
    client.call("ploop_push_backup_stop", params)?;
    if !is_complete {
        eprintln!(
            "spdk-dm: push backup {uuid} of ploop '{name}' was left by a backup that was cut off; it is stopped now, \
             and its file is of no use"
        );
    }
    Ok(())
}

/// Backs a ploop target up.
pub fn back_up(client: &mut RpcClient, name: &str, job: &Job<'_>) -> Result<(), CliError> {
    let how = job.how;
    if how.resume {
        let why =
            "the disk has gone on; what was written since the backup before is still recorded";
        return Err(output::not_resumable(&how.output, why));
    }
    let info = Info::ask(client, name, job)?;
    let out = output::open(&how.output)?;
    let made = output_of(client, name, &info, out, job);
    if made.is_err() {
        output::discard(&how.output);
    }
    let (uuid, guest) = made?;
    // From here on the file is whole.
    let stopped = guest.complete(client, job.keep);
    stopped.map_err(|error| {
        CliError::Usage(format!(
            "{}: is whole, but ploop '{name}' could not be told: {error}; the next incremental backup since it says so \
             (backup {uuid})",
            how.output.display()
        ))
    })
}

/// Makes the file. What was started is stopped if this fails.
fn output_of(
    client: &mut RpcClient,
    name: &str,
    info: &Info,
    out: Box<dyn std::io::Write>,
    job: &Job<'_>,
) -> Result<(String, Guest), CliError> {
    let how = job.how;
    let header = Header {
        uuid: new_uuid()?,
        parent: job.base.as_ref().map(|base| base.header.uuid.clone()),
        source: Source::Ploop(Ploop {
            target: name.to_owned(),
            cluster_bytes: info.cluster_bytes,
        }),
        size_bytes: info.size_bytes,
        block_bytes: stream_block_bytes(info.cluster_bytes),
        began_unix_s: now_unix_s(),
    };
    let uuid = header.uuid.clone();
    let parent = header.parent.clone();
    let begun = output::begin(out, header, &how.output)?;
    // Served before it begins: what is not served by anybody has been left behind.
    let mut access = Access::open_shared(client, name, &bdev_name(&uuid), how.server.socket())?;
    let guest = Guest::new(name, &uuid, how.hold_s);
    let read = guest.start(client, parent.as_deref()).and_then(|()| {
        let read = read_all(client, &guest, &mut access, begun, info, job);
        if read.is_err() {
            // The first error is the one to tell. Where this fails, the next backup does it.
            let _ = guest.stop(client);
        }
        read
    });
    let closed = access.close(client);
    read.and(closed.map(|()| (uuid, guest)))
}

fn read_all(
    client: &mut RpcClient,
    guest: &Guest,
    access: &mut Access,
    begun: Begun,
    info: &Info,
    job: &Job<'_>,
) -> Result<(), CliError> {
    let path: &Path = &job.how.output;
    let writing = CliError::io;
    let Begun {
        mut writer, header, ..
    } = begun;
    let (mut to_read, holes) = guest.left(client)?;
    let per = info.cluster_bytes / header.block_bytes;
    let nr_blocks = header.size_bytes.div_ceil(header.block_bytes);
    if header.parent.is_some() {
        for run in holes.iter() {
            let first = run.start * per;
            let count = (run.end * per).min(nr_blocks).saturating_sub(first);
            let piece = Piece::Unmapped { first, count };
            writer.piece(&piece).map_err(writing(path))?;
        }
    }
    let progress = Progress::new(job.global.quiet, "backing up");
    progress.expect(to_read.count());
    let limit = Limit::new(job.how.limit_mib);
    // With a limit, not much at a time.
    let batch_bytes = match job.how.limit_mib {
        None => BATCH_BYTES,
        Some(_) => LIMITED_BATCH_BYTES,
    };
    let batch_clusters = (batch_bytes / info.cluster_bytes).max(1);
    let mut reader = Reader::new(access, info.cluster_bytes, header.size_bytes);
    let mut read_bytes = 0;
    while to_read.count() > 0 {
        job.stop.check().map_err(writing(path))?;
        let wanted = guest.wanted(client, batch_clusters)?;
        let mut batch = Ranges::default();
        for cluster in wanted {
            if to_read.remove(cluster) {
                batch.insert(cluster..cluster + 1);
            }
        }
        if batch.count() == 0 {
            let due = limit.due(read_bytes);
            if !due.is_zero() {
                std::thread::sleep(due.min(LOOK_AGAIN));
                continue;
            }
            while batch.count() < batch_clusters
                && let Some(run) = to_read.pop(batch_clusters - batch.count())
            {
                batch.insert(run);
            }
        }
        let contents = reader.read(&batch)?;
        // Of use only if nothing was overwritten while it was read: that is what the answer says.
        guest.saved(client, &batch)?;
        for (cluster, mut contents) in contents {
            read_bytes += contents.len() as u64;
            let first = cluster * per;
            let blocks = per.min(nr_blocks.saturating_sub(first));
            contents.resize((blocks * header.block_bytes) as usize, 0);
            let most = (MAX_PIECE_BYTES / header.block_bytes).max(1);
            for (at, part) in (first..)
                .step_by(most as usize)
                .zip(contents.chunks((most * header.block_bytes) as usize))
            {
                let piece = Piece::Data {
                    first: at,
                    contents: part.to_vec(),
                };
                writer.piece(&piece).map_err(writing(path))?;
            }
            progress.advance(1);
        }
    }
    progress.finish();
    writer.end().map(drop).map_err(writing(path))
}
