//! `backup verify` and `backup list`.

use super::damaged;
use super::stream::{End, Header, Reader, StreamError};
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;
use clap::Args;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

/// Arguments of `backup verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Backups; if there are several, each must be the next after the one before
    #[arg(required = true, value_name = "FILE")]
    backups: Vec<PathBuf>,
    /// Print JSON, as `list` does
    #[arg(long)]
    json: bool,
}

/// Arguments of `backup list`.
#[derive(Args)]
pub struct ListArgs {
    /// Backups, or folders of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    /// Reads all, and says nothing if all is well.
    pub fn run(self, global: Global) -> Result<bool, CliError> {
        let headers = headers_of(&self.backups)?;
        for pair in headers.windows(2) {
            follows(&pair[0], &pair[1])?;
        }
        for path in &self.backups {
            verify(path, global)?;
        }
        if self.json {
            let found = self.backups.iter().zip(&headers);
            let list = found.map(|(path, header)| listed(path, header));
            Output::open(None)?.json(&list.collect::<Vec<_>>())?;
        }
        Ok(true)
    }
}

fn begin(path: &Path) -> Result<Reader<BufReader<File>>, CliError> {
    let file = File::open(path).map_err(CliError::io(path))?;
    Reader::begin(BufReader::with_capacity(1 << 20, file)).map_err(damaged(path))
}

fn headers_of(paths: &[PathBuf]) -> Result<Vec<Header>, CliError> {
    let header = |path: &PathBuf| Ok(begin(path)?.header().clone());
    paths.iter().map(header).collect()
}

fn follows(before: &Header, next: &Header) -> Result<(), CliError> {
    match next.parent.as_ref() == Some(&before.uuid) {
        true => Ok(()),
        false => Err(CliError::Usage(format!(
            "backup {} was not made since backup {}, but {}; see 'spdk-dm backup list'",
            next.uuid,
            before.uuid,
            next.parent
                .as_ref()
                .map_or_else(|| "is full".to_owned(), |parent| format!("since {parent}"))
        ))),
    }
}

/// Reads a backup to its end.
fn verify(path: &Path, global: Global) -> Result<End, CliError> {
    let mut reader = begin(path)?;
    let progress = Progress::new(global.quiet, "verifying");
    let size = fs::metadata(path).map_err(CliError::io(path))?.len();
    progress.expect(size);
    let mut done = 0;
    while reader.piece().map_err(damaged(path))?.is_some() {
        progress.advance(reader.good_bytes() - done);
        done = reader.good_bytes();
    }
    progress.finish();
    match reader.end() {
        Some(end) => Ok(end.clone()),
        None => Err(damaged(path)(StreamError::Incomplete { good_bytes: done })),
    }
}

/// The headers of a chain that begins with a full backup.
pub fn chain_headers(paths: &[PathBuf]) -> Result<Vec<Header>, CliError> {
    let headers = headers_of(paths)?;
    if let Some(parent) = headers.first().and_then(|first| first.parent.as_ref()) {
        return Err(CliError::Usage(format!(
            "{}: only what has changed since backup {parent}; begin with the full one",
            paths[0].display()
        )));
    }
    for pair in headers.windows(2) {
        follows(&pair[0], &pair[1])?;
    }
    Ok(headers)
}

/// The same, and all are whole.
pub fn verify_chain(paths: &[PathBuf], global: Global) -> Result<Vec<Header>, CliError> {
    let headers = chain_headers(paths)?;
    for path in paths {
        verify(path, global)?;
    }
    Ok(headers)
}

impl ListArgs {
    /// Prints what the headers say. Files that are no backups are passed over in folders.
    pub fn run(self) -> Result<bool, CliError> {
        let mut found = Vec::new();
        for path in &self.paths {
            if !path.is_dir() {
                found.push((path.clone(), begin(path)?.header().clone()));
                continue;
            }
            let entries = fs::read_dir(path).map_err(CliError::io(path))?;
            for entry in entries {
                let path = entry.map_err(CliError::io(path))?.path();
                if let (true, Ok(reader)) = (path.is_file(), begin(&path)) {
                    found.push((path, reader.header().clone()));
                }
            }
        }
        found.sort_by(|a, b| (a.1.began_unix_s, &a.0).cmp(&(b.1.began_unix_s, &b.0)));
        let mut output = Output::open(None)?;
        if self.json {
            let list = found.iter().map(|(path, header)| listed(path, header));
            output.json(&list.collect::<Vec<_>>())?;
            return Ok(true);
        }
        let mut text = format!(
            "{:32}  {:32}  {:>20}  {:>12}  FILE\n",
            "BACKUP", "SINCE", "DEVICE", "MIB"
        );
        for (path, header) in &found {
            text += &format!(
                "{:32}  {:32}  {:>20}  {:>12}  {}\n",
                header.uuid,
                header.parent.as_deref().unwrap_or("- (full)"),
                header.source.to_string(),
                bytes_of(path) >> 20,
                path.display()
            );
        }
        let written = output.out.write_all(text.as_bytes());
        written
            .and_then(|()| output.out.flush())
            .map_err(CliError::io(&output.path))?;
        Ok(true)
    }
}

/// A backup, as `list` shows it.
fn listed(path: &Path, header: &Header) -> Value {
    json!({ "path": path, "bytes": bytes_of(path), "header": header })
}

/// Prints JSON of a backup that has been made.
pub fn print(path: &Path) -> Result<(), CliError> {
    let reader = begin(path)?;
    Output::open(None)?.json(&listed(path, reader.header()))
}

fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}
