//! Stamped writes, unmaps and zeroings of random size whose fate can be told after a crash.
//!
//! The bdev has slots spread over it, each changed by one worker only, one operation at a time. What
//! each sector may hold is kept in a state file (`ledger`).

use crate::ledger::{Bounds, Ledger, SLOT_SECTORS};
use crate::stamp::{self, Found, SECTOR_BYTES};
use crate::transfer::Disk;
use clap::Args;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Slots start at multiples of this, so that all block sizes are served.
const ALIGN_SECTORS: u64 = 8;

/// Options of a stress.
#[derive(Args, Clone)]
pub struct Stress {
    /// State file; made if need be, else gone on with.
    state: PathBuf,
    /// Seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Operations per worker.
    #[arg(long, default_value_t = u64::MAX)]
    writes: u64,
    /// Workers, each with one I/O under way.
    #[arg(long, default_value_t = 16)]
    workers: u64,
    /// Each worker flushes after this many operations, on average.
    #[arg(long, default_value_t = 20)]
    flush_every: u64,
    /// Of this many operations one unmaps and one zeroes, on average.
    #[arg(long, default_value_t = 8)]
    clear_every: u64,
    /// Data block size of the pool: unmaps of whole blocks leave zeroes, of parts of one may not.
    #[arg(long, default_value_t = 64 << 10)]
    data_block_bytes: u64,
    /// Slots of 128 KiB used, spread over the bdev.
    #[arg(long, default_value_t = 512)]
    slots: u64,
    /// Number writes from here on at least: writes to devices that share blocks are told apart.
    #[arg(long, default_value_t = 1)]
    first_sequence: u64,
    /// Verify first, as `verify` does.
    #[arg(long)]
    verify: bool,
}

/// First sector of a slot. They are spread, and at all offsets from the data blocks.
fn first_sector(disk: &Disk, slot: u64, slots: u64) -> u64 {
    let spare = disk.bytes() / SECTOR_BYTES as u64 / slots / ALIGN_SECTORS;
    let shift = (slot * 5) % (spare - SLOT_SECTORS / ALIGN_SECTORS).clamp(1, 16);
    (slot * spare + shift) * ALIGN_SECTORS
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Unmap,
    Zeroes,
}

/// An operation on sectors of a slot.
struct Operation {
    kind: Kind,
    slot: u64,
    sectors: Range<u64>,
}

impl Operation {
    fn random(random: &mut StdRng, slot: u64, unit_sectors: u64, clear_every: u64) -> Self {
        let kind = match random.random_range(0..clear_every.max(3)) {
            0 => Kind::Unmap,
            1 => Kind::Zeroes,
            _ => Kind::Write,
        };
        let units = SLOT_SECTORS / unit_sectors;
        // Unmaps of less than a data block have nothing to do.
        let size = match (random.random_range(0..4), kind) {
            (0, _) | (1, Kind::Unmap) => units,
            (1, _) => random.random_range(1..=units),
            (_, Kind::Unmap) => random.random_range(units / 2..=units),
            _ => random.random_range(1..=units.min(16)),
        };
        let begin = random.random_range(0..=units - size);
        Operation {
            kind,
            slot,
            sectors: begin * unit_sectors..(begin + size) * unit_sectors,
        }
    }

    /// The sectors that surely change: of an unmap, those of whole data blocks.
    fn sure(&self, first_sector: u64, data_block_sectors: u64) -> Range<u64> {
        if self.kind != Kind::Unmap {
            return self.sectors.clone();
        }
        let begin = (first_sector + self.sectors.start).next_multiple_of(data_block_sectors);
        let end = (first_sector + self.sectors.end) / data_block_sectors * data_block_sectors;
        match begin < end {
            true => begin - first_sector..end - first_sector,
            false => 0..0,
        }
    }

    async fn carry_out(&self, disk: &Disk, first_sector: u64, sequence: u64) -> Result<(), String> {
        let begin = first_sector + self.sectors.start;
        let count = self.sectors.end - self.sectors.start;
        let (offset, length) = (begin * SECTOR_BYTES as u64, count * SECTOR_BYTES as u64);
        match self.kind {
            Kind::Unmap => disk.range("unmap", offset, length).await,
            Kind::Zeroes => disk.range("zeroes", offset, length).await,
            Kind::Write => {
                let mut data = vec![0; length as usize];
                for (sector, bytes) in (begin..).zip(data.chunks_exact_mut(SECTOR_BYTES)) {
                    stamp::put(bytes, sector, sequence);
                }
                disk.write(offset, &data).await
            }
        }
    }
}

/// Flushes; then all these are durable.
async fn settle_all(
    disk: &Disk,
    ledger: &Ledger,
    acknowledged: &mut Vec<(u64, Range<u64>, u64)>,
) -> Result<(), String> {
    disk.flush().await?;
    for (slot, sectors, sequence) in acknowledged.drain(..) {
        ledger.settle(slot, &sectors, sequence)?;
    }
    Ok(())
}

