#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| criu_rpc::fuzz::sealed(bytes));
