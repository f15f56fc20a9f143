//! [`ProcsBlob`]: the manifest of a capture.
//!
//! This module parses and formats bytes only: stores and the archive are elsewhere. The format is
//! in `docs/formats.md`. An existing kind never changes; new contents get a new kind.

mod additions;
mod budget;
mod chunked;
mod content;
mod map;
mod reach;

use serde::{Deserialize, Serialize};

pub(crate) use self::{
    additions::Additions,
    budget::{Budget, MemoryLeft},
    chunked::{ImageFile, LISTING_CEILING, Listing, MemoryFile},
    content::ContentWriter,
    map::{Leaf, MemoryMap, WINDOW_BYTES, Window, window_pages},
    reach::Walked,
};
pub use self::{
    chunked::{ChunkedBlob, ChunkedTree, Host},
    content::Content,
};
use crate::{Digest256, Error, Pid, Result};

/// The manifest of a capture: a JSON object that is stored last, and whose digest names the whole.
///
/// ```
/// use criu_rpc::{Digest256, ProcsBlob};
///
/// let blob = ProcsBlob::Criu { criu_dump: Digest256::of(b"an archive"), pids: vec![4242.into()] };
/// let json = blob.to_json();
/// assert!(json.starts_with(br#"{"kind":"procs.criu.v1","criu_dump":"sha256:"#));
/// assert_eq!(ProcsBlob::from_json(&json)?, blob);
/// # Ok::<(), criu_rpc::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
#[non_exhaustive]
pub enum ProcsBlob {
    /// The images that criu made of one process tree or several.
    #[serde(rename = "procs.criu.v1")]
    Criu {
        /// The tar archive of the images.
        criu_dump: Digest256,
        /// The processes that the caller asked for, in its order.
        pids: Vec<Pid>,
    },

    /// The images and the memory of one process tree or several, cut into blobs.
    #[serde(rename = "procs.criu.v2")]
    Chunked(Box<ChunkedBlob>),

    /// A placeholder: nothing was captured, because the machine had no criu.
    #[serde(rename = "procs.unsupported.v1")]
    Unsupported {
        /// The system of the machine: [`std::env::consts::OS`], or `linux-no-criu`.
        unsupported_on: String,
        /// A note for users; it names the processes that were not captured.
        note: String,
    },
}

impl ProcsBlob {
    /// The maximum size of a manifest, in bytes.
    pub(crate) const CEILING: usize = 1 << 20;

    /// Returns the processes that the caller of the capture asked for; none for a placeholder.
    pub fn pids(&self) -> &[Pid] {
        match self {
            ProcsBlob::Criu { pids, .. } => pids,
            ProcsBlob::Chunked(blob) => &blob.pids,
            ProcsBlob::Unsupported { .. } => &[],
        }
    }

    /// Returns the manifest of a chunked capture, which has sizes, times, labels and the machine;
    /// `None` for other kinds.
    ///
    /// ```no_run
    /// use criu_rpc::{BlobStoreExt, FsBlobStore};
    ///
    /// # let digest = "".parse()?;
    /// let store = FsBlobStore::open("captures")?;
    /// if let Some(blob) = store.manifest(&digest)?.chunked() {
    ///     println!("{:?}: {} bytes of memory, labels {:?}", blob.taken_at(), blob.memory_bytes(), blob.labels);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn chunked(&self) -> Option<&ChunkedBlob> {
        match self {
            ProcsBlob::Chunked(blob) => Some(blob),
            ProcsBlob::Criu { .. } | ProcsBlob::Unsupported { .. } => None,
        }
    }

    /// Formats the manifest for a store. Equal manifests give equal bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("because strings, numbers and lists of them have a JSON form")
    }

    /// Parses a manifest. Unknown fields are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownKind`] for a manifest of an unknown kind, and [`Error::Corrupt`] for bytes
    /// that are not a manifest.
    ///
    /// ```
    /// use criu_rpc::{Error, ProcsBlob};
    ///
    /// let newer = ProcsBlob::from_json(br#"{"kind":"procs.criu.v9","pids":[1]}"#);
    /// assert!(matches!(newer, Err(Error::UnknownKind { kind, .. }) if kind == "procs.criu.v9"));
    ///
    /// let other = ProcsBlob::from_json(b"once upon a time");
    /// assert!(matches!(other, Err(Error::Corrupt { .. })));
    /// ```
    pub fn from_json(json: &[u8]) -> Result<ProcsBlob> {
        if json.len() > ProcsBlob::CEILING {
            return Err(corrupt(format!("it has {} bytes, more than {}", json.len(), ProcsBlob::CEILING)));
        }
        // serde would also take the fields from a list, in their order.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(corrupt("it is not a JSON object, so this blob is not a capture"));
        }
        let Kind { kind } = serde_json::from_slice(json).map_err(|error| corrupt(error.to_string()))?;
        if !KINDS.contains(&kind.as_str()) {
            return Err(Error::UnknownKind { kind });
        }
        serde_json::from_slice(json).map_err(|error| corrupt(format!("{kind}: {error}")))
    }
}

/// Parses the manifest with this digest. An error names it.
pub(crate) fn parse(digest: &Digest256, json: &[u8]) -> Result<ProcsBlob> {
    ProcsBlob::from_json(json).map_err(|error| match error {
        Error::Corrupt { problem, .. } => Error::corrupt(format!("the manifest {digest}"), problem),
        error => error,
    })
}

