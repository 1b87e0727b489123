//! Whether an entry of a store can be: it points to a data chunk of the device that no other entry points
//! to (snapshot.md 1, Loading). Whether another is for the same chunk of the origin, the caller knows.

use super::super::error::SnapshotError;
use super::super::layout::{Exception, Layout, Position};

/// Entries so far: a bit per chunk of the COW device, while loading.
pub(super) struct Seen {
    new_chunks: Vec<u64>,
    nr_chunks: u64,
}

impl Seen {
    /// For a COW device of so many chunks. Error: no memory.
    pub(super) fn new(nr_chunks: u64) -> Result<Self, SnapshotError> {
        let words = nr_chunks.div_ceil(64) as usize;
        let mut new_chunks = Vec::new();
        let reserved = new_chunks.try_reserve_exact(words);
        reserved.map_err(|_| SnapshotError::NoMemory(nr_chunks))?;
        new_chunks.resize(words, 0);
        Ok(Seen {
            new_chunks,
            nr_chunks,
        })
    }

    /// Takes an entry, or says why it cannot be. `is_first`: none before is for the same chunk of the
    /// origin.
    pub(super) fn admit(
        &mut self,
        layout: Layout,
        at: Position,
        exception: Exception,
        is_first: bool,
    ) -> Result<(), SnapshotError> {
        let Exception {
            old_chunk,
            new_chunk,
        } = exception;
        let wrong = |reason| {
            Err(SnapshotError::Entry {
                area: at.area,
                index: at.index,
                old_chunk,
                new_chunk,
                reason,
            })
        };
        if !layout.is_data(new_chunk) {
            return wrong("that is the header or an area");
        }
        if new_chunk >= self.nr_chunks {
            return wrong("the COW device ends before it");
        }
        let bit = 1 << (new_chunk % 64);
        match self.new_chunks.get_mut((new_chunk / 64) as usize) {
            Some(word) if *word & bit == 0 => *word |= bit,
            _ => return wrong("another entry points there, too"),
        }
        match is_first {
            true => Ok(()),
            false => wrong("another entry is for the same chunk"),
        }
    }
}
