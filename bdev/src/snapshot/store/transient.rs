//! A transient exception store: data chunks from the beginning of the COW device, no metadata
//! (snapshot.md 2).
//!
//! Chunks are handed out and committed in the same order, so a list of the origin's chunks is all there
//! is to know: its index is the chunk of the COW device. It takes 8 bytes per exception, at most 8 per
//! chunk of the COW device.

use super::super::error::SnapshotError;
use super::super::layout::{Exception, Layout};
use crate::device::ByteDeviceRef;
use std::cell::{Cell, RefCell};

/// An exception store that is lost on deactivation.
pub struct TransientStore {
    device: ByteDeviceRef,
    layout: Layout,
    next_free: Cell<u64>,
    old_chunks: RefCell<Vec<u64>>,
}

impl TransientStore {
    /// An empty one.
    pub fn new(device: ByteDeviceRef, layout: Layout) -> Self {
        TransientStore {
            device,
            layout,
            next_free: Cell::new(0),
            old_chunks: RefCell::default(),
        }
    }

    /// The arithmetic of its chunk size.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Allocates the chunk of a new exception. Error: no space.
    pub fn allocate(&self) -> Result<u64, SnapshotError> {
        let new_chunk = self.next_free.get();
        if new_chunk >= self.layout.chunks_on(self.device.nr_sectors()) {
            return Err(SnapshotError::NoSpace);
        }
        self.next_free.set(new_chunk + 1);
        Ok(new_chunk)
    }

    /// Remembers exceptions in the order in which they were allocated. Error: no memory.
    pub fn commit(&self, exceptions: &[Exception]) -> Result<(), SnapshotError> {
        let mut old_chunks = self.old_chunks.borrow_mut();
        let reserved = old_chunks.try_reserve(exceptions.len());
        reserved.map_err(|_| SnapshotError::NoMemory(old_chunks.len() as u64))?;
        old_chunks.extend(exceptions.iter().map(|exception| exception.old_chunk));
        Ok(())
    }

    /// Tells all exceptions of the origin's chunks `first..first + count`.
    pub fn scan(&self, first: u64, count: u64, mut found: impl FnMut(Exception)) {
        let chunks = first..first.saturating_add(count);
        for (new_chunk, old_chunk) in (0..).zip(self.old_chunks.borrow().iter()) {
            if chunks.contains(old_chunk) {
                found(Exception {
                    old_chunk: *old_chunk,
                    new_chunk,
                });
            }
        }
    }

    /// Sectors taken.
    pub fn allocated_sectors(&self) -> u64 {
        self.layout.sector(self.next_free.get())
    }

    /// Bytes of memory the store takes.
    pub fn used_bytes(&self) -> u64 {
        self.old_chunks.borrow().capacity() as u64 * 8
    }
}
