//! The simulator finds nothing wrong with thin, and is able to find something.

/// Crashes at random moments lose nothing that was flushed, show nothing foreign, and leave metadata
/// that the strict check accepts.
#[test]
fn thin_survives_crashes() {
    for seed in 1..=60 {
        assert_eq!(sim::thin::run(seed, 0).err(), None, "seed {seed}");
    }
}

/// A disk that acknowledges flushes without doing them is found out: the checks can fail.
#[test]
fn a_lying_disk_is_noticed() {
    let noticed = (1..=40)
        .filter(|seed| sim::thin::run(*seed, 2).is_err())
        .count();
    assert!(noticed > 20, "only {noticed} of 40 seeds noticed");
}

/// The same seed does the same.
#[test]
fn a_seed_replays() {
    assert_eq!(sim::thin::run(7, 0), sim::thin::run(7, 0));
}
