//! One image of a chain in service: reading its BAT, and for one that is written, changing it.
//!
//! Changes of a page are made under the page's lock. When a write of a page fails, what is on the disk is
//! not known; the page as it ought to be is kept, and written again before a flush is answered.

use super::error::PloopError;
use super::image::header::{HEADER_SLOTS, PAGE_BYTES, PAGE_SLOTS, slot};
use super::image::space::Space;
use super::image::survey::Survey;
use super::image::{Header, InUse, Page, Problem, page_entries, read_page};
use super::unsettled::Unsettled;
use crate::device::{ByteDeviceRef, SECTOR_BYTES};
use crate::errno::Errno;
use crate::flushes::UnderWay;
use crate::locks::{BlockGuard, BlockLocks};
use crate::target::BaseId;
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Pages of the BAT that are kept as they are on disk: those that change again and again.
const KEPT_PAGES: usize = 64;

/// A device of a chain, as a host hands it in.
#[derive(Clone)]
pub struct Source {
    /// Its name, for messages and status.
    pub name: String,
    /// The device.
    pub device: ByteDeviceRef,
    /// Its number on every core.
    pub base: BaseId,
    /// Whether it knows flush.
    pub flushes: bool,
}

/// Why an entry was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotWritten {
    /// The BAT on the disk is as before.
    Untouched(Errno),
    /// It may have changed or not.
    Unsure(Errno),
}

impl NotWritten {
    pub fn errno(self) -> Errno {
        match self {
            NotWritten::Untouched(errno) | NotWritten::Unsure(errno) => errno,
        }
    }
}

#[derive(Default)]
struct Kept {
    pages: FxHashMap<u64, Rc<Page>>,
    order: VecDeque<u64>,
}

impl Kept {
    fn put(&mut self, page: u64, bytes: Rc<Page>) {
        if self.pages.insert(page, bytes).is_none() {
            self.order.push_back(page);
            if self.order.len() > KEPT_PAGES
                && let Some(oldest) = self.order.pop_front()
            {
                self.pages.remove(&oldest);
            }
        }
    }
}

/// A page whose write has failed, as it ought to be, and which failure that was.
struct Sick {
    bytes: Rc<Page>,
    number: u64,
}

/// An image, or a raw disk as the base of a chain.
pub(super) struct Delta {
    pub source: Source,
    /// None: raw.
    header: Cell<Option<Header>>,
    /// Cluster size.
    pub cluster_sectors: u64,
    /// Of an image that is written.
    pub space: RefCell<Option<Space>>,
    has_extension: bool,
    kept: RefCell<Kept>,
    sick: RefCell<BTreeMap<u64, Sick>>,
    failures: Cell<u64>,
    /// Clusters that may be named by the BAT on the disk: free when that has been written anew.
    unsure: RefCell<Vec<u64>>,
    unsettled: Unsettled,
    /// Flushes under way.
    flushing: Cell<u64>,
    locks: BlockLocks,
    /// Guest clusters that userspace has moved within the image.
    moved: RefCell<FxHashMap<u64, u64>>,
}

impl Delta {
    fn new(source: Source, header: Option<Header>, cluster_sectors: u64) -> Self {
        Delta {
            source,
            header: Cell::new(header),
            cluster_sectors,
            space: RefCell::default(),
            has_extension: header.is_some_and(|header| header.extension_sectors != 0),
            kept: RefCell::default(),
            sick: RefCell::default(),
            failures: Cell::new(0),
            unsure: RefCell::default(),
            unsettled: Unsettled::default(),
            flushing: Cell::new(0),
            locks: BlockLocks::default(),
            moved: RefCell::default(),
        }
    }

    /// A raw disk. Error: EPROTO unless it is a whole number of clusters.
    pub fn raw(source: Source, cluster_sectors: u64) -> Result<Rc<Self>, PloopError> {
        let nr_sectors = source.device.nr_sectors();
        match nr_sectors.is_multiple_of(cluster_sectors.max(1)) {
            true => Ok(Rc::new(Delta::new(source, None, cluster_sectors))),
            false => Err(PloopError::RawSize {
                name: source.name,
                nr_sectors,
                cluster_sectors,
            }),
        }
    }

