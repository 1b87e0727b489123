//! The state file of a stress: what each sector may hold, whenever this process or the target dies.
//!
//! Per sector three sequence numbers: the last operation that is durable, the last one that was ever
//! issued, and the last issued one that leaves zeroes. The latter two are written before the I/O, the
//! first after the flush that covers it. A sector may hold a write from the durable one on, up to the
//! issued one; and zeroes, if the last zeroing is not older than the durable one.

use crate::stamp::Found;
use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Sectors of a slot: two data blocks of 64 KiB.
pub const SLOT_SECTORS: u64 = 256;

/// Slots, operations issued, operations made durable, and whether the stress is asked to stop.
const HEADER_BYTES: u64 = 32;
const STOP_AT: u64 = 24;

/// A state file.
pub struct Ledger {
    file: File,
    slots: u64,
    issued: Cell<u64>,
    durable: Cell<u64>,
}

/// What one sector of a slot may hold.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds {
    /// Last durable operation, 0 = none.
    pub durable: u64,
    /// Last issued operation, 0 = none.
    pub issued: u64,
    /// Last issued operation that leaves zeroes, 0 = the sector's birth.
    pub zeroed: u64,
}

impl Bounds {
    /// Whether the sector may hold this.
    pub fn allow(&self, found: Found) -> bool {
        match found {
            Found::Zeroes => self.zeroed >= self.durable,
            Found::Write(sequence) => (self.durable.max(1)..=self.issued).contains(&sequence),
        }
    }
}

/// The three numbers' places in the file.
#[derive(Clone, Copy)]
enum Column {
    Durable = 0,
    Issued = 1,
    Zeroed = 2,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

impl Ledger {
    /// Opens a state file, or makes one for this many slots.
    pub fn open_or_make(path: &Path, slots: u64) -> Result<Self, String> {
        let fail = |e: std::io::Error| format!("{}: {e}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail)?;
        if file.metadata().map_err(fail)?.len() == 0 {
            file.set_len(HEADER_BYTES + slots * SLOT_SECTORS * 24)
                .map_err(fail)?;
            file.write_all_at(&slots.to_le_bytes(), 0).map_err(fail)?;
        }
        let ledger = Self::open(path)?;
        match ledger.slots == slots {
            true => Ok(ledger),
            false => Err(format!(
                "{}: made for {} slots",
                path.display(),
                ledger.slots
            )),
        }
    }

    /// Opens a state file.
    pub fn open(path: &Path) -> Result<Self, String> {
        let fail = |e: std::io::Error| format!("{}: {e}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(fail)?;
        let mut header = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut header, 0).map_err(fail)?;
        let mut words = header.chunks_exact(8).map(number);
        let mut next = || Cell::new(words.next().unwrap_or(0));
        Ok(Ledger {
            slots: next().get(),
            issued: next(),
            durable: next(),
            file,
        })
    }

    /// Whether somebody has asked the stress to finish, by writing to the header.
    pub fn stop_asked(&self) -> Result<bool, String> {
        let mut word = [0; 8];
        self.file
            .read_exact_at(&mut word, STOP_AT)
            .map_err(|e| format!("state file: {e}"))?;
        Ok(word != [0; 8])
    }

    /// Number of slots.
    pub fn slots(&self) -> u64 {
        self.slots
    }

    fn place(&self, column: Column, slot: u64, sector: u64) -> u64 {
        let row = column as u64 * self.slots + slot;
        HEADER_BYTES + (row * SLOT_SECTORS + sector) * 8
    }

    fn fill(
        &self,
        column: Column,
        slot: u64,
        sectors: &Range<u64>,
        value: u64,
    ) -> Result<(), String> {
        let count = sectors.end.saturating_sub(sectors.start) as usize;
        self.file
            .write_all_at(
                &value.to_le_bytes().repeat(count),
                self.place(column, slot, sectors.start),
            )
            .map_err(|e| format!("state file: {e}"))
    }

    fn count(&self, counter: &Cell<u64>, at: u64, more: u64) -> Result<(), String> {
        counter.set(counter.get() + more);
        self.file
            .write_all_at(&counter.get().to_le_bytes(), at)
            .map_err(|e| format!("state file: {e}"))
    }

    /// An operation is about to be issued that changes these sectors, or may leave zeroes there.
    pub fn issue(
        &self,
        slot: u64,
        sectors: &Range<u64>,
        sequence: u64,
        zeroes: bool,
    ) -> Result<(), String> {
        if zeroes {
            self.fill(Column::Zeroed, slot, sectors, sequence)?;
        }
        self.fill(Column::Issued, slot, sectors, sequence)?;
        self.count(&self.issued, 8, 1)
    }

    /// An operation that is sure to have changed these sectors is durable.
    pub fn settle(&self, slot: u64, sectors: &Range<u64>, sequence: u64) -> Result<(), String> {
        self.fill(Column::Durable, slot, sectors, sequence)?;
        self.count(&self.durable, 16, 1)
    }

    /// What each sector of a slot may hold.
    pub fn bounds(&self, slot: u64) -> Result<Vec<Bounds>, String> {
        let column = |column| {
            let mut bytes = vec![0; SLOT_SECTORS as usize * 8];
            self.file
                .read_exact_at(&mut bytes, self.place(column, slot, 0))
                .map_err(|e| format!("state file: {e}"))?;
            Ok::<_, String>(bytes.chunks_exact(8).map(number).collect::<Vec<u64>>())
        };
        let durable = column(Column::Durable)?;
        let issued = column(Column::Issued)?;
        let zeroed = column(Column::Zeroed)?;
        let rows = durable.into_iter().zip(issued).zip(zeroed);
        Ok(rows
            .map(|((durable, issued), zeroed)| Bounds {
                durable,
                issued,
                zeroed,
            })
            .collect())
    }
}