fn corrupt(problem: impl Into<String>) -> Error {
    Error::corrupt("the manifest", problem)
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

/// The kinds that `ProcsBlob` has variants for.
const KINDS: [&str; 3] = ["procs.criu.v1", "procs.criu.v2", "procs.unsupported.v1"];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refusal(json: &str) -> String {
        match ProcsBlob::from_json(json.as_bytes()) {
            Err(Error::Corrupt { problem, .. }) => problem,
            other => panic!("{json}: {other:?}"),
        }
    }

    #[test]
    fn unknown_fields_are_ignored_wherever_they_stand() {
        let digest = Digest256::of(b"x");
        let json =
            format!(r#" {{"pids":[2,1],"new":{{"a":[1]}},"criu_dump":"{digest}","kind":"procs.criu.v1"}}"#);
        let blob = ProcsBlob::Criu { criu_dump: digest, pids: vec![2.into(), 1.into()] };
        assert_eq!(ProcsBlob::from_json(json.as_bytes()).unwrap(), blob);
    }

    #[test]
    fn an_unknown_kind_is_refused_by_name() {
        for kind in ["procs.criu.v3", "files.v1", "", "Criu"] {
            let json = format!(r#"{{"kind":"{kind}","criu_dump":7}}"#);
            let error = ProcsBlob::from_json(json.as_bytes()).unwrap_err();
            assert!(matches!(&error, Error::UnknownKind { kind: named, .. } if named == kind), "{error}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let digest = Digest256::of(b"x");
        assert!(refusal(r#"{"pids":[]}"#).contains("missing field `kind`"));
        assert!(refusal(r#"{"kind":"procs.criu.v1","pids":[]}"#).contains("missing field `criu_dump`"));
        let missing = format!(r#"{{"kind":"procs.criu.v1","criu_dump":"{digest}"}}"#);
        assert!(refusal(&missing).contains("missing field `pids`"));
        assert!(refusal(r#"{"kind":"procs.unsupported.v1","note":""}"#).contains("`unsupported_on`"));
        assert!(
            refusal(r#"{"kind":"procs.criu.v1","criu_dump":"md5:0","pids":[]}"#).contains("not a digest")
        );
        assert!(refusal(r#"{"kind":7}"#).contains("expected a string"));
        for pids in ["7", "[\"7\"]", "[2147483648]", "[1.5]", "null"] {
            let json = format!(r#"{{"kind":"procs.criu.v1","criu_dump":"{digest}","pids":{pids}}}"#);
            assert!(refusal(&json).starts_with("procs.criu.v1: invalid"), "{}", refusal(&json));
        }
    }

    #[test]
    fn what_is_not_one_json_object_is_refused() {
        let list = format!(r#"["procs.criu.v1","{}",[1]]"#, Digest256::of(b"x"));
        for json in ["", "{", "null", "\"procs.criu.v1\"", &list] {
            refusal(json);
        }
        refusal(r#"{"kind":"procs.unsupported.v1","unsupported_on":"x","note":""} {}"#);
        refusal(r#"{"kind":"procs.unsupported.v1","kind":"procs.criu.v1","unsupported_on":"x","note":""}"#);
        assert!(ProcsBlob::from_json(b"{\"kind\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_blob_too_large_for_a_manifest_is_refused_unparsed() {
        assert!(refusal(&" ".repeat(ProcsBlob::CEILING + 1)).contains("more than 1048576"));
    }

    #[test]
    fn every_kind_we_write_is_one_we_read() {
        let unsupported =
            ProcsBlob::Unsupported { unsupported_on: "tty\u{0}\"".into(), note: "ünd\n".into() };
        let criu = ProcsBlob::Criu {
            criu_dump: Digest256::of(b""),
            pids: [i32::MIN, 0, i32::MAX].map(Pid::from).into(),
        };
        let content = Content { bytes: u64::MAX, depth: 2, digest: Digest256::of(b"list") };
        let tree = ChunkedTree { root: 7.into(), images: content, image_bytes: 0, memory_bytes: 4096 };
        let chunked = |frozen_us, parent| {
            let trees = vec![tree.clone()];
            ProcsBlob::Chunked(Box::new(ChunkedBlob {
                pids: vec![7.into()],
                trees,
                host: Host::default(),
                taken: 1,
                frozen_us,
                parent,
                labels: [("step".to_owned(), "7".to_owned())].into(),
                attached: [("files".to_owned(), Digest256::of(b"files"))].into(),
            }))
        };
        for blob in [unsupported, criu, chunked(None, None), chunked(Some(5), Some(Digest256::of(b"")))] {
            assert_eq!(ProcsBlob::from_json(&blob.to_json()).unwrap(), blob);
            let (pids, memory) = (blob.pids().len(), blob.chunked().map(ChunkedBlob::memory_bytes));
            let expected = match blob {
                ProcsBlob::Criu { .. } => (3, None),
                ProcsBlob::Chunked(_) => (1, Some(4096)),
                ProcsBlob::Unsupported { .. } => (0, None),
            };
            assert_eq!((pids, memory), expected);
        }
    }
}
