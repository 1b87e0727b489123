//! `spdk-dm`: looks at, checks and repairs the metadata of device-mapper targets in files and on block
//! devices, without SPDK and without a kernel.
//!
//! One module per target and in it one per verb; a verb parses its arguments and prints, the work is
//! done in crate `bdev`. Metadata that a target has open must not be touched: block devices are opened
//! exclusively, except to read a metadata snapshot.
//!
//! A library so that its parsers can be fuzzed; the program is [`main`].
#![forbid(unsafe_code)]

mod era;
mod error;
mod file;
mod new_metadata;
mod output;
mod ploop;
mod progress;
mod thin;
pub mod xml;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Checks, dumps, restores and repairs device-mapper metadata in files and on block devices; makes, checks
/// and converts ploop images.
///
/// Exit codes: 0 all is well; 1 something is wrong with the metadata or with the command.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every verb understands.
#[derive(Args, Clone, Copy)]
struct Global {
    /// Print nothing but what was asked for: no progress, no remarks
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Metadata of a thin pool
    #[command(subcommand)]
    Thin(thin::Verb),
    /// Metadata of an era target
    #[command(subcommand)]
    Era(era::Verb),
    /// ploop images
    #[command(subcommand)]
    Ploop(ploop::Verb),
    /// The same as for a thin pool without the word `thin`
    #[command(flatten)]
    Short(thin::Verb),
}

/// The program.
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            };
        }
    };
    let result = match cli.command {
        Command::Thin(verb) | Command::Short(verb) => verb.run(cli.global),
        Command::Era(verb) => verb.run(cli.global),
        Command::Ploop(verb) => verb.run(cli.global),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever read our output wants no more of it.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spdk-dm: {error}");
            ExitCode::FAILURE
        }
    }
}
