//! See [`fuzz::era_metadata`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::era_metadata::run(data));
