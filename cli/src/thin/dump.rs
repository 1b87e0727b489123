//! `spdk-dm thin dump`.

use super::Input;
use crate::Global;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Progress;
use bdev::thin::metadata::Details;
use bdev::thin::metadata::dump::{DumpError, DumpOptions, dump};
use bdev::thin::metadata::runs::Run;
use bdev::thin::metadata::sink::{PoolInfo, Sink};
use bdev::thin::metadata::xml::{Layout, XmlWriter};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Args)]
pub struct DumpArgs {
    #[command(flatten)]
    input: Input,
    /// Only this device; may be repeated
    #[arg(long, value_name = "ID")]
    dev_id: Vec<u32>,
    /// Devices without their mappings
    #[arg(long)]
    skip_mappings: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// As thin_dump 0.9: every mapping of every device; all versions of thin_restore read it
    #[default]
    Xml,
    /// As thin_dump 1.x: mappings that devices share come once, as `def`; much smaller with many
    /// snapshots
    XmlShared,
}

impl DumpArgs {
    /// Dumps.
    pub async fn run(&self, global: Global) -> Result<bool, CliError> {
        let progress = Progress::new(global.quiet, "dumping");
        let image = self.input.open(&Progress::hidden())?;
        let view = self.input.view();
        let shared = self.format == Format::XmlShared;
        if !shared && let Ok(sb) = image.superblock(view).await {
            let devices = image.devices(&sb).await.unwrap_or_default();
            progress.expect(devices.iter().map(|dev| dev.details.mapped_blocks).sum());
        }
        let output = Output::open(self.output.as_deref())?;
        let layout = if shared { Layout::V1 } else { Layout::V0 };
        let mut sink = Counted {
            sink: XmlWriter::new(output.out, layout),
            progress: progress.clone(),
        };
        let options = DumpOptions {
            view,
            devices: self.dev_id.clone(),
            skip_mappings: self.skip_mappings,
            shared_once: shared,
        };
        let result = dump(&image, &options, &mut sink).await;
        progress.finish();
        result.map_err(|error| dump_error(&self.input.input, &output.path, error))?;
        Ok(true)
    }
}

/// An error of a dump to a file.
fn dump_error(input: &Path, output: &Path, error: DumpError<std::io::Error>) -> CliError {
    match error {
        DumpError::Sink(source) => CliError::io(output)(source),
        error => super::read_error(input, error),
    }
}

/// Moves a bar on with what goes to a sink.
pub struct Counted<S> {
    pub sink: S,
    pub progress: Progress,
}

impl<S: Sink> Sink for Counted<S> {
    type Error = S::Error;

    async fn begin(&mut self, pool: &PoolInfo) -> Result<(), S::Error> {
        self.sink.begin(pool).await
    }

    async fn shared_begin(&mut self, name: &str) -> Result<(), S::Error> {
        self.sink.shared_begin(name).await
    }

    async fn shared_end(&mut self) -> Result<(), S::Error> {
        self.sink.shared_end().await
    }

    async fn device_begin(&mut self, id: u32, details: &Details) -> Result<(), S::Error> {
        self.sink.device_begin(id, details).await
    }

    async fn run(&mut self, run: &Run) -> Result<(), S::Error> {
        self.progress.advance(run.length);
        self.sink.run(run).await
    }

    async fn shared(&mut self, name: &str) -> Result<(), S::Error> {
        self.sink.shared(name).await
    }

    async fn device_end(&mut self) -> Result<(), S::Error> {
        self.sink.device_end().await
    }

    async fn end(&mut self) -> Result<(), S::Error> {
        self.sink.end().await
    }
}
