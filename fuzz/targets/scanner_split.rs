#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| tower_ws_liveness_fuzz::scanner::split(data));
