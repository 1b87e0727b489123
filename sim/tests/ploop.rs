//! The simulator finds nothing wrong with ploop, and is able to find something.

mod promises;

use promises::{notices_lying_disks, replays, survives};
use sim::ploop::run;

/// Crashes and faults at random moments, while the chain changes, merges, grows, is tracked and backed up:
/// the device holds what it must, and the images are sound.
#[test]
fn ploop_survives_crashes() {
    survives(run, 1..=200);
}

/// A merge that is cancelled while clusters are copied: none of them is given out twice.
#[test]
fn a_cancelled_merge_leaves_nothing_behind() {
    survives(run, [286]);
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
