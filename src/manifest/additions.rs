//! [`Additions`]: labels and attached blobs, which a caller adds to a manifest.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use crate::{Digest256, Error, Result};

/// The additions of the caller to the manifest of a chunked capture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Additions {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) attached: BTreeMap<String, Digest256>,
}

/// The maximum size of all labels of a manifest, names and values together, in bytes. The same
/// limit applies to all names and digests of attached blobs.
const CEILING: usize = 1 << 16;

/// The maximum size of a name, in bytes.
const LONGEST_NAME: usize = 256;

impl Additions {
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.attached.is_empty()
    }

    /// Refuses additions that no reader would accept.
    pub(crate) fn check(&self) -> Result<()> {
        let options = |option| move |problem| Error::Options { option, problem };
        Entries::of(&self.labels).map_err(options("label"))?;
        Entries::of(&self.attached).map_err(options("attach"))?;
        Ok(())
    }
}

/// Reads entries, and refuses those beyond the limits before they take memory.
pub(super) fn bounded<'de, V: Value, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, V>, D::Error> {
    struct Bounded<V>(PhantomData<V>);

    impl<'de, V: Value> Visitor<'de> for Bounded<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an object of at most {CEILING} bytes")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BTreeMap<String, V>, A::Error> {
            let mut entries = Entries::default();
            while let Some((name, value)) = map.next_entry()? {
                entries.add(name, value).map_err(A::Error::custom)?;
            }
            Ok(entries.map)
        }
    }

    from.deserialize_map(Bounded(PhantomData))
}

/// A value of an entry.
pub(super) trait Value: for<'de> Deserialize<'de> + Clone {
    /// Returns the number of bytes of its text.
    fn bytes(&self) -> usize;
}

impl Value for String {
    fn bytes(&self) -> usize {
        self.len()
    }
}

impl Value for Digest256 {
    fn bytes(&self) -> usize {
        "sha256:".len() + 64
    }
}

/// Entries within the limits.
struct Entries<V> {
    map: BTreeMap<String, V>,
    bytes: usize,
}

impl<V> Default for Entries<V> {
    fn default() -> Entries<V> {
        Entries { map: BTreeMap::new(), bytes: 0 }
    }
}

impl<V: Value> Entries<V> {
    fn of(map: &BTreeMap<String, V>) -> Result<Entries<V>, String> {
        let mut entries = Entries::default();
        map.iter().try_for_each(|(name, value)| entries.add(name.clone(), value.clone()))?;
        Ok(entries)
    }

    fn add(&mut self, name: String, value: V) -> Result<(), String> {
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(format!("a name has {} bytes; it must have 1 to {LONGEST_NAME}", name.len()));
        }
        self.bytes = self.bytes.saturating_add(name.len()).saturating_add(value.bytes());
        if self.bytes > CEILING {
            return Err(format!("names and values have more than {CEILING} bytes"));
        }
        if self.map.contains_key(&name) {
            return Err(format!("the name {name:?} comes twice"));
        }
        self.map.insert(name, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(entries: &[(&str, &str)]) -> Additions {
        let labels = entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Additions { labels, ..Additions::default() }
    }

    fn read<V: Value>(json: &str) -> Result<BTreeMap<String, V>, serde_json::Error> {
        bounded(&mut serde_json::Deserializer::from_str(json))
    }

    #[test]
    fn writers_and_readers_have_the_same_limits() {
        let name = |bytes: usize| "n".repeat(bytes);
        let value = |bytes: usize| "v".repeat(bytes);
        for (entries, fits) in [
            (vec![], true),
            (vec![(name(1), value(0))], true),
            (vec![(name(0), value(1))], false),
            (vec![(name(256), value(CEILING - 256))], true),
            (vec![(name(256), value(CEILING - 255))], false),
            (vec![(name(257), value(1))], false),
            (vec![(name(1), value(CEILING / 2)), (name(2), value(CEILING / 2 - 3))], true),
            (vec![(name(1), value(CEILING / 2)), (name(2), value(CEILING / 2 - 2))], false),
        ] {
            let entries: Vec<_> =
                entries.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let written = labels(&entries);
            assert_eq!(written.check().is_ok(), fits, "{}", entries.len());
            let json = serde_json::to_string(&written.labels).unwrap();
            assert_eq!(read::<String>(&json).is_ok_and(|read| read == written.labels), fits);
        }
        let attached = |count: usize| Additions {
            attached: (0..count).map(|number| (format!("{number:04}"), Digest256::of(b""))).collect(),
            ..Additions::default()
        };
        assert!(attached(CEILING / 75).check().is_ok());
        let error = attached(CEILING / 75 + 1).check().unwrap_err();
        assert!(matches!(error, Error::Options { option: "attach", .. }), "{error}");
    }

    #[test]
    fn a_name_comes_once_and_a_value_has_its_type() {
        assert!(read::<String>(r#"{"b":"1","a":"1"}"#).is_ok());
        for json in [r#"{"a":"1","a":"1"}"#, r#"{"a":1}"#, r#"["a","b"]"#, r#""a""#, "null"] {
            assert!(read::<String>(json).is_err(), "{json}");
        }
        assert!(read::<Digest256>(&format!(r#"{{"a":"{}"}}"#, Digest256::of(b""))).is_ok());
        assert!(read::<Digest256>(r#"{"a":"md5:0"}"#).is_err());
    }
}
