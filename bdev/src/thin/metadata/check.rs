//! A strict check of a pool's metadata (thin.md 12): structure, details against mappings, and every
//! reference count of the metadata and data devices. It never writes.
//!
//! Each block is read once, whatever is damaged; memory is a byte per block that is referred to and a
//! few words per node.

use super::counts::{compare, survey_data_map, survey_metadata_map};
use super::image::{Image, View, unpack};
use super::problem::{Area, Owner, Problem, Problems, Severity};
use super::refs::Details;
use super::superblock::{SUPERBLOCK, Superblock};
use super::survey::Survey;
use super::tally::Tally;
use super::{ThinError, ThinMetadata};
use persistent_data::Error;
use persistent_data::btree::Value;
use persistent_data::check::Finding;
use persistent_data::device::BlockDevice;
use persistent_data::tm::write_superblock;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckOptions {
    /// Which state. Of a metadata snapshot only the trees are checked.
    pub view: View,
    /// Problems that are kept in the report; all are counted.
    pub keep_problems: usize,
    /// Do not enter the devices' mappings, and so check no counts.
    pub skip_mappings: bool,
}

impl Default for CheckOptions {
    fn default() -> Self {
        CheckOptions {
            view: View::Current,
            keep_problems: 1000,
            skip_mappings: false,
        }
    }
}

/// What a check found.
#[derive(Debug, Default)]
pub struct CheckReport {
    /// The superblock, where it is readable.
    pub superblock: Option<Superblock>,
    /// The first problems.
    pub problems: Vec<Problem>,
    /// Problems that do no harm.
    pub nr_warnings: u64,
    /// Runs of blocks that are lost to use.
    pub nr_leaks: u64,
    /// Problems that make the pool unsafe to use.
    pub nr_damages: u64,
    /// Thin devices.
    pub nr_devices: u64,
    /// Mappings of all devices together, shared ones once per device.
    pub nr_mappings: u64,
    /// Data blocks that are referred to.
    pub nr_data_used: u64,
    /// Metadata blocks that are referred to.
    pub nr_metadata_used: u64,
    /// Counts were not compared, because of damage or because nobody wanted it.
    pub counts_unchecked: bool,
}

/// Checks a pool's metadata.
pub async fn check(image: &Image, options: CheckOptions) -> CheckReport {
    let mut problems = Problems::new(options.keep_problems);
    let mut report = CheckReport::default();
    match image.superblock(options.view).await {
        Ok(sb) => {
            report.superblock = Some(sb);
            check_pool(image, options, &sb, &mut problems, &mut report).await;
        }
        Err(error) => {
            report.counts_unchecked = true;
            problems.push(Problem::Superblock {
                block: 0,
                what: error.to_string(),
            });
        }
    }
    report.nr_warnings = problems.counts[0];
    report.nr_leaks = problems.counts[1];
    report.nr_damages = problems.counts[2];
    report.problems = problems.kept;
    report
}

async fn check_pool(
    image: &Image,
    options: CheckOptions,
    sb: &Superblock,
    problems: &mut Problems,
    report: &mut CheckReport,
) {
    let mut survey = Survey::default();
    let mut data = DataCounts {
        counts: Tally::default(),
        // The superblock of a metadata snapshot does not say.
        nr_blocks: match options.view {
            View::Current => sb.data_map.nr_blocks,
            View::Snapshot | View::SnapshotAt(_) => u64::MAX,
        },
        outside: Vec::new(),
        keep: options.keep_problems,
    };
    let live = options.view == View::Current;
    survey.counts.add(0);
    let devices = check_devices(image, options, sb, &mut survey, &mut data, problems).await;
    report.nr_devices = devices.nr;
    report.nr_mappings = devices.nr_mappings;
    if live && sb.held_root != 0 {
        survey.counts.add(sb.held_root);
        match image.superblock(View::SnapshotAt(sb.held_root)).await {
            Ok(held) => {
                check_devices(image, options, &held, &mut survey, &mut data, problems).await;
            }
            Err(error) => {
                survey.incomplete = true;
                problems.push(Problem::Superblock {
                    block: sb.held_root,
                    what: format!("the metadata snapshot: {error}"),
                });
            }
        }
    }
    if live {
        let data_map = survey_data_map(image, &sb.data_map, &mut survey, problems).await;
        let metadata_map =
            survey_metadata_map(image, &sb.metadata_map, &mut survey, problems).await;
        let complete = !survey.incomplete && !options.skip_mappings;
        report.counts_unchecked = !complete;
        if let Some(map) = metadata_map {
            compare(image, &map, &survey.counts, complete, problems).await;
        }
        if let Some(map) = data_map {
            compare(image, &map, &data.counts, complete, problems).await;
        }
        data.outside.sort_unstable();
        data.outside.dedup();
        outside(Area::Data, data.outside, problems);
        let beyond = survey.counts.counted_from(sb.metadata_map.nr_blocks);
        let beyond = beyond.map(|(block, _)| block).collect();
        outside(Area::Metadata, beyond, problems);
    } else {
        report.counts_unchecked = true;
    }
    report.nr_data_used = data.counts.nr_counted();
    report.nr_metadata_used = survey.counts.nr_counted();
}

