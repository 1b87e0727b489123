//! Backups of thin devices: a snapshot, of which what is mapped or differs is read.

use super::base::Base;
use super::copy::{CopyError, Limit, What, copy};
use super::create::Job;
use super::header::{Header, Source, Thin};
use super::output::{self, Begun};
use super::source::{Access, BLOCK_BYTES, Open, Pool};
use super::stream::End;
use super::{bdev_name, new_uuid, now_unix_s};
use crate::error::CliError;
use crate::progress::Progress;
use crate::rpc_client::RpcClient;
use std::path::Path;

/// The thin device of a backup that [`super::create`] has found to be of one.
fn thin_of(base: &Base) -> Option<&Thin> {
    match &base.header.source {
        Source::Thin(thin) => Some(thin),
        _ => None,
    }
}

/// Backs a thin device up. Its snapshot stays for the next one, that of the one before goes.
pub fn back_up(
    client: &mut RpcClient,
    name: &str,
    id: u32,
    size_sectors: Option<u64>,
    job: &Job<'_>,
) -> Result<(), CliError> {
    let mut pool = Pool::new(client, name);
    let how = job.how;
    let old = match job.base.as_ref().and_then(thin_of) {
        Some(thin) => Some(pool.snapshot_of(thin)?.id),
        None => None,
    };
    if !how.resume {
        pool.report_left_behind(how.server.socket())?;
    }
    let (begun, is_new) = match how.resume {
        true => (resume(&mut pool, id, job)?, false),
        false => (begin(&mut pool, id, size_sectors, job)?, true),
    };
    let Source::Thin(thin) = &begun.header.source else {
        return Err(output::another(&how.output));
    };
    let snapshot = u64::from(thin.snapshot_id);
    let extents = pool.extents(snapshot, old, begun.header.size_bytes);
    let result = extents.and_then(|extents| {
        let what = Open {
            id: snapshot,
            size_sectors: begun.header.size_bytes / 512,
            ..Open::default()
        };
        let bdev = bdev_name(&begun.header.uuid);
        let mut access = pool.open(what, &bdev, how.server.socket())?;
        let what = What {
            extents: &extents,
            block_bytes: BLOCK_BYTES,
            next_block: begun.next_block,
            size_bytes: begun.header.size_bytes,
        };
        let copied = copy_all(&mut access, begun, &what, job);
        let closed = pool.close(access);
        copied.and_then(|end| closed.map(|()| end))
    });
    let resumable = how.output != Path::new("-");
    match &result {
        Ok(_) => {}
        Err(_) if resumable => say_how_to_resume(&how.output),
        Err(_) if is_new => {
            // Nobody can go on with it. The first error is the one to tell.
            let _ = pool.delete(snapshot);
        }
        Err(_) => {}
    }
    result?;
    if let (Some(thin), false) = (job.base.as_ref().and_then(thin_of), job.keep) {
        let old = pool.snapshot_of(thin)?;
        pool.delete(old.id)?;
    }
    Ok(())
}

/// What remains to be done with a file that is not complete.
pub fn say_how_to_resume(path: &Path) {
    eprintln!(
        "spdk-dm: to go on with {}, run this again with --resume",
        path.display()
    );
}

/// Reads into the stream, to its end.
pub fn copy_all(
    access: &mut Access,
    begun: Begun,
    what: &What<'_>,
    job: &Job<'_>,
) -> Result<End, CliError> {
    let limit = Limit::new(job.how.limit_mib);
    let progress = Progress::new(job.global.quiet, "backing up");
    progress.expect(what.blocks());
    let stop = job.stop.clone();
    let copied = copy(
        &mut access.data,
        begun.writer,
        what,
        &limit,
        &mut |blocks| {
            progress.advance(blocks);
            stop.check()
        },
    );
    progress.finish();
    copied.map(|(_, end)| end).map_err(|error| match error {
        CopyError::Read(source) => access.failed(source),
        CopyError::Write(source) => CliError::io(&job.how.output)(source),
    })
}

fn begin(
    pool: &mut Pool<'_>,
    id: u32,
    size_sectors: Option<u64>,
    job: &Job<'_>,
) -> Result<Begun, CliError> {
    let device = pool.device(u64::from(id))?;
    let of_base = || Some(job.base.as_ref()?.header.size_bytes / 512);
    let size_sectors = device.size_sectors.or(size_sectors).or_else(of_base);
    let size_sectors = size_sectors.ok_or_else(|| {
        CliError::Usage(format!(
            "thin device {id} of pool '{}' is not active, so its size is not known: give --size-mib",
            pool.name
        ))
    })?;
    let out = output::open(&job.how.output)?;
    let snapshot = pool.snapshot(device.id)?;
    let header = Header {
        uuid: new_uuid()?,
        parent: job.base.as_ref().map(|base| base.header.uuid.clone()),
        source: Source::Thin(Thin {
            pool: pool.name.clone(),
            device_id: id,
            snapshot_id: snapshot.id as u32,
            snapshot_time: snapshot.creation_time,
        }),
        size_bytes: size_sectors * 512,
        block_bytes: BLOCK_BYTES,
        began_unix_s: now_unix_s(),
    };
    output::begin(out, header, &job.how.output).inspect_err(|_| {
        // The first error is the one to tell.
        let _ = pool.delete(snapshot.id);
    })
}

fn resume(pool: &mut Pool<'_>, id: u32, job: &Job<'_>) -> Result<Begun, CliError> {
    let path = &job.how.output;
    output::resume(path, |header| {
        let Source::Thin(thin) = &header.source else {
            return Err(output::another(path));
        };
        let parent = job.base.as_ref().map(|base| &base.header.uuid);
        match (&thin.pool, thin.device_id, header.parent.as_ref()) == (&pool.name, id, parent) {
            true => pool.snapshot_of(thin).map(drop),
            false => Err(output::another(path)),
        }
    })
}
