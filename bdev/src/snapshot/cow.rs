//! A COW device at work: its store, and the exceptions every core sees. What a snapshot hands over to a
//! merge.

use super::error::SnapshotError;
use super::exceptions::{Exceptions, Place};
use super::layout::{Exception, Layout};
use super::store::Store;
use crate::device::{ByteDevice, DataDevice};
use crate::errno::Errno;
use crate::flushes::Listening;
use crate::owner::Channels;
use crate::thin::cache::{MappingCache, PAGE_BLOCKS, UNMAPPED};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Mutex;

/// The cache all COW devices of an origin share.
pub(super) type Cache = MappingCache<Exceptions>;

/// A COW device, its store and its exceptions.
pub(super) struct Cow {
    /// For the store and for copies of chunks.
    pub device: Rc<Listening<dyn ByteDevice>>,
    /// For whoever writes to the chunks.
    pub guests: Listening<dyn ByteDevice>,
    /// Whether it knows flush.
    pub flushes: bool,
    pub store: Store,
    pub exceptions: Arc<Exceptions>,
    /// Held while the store changes or is read.
    pub lock: Mutex<()>,
}

impl Cow {
    pub fn layout(&self) -> Layout {
        self.store.layout()
    }

    /// A guest's flush.
    pub async fn flush(&self) -> Result<(), Errno> {
        match self.flushes {
            true => self.guests.flush().await,
            false => Ok(()),
        }
    }

    /// Copies a chunk of the origin here, as far as the origin goes.
    pub async fn copy_from(
        &self,
        origin: &dyn DataDevice,
        exception: Exception,
    ) -> Result<(), Errno> {
        let layout = self.layout();
        let from = layout.sector(exception.old_chunk);
        let len = layout
            .chunk_sectors()
            .min(origin.nr_sectors().saturating_sub(from));
        let to = layout.sector(exception.new_chunk);
        crate::device::copy(origin, from, &*self.device, to, len).await
    }

    /// Commits exceptions that were allocated in this order, and publishes them.
    pub async fn commit(
        &self,
        exceptions: &[Exception],
        cache: &Cache,
        channels: &Channels,
    ) -> Result<(), SnapshotError> {
        let _locked = self.lock.lock().await;
        self.store.commit(exceptions).await?;
        let mut pages: BTreeMap<u64, Vec<Exception>> = BTreeMap::new();
        for exception in exceptions {
            let page = exception.old_chunk / PAGE_BLOCKS as u64;
            pages.entry(page).or_default().push(*exception);
        }
        for (page, of_page) in pages {
            // Of a page that was empty, all is known.
            if self.exceptions.is_page_empty(page)
                && let Some(frame) = cache.take_frame(channels).await
            {
                cache.publish(&self.exceptions, page, frame, &values(page, &of_page));
            }
            for exception in of_page {
                self.exceptions
                    .publish(exception.old_chunk, exception.new_chunk);
            }
        }
        Ok(())
    }

    /// Makes the place of a chunk known again. Afterwards it may be looked up, unless it was forgotten
    /// again.
    pub async fn load_page(
        &self,
        chunk: u64,
        cache: &Cache,
        channels: &Channels,
    ) -> Result<(), SnapshotError> {
        let _locked = self.lock.lock().await;
        if self.exceptions.look(chunk) != Place::Unknown {
            return Ok(());
        }
        let page = chunk / PAGE_BLOCKS as u64;
        let mut found = Vec::new();
        let first = page * PAGE_BLOCKS as u64;
        self.store
            .scan(first, PAGE_BLOCKS as u64, |exception| found.push(exception))
            .await?;
        if !found.iter().any(|exception| exception.old_chunk == chunk) {
            return Err(SnapshotError::Device {
                what: "an exception is no longer on the COW device",
                errno: Errno::EIO,
            });
        }
        // None: other pages are just being loaded into all frames; whoever asked tries again.
        if let Some(frame) = cache.take_frame(channels).await {
            cache.publish(&self.exceptions, page, frame, &values(page, &found));
        }
        Ok(())
    }
}

/// Exceptions that were met while a store was loaded: as many as the cache has memory for.
pub(super) struct Places {
    pages: BTreeMap<u64, Vec<Exception>>,
    most_pages: u64,
}

impl Places {
    pub fn new(cache_bytes: u64) -> Self {
        Places {
            pages: BTreeMap::new(),
            most_pages: cache_bytes / (PAGE_BLOCKS as u64 * 8),
        }
    }

    /// Pages are kept whole or not at all.
    pub fn note(&mut self, exception: Exception) {
        let page = exception.old_chunk / PAGE_BLOCKS as u64;
        let full = self.pages.len() as u64 >= self.most_pages;
        if let Some(known) = self.pages.get_mut(&page) {
            known.push(exception);
        } else if !full {
            self.pages.insert(page, vec![exception]);
        }
    }

    /// So that they need not be looked for again.
    pub async fn publish(&self, exceptions: &Arc<Exceptions>, cache: &Cache, channels: &Channels) {
        for (page, of_page) in &self.pages {
            let stats = cache.stats();
            let is_full = stats.used_bytes >= stats.limit_bytes;
            if is_full {
                return;
            }
            if let Some(frame) = cache.take_frame(channels).await {
                cache.publish(exceptions, *page, frame, &values(*page, of_page));
            }
        }
    }
}

/// A page with these exceptions.
fn values(page: u64, exceptions: &[Exception]) -> Vec<u64> {
    let mut values = vec![UNMAPPED; PAGE_BLOCKS];
    let first = page * PAGE_BLOCKS as u64;
    for exception in exceptions {
        let at = exception.old_chunk.saturating_sub(first);
        if let Some(value) = values.get_mut(at as usize) {
            *value = exception.new_chunk;
        }
    }
    values
}
