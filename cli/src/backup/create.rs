//! `backup full` and `backup incr`.

use super::copy::{CopyError, Limit, What, copy};
use super::source::{BLOCK_BYTES, Open, Pool};
use super::stream::{End, Header, Reader, StreamError, Writer};
use super::{bdev_name, damaged, new_uuid, now_unix_s};
use crate::Global;
use crate::dm::Server;
use crate::error::CliError;
use crate::progress::Progress;
use clap::Args;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Arguments of `backup full`.
#[derive(Args)]
pub struct FullArgs {
    /// The pool
    pool: String,
    /// Id of the thin device
    id: u32,
    #[command(flatten)]
    how: How,
    /// Size of the device, if it is not active
    #[arg(long, value_name = "MIB")]
    size_mib: Option<u64>,
}

/// Arguments of `backup incr`.
#[derive(Args)]
pub struct IncrArgs {
    /// The pool
    pool: String,
    /// Id of the thin device
    id: u32,
    /// The backup before, whose snapshot must still be there
    #[arg(long, value_name = "FILE")]
    since: PathBuf,
    #[command(flatten)]
    how: How,
    /// Keep the snapshot of the backup before, for another one since then
    #[arg(long)]
    keep: bool,
}

#[derive(Args)]
struct How {
    /// The backup: a new file, or - for standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Go on with a file in which an earlier attempt was cut off
    #[arg(long)]
    resume: bool,
    /// Read at most so many MiB per second
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    limit_mib: Option<u64>,
    #[command(flatten)]
    server: Server,
}

impl FullArgs {
    /// Backs up all that is mapped. Prints nothing but remarks.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let wanted = Wanted {
            pool: self.pool,
            id: self.id,
            size_sectors: self.size_mib.map(|mib| mib * 2048),
            since: None,
        };
        back_up(&wanted, &self.how, global)?;
        Ok(true)
    }
}

impl IncrArgs {
    /// Backs up what has changed since another backup.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let since = header_of(&self.since)?;
        if (since.pool.as_str(), since.device_id) != (self.pool.as_str(), self.id) {
            return Err(CliError::Usage(format!(
                "{}: a backup of thin device {} of pool '{}', not of {} of '{}'",
                self.since.display(),
                since.device_id,
                since.pool,
                self.id,
                self.pool
            )));
        }
        let wanted = Wanted {
            pool: self.pool,
            id: self.id,
            size_sectors: Some(since.size_bytes / 512),
            since: Some(since),
        };
        back_up(&wanted, &self.how, global)?;
        if let (Some(since), false) = (&wanted.since, self.keep) {
            let mut client = self.how.server.connect()?;
            let mut pool = Pool::new(&mut client, &wanted.pool);
            let old = pool.snapshot_of(since)?;
            pool.delete(old.id)?;
        }
        Ok(true)
    }
}

/// The header of a backup that is complete, as far as can be told without reading it.
fn header_of(path: &Path) -> Result<Header, CliError> {
    let file = File::open(path).map_err(CliError::io(path))?;
    let reader = Reader::begin(BufReader::new(file)).map_err(damaged(path))?;
    Ok(reader.header().clone())
}

struct Wanted {
    pool: String,
    id: u32,
    size_sectors: Option<u64>,
    since: Option<Header>,
}

/// A stream to be continued, and how far it has come.
struct Begun {
    writer: Writer<Box<dyn Write>>,
    header: Header,
    next_block: u64,
}

fn back_up(wanted: &Wanted, how: &How, global: Global) -> Result<End, CliError> {
    let mut client = how.server.connect()?;
    let mut pool = Pool::new(&mut client, &wanted.pool);
    let since = match &wanted.since {
        Some(since) => Some(pool.snapshot_of(since)?.id),
        None => None,
    };
    let (begun, is_new) = match how.resume {
        true => {
            let begun = resume(wanted, &how.output)?;
            pool.snapshot_of(&begun.header)?;
            (begun, false)
        }
        false => (begin(&mut pool, wanted, how)?, true),
    };
    let snapshot = u64::from(begun.header.snapshot_id);
    let uuid = begun.header.uuid.clone();
    let result = pool
        .extents(snapshot, since, begun.header.size_bytes)
        .and_then(|extents| {
            let sectors = begun.header.size_bytes / 512;
            let what = Open {
                id: snapshot,
                size_sectors: sectors,
                ..Open::default()
            };
            let mut access = pool.open(what, &bdev_name(&uuid), how.server.socket())?;
            let limit = Limit::new(how.limit_mib);
            let progress = Progress::new(global.quiet, "backing up");
            let Begun {
                writer, next_block, ..
            } = begun;
            let what = What {
                extents: &extents,
                next_block,
                size_bytes: sectors * 512,
            };
            progress.expect(what.blocks());
            let copied = copy(&mut access.data, writer, &what, &limit, &mut |blocks| {
                progress.advance(blocks);
                Ok(())
            });
            progress.finish();
            let copied = copied.map(|(_, end)| end).map_err(|error| match error {
                CopyError::Read(source) => access.failed(source),
                CopyError::Write(source) => CliError::io(&how.output)(source),
            });
            let closed = pool.close(access);
            copied.and_then(|end| closed.map(|()| end))
        });
    let resumable = how.output != Path::new("-");
    match &result {
        Ok(_) => {}
        Err(_) if resumable => {
            eprintln!(
                "spdk-dm: to go on with {}, run this again with --resume",
                how.output.display()
            );
        }
        Err(_) if is_new => {
            // Nobody can go on with it. The first error is the one to tell.
            let _ = pool.delete(snapshot);
        }
        Err(_) => {}
    }
    result
}

