//! `spdk-dm thin delta`.

use super::{Input, read_error};
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;
use bdev::thin::metadata::ThinError;
use bdev::thin::metadata::delta::{DeltaError, Difference, Joiner, delta};
use bdev::thin::metadata::dump::{DumpError, pool_info};
use bdev::thin::metadata::sink::PoolInfo;
use bdev::thin::metadata::xml::DeltaXmlWriter;
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

/// Prints differences as they come, a JSON object per line.
struct JsonPrinter<W> {
    out: W,
    verbose: bool,
    /// Without data blocks.
    joiner: Joiner,
}

impl<W: Write> JsonPrinter<W> {
    fn difference(&mut self, difference: &Difference) -> io::Result<()> {
        match self.verbose {
            true => self.print(difference),
            false => match self.joiner.push(difference) {
                Some(done) => self.print(&done),
                None => Ok(()),
            },
        }
    }

    fn print(&mut self, d: &Difference) -> io::Result<()> {
        let json = Json {
            relation: d.relation.name(),
            begin: d.begin,
            length: d.length,
            left_data_begin: d.left_data.filter(|_| self.verbose),
            right_data_begin: d.right_data.filter(|_| self.verbose),
        };
        serde_json::to_writer(&mut self.out, &json)?;
        writeln!(self.out)
    }

    fn end(&mut self) -> io::Result<()> {
        if let Some(last) = self.joiner.finish() {
            self.print(&last)?;
        }
        self.out.flush()
    }
}

enum Printer<W> {
    Xml(DeltaXmlWriter<W>),
    Json(JsonPrinter<W>),
}

impl<W: Write> Printer<W> {
    fn begin(&mut self, pool: &PoolInfo, left: u32, right: u32) -> io::Result<()> {
        match self {
            Printer::Xml(xml) => xml.begin(pool, left, right),
            Printer::Json(_) => Ok(()),
        }
    }

    fn difference(&mut self, difference: &Difference) -> io::Result<()> {
        match self {
            Printer::Xml(xml) => xml.difference(difference),
            Printer::Json(json) => json.difference(difference),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match self {
            Printer::Xml(xml) => xml.end(),
            Printer::Json(json) => json.end(),
        }
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
        let mut printer = match self.json {
            true => Printer::Json(JsonPrinter {
                out: &mut output.out,
                verbose: self.verbose,
                joiner: Joiner::default(),
            }),
            false => Printer::Xml(DeltaXmlWriter::new(&mut output.out, self.verbose)),
        };
        let begun = printer.begin(&pool_info(&sb), self.thin1, self.thin2);
        begun.map_err(sink)?;
        let result = delta(&image, [left.root, right.root], |d| printer.difference(d)).await;
        progress.finish();
        result.map_err(|error| match error {
            DeltaError::Damaged(side, lost) => damaged(DumpError::Damaged {
                device: if side == 0 { left.id } else { right.id },
                lost,
            }),
            DeltaError::Sink(error) => sink(error),
        })?;
        printer.end().map_err(sink)?;
        Ok(true)
    }
}
