//! What captures need of a store, and how they move to another.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
};

use super::{BlobStore, fetch};
use crate::{Digest256, Error, Hasher, ProcsBlob, Result};

/// All blobs that these captures need, their manifests included: what garbage collection must keep, and what a copy
/// of them has to have.
///
/// Of chunked captures the lists are read, and no memory.
///
/// ```no_run
/// use criu_rpc::{Digest256, FsBlobStore, reachable};
///
/// # fn captures() -> Vec<Digest256> { vec![] }
/// let store = FsBlobStore::open("captures")?;
/// println!("{} blobs are in use", reachable(&store, &captures())?.len());
/// # Ok::<(), criu_rpc::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Capture`] for the first of them that cannot be read to the end, with [`Error::Missing`], [`Error::Corrupt`] or
/// whatever the store says in it.
pub fn reachable(store: &(impl BlobStore + ?Sized), manifests: &[Digest256]) -> Result<HashSet<Digest256>> {
    let mut blobs = HashSet::new();
    for capture in manifests {
        walk(store, capture, &mut |digest| blobs.insert(*digest))
            .map_err(|source| Error::Capture { capture: *capture, source: Box::new(source) })?;
    }
    Ok(blobs)
}

/// Shows the blobs of a capture, the manifest before what it names, and what lies together together.
fn walk(
    store: &(impl BlobStore + ?Sized),
    manifest: &Digest256,
    is_new: &mut dyn FnMut(&Digest256) -> bool,
) -> Result<()> {
    if is_new(manifest) {
        let manifest = ProcsBlob::from_json(&store.get(manifest)?)?;
        manifest.blobs(&|digests, each| fetch(store, digests, each), is_new)?;
    }
    Ok(())
}

/// Copies a capture to another store, as far as it is not there yet, and tells how many bytes that took. Every byte is
/// verified on the way; the manifest comes last.
///
/// ```no_run
/// use criu_rpc::{FsBlobStore, MemBlobStore, copy_capture};
///
/// # let digest = criu_rpc::Digest256::of(b"");
/// let (here, there) = (FsBlobStore::open("captures")?, FsBlobStore::open("/mnt/captures")?);
/// copy_capture(&here, &there, &digest)?;
/// # Ok::<(), criu_rpc::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Missing`] or [`Error::Corrupt`] if the capture is not whole; whatever the stores say. What was copied by then
/// may stay.
pub fn copy_capture(
    from: &(impl BlobStore + ?Sized),
    to: &(impl BlobStore + ?Sized),
    digest: &Digest256,
) -> Result<u64> {
    let json = from.get(digest)?;
    let manifest = ProcsBlob::from_json(&json)?;
    let batch = to.batch()?;
    let mut bytes = 0;
    if let ProcsBlob::Criu { criu_dump, .. } = &manifest {
        bytes += copy_large(from, to, criu_dump)?;
    } else {
        let (mut seen, mut wanted) = (HashSet::new(), Vec::new());
        walk(from, digest, &mut |digest| {
            let new = seen.insert(*digest);
            if new {
                wanted.push(*digest);
            }
            new
        })?;
        for some in wanted[1..].chunks(AT_ONCE) {
            let missing = to.missing(some)?;
            fetch(from, &missing, &mut |place, blob| {
                bytes += batch.put(&[(missing[place], blob)])?;
                Ok(())
            })?;
        }
    }
    bytes += batch.put(&[(*digest, &json)])?;
    batch.commit()?;
    Ok(bytes)
}

/// How many blobs are asked for at once.
const AT_ONCE: usize = 4096;

/// Copies a blob of any length, unless it is there.
fn copy_large(
    from: &(impl BlobStore + ?Sized),
    to: &(impl BlobStore + ?Sized),
    digest: &Digest256,
) -> Result<u64> {
    if to.contains(digest)? {
        return Ok(0);
    }
    let copying = || Error::io(format!("copy the blob {digest}"));
    let (mut reader, mut writer) = (from.reader(digest)?, to.writer()?);
    let (mut hasher, mut buffer, mut bytes) = (Hasher::new(), vec![0; 1 << 20], 0);
    loop {
        let count = match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(copying())?,
        };
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        writer.write_all(&buffer[..count]).map_err(copying())?;
        bytes += count as u64;
    }
    let found = hasher.finish();
    if found != *digest {
        return Err(Error::corrupt(
            format!("the blob {digest}"),
            format!("its bytes have the digest {found}"),
        ));
    }
    writer.commit(digest)?;
    Ok(bytes)
}
