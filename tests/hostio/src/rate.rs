//! How fast a bdev takes a given number of I/Os, for benchmarks of what happens once per block: bdevperf
//! runs for a time, and a bdev of memory is full before that is over.

use crate::transfer::Disk;
use clap::Args;
use futures::future::join_all;
use spdk::dma::DmaBuf;
use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Args, Clone)]
pub struct Rate {
    /// Blocks of this size are visited once each.
    #[arg(long, default_value_t = 65536)]
    visit: u64,
    /// Bytes written at each visit, at its beginning.
    #[arg(long, default_value_t = 4096)]
    size: u64,
    /// Blocks to visit; all of the bdev without it.
    #[arg(long)]
    count: Option<u64>,
    /// I/Os under way.
    #[arg(long, default_value_t = 32)]
    depth: u64,
    /// Visit blocks in order instead of scattered.
    #[arg(long)]
    sequential: bool,
    /// Visit all once, print "ready", and measure when this file is there.
    #[arg(long)]
    again_after: Option<PathBuf>,
    /// Visit all once, and measure how fast they are unmapped then.
    #[arg(long, conflicts_with = "again_after")]
    unmap: bool,
    /// Zero the blocks instead of writing to them.
    #[arg(long, conflicts_with_all = ["again_after", "unmap"])]
    zeroes: bool,
}

/// What is done at each visit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Write,
    Unmap,
    Zeroes,
}

impl Rate {
    /// Measures, and prints visits per second.
    pub async fn run(&self, disk: &Disk) -> Result<(), String> {
        if let Some(signal) = &self.again_after {
            self.pass(disk, What::Write).await?;
            // Logical volumes of SPDK know no flush.
            let _ = disk.flush().await;
            println!("ready");
            while !signal.exists() {
                spdk::executor::sleep(Duration::from_millis(10)).await;
            }
        }
        let what = match (self.unmap, self.zeroes) {
            (true, _) => What::Unmap,
            (_, true) => What::Zeroes,
            _ => What::Write,
        };
        if self.unmap {
            self.pass(disk, What::Write).await?;
        }
        let before = on_core();
        let (count, seconds) = self.pass(disk, what).await?;
        println!("rate {:.0}", count as f64 / seconds);
        if let (Some(before), Some(after)) = (before, on_core()) {
            let seconds = (after - before).as_secs_f64();
            println!("per second on the core {:.0}", count as f64 / seconds);
        }
        Ok(())
    }

    async fn pass(&self, disk: &Disk, what: What) -> Result<(u64, f64), String> {
        let blocks = disk.bytes() / self.visit;
        let count = self.count.unwrap_or(blocks).min(blocks);
        if count == 0 || self.size > self.visit {
            return Err("nothing to visit".to_owned());
        }
        // Odd and far from a power of two's multiples: visits each block of a power of two once; of any
        // other number, blocks that come out beyond the end are skipped.
        let span = blocks.next_power_of_two();
        let next = Cell::new(0u64);
        let place = || {
            loop {
                let at = next.get();
                if at >= span {
                    return None;
                }
                next.set(at + 1);
                let block = match self.sequential {
                    true => at,
                    false => at.wrapping_mul(0x9E37_79B9_7F4A_7C15) & (span - 1),
                };
                if block < blocks {
                    return Some(block);
                }
            }
        };
        let done = Cell::new(0u64);
        let begin = Instant::now();
        let worker = || async {
            let mut buf = DmaBuf::new(self.size as usize).ok_or("out of memory")?;
            while done.get() < count {
                let Some(block) = place() else { break };
                done.set(done.get() + 1);
                let offset = block * self.visit;
                match what {
                    What::Write => buf = disk.write_buf(offset, buf).await?,
                    What::Unmap => disk.range("unmap", offset, self.visit).await?,
                    What::Zeroes => disk.range("zeroes", offset, self.visit).await?,
                }
            }
            Ok::<(), String>(())
        };
        for ended in join_all((0..self.depth).map(|_| worker())).await {
            ended?;
        }
        Ok((done.get(), begin.elapsed().as_secs_f64()))
    }
}

/// How long the calling thread has been on a core: what is left of a rate on a machine that does other things,
/// too, when all of the work is this thread's. None where the system does not say.
fn on_core() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos = text.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}
