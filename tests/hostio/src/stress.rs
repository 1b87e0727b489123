//! Stamped writes whose fate can be told after a crash.
//!
//! The bdev is cut into slots of 4096 bytes, each written by one worker only, in sequence. The state
//! file has two numbers per slot: the sequence number that was acknowledged before the last completed
//! flush, and the highest one that was ever issued. The second is written before the I/O, the first
//! after the flush, so the file is right whenever this process, or the target, is killed.

use crate::transfer::Disk;
use clap::Args;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SLOT_BYTES: u64 = 4096;
const SECTOR_BYTES: usize = 512;
const MAGIC: u64 = 0x7364_6d73_7472_6573;

/// Options of a stress.
#[derive(Args, Clone)]
pub struct Stress {
    /// State file; made if need be, else gone on with.
    state: PathBuf,
    /// Seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes per worker.
    #[arg(long, default_value_t = u64::MAX)]
    writes: u64,
    /// Workers, each with one I/O under way.
    #[arg(long, default_value_t = 16)]
    workers: u64,
    /// Each worker flushes after this many writes, on average.
    #[arg(long, default_value_t = 20)]
    flush_every: u64,
    /// Slots used, spread over the bdev.
    #[arg(long, default_value_t = 4096)]
    slots: u64,
}

struct State(File);

impl State {
    fn get(&self, slot: u64) -> Result<(u64, u64), String> {
        let mut bytes = [0; 16];
        self.0
            .read_exact_at(&mut bytes, slot * 16)
            .map_err(|e| format!("state file: {e}"))?;
        let (flushed, issued) = bytes.split_at(8);
        let number = |b: &[u8]| b.try_into().map(u64::from_le_bytes).unwrap_or(0);
        Ok((number(flushed), number(issued)))
    }

    fn put(&self, at: u64, value: u64) -> Result<(), String> {
        self.0
            .write_all_at(&value.to_le_bytes(), at)
            .map_err(|e| format!("state file: {e}"))
    }
}

/// Where a slot lies: they are spread, so that writes fall into many data blocks.
fn offset_of(disk: &Disk, slot: u64, slots: u64) -> u64 {
    let stride = (disk.bytes() / slots / SLOT_BYTES).max(1);
    slot * stride * SLOT_BYTES
}

fn stamp(slot: u64, sequence: u64) -> Vec<u8> {
    let mut data = vec![0; SLOT_BYTES as usize];
    for (i, sector) in data.chunks_exact_mut(SECTOR_BYTES).enumerate() {
        let words = [MAGIC, slot, sequence, i as u64];
        for (bytes, word) in sector.chunks_exact_mut(8).zip(words.iter().cycle()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
    data
}

impl Stress {
    /// Runs until the writes are done, or an I/O fails.
    pub async fn run(&self, disk: &Disk) -> Result<(), String> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.state)
            .map_err(|e| format!("{}: {e}", self.state.display()))?;
        file.set_len(self.slots * 16).map_err(|e| e.to_string())?;
        let state = State(file);
        println!("stress: started");
        try_join_all((0..self.workers).map(|worker| self.work(disk, &state, worker))).await?;
        println!("stress: done");
        Ok(())
    }

    async fn work(&self, disk: &Disk, state: &State, worker: u64) -> Result<(), String> {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_mul(1000) + worker);
        let mine = self.slots / self.workers;
        let mut acknowledged = Vec::new();
        for _ in 0..self.writes {
            let slot = random.random_range(0..mine) * self.workers + worker;
            let sequence = state.get(slot)?.1 + 1;
            state.put(slot * 16 + 8, sequence)?;
            let at = offset_of(disk, slot, self.slots);
            disk.write(at, &stamp(slot, sequence)).await?;
            acknowledged.push((slot, sequence));
            if random.random_range(0..self.flush_every) == 0 {
                disk.flush().await?;
                for (slot, sequence) in acknowledged.drain(..) {
                    state.put(slot * 16, sequence)?;
                }
            }
        }
        Ok(())
    }
}

/// Holds what is on the bdev against the state of a stress.
pub async fn verify(disk: &Disk, path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let slots = file.metadata().map_err(|e| e.to_string())?.len() / 16;
    let state = State(file);
    let checks = (0..slots).map(|slot| verify_slot(disk, &state, slot, slots));
    // Many at a time: the drive may share its core with us.
    let found: Vec<(bool, bool)> = stream::iter(checks)
        .buffer_unordered(64)
        .try_collect()
        .await?;
    let written = found.iter().filter(|slot| slot.0).count();
    let durable = found.iter().filter(|slot| slot.1).count();
    println!("verify: {slots} slots, {written} written, {durable} flushed, all as they may be");
    Ok(())
}

/// Whether the slot was ever written, and flushed; an error if it holds what it may not.
async fn verify_slot(
    disk: &Disk,
    state: &State,
    slot: u64,
    slots: u64,
) -> Result<(bool, bool), String> {
    let (flushed, issued) = state.get(slot)?;
    let data = disk.read(offset_of(disk, slot, slots), SLOT_BYTES).await?;
    for (i, sector) in data.chunks_exact(SECTOR_BYTES).enumerate() {
        let words: Vec<u64> = sector
            .chunks_exact(8)
            .filter_map(|b| b.try_into().ok().map(u64::from_le_bytes))
            .collect();
        let found = match words.as_slice() {
            [MAGIC, s, sequence, n, ..] if *s == slot && *n == i as u64 => *sequence,
            words if words.iter().all(|word| *word == 0) => 0,
            words => {
                return Err(format!(
                    "slot {slot}, sector {i}: foreign data {:x?}",
                    words.get(..4)
                ));
            }
        };
        if found < flushed || found > issued {
            return Err(format!(
                "slot {slot}, sector {i}: holds write {found}; {flushed} was flushed, {issued} is the last issued"
            ));
        }
    }
    Ok((issued > 0, flushed > 0))
}
