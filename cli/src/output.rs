//! Where a command's result goes: standard output or a file.

use crate::error::CliError;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 1 << 20;

/// A buffered output and its name for messages.
pub struct Output {
    /// To be written to, and flushed in the end.
    pub out: BufWriter<Box<dyn Write>>,
    /// Its name.
    pub path: PathBuf,
}

impl Output {
    /// Creates the file, or takes standard output.
    pub fn open(path: Option<&Path>) -> Result<Self, CliError> {
        let (out, path): (Box<dyn Write>, _) = match path {
            Some(path) => (
                Box::new(File::create(path).map_err(CliError::io(path))?),
                path.to_owned(),
            ),
            None => (Box::new(io::stdout()), PathBuf::from("standard output")),
        };
        Ok(Output {
            out: BufWriter::with_capacity(BUFFER_BYTES, out),
            path,
        })
    }

    /// Writes `value` as JSON, with a newline.
    pub fn json(mut self, value: &impl serde::Serialize) -> Result<(), CliError> {
        serde_json::to_writer_pretty(&mut self.out, value)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(self.out))
            .and_then(|()| self.out.flush())
            .map_err(CliError::io(&self.path))
    }
}
