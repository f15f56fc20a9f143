//! Captures in stores of pf-core's: the adapter, whole. Its `main.rs` shows it at work, its tests
//! hold it to the contract.

use std::fmt;

use criu_rpc::{BlobStore, Digest256, Error, Result};
use pf_core::cas;

/// Any store of pf-core's, as a store of captures.
///
/// Its trait has whole blobs only, so the defaults stream: a blob that is written or read is in
/// memory once.
pub struct PfStore<S>(pub S);

impl<S: cas::BlobStore> BlobStore for PfStore<S> {
    fn put(&self, bytes: &[u8]) -> Result<Digest256> {
        ours(&self.0.put(bytes).map_err(|error| failed("put a blob", error))?)
    }

    fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
        // pf-core has no error for a blob that is not there, so it is asked for first. What fails
        // behind that is a blob that is there and damaged, or a store that cannot.
        if !self.contains(digest)? {
            return Err(Error::Missing { digest: *digest });
        }
        let bytes = self.0.get(&theirs(digest)?).map_err(|error| match error {
            pf_core::Error::Integrity(problem) => Error::corrupt(format!("blob {digest}"), problem),
            other => failed("get a blob", other),
        })?;
        // Not every store of pf-core's verifies.
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
