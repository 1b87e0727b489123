//! The simulator finds nothing wrong with ploop, and is able to find something.

use sim::ploop::{Options, run};

/// Crashes and faults at random moments, while the chain changes, merges, grows, is tracked and backed up:
/// the device holds what it must, and the images are sound.
#[test]
fn ploop_survives_crashes() {
    for seed in 1..=200 {
        assert_eq!(run(seed, Options::default()).err(), None, "seed {seed}");
    }
}

/// A merge that is cancelled while clusters are copied: none of them is given out twice.
#[test]
fn a_cancelled_merge_leaves_nothing_behind() {
    assert_eq!(run(286, Options::default()).err(), None);
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
