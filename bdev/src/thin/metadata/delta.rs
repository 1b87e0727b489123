//! The differences between two devices (thin.md 12): data blocks are compared, times are not.

use super::image::{Image, Lost, Mapping};

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

/// Compares two devices by the roots of their mappings. `sink` gets the differences in order.
pub async fn delta<E>(
    image: &Image,
    roots: [u64; 2],
    mut sink: impl FnMut(&Difference) -> Result<(), E>,
) -> Result<(), DeltaError<E>> {
    let [mut left, mut right] = roots.map(|root| image.mappings(root));
    let read = |side, next: Option<Result<Mapping, Lost>>| {
        next.transpose()
            .map_err(|lost| DeltaError::Damaged(side, lost))
    };
    let mut next = [read(0, left.next().await)?, read(1, right.next().await)?];
    let mut current: Option<Difference> = None;
    loop {
        let begin = match next {
            [None, None] => break,
            [Some(m), None] | [None, Some(m)] => m.virtual_block,
            [Some(l), Some(r)] => l.virtual_block.min(r.virtual_block),
        };
        let [l, r] = next.map(|m| m.filter(|m| m.virtual_block == begin).map(|m| m.data_block));
        if l.is_some() {
            next[0] = read(0, left.next().await)?;
        }
        if r.is_some() {
            next[1] = read(1, right.next().await)?;
        }
        let difference = Difference::of(begin, l, r);
        match &mut current {
            Some(current) if current.continues(&difference) => current.length += 1,
            _ => {
                if let Some(done) = current.replace(difference) {
                    sink(&done).map_err(DeltaError::Sink)?;
                }
            }
        }
    }
    match current {
        Some(last) => sink(&last).map_err(DeltaError::Sink),
        None => Ok(()),
    }
}
