//! The XML of `era_dump` (era.md 10), byte for byte as the two generations of the tool write it.

use super::dump::{EraInfo, Sink};
use std::io::{self, Write};
use std::ops::Range;

/// Whose layout is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// That of 0.9: a writeset has as many bits as it is long.
    #[default]
    V0,
    /// That of 1.x: as many bits as there are blocks, or up to the last that is set; no newline at the
    /// end.
    V1,
}

/// Writes XML.
pub struct XmlWriter<W> {
    out: W,
    layout: Layout,
    nr_blocks: u32,
    next_bit: u64,
}

impl<W: Write> XmlWriter<W> {
    /// Writes to `out`, which should be buffered.
    pub fn new(out: W, layout: Layout) -> Self {
        XmlWriter {
            out,
            layout,
            nr_blocks: 0,
            next_bit: 0,
        }
    }

    /// Gives back what was written to.
    pub fn into_inner(self) -> W {
        self.out
    }

    /// Text and numbers in turn.
    fn write(&mut self, parts: &[(&str, u64)], end: &str) -> io::Result<()> {
        let mut digits = itoa::Buffer::new();
        for (text, number) in parts {
            self.out.write_all(text.as_bytes())?;
            self.out.write_all(digits.format(*number).as_bytes())?;
        }
        self.out.write_all(end.as_bytes())
    }

    fn line(&mut self, block: u64, value: bool) -> io::Result<()> {
        self.next_bit = block + 1;
        let end = match value {
            true => "\" value=\"true\"/>\n",
            false => "\" value=\"false\"/>\n",
        };
        self.write(&[("    <bit block=\"", block)], end)
    }

    /// Bits that were left out before `end` are false.
    fn fill(&mut self, end: u64) -> io::Result<()> {
        for block in self.next_bit..end {
            self.line(block, false)?;
        }
        Ok(())
    }
}

impl<W: Write> Sink for XmlWriter<W> {
    type Error = io::Error;

    fn begin(&mut self, info: &EraInfo) -> io::Result<()> {
        self.nr_blocks = info.nr_blocks;
        self.write(
            &[
                (
                    "<superblock uuid=\"\" block_size=\"",
                    u64::from(info.block_size_sectors),
                ),
                ("\" nr_blocks=\"", u64::from(info.nr_blocks)),
                ("\" current_era=\"", u64::from(info.current_era)),
            ],
            "\">\n",
        )
    }

    fn writeset_begin(&mut self, era: u32, nr_bits: u32) -> io::Result<()> {
        self.next_bit = 0;
        self.write(
            &[
                ("  <writeset era=\"", u64::from(era)),
                ("\" nr_bits=\"", u64::from(nr_bits)),
            ],
            "\">\n",
        )
    }

    fn bit(&mut self, block: u64, value: bool) -> io::Result<()> {
        if self.layout == Layout::V1 && !value && block >= u64::from(self.nr_blocks) {
            return Ok(());
        }
        self.fill(block)?;
        self.line(block, value)
    }

    fn writeset_end(&mut self) -> io::Result<()> {
        if self.layout == Layout::V1 {
            self.fill(u64::from(self.nr_blocks))?;
        }
        self.out.write_all(b"  </writeset>\n")
    }

    fn array_begin(&mut self) -> io::Result<()> {
        self.out.write_all(b"  <era_array>\n")
    }

    fn era(&mut self, block: u64, era: u32) -> io::Result<()> {
        self.write(
            &[("    <era block=\"", block), ("\" era=\"", u64::from(era))],
            "\"/>\n",
        )
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.write_all(match self.layout {
            Layout::V0 => b"  </era_array>\n</superblock>\n",
            Layout::V1 => b"  </era_array>\n</superblock>",
        })?;
        self.out.flush()
    }
}

/// Writes ranges of blocks as `era_invalidate` lists them, in the layout every reader of it takes.
pub struct BlocksWriter<W> {
    out: W,
    /// Not written yet: the next range may touch it.
    last: Option<Range<u64>>,
}

impl<W: Write> BlocksWriter<W> {
    /// Begins the list.
    pub fn begin(mut out: W) -> io::Result<Self> {
        out.write_all(b"<blocks>\n")?;
        Ok(BlocksWriter { out, last: None })
    }

    /// What is written to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Blocks after all those before; ranges that touch become one.
    pub fn range(&mut self, range: Range<u64>) -> io::Result<()> {
        match &mut self.last {
            _ if range.is_empty() => Ok(()),
            Some(last) if last.end == range.start => {
                last.end = range.end;
                Ok(())
            }
            last => match last.replace(range) {
                Some(done) => self.line(&done),
                None => Ok(()),
            },
        }
    }

    fn line(&mut self, range: &Range<u64>) -> io::Result<()> {
        let Range { start, end } = range;
        match end - start {
            1 => writeln!(self.out, "  <block block=\"{start}\"/>"),
            _ => writeln!(self.out, "  <range begin=\"{start}\" end=\"{end}\"/>"),
        }
    }

    /// Ends the list, and gives back what was written to.
    pub fn end(mut self) -> io::Result<W> {
        if let Some(last) = self.last.take() {
            self.line(&last)?;
        }
        self.out.write_all(b"</blocks>\n")?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Writes a whole list; see [`BlocksWriter`].
pub fn write_blocks<W: Write>(
    out: W,
    ranges: impl IntoIterator<Item = Range<u64>>,
) -> io::Result<()> {
    let mut blocks = BlocksWriter::begin(out)?;
    for range in ranges {
        blocks.range(range)?;
    }
    blocks.end().map(drop)
}
