//! Where XML comes from: a file or standard input.

use crate::error::CliError;
use crate::progress::Progress;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

const BUFFER_BYTES: usize = 1 << 20;

/// A file, or standard input; moves a bar on with what is read.
pub struct XmlInput {
    inner: Box<dyn Read>,
    progress: Progress,
}

impl XmlInput {
    /// Opens it; - is standard input.
    pub fn open(path: &Path, progress: &Progress) -> Result<BufReader<Self>, CliError> {
        let inner: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            let file = File::open(path).map_err(CliError::io(path))?;
            progress.expect(file.metadata().map_or(0, |m| m.len()));
            Box::new(file)
        };
        let input = XmlInput {
            inner,
            progress: progress.clone(),
        };
        Ok(BufReader::with_capacity(BUFFER_BYTES, input))
    }
}

impl Read for XmlInput {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.progress.advance(count as u64);
        Ok(count)
    }
}
