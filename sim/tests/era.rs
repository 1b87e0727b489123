//! The simulator finds nothing wrong with era, and is able to find something.

mod promises;

use promises::{notices_lying_disks, replays, survives};
use sim::era::run;

/// Crashes and faults at random moments: no write is ever missed, hardly any is reported that was not
/// tried, and the metadata is sound.
#[test]
fn era_survives_crashes() {
    survives(run, 1..=300);
}

/// A disk that acknowledges flushes without doing them is found out: the checks can fail.
#[test]
fn a_lying_disk_is_noticed() {
    notices_lying_disks(run);
}

/// The same seed does the same.
#[test]
fn a_seed_replays() {
    replays(run);
}
