//! The XML of `thin_dump` and `thin_delta` (thin.md 12), byte for byte as the two generations of the
//! tools write it.

use super::delta::{Difference, Joiner, Relation};
use super::refs::Details;
use super::runs::Run;
use super::sink::{PoolInfo, Sink};
use std::io::{self, Write};

/// Whose layout is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// That of 0.9, which every `thin_restore` reads.
    #[default]
    V0,
    /// That of 1.x: flags only where there are any, no newline at the end.
    V1,
}

/// Writes XML.
pub struct XmlWriter<W> {
    out: W,
    layout: Layout,
}

impl<W: Write> XmlWriter<W> {
    /// Writes to `out`, which should be buffered.
    pub fn new(out: W, layout: Layout) -> Self {
        XmlWriter { out, layout }
    }

    /// What it writes to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Gives back what was written to.
    pub fn into_inner(self) -> W {
        self.out
    }

    /// Numbers and the text between them.
    fn write(&mut self, parts: &[(&str, u64)], end: &str) -> io::Result<()> {
        let mut digits = itoa::Buffer::new();
        for (text, number) in parts {
            self.out.write_all(text.as_bytes())?;
            self.out.write_all(digits.format(*number).as_bytes())?;
        }
        self.out.write_all(end.as_bytes())
    }
}

impl<W: Write> Sink for XmlWriter<W> {
    type Error = io::Error;

    async fn begin(&mut self, pool: &PoolInfo) -> io::Result<()> {
        self.write(
            &[
                ("<superblock uuid=\"\" time=\"", u64::from(pool.time)),
                ("\" transaction=\"", pool.transaction_id),
            ],
            "\"",
        )?;
        if self.layout == Layout::V0 || pool.needs_check {
            self.write(&[(" flags=\"", u64::from(pool.needs_check))], "\"")?;
        }
        self.write(
            &[
                (" version=\"", 2),
                (
                    "\" data_block_size=\"",
                    u64::from(pool.data_block_size_sectors),
                ),
                ("\" nr_data_blocks=\"", pool.nr_data_blocks),
            ],
            "\">\n",
        )
    }

    async fn shared_begin(&mut self, name: &str) -> io::Result<()> {
        writeln!(self.out, "  <def name=\"{name}\">")
    }

    async fn shared_end(&mut self) -> io::Result<()> {
        self.out.write_all(b"  </def>\n")
    }

    async fn device_begin(&mut self, id: u32, details: &Details) -> io::Result<()> {
        self.write(
            &[
                ("  <device dev_id=\"", u64::from(id)),
                ("\" mapped_blocks=\"", details.mapped_blocks),
                ("\" transaction=\"", details.transaction_id),
                ("\" creation_time=\"", u64::from(details.creation_time)),
                ("\" snap_time=\"", u64::from(details.snapshotted_time)),
            ],
            "\">\n",
        )
    }

    async fn run(&mut self, run: &Run) -> io::Result<()> {
        match run.length {
            1 => self.write(
                &[
                    ("    <single_mapping origin_block=\"", run.virtual_begin),
                    ("\" data_block=\"", run.data_begin),
                    ("\" time=\"", u64::from(run.time)),
                ],
                "\"/>\n",
            ),
            length => self.write(
                &[
                    ("    <range_mapping origin_begin=\"", run.virtual_begin),
                    ("\" data_begin=\"", run.data_begin),
                    ("\" length=\"", length),
                    ("\" time=\"", u64::from(run.time)),
                ],
                "\"/>\n",
            ),
        }
    }

    async fn shared(&mut self, name: &str) -> io::Result<()> {
        writeln!(self.out, "    <ref name=\"{name}\"/>")
    }

    async fn device_end(&mut self) -> io::Result<()> {
        self.out.write_all(b"  </device>\n")
    }

    async fn end(&mut self) -> io::Result<()> {
        self.out.write_all(match self.layout {
            Layout::V0 => b"</superblock>\n",
            Layout::V1 => b"</superblock>",
        })?;
        self.out.flush()
    }
}

/// Writes differences as `thin_delta` does.
pub struct DeltaXmlWriter<W> {
    out: W,
    verbose: bool,
    /// Without data blocks: waits for what adjoins it.
    joiner: Joiner,
    /// With data blocks: the tag that is open.
    open: Option<Relation>,
}

impl<W: Write> DeltaXmlWriter<W> {
    /// Writes to `out`, which should be buffered; `verbose`: with data blocks.
    pub fn new(out: W, verbose: bool) -> Self {
        DeltaXmlWriter {
            out,
            verbose,
            joiner: Joiner::default(),
            open: None,
        }
    }

    /// What it writes to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// The pool, and which devices are compared.
    pub fn begin(&mut self, pool: &PoolInfo, left: u32, right: u32) -> io::Result<()> {
        write!(
            self.out,
            "<superblock uuid=\"\" time=\"{}\" transaction=\"{}\" data_block_size=\"{}\" \
             nr_data_blocks=\"{}\">\n  <diff left=\"{left}\" right=\"{right}\">\n",
            pool.time, pool.transaction_id, pool.data_block_size_sectors, pool.nr_data_blocks,
        )
    }

    /// The next difference.
    pub fn difference(&mut self, difference: &Difference) -> io::Result<()> {
        match self.verbose {
            true => self.ranged(difference),
            false => {
                let done = self.joiner.push(difference);
                self.joined(done)
            }
        }
    }

    fn joined(&mut self, difference: Option<Difference>) -> io::Result<()> {
        let Some(d) = difference else {
            return Ok(());
        };
        writeln!(
            self.out,
            "    <{} begin=\"{}\" length=\"{}\"/>",
            d.relation.name(),
            d.begin,
            d.length
        )
    }

    fn ranged(&mut self, d: &Difference) -> io::Result<()> {
        if self.open != Some(d.relation) {
            self.close()?;
            writeln!(self.out, "    <{}>", d.relation.name())?;
            self.open = Some(d.relation);
        }
        write!(self.out, "      <range begin=\"{}\"", d.begin)?;
        match (d.relation, d.left_data.or(d.right_data), d.right_data) {
            (Relation::Different, Some(left), Some(right)) => write!(
                self.out,
                " left_data_begin=\"{left}\" right_data_begin=\"{right}\""
            )?,
            (_, Some(data), _) => write!(self.out, " data_begin=\"{data}\"")?,
            _ => {}
        }
        writeln!(self.out, " length=\"{}\"/>", d.length)
    }

    fn close(&mut self) -> io::Result<()> {
        match self.open.take() {
            Some(open) => writeln!(self.out, "    </{}>", open.name()),
            None => Ok(()),
        }
    }

    /// The differences are through.
    pub fn end(&mut self) -> io::Result<()> {
        let last = self.joiner.finish();
        self.joined(last)?;
        self.close()?;
        self.out.write_all(b"  </diff>\n</superblock>\n")?;
        self.out.flush()
    }
}
