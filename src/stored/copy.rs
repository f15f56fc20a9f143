//! [`copy_capture`]: copies a capture to another store.

use std::io::{self, Read, Write};

use super::reach::walk;
use crate::{
    BlobStore, Digest256, Error, Result, Until,
    digest::Hasher,
    manifest::{Walked, parse},
    store::{fetch, read_manifest},
    wiped::Wiped,
};

/// Copies the blobs of a capture that another store lacks, and returns the number of copied bytes.
/// Every byte is verified on the way; the manifest comes last.
///
/// ```no_run
/// use criu_rpc::{FsBlobStore, MemBlobStore, stored::copy_capture};
///
/// # let digest = criu_rpc::Digest256::of(b"");
/// let (here, there) = (FsBlobStore::open("captures")?, FsBlobStore::open("/mnt/captures")?);
/// copy_capture(&here, &there, &digest)?;
/// # Ok::<(), criu_rpc::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Missing`] or [`Error::Corrupt`] if the capture is incomplete; errors of the stores.
/// Blobs that were copied before may stay.
pub fn copy_capture(
    from: &(impl BlobStore + ?Sized),
    to: &(impl BlobStore + ?Sized),
    digest: &Digest256,
) -> Result<u64> {
    copy_capture_until(from, to, digest, &Until::forever())
}

/// Copies as [`copy_capture`] does, within the limit of `until`.
///
/// # Errors
///
/// As [`copy_capture`]; [`Error::Overdue`] or [`Error::Stopped`] if it stopped. Blobs that were
/// copied before may stay.
pub fn copy_capture_until(
    from: &(impl BlobStore + ?Sized),
    to: &(impl BlobStore + ?Sized),
    digest: &Digest256,
    until: &Until,
) -> Result<u64> {
    let copying = || format!("copy the capture {digest}");
    let json = read_manifest(from, digest)?;
    let manifest = parse(digest, &json)?;
    let batch = to.batch_until(until)?;
    let mut bytes = 0;
    let opaque = manifest.opaque();
    for digest in &opaque {
        bytes += copy_large(from, to, digest, until)?;
    }
    let (mut seen, mut wanted) = (opaque, Vec::new());
    walk(from, digest, until, &mut Walked::default(), &mut |digest| {
        if seen.insert(*digest) {
            wanted.push(*digest);
        }
    })?;
    for some in wanted[1..].chunks(AT_ONCE) {
        let missing = to.missing(some)?;
        fetch(from, &missing, &mut |place, blob| {
            until.check(copying)?;
            bytes += batch.put(&[(missing[place], blob)])?;
            Ok(())
        })?;
    }
    bytes += batch.put(&[(*digest, &json)])?;
    until.check(copying)?;
    batch.commit()?;
    Ok(bytes)
}

/// The number of blobs in one request.
const AT_ONCE: usize = 4096;

/// Copies a blob of any length, unless the target has it.
fn copy_large(
    from: &(impl BlobStore + ?Sized),
    to: &(impl BlobStore + ?Sized),
    digest: &Digest256,
    until: &Until,
) -> Result<u64> {
    if to.contains(digest)? {
        return Ok(0);
    }
    let copying = || Error::io(format!("copy the blob {digest}"));
    let (mut reader, mut writer) = (from.reader(digest)?, to.writer()?);
    let (mut hasher, mut buffer, mut bytes) = (Hasher::new(), Wiped::zeroed(1 << 20), 0);
    loop {
        until.check(|| format!("copy the blob {digest}"))?;
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
