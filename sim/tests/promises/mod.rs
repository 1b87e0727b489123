//! What runs of every simulated target must show.

use sim::course::Options;
use sim::executor::Coverage;

/// Runs a seed of a target.
pub type Run = fn(u64, Options) -> Result<Coverage, String>;

/// Nothing is wrong with any of these seeds.
pub fn survives(run: Run, seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        assert_eq!(run(seed, Options::default()).err(), None, "seed {seed}");
    }
}

/// Disks that acknowledge flushes without doing them are found out: the checks can fail.
pub fn notices_lying_disks(run: Run) {
    let lying = Options {
        lost_flush: 2,
        ..Options::default()
    };
    let noticed = (1..=40).filter(|seed| run(*seed, lying).is_err()).count();
    assert!(noticed > 20, "only {noticed} of 40 seeds noticed");
}

/// The same seed does the same.
pub fn replays(run: Run) {
    assert_eq!(run(7, Options::default()), run(7, Options::default()));
}
