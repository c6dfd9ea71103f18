#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmcp_session_fuzz::parser::check(data));
