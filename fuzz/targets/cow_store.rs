//! See [`fuzz::cow_store`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::cow_store::run(data));
