//! The simulator finds nothing wrong with snapshots, and is able to find something.

use sim::snapshot::{Options, run};

/// Crashes and faults at random moments: the origin, its snapshots and what is being merged hold what they
/// must, and the stores are sound.
#[test]
fn snapshots_survive_crashes() {
    for seed in 1..=200 {
        assert_eq!(run(seed, Options::default()).err(), None, "seed {seed}");
    }
}

/// A merge whose exceptions the device may have forgotten although it said no: writes to them must not be
/// let through to the COW device, and the merge must be able to go on.
#[test]
fn a_merge_that_fails_at_the_last_step() {
    assert_eq!(run(343, Options::default()).err(), None);
}

/// Disks that acknowledge flushes without doing them are found out: the checks can fail.
#[test]
fn lying_disks_are_noticed() {
    let lying = Options {
        lost_flush: 2,
        ..Options::default()
    };
    let noticed = (1..=40).filter(|seed| run(*seed, lying).is_err()).count();
    assert!(noticed > 20, "only {noticed} of 40 seeds noticed");
}

/// The same seed does the same.
#[test]
fn a_seed_replays() {
    assert_eq!(run(7, Options::default()), run(7, Options::default()));
}
