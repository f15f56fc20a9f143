//! Entry points for the fuzzers in `fuzz/`: one for each parser of untrusted bytes. Compiled only
//! with `--cfg fuzzing`, and not part of the API.
//!
//! Each takes any bytes. An error is fine; a panic, a hang or unbounded memory is a bug.

#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
};

use crate::{
    Digest256, MemBlobStore, ProcsBlob, Request, Result,
    archive::{self, Limits},
    diagnose,
    image::{ImageDir, MemoryIn, check_complete, check_version, shared_keys},
    manifest::{Leaf, Listing, MemoryMap},
    pages::{PageOwner, PageRun, PageSink, PageSize},
    rpc::receive_pages,
    stored::reachable,
};

/// Parses a packet of criu's.
pub fn rpc(bytes: &[u8]) {
    crate::rpc::fuzz_packet(bytes);
}

/// Parses criu's log and standard error.
pub fn log(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for stamped in [None, Some(false), Some(true)] {
        let mut known = diagnose::OutputContext::new(stamped);
        diagnose::starts(&text).into_iter().take(8).for_each(|start| known.start(start));
        let output = diagnose::Output::parse_with(&text, &known);
        for request in [Request::Dump, Request::Restore] {
            diagnose::cause(request, None, output.telling());
        }
    }
    diagnose::interrupted(&text);
    text.lines().for_each(|line| assert!(diagnose::message(line).len() <= line.len()));
}

/// Unpacks an archive of version 1.
pub fn archive(bytes: &[u8]) {
    let folder = Folder::new();
    let limits = Limits { entries: 1000, bytes: 1 << 20 };
    let into = folder.0.join("into");
    fs::create_dir(&into).unwrap();
    let _ = archive::unpack(bytes, &into, &limits);
    let outside = fs::read_dir(&folder.0).unwrap().count();
    assert_eq!(outside, 1, "something was written outside");
}

/// Reads a manifest, and looks for its blobs in a store that lacks them. A manifest that was read
/// must survive writing and reading.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = ProcsBlob::from_json(bytes) {
        let json = manifest.to_json();
        assert_eq!(ProcsBlob::from_json(&json).unwrap().to_json(), json);
    }
    let store = MemBlobStore::new();
    let digest = crate::BlobStore::put(&store, bytes).unwrap();
    let _ = reachable(&store, &[digest]);
}

/// Reads a listing.
pub fn listing(bytes: &[u8]) {
    if let Ok(listing) = Listing::from_json(bytes, archive::is_image) {
        assert!(Listing::from_json(&listing.to_json(), archive::is_image).is_ok());
    }
}

/// Reads a map of memory, and a leaf. Each must survive writing and reading.
pub fn map(bytes: &[u8]) {
    if let Ok(map) = MemoryMap::decode(bytes) {
        let bytes = map.encode();
        assert_eq!(MemoryMap::decode(&bytes).unwrap().encode(), bytes);
        map.bytes();
    }
    for chunks in [1, 2, 64] {
        if let Ok(leaf) = Leaf::decode(bytes, chunks) {
            assert_eq!(leaf.encode(), bytes);
        }
    }
}

/// Parses text that may be a digest.
pub fn digest(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(digest) = text.parse::<Digest256>() {
        assert_eq!(digest.to_string(), text);
    }
}

/// Reads the images of a tree. The input has, for each file, a byte that chooses the name, the
/// length in two bytes, and the contents.
pub fn images(mut bytes: &[u8]) {
    let folder = Folder::new();
    while let Some(([name, low, high], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let name = IMAGES[usize::from(*name) % IMAGES.len()];
        fs::write(folder.0.join(name), &rest[..length]).unwrap();
        bytes = &rest[length..];
    }
    let images = ImageDir::new(&folder.0);
    let _ = check_version(&images, Request::Restore);
    let page_size = PageSize::new(4096).unwrap();
    let _ = check_complete(&images, MemoryIn::Folder, page_size);
    let _ = (images.processes(), images.notes(), images.named_files(), images.external_files());
    let _ = (images.opened(), images.locks(), images.process_locks(), images.channels());
    let _ = (images.link_remaps(), images.missed(), images.missed_beyond_restore());
    let _ = (images.beyond_restore(), images.never_restored(), images.files_of_other_processes());
    let _ = (images.owners(), images.own_terminals(), images.repeating_threads(), images.stopped());
    let _ = (
        images.interrupted_threads(),
        images.frozen(),
        images.restored(),
        images.paths(),
        images.led_out(&[]),
    );
    let _ = shared_keys(std::slice::from_ref(&images));
    let _ = images.feed(page_size, &mut Nothing);
    // These edit the images.
    let _ = (images.join_inner_terminals(), images.part_leaked_masters(), images.order_sockets());
    let _ = (images.cut_terminal_data(), images.hold_unsent(), images.repeat_calls());
}

/// The names of images, with the pids of the seed: a dump of two processes.
const IMAGES: [&str; 28] = [
    "inventory.img",
    "pstree.img",
    "files.img",
    "core-7940.img",
    "core-7955.img",
    "mm-7940.img",
    "mm-7955.img",
    "fdinfo-2.img",
    "fdinfo-3.img",
    "fs-7940.img",
    "fs-7955.img",
    "ids-7940.img",
    "ids-7955.img",
    "pagemap-7940.img",
    "pagemap-7955.img",
    "tty-info.img",
    "pipes-data.img",
    "fifo-data.img",
    "sk-queues.img",
    "tcp-stream-1f99835.img",
    "tcp-stream-1f99836.img",
    "filelocks.img",
    "remap-fpath.img",
    "ghost-file-1.img",
    "pages-1.img",
    "stats-dump",
    "stats-restore",
    "pagemap-shmem-1.img",
];

/// Receives criu's stream of memory.
pub fn pages(bytes: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = theirs.write_all(bytes);
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        let _ = receive_pages(&ours, &mut Nothing);
        drop(ours);
    });
}

/// Reads a pack: frames, plain and compressed.
pub fn pack(bytes: &[u8]) {
    crate::store::fuzz::pack(bytes);
}

/// Reads encrypted frames and blobs, damaged or with any contents.
#[cfg(feature = "encryption")]
pub fn sealed(bytes: &[u8]) {
    crate::store::fuzz::sealed(bytes);
}

/// Answers requests of the kernel to the file system of images.
pub fn fuse(bytes: &[u8]) {
    crate::serve::fuzz_requests(bytes);
}

/// Reads all memory that arrives, and discards it.
struct Nothing;

impl PageSink for Nothing {
    fn open(&mut self, _: PageOwner) -> Result<()> {
        Ok(())
    }

    fn run(&mut self, _: PageRun, memory: &mut dyn Read) -> Result<()> {
        let _ = std::io::copy(memory, &mut std::io::sink());
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A temporary folder, which is removed when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let base = ["/dev/shm", "/tmp"].into_iter().find(|base| fs::metadata(base).is_ok()).unwrap();
        let folder = PathBuf::from(format!("{base}/criu-rpc-fuzz-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
