//! The backup that an incremental one is made since.

use super::damaged;
use super::header::{Header, Source};
use super::stream::{Reader, StreamError, ends_with_its_end};
use crate::error::CliError;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

/// A complete backup.
#[derive(Debug)]
pub struct Base {
    /// What of.
    pub header: Header,
}

/// The base that was named; or, of a folder, the last complete one of the same source; without either, of the folder
/// of the output.
pub fn find(
    since: Option<&Path>,
    output: &Path,
    same: impl Fn(&Source) -> bool,
    what: &str,
) -> Result<Base, CliError> {
    let folder = match since {
        Some(path) if path.is_dir() => path,
        Some(path) => return named(path, same, what),
        None if output == Path::new("-") => {
            return Err(CliError::Usage(
                "give --since: a backup, or a folder in which the last one is looked for".into(),
            ));
        }
        None => match output.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        },
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(CliError::io(folder))? {
        let path = entry.map_err(CliError::io(folder))?.path();
        // What is no backup is passed over, and what is not complete.
        if path.is_file()
            && let Ok(header) = header_of(&path)
            && same(&header.source)
        {
            // Of those that began in one second the file that was written to last.
            let written = fs::metadata(&path).and_then(|file| file.modified()).ok();
            found.push((written, Base { header }));
        }
    }
    found.sort_by_key(|(written, base)| (base.header.began_unix_s, *written));
    let mut found: Vec<Base> = found.into_iter().map(|(_, base)| base).collect();
    // Of those of one second, none follows the last one.
    let is_followed = |base: &Base, all: &[Base]| {
        let uuid = Some(&base.header.uuid);
        all.iter().any(|other| other.header.parent.as_ref() == uuid)
    };
    let last = found.last().map(|base| base.header.began_unix_s);
    let at = found
        .iter()
        .rposition(|base| Some(base.header.began_unix_s) == last && !is_followed(base, &found));
    match at.or(found.len().checked_sub(1)) {
        Some(at) => Ok(found.swap_remove(at)),
        None => Err(CliError::Usage(format!(
            "{}: no complete backup of {what} is there; make a full one, or name one with --since",
            folder.display()
        ))),
    }
}

fn named(path: &Path, same: impl Fn(&Source) -> bool, what: &str) -> Result<Base, CliError> {
    let header = header_of(path)?;
    match same(&header.source) {
        true => Ok(Base { header }),
        false => Err(CliError::Usage(format!(
            "{}: a backup of {}, not of {what}",
            path.display(),
            header.source.described()
        ))),
    }
}

/// The header of a backup that is complete, as far as can be told from how its records begin and end.
fn header_of(path: &Path) -> Result<Header, CliError> {
    let file = File::open(path).map_err(CliError::io(path))?;
    let reader = Reader::begin(BufReader::new(&file)).map_err(damaged(path))?;
    let good_bytes = reader.good_bytes();
    let header = reader.header().clone();
    match ends_with_its_end(&file, good_bytes) {
        Ok(true) => Ok(header),
        Ok(false) => Err(damaged(path)(StreamError::Incomplete { good_bytes })),
        Err(error) => Err(CliError::io(path)(error)),
    }
}
