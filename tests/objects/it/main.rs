//! [`ObjectBlobStore`](criu_rpc::ObjectBlobStore) against the test stores of `object_store`, a real
//! S3-compatible server that is killed and restarted, and hostile servers. The tests use only
//! loopback addresses.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod attacked;
mod backends;
mod collected;
mod encrypted;
mod hostile;
mod killed;
mod s3;

/// Returns bytes that depend on length and seed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = (seed << 32 | length as u64 | 1 << 63).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; length.next_multiple_of(8)];
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
