//! Runs seeds of the simulator; `make sim SEEDS=n START=s`.

use clap::Parser;
use std::time::Instant;

#[derive(Parser)]
#[command(about = "Runs simulated thin pools, with crashes, from seeds")]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first.
    #[arg(long, default_value_t = 1)]
    start: u64,
}

fn main() {
    let args = Args::parse();
    let begin = Instant::now();
    let mut coverage = sim::thin::Coverage::new();
    for seed in args.start..args.start + args.seeds {
        match sim::thin::run(seed, 0) {
            Ok(counts) => {
                for (what, count) in counts {
                    *coverage.entry(what).or_default() += count;
                }
            }
            Err(failure) => {
                eprintln!("seed {seed}: {failure}\nagain: make sim SEEDS=1 START={seed}");
                std::process::exit(1);
            }
        }
    }
    let rate = args.seeds as f64 / begin.elapsed().as_secs_f64();
    println!(
        "{} seeds passed, {rate:.0} seeds/s; {coverage:?}",
        args.seeds
    );
}