    /// An image, after all of it was looked at. `writable`: its free clusters are remembered, and a damaged
    /// extension is refused, because clusters it needs could be overwritten. `may_be_in_use`: it may be one
    /// that was not closed.
    pub async fn open(
        source: Source,
        writable: bool,
        may_be_in_use: bool,
    ) -> Result<Rc<Self>, PloopError> {
        let image = source.name.clone();
        let of_image = |problem| PloopError::Image {
            image: source.name.clone(),
            problem,
        };
        let survey = Survey::of(&*source.device).await.map_err(of_image)?;
        if survey.is_in_use() && !may_be_in_use {
            return Err(PloopError::InUse(image));
        }
        if let Some(first) = survey.problems.first() {
            return Err(PloopError::Damaged {
                image,
                count: survey.nr_problems,
                first: first.clone(),
            });
        }
        match survey.extension_problem {
            Some(problem) if writable => return Err(of_image(problem)),
            Some(problem) => log::warn!("image '{image}': {problem}"),
            None => {}
        }
        let cluster_sectors = survey.header.cluster();
        let delta = Delta::new(source, Some(survey.header), cluster_sectors);
        if writable {
            *delta.space.borrow_mut() = Some(survey.space);
        }
        Ok(Rc::new(delta))
    }

    /// Its header; none: it is raw.
    pub fn header(&self) -> Option<Header> {
        self.header.get()
    }

    pub fn base(&self) -> BaseId {
        self.source.base
    }

    /// Guest clusters it may have.
    pub fn nr_clusters(&self) -> u64 {
        match self.header.get() {
            Some(header) => u64::from(header.nr_entries),
            None => self.source.device.nr_sectors() / self.cluster_sectors.max(1),
        }
    }

    /// Pages its clusters are in.
    pub fn nr_pages(&self) -> u64 {
        (HEADER_SLOTS + self.nr_clusters()).div_ceil(PAGE_SLOTS)
    }

    /// Holds a page of the BAT.
    pub async fn lock_page(&self, page: u64) -> BlockGuard {
        self.locks.lock_block(0, page).await
    }

    fn log_problem(&self, problem: &Problem) -> Errno {
        log::error!("image '{}': {problem}", self.source.name);
        match problem {
            Problem::Unreadable { errno, .. } => *errno,
            _ => Errno::EIO,
        }
    }

    /// A page as it ought to be on the disk.
    async fn page(&self, header: &Header, page: u64) -> Result<Rc<Page>, Errno> {
        if let Some(sick) = self.sick.borrow().get(&page) {
            return Ok(sick.bytes.clone());
        }
        if let Some(kept) = self.kept.borrow().pages.get(&page) {
            return Ok(kept.clone());
        }
        let read = read_page(&*self.source.device, header, page).await;
        read.map(Rc::from)
            .map_err(|problem| self.log_problem(&problem))
    }

    /// First sectors of the clusters of a page, by slot; none where there is a hole. Of an image that is
    /// written, the page must be locked.
    pub async fn places(&self, page: u64) -> Result<Vec<Option<u64>>, Errno> {
        let mut places = vec![None; PAGE_SLOTS as usize];
        let first_slot = page * PAGE_SLOTS;
        let put = |cluster: u64, place: u64, places: &mut Vec<Option<u64>>| {
            let at = slot(cluster).checked_sub(first_slot);
            if let Some(cell) = at.and_then(|at| places.get_mut(at as usize)) {
                *cell = Some(place);
            }
        };
        let Some(header) = self.header.get() else {
            let first = first_slot.saturating_sub(HEADER_SLOTS);
            let end = (first_slot + PAGE_SLOTS - HEADER_SLOTS).min(self.nr_clusters());
            for cluster in first..end {
                put(cluster, cluster * self.cluster_sectors, &mut places);
            }
            return Ok(places);
        };
        if page >= header.nr_pages() {
            return Ok(places);
        }
        let bytes = self.page(&header, page).await?;
        let nr_sectors = self.source.device.nr_sectors();
        for (cluster, raw) in page_entries(&header, page, &bytes) {
            let place = header.place(cluster, raw, nr_sectors);
            // It was sound when it was opened.
            if let Some(place) = place.map_err(|problem| self.log_problem(&problem))? {
                put(cluster, place, &mut places);
            }
        }
        for (cluster, place) in &*self.moved.borrow() {
            put(*cluster, *place, &mut places);
        }
        Ok(places)
    }

