//! See [`fuzz::persistent_data`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::persistent_data::run(data));
