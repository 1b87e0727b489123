//! The file a backup is written to: a new one, or one that is gone on with.

use super::damaged;
use super::header::Header;
use super::stream::{Reader, StreamError, Writer};
use crate::error::CliError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// A stream to be continued, and how far it has come.
pub struct Begun {
    /// Takes the next piece.
    pub writer: Writer<Box<dyn Write>>,
    /// What it is of.
    pub header: Header,
    /// Where it goes on.
    pub next_block: u64,
}

/// A new file, or standard output.
pub fn open(path: &Path) -> Result<Box<dyn Write>, CliError> {
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
    Ok(Box::new(locked(file, path)?))
}

/// A file that is this process's alone.
fn locked(file: File, path: &Path) -> Result<BufWriter<Durable>, CliError> {
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

/// Begins a stream. The header is on the disk when this returns: it says what is this backup's.
pub fn begin(out: Box<dyn Write>, header: Header, path: &Path) -> Result<Begun, CliError> {
    let writer = Writer::begin(out, &header).and_then(|mut writer| {
        writer.flush()?;
        Ok(writer)
    });
    Ok(Begun {
        writer: writer.map_err(CliError::io(path))?,
        header,
        next_block: 0,
    })
}

/// Goes on behind the last whole record of a file, if `check` has nothing against its header.
pub fn resume(
    path: &Path,
    check: impl FnOnce(&Header) -> Result<(), CliError>,
) -> Result<Begun, CliError> {
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
    check(&header)?;
    let file = OpenOptions::new().write(true).open(path);
    let mut out = locked(file.map_err(CliError::io(path))?, path)?;
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

/// What a file begins that is not the beginning of this backup.
pub fn another(path: &Path) -> CliError {
    let what = "the beginning of another backup than this; nothing was changed";
    CliError::Usage(format!("{}: {what}", path.display()))
}

/// A file that cannot be gone on with.
pub fn not_resumable(path: &Path, why: &str) -> CliError {
    CliError::Usage(format!(
        "{}: cannot be gone on with: {why}; remove it, and make the backup anew",
        path.display()
    ))
}

/// Takes away a file that nobody can go on with. The error that led to this is the one to tell.
pub fn discard(path: &Path) {
    if path != Path::new("-") {
        let _ = std::fs::remove_file(path);
    }
}
