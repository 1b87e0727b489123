//! Runs seeds of the simulator; `make sim SEEDS=n START=s`.

use clap::{Parser, ValueEnum};
use sim::course::Options;
use sim::executor::Coverage;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[derive(Parser)]
#[command(about = "Runs simulated targets, with faults and crashes, from seeds")]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first.
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// What is simulated.
    #[arg(long, value_enum, default_value_t = Target::All)]
    target: Target,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Seeds run at once; 0: one per processor.
    #[arg(long, default_value_t = 0)]
    jobs: usize,
}

/// A workload.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Thin pools.
    Thin,
    /// Era targets.
    Era,
    /// An origin and its snapshots.
    Snapshot,
    /// A ploop device.
    Ploop,
    /// Every seed on each.
    All,
}

/// Runs a seed of one workload.
type Run = fn(u64, Options) -> Result<Coverage, String>;

/// The workloads by name.
const WORKLOADS: [(Target, &str, Run); 4] = [
    (Target::Thin, "thin", sim::thin::run),
    (Target::Era, "era", sim::era::run),
    (Target::Snapshot, "snapshot", sim::snapshot::run),
    (Target::Ploop, "ploop", sim::ploop::run),
];

fn run(target: Target, seed: u64, trace: bool) -> Result<Coverage, String> {
    let mut coverage = Coverage::new();
    for (workload, name, run) in WORKLOADS {
        if target != workload && target != Target::All {
            continue;
        }
        let options = Options {
            trace,
            ..Default::default()
        };
        let counts = run(seed, options).map_err(|failure| format!("--target {name}: {failure}"))?;
        for (what, count) in counts {
            *coverage.entry(what).or_default() += count;
        }
    }
    Ok(coverage)
}

/// Passed seeds between two signs of life.
const PROGRESS: u64 = 5000;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.trace {
        env_logger::Builder::new()
            .filter_level(log::LevelFilter::Debug)
            .init();
    }
    let jobs = match (args.trace, args.jobs) {
        (true, _) => 1,
        (false, 0) => std::thread::available_parallelism().map_or(1, |n| n.get()),
        (false, jobs) => jobs,
    };
    let begin = Instant::now();
    let next = AtomicU64::new(args.start);
    let end = args.start + args.seeds;
    let coverage = Mutex::new(Coverage::new());
    // The first seed that failed, so that the answer does not depend on who was faster.
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let finished = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    match run(args.target, seed, args.trace) {
                        Ok(counts) => {
                            let done = finished.fetch_add(1, Ordering::Relaxed) + 1;
                            if done.is_multiple_of(PROGRESS) {
                                let rate = done as f64 / begin.elapsed().as_secs_f64();
                                eprintln!(
                                    "{done} of {} seeds passed, {rate:.0} seeds/s",
                                    args.seeds
                                );
                            }
                            if let Ok(mut coverage) = coverage.lock() {
                                for (what, count) in counts {
                                    *coverage.entry(what).or_default() += count;
                                }
                            }
                        }
                        Err(failure) => {
                            next.store(end, Ordering::Relaxed);
                            if let Ok(mut failed) = failed.lock()
                                && failed.as_ref().is_none_or(|(first, _)| *first > seed)
                            {
                                *failed = Some((seed, failure));
                            }
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Ok(Some((seed, failure))) = failed.into_inner() {
        eprintln!("seed {seed}: {failure}");
        eprintln!("replay with a trace: make sim SEEDS=1 START={seed} TRACE=1");
        return ExitCode::FAILURE;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{} seeds passed in {seconds:.0} s, {:.0} seeds/s on {jobs} threads",
        args.seeds,
        args.seeds as f64 / seconds
    );
    if let Ok(coverage) = coverage.into_inner() {
        let parts: Vec<String> = coverage
            .iter()
            .map(|(what, count)| format!("{what} {count}"))
            .collect();
        println!("coverage: {}", parts.join(", "));
    }
    ExitCode::SUCCESS
}
