//! See [`fuzz::dm_lines`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::dm_lines::run(data));
