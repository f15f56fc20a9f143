//! [`ChunkedBlob`]: the manifest of version 2, with memory in chunks.

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    time::{Duration, SystemTime},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, SeqAccess, Visitor},
};

use super::{Content, additions};
use crate::{Digest256, Error, Pid, Result, pages::PageOwner};

/// A capture whose memory is cut into chunks. Chunks that captures share are stored once.
///
/// A capture is self-contained: a restore needs no other capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChunkedBlob {
    /// The processes that the caller asked for, in its order.
    pub pids: Vec<Pid>,
    /// The trees of these processes.
    pub trees: Vec<ChunkedTree>,
    /// The machine of the capture.
    pub host: Host,
    /// The time of the capture, in seconds since 1970.
    pub taken: u64,
    /// The time that the tree was frozen, in microseconds, by criu's clock; with several trees, the
    /// longest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_us: Option<u64>,
    /// The previous capture, as the caller named it. A restore does not need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest256>,
    /// The caller's [labels](crate::ProcsCapture::label), by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "additions::bounded")]
    pub labels: BTreeMap<String, String>,
    /// The blobs that the caller [attached](crate::ProcsCapture::attach), by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "additions::bounded")]
    pub attached: BTreeMap<String, Digest256>,
}

impl ChunkedBlob {
    /// Returns the time of the capture; `None` if it is later than this system can express.
    pub fn taken_at(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.taken))
    }

    /// Returns the size of the memory of all trees, in bytes. Of a capture that shares memory with
    /// others, the store has less.
    pub fn memory_bytes(&self) -> u64 {
        self.trees.iter().map(|tree| tree.memory_bytes).fold(0, u64::saturating_add)
    }

    /// Returns the time that the tree was frozen, by criu's clock; with several trees, the longest.
    pub fn frozen(&self) -> Option<Duration> {
        self.frozen_us.map(Duration::from_micros)
    }
}

/// One process tree of a [`ChunkedBlob`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChunkedTree {
    /// The pid of its root.
    pub root: Pid,
    /// The listing of its images, as JSON.
    pub images: Content,
    /// The size of those images that are not memory, in bytes.
    pub image_bytes: u64,
    /// The size of the memory, in bytes.
    pub memory_bytes: u64,
}

/// The machine on which a capture was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Host {
    /// The release of criu.
    pub criu: String,
    /// The release of the kernel.
    pub kernel: String,
    /// The architecture, as in [`std::env::consts::ARCH`].
    pub arch: String,
    /// The processor's instruction sets that a program could use, by their names in
    /// `/proc/cpuinfo`.
    pub cpu: Vec<String>,
}

/// The images of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// The images without content of their own, concatenated.
    pub(crate) packed: Content,
    /// The images that are not memory, by name.
    #[serde(deserialize_with = "bounded")]
    pub(crate) files: Vec<ImageFile>,
    /// The maps of memory, by name; the pages are not listed.
    #[serde(deserialize_with = "bounded")]
    pub(crate) memory: Vec<MemoryFile>,
}

/// The maximum length of a list: the number of images that a capture may have.
pub(super) const ENTRIES: usize = 1_000_000;

/// Reads a list, and stops at its maximum length: an entry takes several times the memory of its
/// text.
fn bounded<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct Entries<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {ENTRIES} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = list.next_element()? {
                if entries.len() == ENTRIES {
                    return Err(A::Error::invalid_length(ENTRIES + 1, &self));
                }
                entries.push(entry);
            }
            Ok(entries)
        }
    }

    from.deserialize_seq(Entries(PhantomData))
}

/// An image that is not memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<Content>,
}

/// The memory of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryFile {
    /// The image name of the map.
    pub(crate) name: String,
    /// The map, in this crate's format.
    pub(crate) map: Content,
}

/// The maximum size of a listing, in bytes. A hundred thousand processes make some fifty million.
pub(crate) const LISTING_CEILING: u64 = 256 << 20;

impl Listing {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("because strings, numbers and lists of them have a JSON form")
    }

    /// Parses a listing. Its names must be unique, and names of images without a path.
    pub(crate) fn from_json(json: &[u8], is_image: impl Fn(&str) -> bool) -> Result<Listing> {
        let corrupt = |problem: String| Error::corrupt("the listing of a capture", problem);
        let listing: Listing = serde_json::from_slice(json).map_err(|error| corrupt(error.to_string()))?;
        let files = listing.files.iter().map(|file| &file.name);
        let mut names: Vec<_> = files.chain(listing.memory.iter().map(|memory| &memory.name)).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(corrupt(format!("it has {} twice", pair[0])));
        }
        let odd_file = |file: &&ImageFile| !is_image(&file.name) || file.name.starts_with("page");
        if let Some(file) = listing.files.iter().find(odd_file) {
            return Err(corrupt(format!("{:?} is not the name of an image", file.name)));
        }
        if let Some(odd) = listing.memory.iter().find(|memory| PageOwner::of_map(&memory.name).is_none()) {
            return Err(corrupt(format!("{:?} is not the name of a map", odd.name)));
        }
        let packed = listing.files.iter().filter(|file| file.content.is_none());
        let bytes = packed.fold(0_u64, |bytes, file| bytes.saturating_add(file.bytes));
        let stands = listing.files.iter().filter_map(|file| Some((file, file.content?.bytes)));
        if bytes != listing.packed.bytes || stands.into_iter().any(|(file, bytes)| file.bytes != bytes) {
            return Err(corrupt("its sizes do not agree".to_owned()));
        }
        Ok(listing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_of_too_many_images_is_refused_before_they_take_memory() {
        let content = format!(r#"{{"bytes":0,"depth":0,"digest":"{}"}}"#, Digest256::of(b""));
        // Entries after the maximum are not read, or their error would be reported.
        let entries = vec![r#"{"name":"","bytes":0}"#; ENTRIES + 1].join(",");
        let json = format!(r#"{{"packed":{content},"files":[{entries},"no entry"],"memory":[]}}"#);
        let error = Listing::from_json(json.as_bytes(), |_| true).unwrap_err().to_string();
        assert!(error.contains(&format!("a list of at most {ENTRIES} entries")), "{error}");
    }
}
