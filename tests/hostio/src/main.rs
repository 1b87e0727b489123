//! spdk_dm_hostio: an SPDK program that is the host in tests. It gets bdevs from a JSON configuration
//! (an NVMe-oF controller, say) and carries out one command on one of them.

mod latency;
mod ledger;
mod rate;
mod stamp;
mod stress;
mod transfer;

use clap::{Parser, Subcommand};
use spdk::app::{self, Options};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Writes, reads, stresses and verifies SPDK bdevs, for tests")]
struct Args {
    /// JSON configuration that makes the bdev.
    #[arg(long)]
    json: PathBuf,
    /// Name of the bdev.
    #[arg(long)]
    bdev: String,
    /// Core mask.
    #[arg(long, default_value = "0x2")]
    mask: String,
    /// Memory in MiB.
    #[arg(long, default_value_t = 256)]
    mem: i32,
    /// Wait until there is a bdev of this name.
    #[arg(long)]
    wait: bool,
    /// Use only so many bytes of the bdev, from its beginning on.
    #[arg(long)]
    bytes: Option<u64>,
    /// Do without hugepages.
    #[arg(long)]
    no_huge: bool,
    /// RPC socket.
    #[arg(long)]
    socket: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone)]
enum Command {
    /// Write a file to the bdev, and flush.
    Write {
        /// The file.
        file: PathBuf,
        /// Byte offset on the bdev.
        #[arg(long, default_value_t = 0)]
        offset: u64,
        /// Only what differs from this file, in blocks of 64 KiB.
        #[arg(long)]
        since: Option<PathBuf>,
    },
    /// Read from the bdev into a file.
    Read {
        /// The file.
        file: PathBuf,
        /// Bytes.
        #[arg(long)]
        length: u64,
        /// Byte offset on the bdev.
        #[arg(long, default_value_t = 0)]
        offset: u64,
    },
    /// Unmap or zero a range.
    Clear {
        /// "unmap" or "zeroes".
        how: String,
        /// Byte offset.
        #[arg(long)]
        offset: u64,
        /// Bytes.
        #[arg(long)]
        length: u64,
    },
    /// Write, unmap and zero at random, flushing now and then, until done or an I/O fails.
    Stress(stress::Stress),
    /// Measure how fast blocks are written to for the first time, or again.
    Rate(rate::Rate),
    /// Measure how long I/Os take on each core, in one phase after the other.
    Latency(latency::Latency),
    /// Check that each sector holds what the state of a stress allows.
    Verify {
        /// State file of the stress.
        state: PathBuf,
        /// Not a sector need be known to be flushed.
        #[arg(long)]
        may_be_empty: bool,
    },
}

fn main() {
    let args = Args::parse();
    let options = Options {
        name: "spdk_dm_hostio".to_owned(),
        rpc_socket: Some(args.socket.clone()),
        json_config: Some(args.json.to_string_lossy().into_owned()),
        core_mask: Some(args.mask.clone()),
        mem_mb: args.mem,
        no_huge: args.no_huge,
    };
    let code = app::run(&options, move || async move {
        let command = args.command.clone();
        match run(&args, command).await {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("hostio: {error}");
                1
            }
        }
    });
    std::process::exit(code);
}

async fn run(args: &Args, command: Command) -> Result<(), String> {
    while args.wait && !spdk::base::exists(&args.bdev) {
        spdk::executor::sleep(Duration::from_millis(1)).await;
    }
    let disk = transfer::Disk::open(&args.bdev, args.bytes)?;
    match command {
        Command::Write {
            file,
            offset,
            since,
        } => disk.write_file(&file, offset, since.as_deref()).await,
        Command::Read {
            file,
            length,
            offset,
        } => disk.read_file(&file, offset, length).await,
        Command::Clear {
            how,
            offset,
            length,
        } => disk.clear(&how, offset, length).await,
        Command::Stress(stress) => stress.run(&disk).await,
        Command::Rate(rate) => rate.run(&disk).await,
        Command::Latency(latency) => latency.run(&disk).await,
        Command::Verify {
            state,
            may_be_empty,
        } => stress::verify(&disk, &state, may_be_empty).await,
    }
}
