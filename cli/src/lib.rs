//! `spdk-dm`: looks at, checks and repairs the metadata of device-mapper targets in files and on block
//! devices, without SPDK and without a kernel; and talks to a running target in the words of `dmsetup`.
//!
//! One module per target and in it one per verb; a verb parses its arguments and prints, the work is
//! done in crate `bdev`. Module `dm` asks a running target by its RPC socket instead. Metadata that a target has open must not be touched: block devices are opened
//! exclusively, except to read a metadata snapshot.
//!
//! A library so that its parsers can be fuzzed; the program is [`main`].
#![forbid(unsafe_code)]

mod backup;
mod dm;
mod era;
mod error;
mod file;
pub mod lvm;
mod manual;
mod metrics;
mod migrate;
mod new_metadata;
mod output;
mod ploop;
mod progress;
mod replicate;
mod rpc_client;
mod thin;
mod top;
pub mod xml;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Device-mapper targets on SPDK: the devices of a running target in dmsetup's words; metadata in files and on
/// block devices, checked, dumped, restored and repaired; ploop images.
///
/// Exit codes: 0 all is well; 1 something is wrong with what was looked at or with the command.
#[derive(Parser)]
#[command(name = "spdk-dm", version, max_term_width = 100)]
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
    /// Backups of thin devices of a running target
    #[command(subcommand)]
    Backup(backup::Verb),
    /// Configurations that serve what others have made
    #[command(subcommand)]
    Import(lvm::Verb),
    /// Thin devices of a running target, kept as snapshots in another target's pool
    #[command(subcommand)]
    Replicate(replicate::Verb),
    /// Move thin devices of a running target to another pool, while they are in use
    Migrate(migrate::MigrateArgs),
    /// Devices of a running target
    #[command(flatten)]
    Dm(dm::Verb),
    /// Print what a running target measures as OpenMetrics, or serve it for Prometheus
    Metrics(metrics::MetricsArgs),
    /// Show what a running target does, live
    Top(top::TopArgs),
    /// Print completions for a shell, e.g. into /usr/share/bash-completion/completions/spdk-dm
    Completions(manual::CompletionsArgs),
    /// Write manual pages
    Man(manual::ManArgs),
    /// The same as for a thin pool without the word `thin`
    #[command(flatten)]
    Short(thin::PlainVerb),
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
        Command::Thin(verb) => verb.run(cli.global),
        Command::Short(verb) => verb.run(cli.global),
        Command::Backup(verb) => verb.run(cli.global),
        Command::Import(verb) => verb.run(cli.global),
        Command::Replicate(verb) => verb.run(cli.global),
        Command::Migrate(args) => args.run(cli.global),
        Command::Dm(verb) => verb.run(cli.global),
        Command::Metrics(args) => args.run(cli.global),
        Command::Top(args) => args.run(),
        Command::Completions(args) => args.run(),
        Command::Man(args) => args.run(),
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
