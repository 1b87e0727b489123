//! See [`fuzz::ploop_image`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::ploop_image::run(data));
