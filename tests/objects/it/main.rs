//! [`ObjectBlobStore`](criu_rpc::ObjectBlobStore) against what `object_store` has for tests, a real
//! S3-compatible server that is killed and started again, and servers that mean harm. Nothing but
//! loopback addresses is ever asked.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod attacked;
mod backends;
mod collected;
mod hostile;
mod killed;
mod s3;

/// Bytes that no other length and seed give.
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
