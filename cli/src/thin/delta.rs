//! `spdk-dm thin delta`.

use super::{Input, read_error};
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;
use bdev::thin::metadata::ThinError;
use bdev::thin::metadata::delta::{DeltaError, Difference, Relation, delta};
use bdev::thin::metadata::dump::DumpError;
use clap::Args;
use std::io::{self, Write};

/// Arguments.
#[derive(Args)]
pub struct DeltaArgs {
    #[command(flatten)]
    input: Input,
    /// Id of the first device
    #[arg(long, alias = "snap1", value_name = "ID")]
    thin1: u32,
    /// Id of the second device
    #[arg(long, alias = "snap2", value_name = "ID")]
    thin2: u32,
    /// Print the data blocks, too
    #[arg(long)]
    verbose: bool,
    /// Print one JSON object per line and range instead of XML
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Json {
    relation: &'static str,
    begin: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_data_begin: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    right_data_begin: Option<u64>,
}

fn tag(relation: Relation) -> &'static str {
    match relation {
        Relation::Same => "same",
        Relation::Different => "different",
        Relation::LeftOnly => "left_only",
        Relation::RightOnly => "right_only",
    }
}

/// Prints differences as they come.
struct Printer<W> {
    out: W,
    verbose: bool,
    json: bool,
    /// Without data blocks: waits for what adjoins it.
    waiting: Option<Difference>,
    /// With data blocks: the tag that is open.
    open: Option<Relation>,
}

impl<W: Write> Printer<W> {
    fn print(&mut self, difference: &Difference) -> io::Result<()> {
        if self.verbose {
            return self.print_verbose(difference);
        }
        match &mut self.waiting {
            Some(waiting) if waiting.adjoins(difference) => waiting.length += difference.length,
            _ => {
                let done = self.waiting.replace(*difference);
                return self.print_short(done);
            }
        }
        Ok(())
    }

    fn print_short(&mut self, difference: Option<Difference>) -> io::Result<()> {
        let Some(d) = difference else {
            return Ok(());
        };
        if self.json {
            return self.print_json(&d, None, None);
        }
        writeln!(
            self.out,
            "    <{} begin=\"{}\" length=\"{}\"/>",
            tag(d.relation),
            d.begin,
            d.length
        )
    }

    fn print_json(
        &mut self,
        d: &Difference,
        left_data_begin: Option<u64>,
        right_data_begin: Option<u64>,
    ) -> io::Result<()> {
        let json = Json {
            relation: tag(d.relation),
            begin: d.begin,
            length: d.length,
            left_data_begin,
            right_data_begin,
        };
        serde_json::to_writer(&mut self.out, &json)?;
        writeln!(self.out)
    }

    fn print_verbose(&mut self, d: &Difference) -> io::Result<()> {
        if self.json {
            return self.print_json(d, d.left_data, d.right_data);
        }
        if self.open != Some(d.relation) {
            self.close()?;
            writeln!(self.out, "    <{}>", tag(d.relation))?;
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
            Some(open) => writeln!(self.out, "    </{}>", tag(open)),
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        let waiting = self.waiting.take();
        self.print_short(waiting)?;
        self.close()
    }
}

impl DeltaArgs {
    /// Compares.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "comparing");
        let path = &self.input.input;
        let image = self.input.open(&progress)?;
        let view = self.input.view();
        let sb = image.superblock(view).await.map_err(CliError::thin(path))?;
        let damaged = |error: DumpError<io::Error>| read_error(path, error);
        let devices = image.devices(&sb).await.map_err(|e| damaged(e.into()))?;
        let find = |id: u32| {
            let found = devices.iter().find(|dev| dev.id == u64::from(id));
            found.ok_or_else(|| CliError::thin(path)(ThinError::NoDevice(id)))
        };
        let (left, right) = (find(self.thin1)?, find(self.thin2)?);
        let mut output = Output::open(None)?;
        let sink = |error| CliError::io(&output.path)(error);
        let mut printer = Printer {
            out: &mut output.out,
            verbose: self.verbose,
            json: self.json,
            waiting: None,
            open: None,
        };
        if !self.json {
            let header = format!(
                "<superblock uuid=\"\" time=\"{}\" transaction=\"{}\" data_block_size=\"{}\" \
                 nr_data_blocks=\"{}\">\n  <diff left=\"{}\" right=\"{}\">\n",
                sb.time,
                sb.transaction_id,
                sb.data_block_size_sectors,
                sb.data_map.nr_blocks,
                self.thin1,
                self.thin2
            );
            printer.out.write_all(header.as_bytes()).map_err(sink)?;
        }
        let result = delta(&image, [left.root, right.root], |d| printer.print(d)).await;
        progress.finish();
        result.map_err(|error| match error {
            DeltaError::Damaged(side, lost) => damaged(DumpError::Damaged {
                device: if side == 0 { left.id } else { right.id },
                lost,
            }),
            DeltaError::Sink(error) => sink(error),
        })?;
        printer.finish().map_err(sink)?;
        if !self.json {
            let footer = b"  </diff>\n</superblock>\n";
            printer.out.write_all(footer).map_err(sink)?;
        }
        printer.out.flush().map_err(sink)?;
        Ok(true)
    }
}
