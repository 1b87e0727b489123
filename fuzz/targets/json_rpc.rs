//! See [`fuzz::json_rpc`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::json_rpc::run(data));