/// Blocks that are referred to beyond the end of the device.
fn outside(area: Area, blocks: Vec<u64>, problems: &mut Problems) {
    let mut run: Option<(u64, u64)> = None;
    for block in blocks {
        match &mut run {
            Some((begin, length)) if *begin + *length == block => *length += 1,
            _ => {
                if let Some((begin, length)) = run.replace((block, 1)) {
                    problems.push(Problem::Outside {
                        area,
                        begin,
                        length,
                    });
                }
            }
        }
    }
    if let Some((begin, length)) = run {
        problems.push(Problem::Outside {
            area,
            begin,
            length,
        });
    }
}

#[derive(Default)]
struct Devices {
    nr: u64,
    nr_mappings: u64,
}

/// References to data blocks.
struct DataCounts {
    counts: Tally,
    nr_blocks: u64,
    outside: Vec<u64>,
    keep: usize,
}

impl DataCounts {
    fn add(&mut self, block: u64) {
        if block < self.nr_blocks {
            self.counts.add(block);
        } else if self.outside.len() < self.keep {
            self.outside.push(block);
        }
    }
}

async fn check_devices(
    image: &Image,
    options: CheckOptions,
    sb: &Superblock,
    survey: &mut Survey,
    data: &mut DataCounts,
    problems: &mut Problems,
) -> Devices {
    // The trees may have been walked before, as those of a metadata snapshot: then the survey does not
    // show their entries again.
    let details = readable::<Details>(image, sb.details_root).await;
    let roots = readable::<u64>(image, sb.mapping_root).await;
    let mut entered = Vec::new();
    let whole_details = survey
        .walk::<Details>(image, sb.details_root, Owner::Details, problems, |_| {})
        .await
        .complete;
    let whole_roots = survey
        .walk::<u64>(image, sb.mapping_root, Owner::Devices, problems, |leaf| {
            entered.extend(leaf.entries::<u64>());
        })
        .await
        .complete;
    if !options.skip_mappings {
        for (id, root) in entered {
            survey
                .walk::<u64>(image, root, Owner::Mappings(id), problems, |leaf| {
                    for (block, value) in leaf.entries::<u64>() {
                        data.add(unpack(block, value).data_block);
                    }
                })
                .await;
        }
    }
    let mut found = Devices::default();
    for (&id, &root) in &roots {
        found.nr += 1;
        let summary = survey.summary(root);
        found.nr_mappings += summary.entries;
        match details.get(&id) {
            Some(d) if summary.complete && d.mapped_blocks != summary.entries => {
                problems.push(Problem::Mapped {
                    id,
                    root,
                    found: summary.entries,
                    said: d.mapped_blocks,
                });
            }
            None if whole_details => problems.push(Problem::Devices {
                id,
                has_details: false,
            }),
            _ => {}
        }
    }
    for &id in details.keys().filter(|id| !roots.contains_key(id)) {
        if whole_roots {
            problems.push(Problem::Devices {
                id,
                has_details: true,
            });
        }
    }
    found
}

/// The entries of a tree as far as it can be read.
async fn readable<V: Value>(image: &Image, root: u64) -> BTreeMap<u64, V> {
    let mut found = BTreeMap::new();
    let mut leaves = image.leaves::<V>(root);
    while let Some(leaf) = leaves.next().await {
        if let Ok(leaf) = leaf {
            found.extend(leaf.entries::<V>());
        }
    }
    found
}

/// Clears the flag that a check is needed, durably; for pools that have just been found sound.
pub async fn clear_needs_check(device: Rc<dyn BlockDevice>) -> Result<(), ThinError> {
    let mut sb = Image::new(device.clone()).superblock(View::Current).await?;
    sb.needs_check = false;
    write_superblock(device.as_ref(), &SUPERBLOCK, &mut sb.to_bytes()).await?;
    Ok(())
}

impl ThinMetadata {
    /// Checks the committed state, as [`check`] does. Nothing may be uncommitted. Error: something
    /// could not be read.
    pub async fn check(&self) -> Result<Vec<Finding>, ThinError> {
        let report = check(&Image::new(self.device.clone()), CheckOptions::default()).await;
        let mut findings = Vec::new();
        for problem in report.problems {
            let what = match &problem {
                Problem::Unusable { error, .. } | Problem::SpaceMap { error, .. }
                    if !matches!(error, Error::Corrupt { .. }) =>
                {
                    return Err(error.clone().into());
                }
                Problem::Count {
                    area, found, said, ..
                } => format!("{area} block has {found} references, its count is {said}"),
                Problem::Devices { .. } => {
                    format!("details and mappings are of different devices: {problem}")
                }
                Problem::Allocated { area, found, .. } => {
                    format!("{area} space map has {found} blocks allocated, says otherwise")
                }
                _ => problem.to_string(),
            };
            findings.push(Finding {
                block: problem.block(),
                what,
                is_leak: problem.severity() == Severity::Leak,
            });
        }
        Ok(findings)
    }
}
