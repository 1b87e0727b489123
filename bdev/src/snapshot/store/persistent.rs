//! A persistent exception store on a COW device, in the kernel's format (snapshot.md 1).
//!
//! Relies on its caller for order: [`PersistentStore::commit`], [`PersistentStore::clear_last`] and
//! [`PersistentStore::scan`] are never called while another of them is under way. Entries are written in
//! units of an area ([`Layout::unit_bytes`]), each with a flush before and after; what the kernel reads of
//! that is the same as if the whole area had been written. Behind the end marker there is nothing: what
//! a torn write left there is cleaned when the store is loaded.

use super::super::error::SnapshotError;
use super::super::layout::{DEFAULT_CHUNK_SECTORS, ENTRY_BYTES, Exception, Layout, Position};
use super::disk::{
    WRITE_AREA, check_chunk_size, check_header, decode, format, read_area, read_header, read_unit,
    write_header,
};
use super::summary::Summary;
use crate::device::{ByteDeviceRef, SECTOR_BYTES};
use std::cell::{Cell, RefCell};

/// An exception store.
pub struct PersistentStore {
    pub(super) device: ByteDeviceRef,
    pub(super) layout: Layout,
    next_free: Cell<u64>,
    /// The end marker: entries before it are committed.
    pub(super) end: Cell<Position>,
    /// Allocated and not committed.
    nr_pending: Cell<u64>,
    /// The unit with the end marker, or with the last entry; none: not in memory.
    pub(super) unit: RefCell<Option<Unit>>,
    /// What is known of each area's contents.
    summaries: RefCell<Vec<Summary>>,
    pub(super) merging: Cell<bool>,
}

/// A piece of an area.
pub(super) struct Unit {
    pub area: u64,
    pub number: u64,
    pub bytes: Vec<u8>,
}

/// What was found on a COW device.
pub enum Opened {
    /// A store to work with.
    Valid(PersistentStore),
    /// A store that was invalidated: nothing in it counts.
    Invalid(PersistentStore),
}

impl PersistentStore {
    /// Opens the store on `device`, or makes a new one where there is none. `chunk_sectors` is the table's
    /// (0: the default); a header's own goes before it. `found` is told every exception, in the order of
    /// the store, and says whether it is the first for its chunk of the origin.
    ///
    /// Errors: what the device says, a header or entries that cannot be.
    pub async fn open(
        device: ByteDeviceRef,
        chunk_sectors: u64,
        origin_block_bytes: u32,
        mut found: impl FnMut(Layout, Exception) -> bool,
    ) -> Result<Opened, SnapshotError> {
        let block_bytes = device.block_bytes().max(origin_block_bytes);
        let default = DEFAULT_CHUNK_SECTORS.max(u64::from(block_bytes) / SECTOR_BYTES);
        let wanted = match chunk_sectors {
            0 => default,
            given => given,
        };
        check_chunk_size(wanted, block_bytes)?;
        let header = read_header(&device).await?;
        if header.magic == 0 {
            let layout = Layout::new(wanted);
            format(&device, layout).await?;
            return Ok(Opened::Valid(Self::new(device, layout)));
        }
        let layout = check_header(header, block_bytes)?;
        if layout.chunk_sectors() != wanted && chunk_sectors != 0 {
            log::warn!(
                "the exception store has chunks of {} sectors, not {wanted}; its own count",
                layout.chunk_sectors()
            );
        }
        if header.valid == 0 {
            return Ok(Opened::Invalid(Self::new(device, layout)));
        }
        let store = Self::new(device, layout);
        store.load(|exception| found(layout, exception)).await?;
        Ok(Opened::Valid(store))
    }

    /// Whether there is no store on a device: opening it would make one.
    pub async fn is_blank(device: &ByteDeviceRef) -> Result<bool, SnapshotError> {
        Ok(read_header(device).await?.magic == 0)
    }

    fn new(device: ByteDeviceRef, layout: Layout) -> Self {
        PersistentStore {
            device,
            layout,
            next_free: Cell::new(2),
            end: Cell::default(),
            nr_pending: Cell::new(0),
            unit: RefCell::default(),
            summaries: RefCell::default(),
            merging: Cell::new(false),
        }
    }

