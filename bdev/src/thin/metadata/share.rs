//! Which leaves of mappings several devices share, and which of them always come one after another.

use super::dump::Policy;
use super::image::{Device, Image, Lost};
use rustc_hash::FxHashMap;

/// No leaf: the beginning or end of a device.
const NONE: u64 = u64::MAX;

#[derive(Debug, Clone, Copy)]
struct Place {
    count: u32,
    before: u64,
    after: u64,
    /// Not the same before or after it everywhere.
    before_differs: bool,
    after_differs: bool,
}

/// Runs of leaves that are in more than one place.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    runs: Vec<Vec<u64>>,
    run_of: FxHashMap<u64, u64>,
}

impl Sharing {
    /// Looks at every leaf of every device.
    pub async fn of(
        image: &Image,
        devices: &[Device],
        policy: &mut impl Policy,
    ) -> Result<Self, (u64, Lost)> {
        let mut places: FxHashMap<u64, Place> = FxHashMap::default();
        let mut order = Vec::new();
        for dev in devices {
            let mut before = NONE;
            let mut leaves = image.leaves::<u64>(dev.root);
            while let Some(leaf) = leaves.next().await {
                let leaf = match leaf {
                    Ok(leaf) => leaf,
                    Err(lost) => {
                        policy.lost(dev.id, lost)?;
                        continue;
                    }
                };
                follow(&mut places, before, leaf.block);
                let place = places.entry(leaf.block).or_insert_with(|| {
                    order.push(leaf.block);
                    Place {
                        count: 0,
                        before,
                        after: NONE,
                        before_differs: false,
                        after_differs: false,
                    }
                });
                place.count += 1;
                place.before_differs |= place.before != before;
                before = leaf.block;
            }
            follow(&mut places, before, NONE);
        }
        let mut sharing = Sharing::default();
        for block in order {
            let Some(place) = places.get(&block).filter(|place| place.count > 1) else {
                continue;
            };
            let joined = !place.before_differs
                && places
                    .get(&place.before)
                    .is_some_and(|before| before.count == place.count && !before.after_differs);
            match sharing.runs.last_mut() {
                Some(run) if joined && run.last() == Some(&place.before) => run.push(block),
                _ => sharing.runs.push(vec![block]),
            }
        }
        sharing.runs.sort_unstable();
        for run in &sharing.runs {
            let first = run.first().copied().unwrap_or(NONE);
            sharing
                .run_of
                .extend(run.iter().map(|block| (*block, first)));
        }
        Ok(sharing)
    }

    /// The runs.
    pub fn runs(&self) -> &[Vec<u64>] {
        &self.runs
    }

    /// The first leaf of the run that a leaf is in.
    pub fn run_of(&self, block: u64) -> Option<u64> {
        self.run_of.get(&block).copied()
    }
}

/// `after` comes after `block`.
fn follow(places: &mut FxHashMap<u64, Place>, block: u64, after: u64) {
    if let Some(place) = places.get_mut(&block) {
        // The first time its successor is not known yet.
        match place.count {
            1 if place.after == NONE => place.after = after,
            _ => place.after_differs |= place.after != after,
        }
    }
}
