//! The differences between two devices (thin.md 12): data blocks are compared, times are not.

use super::image::{Image, Lost, Mapping, Mappings};

/// How a block's mappings relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// To the same data block.
    Same,
    /// To different ones.
    Different,
    /// Only in the first device.
    LeftOnly,
    /// Only in the second device.
    RightOnly,
}

impl Relation {
    /// What the tools call it.
    pub fn name(self) -> &'static str {
        match self {
            Relation::Same => "same",
            Relation::Different => "different",
            Relation::LeftOnly => "left_only",
            Relation::RightOnly => "right_only",
        }
    }
}

/// A run of virtual blocks whose mappings relate alike, and whose data blocks are consecutive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// How.
    pub relation: Relation,
    /// First virtual block.
    pub begin: u64,
    /// First data block of the first device, unless it has none.
    pub left_data: Option<u64>,
    /// First data block of the second device, unless it has none.
    pub right_data: Option<u64>,
    /// Blocks.
    pub length: u64,
}

impl Difference {
    fn of(begin: u64, left_data: Option<u64>, right_data: Option<u64>) -> Self {
        let relation = match (left_data, right_data) {
            (Some(_), None) => Relation::LeftOnly,
            (None, _) => Relation::RightOnly,
            (left, right) if left == right => Relation::Same,
            _ => Relation::Different,
        };
        Difference {
            relation,
            begin,
            left_data,
            right_data,
            length: 1,
        }
    }

    /// Whether `next` follows at once with the same relation. Data blocks need not be consecutive.
    pub fn adjoins(&self, next: &Difference) -> bool {
        self.relation == next.relation && self.begin.checked_add(self.length) == Some(next.begin)
    }

    fn continues(&self, next: &Difference) -> bool {
        let after = |data: Option<u64>| data.map(|data| data.saturating_add(self.length));
        self.adjoins(next)
            && after(self.left_data) == next.left_data
            && after(self.right_data) == next.right_data
    }
}

/// Why a comparison ended.
#[derive(Debug)]
pub enum DeltaError<E> {
    /// Part of the first or second device (0 or 1) cannot be read.
    Damaged(usize, Lost),
    /// Whoever takes the differences does not.
    Sink(E),
}

/// The differences between two devices, in order.
pub struct Differences<'a> {
    mappings: [Mappings<'a>; 2],
    next: [Option<Mapping>; 2],
    current: Option<Difference>,
    begun: bool,
    max_length: u64,
}

impl<'a> Differences<'a> {
    /// Compares devices by the roots of their mappings, from a virtual block on. What is longer than
    /// `max_length` blocks comes in parts.
    pub fn new(image: &'a Image, roots: [u64; 2], begin: u64, max_length: u64) -> Self {
        Differences {
            mappings: roots.map(|root| image.mappings_from(root, begin)),
            next: [None, None],
            current: None,
            begun: false,
            max_length,
        }
    }

    async fn read(&mut self, side: usize) -> Result<(), (usize, Lost)> {
        if let (Some(mappings), Some(next)) = (self.mappings.get_mut(side), self.next.get_mut(side))
        {
            *next = mappings
                .next()
                .await
                .transpose()
                .map_err(|lost| (side, lost))?;
        }
        Ok(())
    }

    /// One block's difference, the first that has not been looked at.
    async fn step(&mut self) -> Result<Option<Difference>, (usize, Lost)> {
        if !self.begun {
            self.read(0).await?;
            self.read(1).await?;
            self.begun = true;
        }
        let begin = match self.next {
            [None, None] => return Ok(None),
            [Some(m), None] | [None, Some(m)] => m.virtual_block,
            [Some(l), Some(r)] => l.virtual_block.min(r.virtual_block),
        };
        let [l, r] = self
            .next
            .map(|m| m.filter(|m| m.virtual_block == begin).map(|m| m.data_block));
        if l.is_some() {
            self.read(0).await?;
        }
        if r.is_some() {
            self.read(1).await?;
        }
        Ok(Some(Difference::of(begin, l, r)))
    }

    /// The next one, or the side (0 or 1) and part of a device that cannot be read.
    pub async fn next(&mut self) -> Result<Option<Difference>, (usize, Lost)> {
        while let Some(difference) = self.step().await? {
            match &mut self.current {
                Some(current)
                    if current.length < self.max_length && current.continues(&difference) =>
                {
                    current.length += 1;
                }
                _ => {
                    if let Some(done) = self.current.replace(difference) {
                        return Ok(Some(done));
                    }
                }
            }
        }
        Ok(self.current.take())
    }
}

/// Joins differences that adjoin, whatever their data blocks: what the tools print when they are not
/// asked for more.
#[derive(Debug, Default)]
pub struct Joiner {
    waiting: Option<Difference>,
}

impl Joiner {
    /// Adds a difference; returns the one before, if this one does not adjoin it.
    pub fn push(&mut self, difference: &Difference) -> Option<Difference> {
        match &mut self.waiting {
            Some(waiting) if waiting.adjoins(difference) => {
                waiting.length += difference.length;
                None
            }
            _ => self.waiting.replace(*difference),
        }
    }

    /// The last one.
    pub fn finish(&mut self) -> Option<Difference> {
        self.waiting.take()
    }
}

/// Compares two devices by the roots of their mappings. `sink` gets the differences in order.
pub async fn delta<E>(
    image: &Image,
    roots: [u64; 2],
    mut sink: impl FnMut(&Difference) -> Result<(), E>,
) -> Result<(), DeltaError<E>> {
    let mut differences = Differences::new(image, roots, 0, u64::MAX);
    let damaged = |(side, lost)| DeltaError::Damaged(side, lost);
    while let Some(difference) = differences.next().await.map_err(damaged)? {
        sink(&difference).map_err(DeltaError::Sink)?;
    }
    Ok(())
}
