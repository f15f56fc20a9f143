//! Finds the blobs that captures need, and copies captures to another store.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
};

use super::{BlobStore, fetch};
use crate::{
    Digest256, Error, ProcsBlob, Result, Until,
    digest::Hasher,
    manifest::{Walked, parse},
    wiped::Wiped,
};

/// Returns all blobs that these captures need, including their manifests: those that a collection
/// must keep, and that a copy must have.
///
/// For chunked captures it reads the lists, but no memory.
///
/// ```no_run
/// use criu_rpc::{Digest256, FsBlobStore, store::reachable};
///
/// # fn captures() -> Vec<Digest256> { vec![] }
/// let store = FsBlobStore::open("captures")?;
/// println!("{} blobs are in use", reachable(&store, &captures())?.len());
/// # Ok::<(), criu_rpc::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Capture`] for the first capture that cannot be read completely. Its source is
/// [`Error::Missing`], [`Error::Corrupt`], [`Error::UnknownKind`] (for a newer version's capture)
/// or an error of the store.
pub fn reachable(store: &(impl BlobStore + ?Sized), manifests: &[Digest256]) -> Result<HashSet<Digest256>> {
    reachable_until(store, manifests, &Until::forever())
}

/// Finds blobs as [`reachable`] does, within the limit of `until`.
///
/// # Errors
///
/// As [`reachable`]; [`Error::Overdue`] or [`Error::Stopped`] if it stopped.
pub fn reachable_until(
    store: &(impl BlobStore + ?Sized),
    manifests: &[Digest256],
    until: &Until,
) -> Result<HashSet<Digest256>> {
    let (mut blobs, mut walked) = (HashSet::new(), Walked::default());
    for capture in manifests {
        walk(store, capture, until, &mut walked, &mut |digest| _ = blobs.insert(*digest)).map_err(
            |source| match source {
                Error::Overdue { .. } | Error::Stopped { .. } => source,
                _ => Error::Capture { capture: *capture, source: Box::new(source) },
            },
        )?;
    }
    Ok(blobs)
}

/// Visits the blobs of a capture: the manifest first, and neighbouring blobs together.
fn walk(
    store: &(impl BlobStore + ?Sized),
    manifest: &Digest256,
    until: &Until,
    walked: &mut Walked,
    name: &mut dyn FnMut(&Digest256),
) -> Result<()> {
    name(manifest);
    let reading = || format!("read the lists of the capture {manifest}");
    until.check(reading)?;
    let blob = parse(manifest, &read_manifest(store, manifest)?)?;
    let get = |digests: &[Digest256], each: &mut dyn FnMut(usize, &[u8]) -> Result<()>| {
        until.check(reading)?;
        fetch(store, digests, each)
    };
    blob.blobs(&get, walked, name)
}

/// Reads and verifies a manifest. Reading stops at a blob that is too long for a manifest.
pub(super) fn read_manifest(store: &(impl BlobStore + ?Sized), digest: &Digest256) -> Result<Vec<u8>> {
    let json = store.read_range(digest, 0, ProcsBlob::CEILING + 1)?;
    if json.len() > ProcsBlob::CEILING {
        let problem = format!("it has more than {} bytes", ProcsBlob::CEILING);
        return Err(Error::corrupt(format!("the manifest {digest}"), problem));
    }
    // If these bytes are damaged, the store may have another copy.
    if Digest256::of(&json) == *digest { Ok(json) } else { store.get(digest) }
}

/// Copies the blobs of a capture that another store lacks, and returns the number of copied bytes.
/// Every byte is verified on the way; the manifest comes last.
///
/// ```no_run
/// use criu_rpc::{FsBlobStore, MemBlobStore, store::copy_capture};
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        MemBlobStore,
        manifest::{
            ChunkedBlob, ChunkedTree, Content, ContentWriter, Host, ImageFile, Leaf, Listing, MemoryFile,
            MemoryMap,
        },
        pages::{PageRun, PageSize},
    };

    /// Stores the smallest possible capture, with these files among its images: its manifest, one
    /// leaf, and one chunk.
    fn capture(store: &MemBlobStore, seed: u8, files: Vec<ImageFile>) -> [Digest256; 3] {
        let put = &mut |bytes: &[u8]| store.put(bytes);
        let chunk = put(&[seed; 4096]).unwrap();
        let leaf = put(&Leaf(vec![Some(chunk)]).encode()).unwrap();
        let page_size = PageSize::SMALLEST;
        let runs = vec![PageRun::new(page_size, 4096 * 64, 1, 4).unwrap()];
        let map =
            Content::of(&MemoryMap { page_size, chunk: 1, runs, leaves: vec![leaf] }.encode(), put).unwrap();
        let memory = vec![MemoryFile { name: "pagemap-7.img".into(), map }];
        let listing = Listing { packed: ContentWriter::new().finish(put).unwrap(), files, memory };
        let image_bytes = listing.files.iter().map(|file| file.bytes).sum();
        let images = Content::of(&listing.to_json(), put).unwrap();
        let manifest = ProcsBlob::Chunked(Box::new(ChunkedBlob {
            pids: vec![7.into()],
            trees: vec![ChunkedTree { root: 7.into(), images, image_bytes, memory_bytes: 4096 }],
            host: Host::default(),
            taken: u64::from(seed),
            frozen_us: None,
            parent: None,
            labels: BTreeMap::new(),
            attached: BTreeMap::new(),
        }));
        [put(&manifest.to_json()).unwrap(), leaf, chunk]
    }

    #[test]
    fn no_capture_hides_what_another_needs() {
        for place in [0, 1] {
            let store = MemBlobStore::new();
            let mine = capture(&store, 1, vec![]);
            // The manifest or the leaf is a file of another capture.
            let content = Some(Content { bytes: 5, depth: 0, digest: mine[place] });
            let other = capture(&store, 2, vec![ImageFile { name: "files.img".into(), bytes: 5, content }]);
            for order in [[mine[0], other[0]], [other[0], mine[0]]] {
                let all = reachable(&store, &order).unwrap();
                assert!(
                    [mine, other].iter().flatten().all(|digest| all.contains(digest)),
                    "{place} {order:?}"
                );
            }
        }
    }
}
