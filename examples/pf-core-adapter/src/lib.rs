//! A complete adapter for captures in pf-core's stores. `main.rs` shows it at work, and the tests
//! hold it to the contract.

use std::fmt;

use criu_rpc::{BlobStore, Digest256, Error, Result};
use pf_core::cas;

/// Makes any store of pf-core a store of captures.
///
/// pf-core's trait has only whole blobs, so the default streaming methods apply: each blob that is
/// written or read is in memory once.
pub struct PfStore<S>(pub S);

impl<S: cas::BlobStore> BlobStore for PfStore<S> {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        ours(&self.0.put(bytes).map_err(|error| failed("put a blob", error))?)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        // pf-core has no error for a missing blob, so the store is asked first. A failure after
        // that means that the blob is damaged, or that the store cannot read.
        if !self.contains(digest)? {
            return Err(Error::missing(digest));
        }
        let bytes = self.0.get(&theirs(digest)?).map_err(|error| match error {
            pf_core::Error::Integrity(problem) => Error::corrupt(format!("blob {digest}"), problem),
            other => failed("get a blob", other),
        })?;
        // Some stores of pf-core do not verify.
        if Digest256::of(&bytes) != *digest {
            let problem = "its bytes have another digest".to_owned();
            return Err(Error::corrupt(format!("blob {digest}"), problem));
        }
        Ok(bytes)
    }

    fn contains(&self, digest: &Digest256) -> Result<bool> {
        self.0.contains(&theirs(digest)?).map_err(|error| failed("look for a blob", error))
    }
}

impl<S> fmt::Debug for PfStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PfStore(..)")
    }
}

/// Both write a digest as `sha256:` and 64 digits.
fn theirs(digest: &Digest256) -> Result<pf_core::digest::Digest256> {
    pf_core::digest::Digest256::parse(&digest.to_string()).map_err(|error| failed("take a digest", error))
}

fn ours(digest: &pf_core::digest::Digest256) -> Result<Digest256> {
    digest.as_str().parse().map_err(|error| failed("give a digest", error))
}

fn failed(doing: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::store(doing, error)
}
