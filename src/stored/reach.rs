//! [`reachable`]: the blobs that captures need.

use std::collections::HashSet;

use crate::{
    BlobStore, Digest256, Error, Result, Until,
    manifest::{Walked, parse},
    store::{fetch, read_manifest},
};

/// Returns all blobs that these captures need, including their manifests: those that a collection
/// must keep, and that a copy must have.
///
/// For chunked captures it reads the lists, but no memory.
///
/// ```no_run
/// use criu_rpc::{Digest256, FsBlobStore, stored::reachable};
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
pub(super) fn walk(
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        MemBlobStore, ProcsBlob,
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