    /// Has the BAT read again: somebody else has written it.
    pub fn forget_pages(&self) {
        self.kept.take();
    }

    /// Whether it has a cluster.
    pub async fn has(&self, cluster: u64) -> Result<bool, PloopError> {
        let page = slot(cluster) / PAGE_SLOTS;
        let places = self
            .places(page)
            .await
            .map_err(|errno| PloopError::Device {
                name: self.source.name.clone(),
                what: "reading the BAT",
                errno,
            })?;
        let at = (slot(cluster) % PAGE_SLOTS) as usize;
        Ok(places.get(at).copied().flatten().is_some())
    }

    /// Userspace has moved clusters; their new places have been checked.
    pub fn note_moved(&self, moved: &[(u64, u64)]) {
        self.moved.borrow_mut().extend(moved.iter().copied());
    }

    /// Changes entries of a page, which must be locked, by one write.
    pub async fn write_entries(
        &self,
        page: u64,
        changes: &[(u64, Option<u64>)],
    ) -> Result<(), NotWritten> {
        let untouched = |errno| NotWritten::Untouched(errno);
        let header = self.header.get().ok_or(untouched(Errno::EROFS))?;
        let named = || changes.iter().filter_map(|(_, place)| *place);
        if named().any(|place| self.unsettled.is_lost(place)) {
            return Err(untouched(Errno::EIO));
        }
        let mut bytes = *self.page(&header, page).await.map_err(untouched)?;
        for (cluster, place) in changes {
            let raw = match place {
                Some(place) => header.entry(*place).ok_or(untouched(Errno::ENOSPC))?,
                None => 0,
            };
            let at = slot(*cluster).checked_sub(page * PAGE_SLOTS);
            let words = bytes.as_chunks_mut::<4>().0;
            match at.and_then(|at| words.get_mut(at as usize)) {
                Some(word) => *word = raw.to_le_bytes(),
                None => return Err(untouched(Errno::EINVAL)),
            }
        }
        self.write_page(&header, page, bytes)
            .await
            .map_err(NotWritten::Unsure)?;
        named().for_each(|place| self.unsettled.end(place));
        Ok(())
    }

    /// Writes a page as far as it is of this header; on failure it is to be as before.
    async fn write_page(&self, header: &Header, page: u64, bytes: Page) -> Result<(), Errno> {
        let before = self.page(header, page).await?;
        let bytes = Rc::new(bytes);
        let written = self.put_page(header, page, &bytes).await;
        match written {
            Ok(()) => {
                if let Some(sick) = self.sick.borrow_mut().get_mut(&page) {
                    sick.bytes = bytes.clone();
                }
                self.kept.borrow_mut().put(page, bytes);
            }
            Err(errno) => {
                log::error!(
                    "image '{}': writing page {page} of the BAT: {errno}",
                    self.source.name
                );
                self.note_sick(page, before);
            }
        }
        written
    }

    async fn put_page(&self, header: &Header, page: u64, bytes: &Rc<Page>) -> Result<(), Errno> {
        let block_sectors = u64::from(self.source.device.block_bytes()) / SECTOR_BYTES;
        let (first, len) = header.page_extent(page, block_sectors);
        let len = PAGE_BYTES.min((len * SECTOR_BYTES) as usize);
        let part = bytes.get(..len).ok_or(Errno::EINVAL)?;
        self.source.device.write_bytes(first, part).await?;
        self.unsettled.note_page(page, bytes.clone());
        Ok(())
    }

    /// Writes a header and makes it durable; if that fails, the old one is to be there. The first page must
    /// not be locked.
    pub async fn write_header(&self, header: Header) -> Result<(), Errno> {
        let _locked = self.lock_page(0).await;
        let old_header = self.header.get().ok_or(Errno::EROFS)?;
        let before = self.page(&old_header, 0).await?;
        let mut bytes = *before;
        for (to, from) in bytes.iter_mut().zip(header.encode()) {
            *to = from;
        }
        self.write_page(&header, 0, bytes).await?;
        let flushed = self.flush().await;
        match flushed {
            Ok(()) => self.header.set(Some(header)),
            Err(_) => self.note_sick(0, before),
        }
        flushed
    }

