//! The simulator finds nothing wrong with snapshots, and is able to find something.

mod promises;

use promises::{notices_lying_disks, replays, survives};
use sim::snapshot::run;

/// Crashes and faults at random moments: the origin, its snapshots and what is being merged hold what they
/// must, and the stores are sound.
#[test]
fn snapshots_survive_crashes() {
    survives(run, 1..=200);
}

/// A merge whose exceptions the device may have forgotten although it said no: writes to them must not be
/// let through to the COW device, and the merge must be able to go on.
#[test]
fn a_merge_that_fails_at_the_last_step() {
    survives(run, [343]);
}

/// Disks that acknowledge flushes without doing them are found out: the checks can fail.
#[test]
fn lying_disks_are_noticed() {
    notices_lying_disks(run);
}

/// The same seed does the same.
#[test]
fn a_seed_replays() {
    replays(run);
}