    /// The arithmetic of its chunk size.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The end marker's place.
    pub fn end(&self) -> Position {
        self.end.get()
    }

    fn nr_chunks(&self) -> u64 {
        self.layout.chunks_on(self.device.nr_sectors())
    }

    async fn load(&self, mut found: impl FnMut(Exception) -> bool) -> Result<(), SnapshotError> {
        let nr_chunks = self.nr_chunks();
        let mut seen = super::seen::Seen::new(nr_chunks)?;
        let mut highest = 0;
        for area in 0.. {
            let end = read_area(&self.device, self.layout, area, |at, exception| {
                seen.admit(self.layout, at, exception, found(exception))?;
                highest = highest.max(exception.new_chunk);
                self.note(at.area, exception.old_chunk);
                Ok(())
            })
            .await?;
            if let Some(index) = end {
                self.end.set(Position { area, index });
                break;
            }
        }
        self.next_free.set(self.layout.data_chunk_from(highest + 1));
        self.clean_behind_end().await
    }

    /// Zeroes what lies behind the end marker in its area: a torn write may have left entries there,
    /// which must not come back when the gap is filled.
    async fn clean_behind_end(&self) -> Result<(), SnapshotError> {
        let Position { area, index } = self.end.get();
        let layout = self.layout;
        let mut cleaned = false;
        for unit in index / layout.entries_per_unit()..layout.units_per_area() {
            let mut bytes = read_unit(&self.device, layout, area, unit).await?;
            let first = unit * layout.entries_per_unit();
            let from = index.saturating_sub(first) * ENTRY_BYTES;
            let tail = bytes.get_mut(from as usize..).unwrap_or_default();
            if tail.iter().any(|byte| *byte != 0) {
                tail.fill(0);
                let sector = layout.unit_sector(area, unit);
                let written = self.device.write_bytes(sector, &bytes).await;
                written.map_err(SnapshotError::device(WRITE_AREA))?;
                cleaned = true;
            }
        }
        match cleaned {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    pub(super) async fn flush(&self) -> Result<(), SnapshotError> {
        let flushed = self.device.flush().await;
        flushed.map_err(SnapshotError::device("flushing the COW device"))
    }

    /// Allocates the chunk of a new exception.
    ///
    /// Error: no space. The device's size counts as it is now. An exception that fills an area needs the
    /// next one, too.
    pub fn allocate(&self) -> Result<u64, SnapshotError> {
        let new_chunk = self.next_free.get();
        let (layout, end) = (self.layout, self.end.get());
        let last = end.index + self.nr_pending.get() + 1;
        let fills = last.is_multiple_of(layout.entries_per_area());
        let area = end.area + last / layout.entries_per_area();
        let needs = match fills {
            true => new_chunk.max(layout.area_chunk(area)),
            false => new_chunk,
        };
        if needs >= self.nr_chunks() {
            return Err(SnapshotError::NoSpace);
        }
        self.next_free.set(layout.data_chunk_from(new_chunk + 1));
        self.nr_pending.set(self.nr_pending.get() + 1);
        Ok(new_chunk)
    }

    /// Makes exceptions durable that were allocated in this order, together with their data.
    ///
    /// After an error nobody knows how many of them are: the store is to be invalidated.
    pub async fn commit(&self, exceptions: &[Exception]) -> Result<(), SnapshotError> {
        let layout = self.layout;
        let mut end = self.end.get();
        // Data before what points to it.
        self.flush().await?;
        let mut left = exceptions;
        while !left.is_empty() {
            let number = end.index / layout.entries_per_unit();
            let at = end.index % layout.entries_per_unit();
            let room = (layout.entries_per_unit() - at).min(left.len() as u64);
            let (now, later) = left.split_at(room as usize);
            let mut bytes = self.unit(end.area, number).await?;
            let entries = bytes.chunks_exact_mut(ENTRY_BYTES as usize);
            for (entry, exception) in entries.skip(at as usize).zip(now) {
                entry.copy_from_slice(&exception.encode());
            }
            let next = end.index + room;
            if next == layout.entries_per_area() {
                // Readers go on there once this area is full.
                let chunk = layout.area_chunk(end.area + 1);
                let zeroed = self
                    .device
                    .zero(layout.sector(chunk), layout.chunk_sectors());
                zeroed.await.map_err(SnapshotError::device(WRITE_AREA))?;
                self.flush().await?;
            }
            self.write_unit(end.area, number, bytes).await?;
            for exception in now {
                self.note(end.area, exception.old_chunk);
            }
            end.index = next;
            if next == layout.entries_per_area() {
                end = Position {
                    area: end.area + 1,
                    index: 0,
                };
            }
            left = later;
        }
        self.flush().await?;
        self.end.set(end);
        let nr_pending = self.nr_pending.get();
        self.nr_pending
            .set(nr_pending.saturating_sub(exceptions.len() as u64));
        Ok(())
    }

    fn note(&self, area: u64, old_chunk: u64) {
        let mut summaries = self.summaries.borrow_mut();
        let area = area as usize;
        if summaries.len() <= area {
            summaries.resize(area + 1, Summary::default());
        }
        if let Some(summary) = summaries.get_mut(area) {
            summary.add(old_chunk);
        }
    }

    /// A copy of a unit, from memory where it is there.
    pub(super) async fn unit(&self, area: u64, number: u64) -> Result<Vec<u8>, SnapshotError> {
        if let Some(unit) = &*self.unit.borrow()
            && (unit.area, unit.number) == (area, number)
        {
            return Ok(unit.bytes.clone());
        }
        read_unit(&self.device, self.layout, area, number).await
    }

    /// In memory it changes only when the device has it.
    async fn write_unit(
        &self,
        area: u64,
        number: u64,
        bytes: Vec<u8>,
    ) -> Result<(), SnapshotError> {
        self.unit.take();
        let sector = self.layout.unit_sector(area, number);
        let written = self.device.write_bytes(sector, &bytes).await;
        written.map_err(SnapshotError::device(WRITE_AREA))?;
        *self.unit.borrow_mut() = Some(Unit {
            area,
            number,
            bytes,
        });
        Ok(())
    }

    /// Says in the header that the store is invalid, durably.
    pub async fn invalidate(&self) -> Result<(), SnapshotError> {
        write_header(&self.device, self.layout, false).await
    }

    /// Tells all exceptions of the origin's chunks `first..first + count`. Areas that certainly have none
    /// are not read.
    pub async fn scan(
        &self,
        first: u64,
        count: u64,
        mut found: impl FnMut(Exception),
    ) -> Result<(), SnapshotError> {
        let chunks = first..first.saturating_add(count);
        let end = self.end.get();
        for area in 0..=end.area {
            let summary = self.summaries.borrow().get(area as usize).copied();
            if !summary.is_some_and(|summary| summary.may_have(&chunks)) {
                continue;
            }
            let nr_entries = match area == end.area {
                true => end.index,
                false => self.layout.entries_per_area(),
            };
            for number in 0..nr_entries.div_ceil(self.layout.entries_per_unit()) {
                let bytes = self.unit(area, number).await?;
                let left = nr_entries - number * self.layout.entries_per_unit();
                for exception in decode(&bytes).take(left as usize).map_while(|entry| entry) {
                    if chunks.contains(&exception.old_chunk) {
                        found(exception);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sectors taken, header and areas among them (snapshot.md 1, Figures).
    pub fn allocated_sectors(&self) -> u64 {
        let end = self.end.get();
        let next_free = match self.merging.get() {
            true => 1 + end.area * self.layout.stride() + end.index + 1,
            false => self.next_free.get(),
        };
        next_free * self.layout.chunk_sectors()
    }

    /// Sectors of header and areas.
    pub fn metadata_sectors(&self) -> u64 {
        (self.end.get().area + 2) * self.layout.chunk_sectors()
    }

    /// Bytes of memory the store takes.
    pub fn used_bytes(&self) -> u64 {
        let summaries = self.summaries.borrow().len() * std::mem::size_of::<Summary>();
        summaries as u64 + self.layout.unit_bytes()
    }
}
