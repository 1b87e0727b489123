//! Many images at random, without a fuzzer.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    /// The promises of [`fuzz::ploop_image`] hold.
    #[test]
    fn images(flags in prop::collection::vec(0..2u8, 4), rest in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz::ploop_image::run(&[flags, rest].concat());
    }
}