impl Stress {
    /// Runs until the operations are done, or the state file asks for the end, or an I/O fails. But
    /// for a failure, all is flushed then.
    pub async fn run(&self, disk: &Disk) -> Result<(), String> {
        if disk.bytes() / self.slots < SLOT_SECTORS * SECTOR_BYTES as u64 {
            return Err(format!("the bdev is too small for {} slots", self.slots));
        }
        if self.workers == 0 || self.slots < self.workers {
            return Err(format!("{} slots for {} workers", self.slots, self.workers));
        }
        if self.verify {
            verify(disk, &self.state, false).await?;
        }
        let ledger = Ledger::open_or_make(&self.state, self.slots)?;
        println!("stress: started");
        try_join_all((0..self.workers).map(|worker| self.work(disk, &ledger, worker))).await?;
        println!("stress: done");
        Ok(())
    }

    async fn work(&self, disk: &Disk, ledger: &Ledger, worker: u64) -> Result<(), String> {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_mul(1000) + worker);
        let mine = self.slots / self.workers;
        let unit_sectors = disk.block_bytes() / SECTOR_BYTES as u64;
        let data_block_sectors = self.data_block_bytes / SECTOR_BYTES as u64;
        let mut acknowledged = Vec::new();
        for _ in 0..self.writes {
            if ledger.stop_asked()? {
                break;
            }
            let slot = random.random_range(0..mine) * self.workers + worker;
            let first = first_sector(disk, slot, self.slots);
            let operation = Operation::random(&mut random, slot, unit_sectors, self.clear_every);
            let highest = ledger.bounds(slot)?.iter().map(|b| b.issued).max();
            let sequence = (highest.unwrap_or(0) + 1).max(self.first_sequence);
            let zeroes = operation.kind != Kind::Write;
            ledger.issue(slot, &operation.sectors, sequence, zeroes)?;
            operation.carry_out(disk, first, sequence).await?;
            let sure = operation.sure(first, data_block_sectors);
            if random.random_range(0..4) == 0 {
                self.read_back(disk, ledger, &operation, sequence, &sure)
                    .await?;
            }
            acknowledged.push((slot, sure, sequence));
            if random.random_range(0..self.flush_every) == 0 {
                settle_all(disk, ledger, &mut acknowledged).await?;
            }
        }
        settle_all(disk, ledger, &mut acknowledged).await
    }

    /// What was acknowledged is read at once, flushed or not.
    async fn read_back(
        &self,
        disk: &Disk,
        ledger: &Ledger,
        operation: &Operation,
        sequence: u64,
        sure: &Range<u64>,
    ) -> Result<(), String> {
        let mut bounds = ledger.bounds(operation.slot)?;
        let sure = sure.start as usize..sure.end as usize;
        for bound in bounds.get_mut(sure).into_iter().flatten() {
            bound.durable = sequence;
        }
        let first = first_sector(disk, operation.slot, self.slots);
        verify_slot(disk, operation.slot, first, &bounds).await
    }
}

/// Holds what is on the bdev against the state of a stress. A state in which nothing was flushed is
/// an error, unless the caller knows: nothing would be promised by it.
pub async fn verify(disk: &Disk, path: &Path, may_be_empty: bool) -> Result<(), String> {
    let ledger = &Ledger::open(path)?;
    let slots = ledger.slots();
    let checks = (0..slots).map(|slot| async move {
        let bounds = ledger.bounds(slot)?;
        verify_slot(
            disk,
            slot,
            first_sector(disk, slot, ledger.slots()),
            &bounds,
        )
        .await?;
        Ok::<_, String>(bounds.iter().filter(|bound| bound.durable > 0).count())
    });
    // Many at a time: the drive may share its core with us.
    let durable: Vec<usize> = stream::iter(checks)
        .buffer_unordered(32)
        .try_collect()
        .await?;
    let durable: usize = durable.iter().sum();
    println!("verify: {slots} slots, {durable} sectors flushed, all as they may be");
    match durable {
        0 if !may_be_empty => Err("nothing was ever flushed, so nothing was verified".to_owned()),
        _ => Ok(()),
    }
}

async fn verify_slot(
    disk: &Disk,
    slot: u64,
    first_sector: u64,
    bounds: &[Bounds],
) -> Result<(), String> {
    let bytes = SECTOR_BYTES as u64;
    let data = disk
        .read(first_sector * bytes, SLOT_SECTORS * bytes)
        .await?;
    let sectors = (first_sector..).zip(data.chunks_exact(SECTOR_BYTES));
    for ((sector, data), bound) in sectors.zip(bounds) {
        let wrong = |why: &str| format!("slot {slot}, sector {sector}: {why}; {bound:?}");
        let found = stamp::look(data, sector).map_err(|why| wrong(&why))?;
        if !bound.allow(found) {
            let what = match found {
                Found::Zeroes => "zeroes".to_owned(),
                Found::Write(sequence) => format!("write {sequence}"),
            };
            return Err(wrong(&format!("holds {what}")));
        }
    }
    Ok(())
}
