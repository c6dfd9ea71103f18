#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmcp_session_fuzz::dispatcher::check(data));
