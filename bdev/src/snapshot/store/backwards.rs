//! A persistent store that is being merged: exceptions are taken away from its end (snapshot.md 9).

use super::super::error::SnapshotError;
use super::super::layout::{ENTRY_BYTES, Exception, Position};
use super::disk::{READ_AREA, WRITE_AREA, decode};
use super::persistent::{PersistentStore, Unit};
use crate::errno::Errno;

/// Consecutive exceptions, both chunks rising by one: what is merged at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First chunk of the origin.
    pub old_chunk: u64,
    /// First chunk of the COW device.
    pub new_chunk: u64,
    /// How many.
    pub nr_chunks: u64,
}

impl PersistentStore {
    /// From now on exceptions are taken away from the end.
    pub fn begin_merge(&self) {
        self.merging.set(true);
    }

    /// The last exceptions that are a run of at most `most` chunks; none: the store is empty.
    pub async fn last_run(&self, most: u64) -> Result<Option<Run>, SnapshotError> {
        let layout = self.layout;
        let mut end = self.end.get();
        if end.index == 0 {
            let Some(area) = end.area.checked_sub(1) else {
                return Ok(None);
            };
            end = Position {
                area,
                index: layout.entries_per_area(),
            };
            self.end.set(end);
        }
        let last = end.index - 1;
        let number = last / layout.entries_per_unit();
        let bytes = self.unit(end.area, number).await?;
        let nr_here = last % layout.entries_per_unit() + 1;
        let entries: Vec<Exception> = decode(&bytes)
            .take(nr_here as usize)
            .map_while(|entry| entry)
            .collect();
        let gone = SnapshotError::Device {
            what: READ_AREA,
            errno: Errno::EIO,
        };
        if entries.len() as u64 != nr_here {
            return Err(gone);
        }
        let mut backwards = entries.iter().rev();
        let mut first = *backwards.next().ok_or(gone)?;
        let mut nr_chunks = 1;
        for entry in backwards.take(most.max(1) as usize - 1) {
            let before = entry.old_chunk.checked_add(1) == Some(first.old_chunk)
                && entry.new_chunk.checked_add(1) == Some(first.new_chunk);
            if !before {
                break;
            }
            first = *entry;
            nr_chunks += 1;
        }
        Ok(Some(Run {
            old_chunk: first.old_chunk,
            new_chunk: first.new_chunk,
            nr_chunks,
        }))
    }

    /// Takes away the last exceptions, as many as [`PersistentStore::last_run`] told, durably.
    ///
    /// After an error they are all still counted here, and on the device some may be gone.
    pub async fn clear_last(&self, nr_chunks: u64) -> Result<(), SnapshotError> {
        let layout = self.layout;
        let end = self.end.get();
        let Some(index) = end.index.checked_sub(nr_chunks.max(1)) else {
            return Ok(());
        };
        let number = (end.index - 1) / layout.entries_per_unit();
        let mut bytes = self.unit(end.area, number).await?;
        // If this fails, nobody knows what the device has: what counts is in memory.
        *self.unit.borrow_mut() = Some(Unit {
            area: end.area,
            number,
            bytes: bytes.clone(),
        });
        let from = (index % layout.entries_per_unit()) * ENTRY_BYTES;
        bytes.get_mut(from as usize..).unwrap_or_default().fill(0);
        let sector = layout.unit_sector(end.area, number);
        let written = self.device.write_bytes(sector, &bytes).await;
        written.map_err(SnapshotError::device(WRITE_AREA))?;
        self.flush().await?;
        *self.unit.borrow_mut() = Some(Unit {
            area: end.area,
            number,
            bytes,
        });
        self.end.set(Position {
            area: end.area,
            index,
        });
        Ok(())
    }
}
