//! How long single I/Os take while something else goes on: a load on each core, whose latencies are
//! collected in phases that the caller ends by making files.
//!
//! Latencies are those a host sees that shares its core with the bdev: from the submission until the
//! task that submitted it is running again. An I/O counts in the phase it ends in.

use crate::transfer::Disk;
use clap::{Args, ValueEnum};
use futures::future::join_all;
use futures::stream::{FuturesUnordered, TryStreamExt};
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use spdk::app;
use spdk::dma::DmaBuf;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the load does.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    Read,
    Write,
    /// Half of each.
    Mixed,
}

/// What to measure.
#[derive(Args, Clone)]
pub struct Latency {
    /// What the load does, at random places.
    #[arg(long, value_enum, default_value = "write")]
    workload: Workload,
    /// Bytes of an I/O.
    #[arg(long, default_value_t = 4096)]
    size: u64,
    /// I/Os under way on each core.
    #[arg(long, default_value_t = 32)]
    depth: u64,
    /// Cores with load, of those of --mask, in their order.
    #[arg(long, default_value_t = 2)]
    cores: u32,
    /// Only this much of the bdev, from its beginning.
    #[arg(long)]
    range_mib: Option<u64>,
    /// A phase ends when its file is there. Prints "first", with the microseconds it took, when the first
    /// I/O is done, and in the end a line for each phase.
    #[arg(long, required = true, num_args = 1..)]
    phases: Vec<PathBuf>,
}

type Latencies = Histogram<u64>;

/// Nanoseconds, with three digits.
fn latencies() -> Result<Latencies, String> {
    Histogram::new(3).map_err(|e| e.to_string())
}

/// What the cores and the app thread share.
struct Run {
    phase: AtomicUsize,
    over: AtomicBool,
    one_is_done: AtomicBool,
    found: Mutex<Vec<Latencies>>,
}

/// One core's load.
struct Core {
    run: Arc<Run>,
    phase: Cell<usize>,
    now: RefCell<Latencies>,
}

impl Core {
    /// Hands over what was collected, when the phase has changed.
    fn turn(&self, to: usize) -> Result<(), String> {
        let mut now = self.now.borrow_mut();
        let mut found = self
            .run
            .found
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(sum) = found.get_mut(self.phase.replace(to)) {
            sum.add(&*now).map_err(|e| e.to_string())?;
        }
        now.reset();
        Ok(())
    }

    async fn task(&self, disk: &Disk, load: &Latency, mut random: StdRng) -> Result<(), String> {
        let bytes = load.range_mib.map_or(disk.bytes(), |mib| mib << 20);
        let places = bytes.min(disk.bytes()) / load.size;
        if places == 0 {
            return Err("the bdev is smaller than one I/O".to_owned());
        }
        let mut buf = DmaBuf::new(load.size as usize).ok_or("out of memory")?;
        while !self.run.over.load(Ordering::Relaxed) {
            let offset = random.random_range(0..places) * load.size;
            let read = match load.workload {
                Workload::Read => true,
                Workload::Write => false,
                Workload::Mixed => random.random(),
            };
            let begin = Instant::now();
            buf = match read {
                true => disk.read_buf(offset, buf).await?,
                false => disk.write_buf(offset, buf).await?,
            };
            let nanoseconds = begin.elapsed().as_nanos() as u64;
            if !self.run.one_is_done.load(Ordering::Relaxed)
                && !self.run.one_is_done.swap(true, Ordering::Relaxed)
            {
                println!("first {:.1}", nanoseconds as f64 / 1000.0);
            }
            let phase = self.run.phase.load(Ordering::Relaxed);
            if phase != self.phase.get() {
                self.turn(phase)?;
            }
            let mut now = self.now.borrow_mut();
            now.record(nanoseconds).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

async fn work(run: &Arc<Run>, disk: &Disk, load: &Latency, seed: u64) -> Result<(), String> {
    let core = &Core {
        run: run.clone(),
        phase: Cell::new(0),
        now: RefCell::new(latencies()?),
    };
    let tasks = (0..load.depth).map(|task| {
        let random = StdRng::seed_from_u64(seed << 32 | task);
        core.task(disk, load, random)
    });
    let mut tasks: FuturesUnordered<_> = tasks.collect();
    while tasks.try_next().await?.is_some() {}
    core.turn(0)
}

fn line(name: &str, all: &Latencies, seconds: f64) -> String {
    let at = |quantile: f64| all.value_at_quantile(quantile) as f64 / 1000.0;
    format!(
        "phase {name} ios {} rate {:.0} p50_us {:.1} p99_us {:.1} p999_us {:.1} max_us {:.1}",
        all.len(),
        all.len() as f64 / seconds,
        at(0.5),
        at(0.99),
        at(0.999),
        all.max() as f64 / 1000.0
    )
}

impl Latency {
    /// Runs the phases, and prints a line for each.
    pub async fn run(&self, disk: &Disk) -> Result<(), String> {
        let found = self.phases.iter().map(|_| latencies());
        let run = Arc::new(Run {
            phase: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            one_is_done: AtomicBool::new(false),
            found: Mutex::new(found.collect::<Result<_, _>>()?),
        });
        let mut cores = Vec::new();
        for n in 0..self.cores {
            let (run, load, opened) = (run.clone(), self.clone(), disk.descriptor().clone());
            let core = app::on_core(n, move || async move {
                let disk = Disk::new(&opened)?;
                let ended = work(&run, &disk, &load, u64::from(n)).await;
                // Those on the other cores, and who waits for the phases, stop too.
                run.over.store(true, Ordering::Relaxed);
                ended
            });
            cores.push(core.ok_or_else(|| format!("no core {n} in --mask, or no memory"))?);
        }
        let mut seconds = Vec::new();
        for (number, signal) in self.phases.iter().enumerate() {
            run.phase.store(number, Ordering::Relaxed);
            let begin = Instant::now();
            while !signal.exists() && !run.over.load(Ordering::Relaxed) {
                spdk::executor::sleep(Duration::from_millis(5)).await;
            }
            seconds.push(begin.elapsed().as_secs_f64());
        }
        run.over.store(true, Ordering::Relaxed);
        for ended in join_all(cores).await {
            ended.map_err(|_| "a core's load was dropped")??;
        }
        let found = run.found.lock().unwrap_or_else(PoisonError::into_inner);
        for ((signal, all), seconds) in self.phases.iter().zip(found.iter()).zip(seconds) {
            let name = signal.file_name().unwrap_or_default().to_string_lossy();
            println!("{}", line(&name, all, seconds));
        }
        Ok(())
    }
}
