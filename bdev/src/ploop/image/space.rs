//! Which clusters of an image's file are in use.

use super::header::Header;
use super::problem::Problem;
use bytemuck::allocation::try_zeroed_slice_box;

const WORD_BITS: u64 = 64;

/// Most clusters a BAT can name.
const MAX_CLUSTERS: u64 = 1 << 32;

/// A bit per cluster of the data area, in use or not. Places are first sectors.
pub struct Space {
    words: Box<[u64]>,
    nr_clusters: u64,
    /// Where the data area began when this was made, and cluster size.
    data_sectors: u64,
    cluster_sectors: u64,
    nr_used: u64,
    /// No cluster before this is free.
    first_free: u64,
    /// No cluster before this is given out, free or not.
    floor: u64,
}

impl Space {
    /// Nothing in use, on a device of `device_sectors`.
    ///
    /// # Errors
    /// There is not the memory for it.
    pub fn new(header: &Header, device_sectors: u64) -> Result<Self, Problem> {
        let room = device_sectors.saturating_sub(header.data());
        let nr_clusters = (room / header.cluster()).min(MAX_CLUSTERS);
        let words = try_zeroed_slice_box(nr_clusters.div_ceil(WORD_BITS) as usize)
            .map_err(|()| Problem::NoMemory(nr_clusters))?;
        Ok(Space {
            words,
            nr_clusters,
            data_sectors: header.data(),
            cluster_sectors: header.cluster(),
            nr_used: 0,
            first_free: 0,
            floor: 0,
        })
    }

    /// Clusters there are.
    pub fn nr_clusters(&self) -> u64 {
        self.nr_clusters
    }

    /// Clusters in use.
    pub fn nr_used(&self) -> u64 {
        self.nr_used
    }

    fn index(&self, place: u64) -> Option<u64> {
        let index = place.checked_sub(self.data_sectors)? / self.cluster_sectors;
        (index < self.nr_clusters).then_some(index)
    }

    fn place(&self, index: u64) -> u64 {
        self.data_sectors + index * self.cluster_sectors
    }

    fn get(&self, index: u64) -> bool {
        let word = self.words.get((index / WORD_BITS) as usize);
        word.is_none_or(|word| word >> (index % WORD_BITS) & 1 == 1)
    }

    fn set(&mut self, index: u64, used: bool) {
        let was = self.get(index);
        if let Some(word) = self.words.get_mut((index / WORD_BITS) as usize)
            && was != used
        {
            *word ^= 1 << (index % WORD_BITS);
            match used {
                true => self.nr_used += 1,
                false => {
                    self.nr_used -= 1;
                    self.first_free = self.first_free.min(index.max(self.floor));
                }
            }
        }
    }

    /// Marks the cluster at a place as in use. False: it was already, or there is none.
    pub fn take(&mut self, place: u64) -> bool {
        match self.index(place) {
            Some(index) if !self.get(index) => {
                self.set(index, true);
                true
            }
            _ => false,
        }
    }

    /// Whether the cluster at a place is in use.
    pub fn is_used(&self, place: u64) -> bool {
        self.index(place).is_none_or(|index| self.get(index))
    }

    /// Takes the lowest free cluster.
    pub fn allocate(&mut self) -> Option<u64> {
        let mut word = self.first_free / WORD_BITS;
        // Below the floor there may be free ones.
        let mut skipped = (1 << (self.first_free % WORD_BITS)) - 1;
        while let Some(bits) = self.words.get(word as usize) {
            let bits = bits | std::mem::take(&mut skipped);
            if bits != u64::MAX {
                let index = word * WORD_BITS + u64::from(bits.trailing_ones());
                if index >= self.nr_clusters {
                    break;
                }
                self.first_free = index + 1;
                self.set(index, true);
                return Some(self.place(index));
            }
            word += 1;
        }
        self.first_free = self.nr_clusters;
        None
    }

    /// Gives a cluster back.
    pub fn free(&mut self, place: u64) {
        if let Some(index) = self.index(place) {
            self.set(index, false);
        }
    }

    /// All places in use, in ascending order.
    pub fn used(&self) -> impl Iterator<Item = u64> {
        let indices = (0..self.nr_clusters).filter(|index| self.get(*index));
        indices.map(|index| self.place(index))
    }

    /// From now on nothing before this place is given out.
    pub fn set_floor(&mut self, place: u64) {
        let before = place.saturating_sub(self.data_sectors);
        self.floor = self.floor.max(before.div_ceil(self.cluster_sectors));
        self.first_free = self.first_free.max(self.floor);
    }

    /// The device has grown. Error: there is not the memory for it.
    pub fn grow(&mut self, device_sectors: u64) -> Result<(), Problem> {
        let room = device_sectors.saturating_sub(self.data_sectors);
        let nr_clusters = (room / self.cluster_sectors).min(MAX_CLUSTERS);
        if nr_clusters <= self.nr_clusters {
            return Ok(());
        }
        let mut words: Box<[u64]> = try_zeroed_slice_box(nr_clusters.div_ceil(WORD_BITS) as usize)
            .map_err(|()| Problem::NoMemory(nr_clusters))?;
        for (to, from) in words.iter_mut().zip(&self.words) {
            *to = *from;
        }
        self.words = words;
        self.nr_clusters = nr_clusters;
        Ok(())
    }
}
