//! Compares the references that were found with what the space maps say (persistent-data.md 3).

use super::image::{Image, Leaf, Leaves};
use super::problem::{Area, Owner, Problem, Problems};
use super::survey::Survey;
use super::tally::Tally;
use persistent_data::Error;
use persistent_data::space_map::{
    BITMAP, ENTRIES_PER_BITMAP, INDEX, IndexEntry, MAX_METADATA_BITMAPS, SpaceMap, SpaceMapRoot,
    entries_of, stored,
};

/// A space map whose own blocks have been counted.
pub(super) struct Map {
    area: Area,
    root: SpaceMapRoot,
    index: Vec<IndexEntry>,
}

/// Counts the blocks of the metadata device's map.
pub(super) async fn survey_metadata_map(
    image: &Image,
    root: &SpaceMapRoot,
    survey: &mut Survey,
    problems: &mut Problems,
) -> Option<Map> {
    let area = Area::Metadata;
    let nr_bitmaps = SpaceMap::nr_bitmaps_for(root.nr_blocks);
    if nr_bitmaps > MAX_METADATA_BITMAPS || root.nr_blocks > image.nr_blocks() {
        problems.push(Problem::Superblock {
            block: 0,
            what: format!(
                "the metadata space map has {} blocks, the device {}",
                root.nr_blocks,
                image.nr_blocks()
            ),
        });
        return None;
    }
    survey.counts.add(root.bitmap_root);
    let index = match image.block(root.bitmap_root, &INDEX).await {
        Ok(bytes) => Some(entries_of(&bytes, nr_bitmaps)),
        Err(error) => {
            problems.push(Problem::SpaceMap { area, error });
            None
        }
    };
    finish_survey(image, area, root, index, survey, problems).await
}

/// Counts the blocks of the data device's map.
pub(super) async fn survey_data_map(
    image: &Image,
    root: &SpaceMapRoot,
    survey: &mut Survey,
    problems: &mut Problems,
) -> Option<Map> {
    let mut found = Vec::new();
    let index_tree = root.bitmap_root;
    let summary = survey
        .walk::<IndexEntry>(image, index_tree, Owner::DataIndex, problems, |leaf| {
            found.extend(leaf.entries::<IndexEntry>());
        })
        .await;
    let nr_bitmaps = SpaceMap::nr_bitmaps_for(root.nr_blocks);
    let gaps = found.len() as u64 != nr_bitmaps || (0..).zip(&found).any(|(i, (key, _))| i != *key);
    if gaps && summary.complete {
        problems.push(Problem::SpaceMap {
            area: Area::Data,
            error: Error::Corrupt {
                block: index_tree,
                what: "the index of bitmaps is not that of as many blocks",
            },
        });
    }
    let index =
        (!gaps && summary.complete).then(|| found.into_iter().map(|(_, entry)| entry).collect());
    finish_survey(image, Area::Data, root, index, survey, problems).await
}

async fn finish_survey(
    image: &Image,
    area: Area,
    root: &SpaceMapRoot,
    index: Option<Vec<IndexEntry>>,
    survey: &mut Survey,
    problems: &mut Problems,
) -> Option<Map> {
    survey
        .walk::<u32>(
            image,
            root.ref_count_root,
            Owner::Counts(area),
            problems,
            |_| {},
        )
        .await;
    survey.incomplete |= index.is_none();
    let index = index?;
    for entry in &index {
        survey.counts.add(entry.blocknr);
    }
    Some(Map {
        area,
        root: *root,
        index,
    })
}

/// The counts from 3 up, in order beside the bitmaps.
struct Large<'a> {
    leaves: Leaves<'a>,
    leaf: Option<Leaf>,
    next: usize,
    broken: bool,
}

impl Large<'_> {
    async fn peek(&mut self) -> Option<(u64, u32)> {
        loop {
            if let Some(leaf) = self.leaf.as_ref().filter(|leaf| self.next < leaf.len()) {
                return Some(leaf.entry(self.next));
            }
            self.next = 0;
            match self.leaves.next().await? {
                Ok(leaf) => self.leaf = Some(leaf),
                // It has been reported when the tree was walked.
                Err(_) => self.broken = true,
            }
        }
    }
}

/// Joins equal differences of neighbouring blocks.
struct Differences<'a> {
    area: Area,
    problems: &'a mut Problems,
    current: Option<(u64, u64, u32, u32)>,
}

impl Differences<'_> {
    fn push(&mut self, block: u64, found: u32, said: u32) {
        match &mut self.current {
            Some((begin, length, f, s))
                if *begin + *length == block && (*f, *s) == (found, said) =>
            {
                *length += 1;
            }
            _ => {
                self.flush();
                self.current = Some((block, 1, found, said));
            }
        }
    }

    fn flush(&mut self) {
        if let Some((begin, length, found, said)) = self.current.take() {
            self.problems.push(Problem::Count {
                area: self.area,
                begin,
                length,
                found,
                said,
            });
        }
    }
}

/// Compares. `counts` may be incomplete: then only the bitmaps' readability is checked.
pub(super) async fn compare(
    image: &Image,
    map: &Map,
    counts: &Tally,
    complete: bool,
    problems: &mut Problems,
) {
    let area = map.area;
    let mut large = Large {
        leaves: image.leaves::<u32>(map.root.ref_count_root),
        leaf: None,
        next: 0,
        broken: false,
    };
    let mut allocated = 0;
    let mut readable = true;
    for (i, entry) in (0..).zip(&map.index) {
        let bytes = match image.block(entry.blocknr, &BITMAP).await {
            Ok(bytes) => bytes,
            Err(error) => {
                problems.push(Problem::SpaceMap { area, error });
                readable = false;
                continue;
            }
        };
        if !counts.any_in_bitmap(i) && bytes.iter().skip(16).all(|byte| *byte == 0) {
            continue;
        }
        let mut differences = Differences {
            area,
            problems,
            current: None,
        };
        let base = i * ENTRIES_PER_BITMAP;
        let mut missing = None;
        for e in 0..ENTRIES_PER_BITMAP {
            let block = base + e;
            let mut said = stored(&bytes, e);
            if said == 3 {
                while large.peek().await.is_some_and(|(key, _)| key < block) {
                    large.next += 1;
                }
                said = match large.peek().await {
                    Some((key, count)) if key == block => count,
                    _ if large.broken => continue,
                    _ => {
                        missing.get_or_insert(block);
                        3
                    }
                };
            }
            allocated += u64::from(said > 0);
            let found = counts.get(block);
            if found != said && complete {
                differences.push(block, found, said);
            }
        }
        differences.flush();
        if let Some(block) = missing {
            let error = Error::BadCount { block };
            problems.push(Problem::SpaceMap { area, error });
        }
    }
    if readable && allocated != map.root.nr_allocated {
        problems.push(Problem::Allocated {
            area,
            found: allocated,
            said: map.root.nr_allocated,
        });
    }
}