fn open_output(path: &Path) -> Result<Box<dyn Write>, CliError> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let file = file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CliError::Usage(format!(
            "{}: is there already, and is not overwritten; to go on with it give --resume",
            path.display()
        )),
        _ => CliError::io(path)(error),
    })?;
    Ok(Box::new(output(file, path)?))
}

/// A file that is this process's alone.
fn output(file: File, path: &Path) -> Result<BufWriter<Durable>, CliError> {
    match file.try_lock() {
        Ok(()) => Ok(BufWriter::with_capacity(1 << 20, Durable(file))),
        Err(TryLockError::WouldBlock) => Err(CliError::Usage(format!(
            "{}: another spdk-dm is writing it",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(CliError::io(path)(error)),
    }
}

/// A file whose flush makes it durable: a backup that is reported is there after a power cut.
struct Durable(File);

impl Write for Durable {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

fn begin(pool: &mut Pool<'_>, wanted: &Wanted, how: &How) -> Result<Begun, CliError> {
    let device = pool.device(u64::from(wanted.id))?;
    let size_sectors = device.size_sectors.or(wanted.size_sectors).ok_or_else(|| {
        CliError::Usage(format!(
            "thin device {} of pool '{}' is not active, so its size is not known: give --size-mib",
            wanted.id, pool.name
        ))
    })?;
    let out = open_output(&how.output)?;
    let snapshot = pool.snapshot(device.id)?;
    let header = Header {
        uuid: new_uuid()?,
        parent: wanted.since.as_ref().map(|since| since.uuid.clone()),
        pool: wanted.pool.clone(),
        device_id: wanted.id,
        snapshot_id: snapshot.id as u32,
        snapshot_time: snapshot.creation_time,
        size_bytes: size_sectors * 512,
        block_bytes: BLOCK_BYTES,
        began_unix_s: now_unix_s(),
    };
    // The header is on the disk before anything else: it says which snapshot is this backup's.
    let writer = Writer::begin(out, &header).and_then(|mut writer| {
        writer.flush()?;
        Ok(writer)
    });
    let writer = match writer {
        Ok(writer) => writer,
        Err(error) => {
            // The first error is the one to tell.
            let _ = pool.delete(snapshot.id);
            return Err(CliError::io(&how.output)(error));
        }
    };
    Ok(Begun {
        writer,
        header,
        next_block: 0,
    })
}

fn resume(wanted: &Wanted, path: &Path) -> Result<Begun, CliError> {
    let file = File::open(path).map_err(CliError::io(path))?;
    let mut reader =
        Reader::begin(BufReader::with_capacity(1 << 20, file)).map_err(damaged(path))?;
    loop {
        match reader.piece() {
            Ok(Some(_)) => {}
            Ok(None) => return Err(CliError::Usage(format!("{}: is complete", path.display()))),
            Err(StreamError::Incomplete { .. }) => break,
            Err(error) => return Err(damaged(path)(error)),
        }
    }
    let header = reader.header().clone();
    let parent = wanted.since.as_ref().map(|since| &since.uuid);
    let same = (&header.pool, header.device_id, header.parent.as_ref())
        == (&wanted.pool, wanted.id, parent);
    if !same {
        let what = "the beginning of another backup than this; nothing was changed";
        return Err(CliError::Usage(format!("{}: {what}", path.display())));
    }
    let file = OpenOptions::new().write(true).open(path);
    let mut out = output(file.map_err(CliError::io(path))?, path)?;
    let good_bytes = reader.good_bytes();
    let file = &mut out.get_mut().0;
    file.set_len(good_bytes)
        .and_then(|()| file.seek(SeekFrom::Start(good_bytes)))
        .map_err(CliError::io(path))?;
    let next_block = reader.next_block();
    Ok(Begun {
        writer: Writer::resume(Box::new(out), reader),
        header,
        next_block,
    })
}
