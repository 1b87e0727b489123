//! The simulator finds nothing wrong with thin, and is able to find something.

mod promises;

use promises::{notices_lying_disks, replays, survives};
use sim::thin::run;

/// Crashes and faults at random moments lose nothing that was flushed, show nothing foreign, and leave
/// metadata that the strict check accepts.
#[test]
fn thin_survives_crashes() {
    survives(run, 1..=150);
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
