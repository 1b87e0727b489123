//! See [`fuzz::thin_metadata`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::thin_metadata::run(data));
