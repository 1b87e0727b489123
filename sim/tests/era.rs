//! The simulator finds nothing wrong with era, and is able to find something.

use sim::era::{Options, run};

/// Crashes and faults at random moments: no write is ever missed, hardly any is reported that was not
/// tried, and the metadata is sound.
#[test]
fn era_survives_crashes() {
    for seed in 1..=300 {
        assert_eq!(run(seed, Options::default()).err(), None, "seed {seed}");
    }
}

/// A disk that acknowledges flushes without doing them is found out: the checks can fail.
#[test]
fn a_lying_disk_is_noticed() {
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