    /// What is on the disk is not known; this is what ought to be.
    fn note_sick(&self, page: u64, bytes: Rc<Page>) {
        let number = self.failures.get() + 1;
        self.failures.set(number);
        self.kept.borrow_mut().put(page, bytes.clone());
        self.sick.borrow_mut().insert(page, Sick { bytes, number });
    }

    /// Says on the disk who has the image, durably.
    pub async fn set_in_use(&self, in_use: InUse) -> Result<(), Errno> {
        let header = self.header.get().ok_or(Errno::EROFS)?;
        let header = Header {
            in_use,
            // Nothing of ours depends on it, and from now on it may be wrong.
            flags: header.flags & !1,
            ..header
        };
        self.write_header(header).await
    }

    /// What a closed image says: its bitmaps are not kept up to date here.
    pub fn closed_mark(&self) -> InUse {
        match self.has_extension {
            true => InUse::ClosedByOld,
            false => InUse::Closed,
        }
    }

    pub fn has_extension(&self) -> bool {
        self.has_extension
    }

    /// Flushes, where the device knows that. If that fails, pages of the BAT may be lost, and are to be
    /// written again ([`Delta::mend`]).
    pub async fn flush(&self) -> Result<(), Errno> {
        let until = self.unsettled.flush_begins();
        let under_way = UnderWay::new(&self.flushing);
        let flushed = match self.source.flushes {
            true => self.source.device.flush().await,
            false => Ok(()),
        };
        drop(under_way);
        match flushed {
            Ok(()) => self.unsettled.note_flushed(until),
            Err(_) => {
                for (page, bytes) in self.unsettled.note_failed() {
                    self.note_sick(page, bytes);
                }
            }
        }
        flushed
    }

    /// Flushes that have failed.
    pub fn nr_flush_errors(&self) -> u64 {
        self.unsettled.nr_errors()
    }

    /// Whether everything in it is durable, but for what guests have written in place, and no flush is under way
    /// that may lose that.
    pub fn is_settled(&self) -> bool {
        !self.is_sick() && self.unsettled.is_empty() && self.flushing.get() == 0
    }

    /// Whether what is on the disk is not known.
    pub fn is_sick(&self) -> bool {
        !self.sick.borrow().is_empty()
    }

    /// Writes pages again whose writes have failed, and makes that durable. `written` is told of each page.
    pub async fn mend(&self, written: impl Fn(u64)) -> Result<(), Errno> {
        let header = self.header.get().ok_or(Errno::EROFS)?;
        let pages: Vec<u64> = self.sick.borrow().keys().copied().collect();
        let unsure = self.unsure.take();
        let mut mended = Vec::with_capacity(pages.len());
        let done = async {
            for page in pages {
                let _locked = self.lock_page(page).await;
                let sick = self
                    .sick
                    .borrow()
                    .get(&page)
                    .map(|s| (s.bytes.clone(), s.number));
                if let Some((bytes, number)) = sick {
                    let put = self.put_page(&header, page, &bytes).await;
                    written(page);
                    put?;
                    mended.push((page, number));
                }
            }
            self.flush().await
        };
        if let Err(errno) = done.await {
            self.unsure.borrow_mut().extend(unsure);
            return Err(errno);
        }
        let mut sick = self.sick.borrow_mut();
        for (page, number) in mended {
            if sick.get(&page).is_some_and(|sick| sick.number == number) {
                sick.remove(&page);
            }
        }
        match sick.is_empty() {
            true => unsure.into_iter().for_each(|place| self.free(place)),
            false => self.unsure.borrow_mut().extend(unsure),
        }
        Ok(())
    }

    /// A flush did not do: pages may be on the disk or not.
    pub fn note_unsure(&self, place: u64) {
        self.unsettled.end(place);
        self.unsure.borrow_mut().push(place);
    }

    /// Takes the lowest free cluster; its first sector.
    pub fn allocate(&self) -> Option<u64> {
        let place = self.space.borrow_mut().as_mut()?.allocate()?;
        let header = self.header.get()?;
        if header.entry(place).is_none() {
            self.free(place);
            return None;
        }
        self.unsettled.begin(place);
        Some(place)
    }

    /// Gives a cluster back that no BAT on the disk can name.
    pub fn free(&self, place: u64) {
        self.unsettled.end(place);
        if let Some(space) = &mut *self.space.borrow_mut() {
            space.free(place);
        }
    }
}
