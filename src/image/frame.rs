//! A file of images, taken apart: magic numbers, then entries, each a length and a message.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use prost::{DecodeError, Message};

use crate::{Error, Result};

/// The first number of every image, except for `inventory.img`.
const IMAGE: u32 = 0x5456_4319;
/// The first number of statistics and caches.
const SERVICE: u32 = 0x5510_5940;
/// The largest entry we read, in bytes. An `mm` entry with a hundred thousand mappings has about
/// ten million.
const CEILING: u32 = 64 << 20;

/// The entries of an image file.
#[derive(Debug)]
pub(super) struct Frames<R> {
    input: R,
    name: String,
}

impl<R: Read> Frames<R> {
    /// Reads the magic numbers. Which type they name is not compared: the file's name tells.
    pub(super) fn new(input: R, name: &str) -> Result<Frames<R>> {
        let mut frames = Frames { input, name: name.to_owned() };
        let first = frames.number()?;
        if first == Some(IMAGE) || first == Some(SERVICE) {
            frames.number()?;
        }
        match first {
            Some(_) => Ok(frames),
            None => Err(frames.corrupt("it is empty")),
        }
    }

    /// The next message; `None` at the end.
    pub(super) fn next_entry<M: Message + Default>(&mut self) -> Result<Option<M>> {
        let Some(bytes) = self.next_bytes()? else { return Ok(None) };
        if bytes.is_empty() {
            // All that we read has fields that criu requires.
            return Err(self.corrupt("it has an empty entry"));
        }
        M::decode(bytes.as_slice()).map(Some).map_err(|error| self.corrupt(&error.to_string()))
    }

    /// The bytes of the next message; `None` at the end.
    pub(super) fn next_bytes(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(size) = self.number()? else { return Ok(None) };
        if size > CEILING {
            return Err(self.corrupt(&format!("an entry of {size} bytes")));
        }
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(size.into()).read_to_end(&mut bytes);
        read.map_err(Error::io(format!("read the image {}", self.name)))?;
        if u64::try_from(bytes.len()) != Ok(size.into()) {
            return Err(self.corrupt("it ends inside an entry"));
        }
        Ok(Some(bytes))
    }

    /// The bytes behind an entry that tells of them.
    pub(super) fn raw(&mut self, count: u32) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(count.into()).read_to_end(&mut bytes);
        read.map_err(Error::io(format!("read the image {}", self.name)))?;
        match u64::try_from(bytes.len()) == Ok(count.into()) {
            true => Ok(bytes),
            false => Err(self.corrupt("it ends inside the bytes of an entry")),
        }
    }

    /// The next number; `None` at the end.
    fn number(&mut self) -> Result<Option<u32>> {
        let mut bytes = Vec::with_capacity(4);
        let read: io::Result<usize> = self.input.by_ref().take(4).read_to_end(&mut bytes);
        read.map_err(Error::io(format!("read the image {}", self.name)))?;
        match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(bytes) => Ok(Some(u32::from_le_bytes(bytes))),
            Err(_) if bytes.is_empty() => Ok(None),
            Err(_) => Err(self.corrupt("it ends inside a number")),
        }
    }

    fn corrupt(&self, problem: &str) -> Error {
        Error::corrupt(format!("the image {}", self.name), problem)
    }
}

/// The change to an entry.
pub(super) enum Edit {
    Keep,
    Drop,
    /// These bytes follow it: fields that are there twice count as the last one says.
    Extend(Vec<u8>),
}

/// The image `old` with its entries as `edit` says, byte by byte otherwise, and then the `added`
/// ones.
pub(super) fn rewritten<Old: Message + Default, New: Message>(
    old: &[u8],
    name: &str,
    edit: impl Fn(&Old) -> Edit,
    added: &[New],
) -> Result<Vec<u8>> {
    let mut rest = old;
    let mut frames = Frames::new(&mut rest, name)?;
    let mut kept = Vec::new();
    while let Some(mut entry) = frames.next_bytes()? {
        let decoded = Old::decode(entry.as_slice()).map_err(|error| frames.corrupt(&error.to_string()))?;
        match edit(&decoded) {
            Edit::Keep => kept.push(entry),
            Edit::Drop => {}
            Edit::Extend(fields) => {
                entry.extend(fields);
                kept.push(entry);
            }
        }
    }
    kept.extend(added.iter().map(Message::encode_to_vec));
    joined(old, name, &kept)
}

/// The image `old` with each entry as `edit` makes it.
pub(super) fn edited(
    old: &[u8],
    name: &str,
    edit: impl Fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
) -> Result<Vec<u8>> {
    let mut rest = old;
    let mut frames = Frames::new(&mut rest, name)?;
    let mut entries = Vec::new();
    while let Some(entry) = frames.next_bytes()? {
        entries.push(edit(&entry).map_err(|error| frames.corrupt(&error.to_string()))?);
    }
    joined(old, name, &entries)
}

/// The image `old` with these entries.
fn joined(old: &[u8], name: &str, entries: &[Vec<u8>]) -> Result<Vec<u8>> {
    let corrupt = |problem| Error::corrupt(format!("the image {name}"), problem);
    let mut new = old.get(..HEAD).ok_or_else(|| corrupt("it has no head"))?.to_vec();
    for entry in entries {
        let size = u32::try_from(entry.len()).map_err(|_| corrupt("an entry became too large"))?;
        new.extend(size.to_le_bytes());
        new.extend(entry);
    }
    Ok(new)
}

/// The image `old` with these entries, each with the raw bytes behind it.
pub(super) fn with_raw(old: &[u8], name: &str, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut new = joined(old, name, &[])?;
    for (entry, raw) in entries {
        let size = u32::try_from(entry.len());
        let size = size.map_err(|_| Error::corrupt(format!("the image {name}"), "an entry is too large"))?;
        new.extend(size.to_le_bytes());
        new.extend(entry);
        new.extend(raw);
    }
    Ok(new)
}

/// The image `old` with entries moved: `moves` has, by the new place of an entry, the old one.
pub(super) fn moved(old: &[u8], name: &str, moves: &BTreeMap<usize, usize>) -> Result<Vec<u8>> {
    let mut rest = old;
    let mut frames = Frames::new(&mut rest, name)?;
    let mut entries = Vec::new();
    while let Some(entry) = frames.next_bytes()? {
        entries.push(entry);
    }
    let mut new = old.get(..HEAD).ok_or_else(|| frames.corrupt("it has no head"))?.to_vec();
    for place in 0..entries.len() {
        let from = moves.get(&place).copied().unwrap_or(place);
        let entry = entries.get(from).ok_or_else(|| frames.corrupt("it has too few entries"))?;
        let size = u32::try_from(entry.len()).map_err(|_| frames.corrupt("an entry is too large"))?;
        new.extend(size.to_le_bytes());
        new.extend(entry);
    }
    Ok(new)
}

/// The image `old`, which has one entry, with `field` appended to that entry.
pub(super) fn extended(old: &[u8], name: &str, field: &[u8]) -> Result<Vec<u8>> {
    let mut rest = old;
    let mut frames = Frames::new(&mut rest, name)?;
    frames.next_bytes()?;
    match frames.next_bytes()? {
        Some(_) => Err(frames.corrupt("it has more than one entry")),
        None => first_extended(old, name, field),
    }
}

/// The image `old` with `field` appended to its first entry, and all that follows as it was.
pub(super) fn first_extended(old: &[u8], name: &str, field: &[u8]) -> Result<Vec<u8>> {
    let mut rest = old;
    let mut frames = Frames::new(&mut rest, name)?;
    let mut entry = frames.next_bytes()?.ok_or_else(|| frames.corrupt("it has no entry"))?;
    let length = entry.len();
    entry.extend(field);
    let size = u32::try_from(entry.len()).map_err(|_| frames.corrupt("an entry became too large"))?;
    let head = old.len() - rest.len() - length - SIZE;
    Ok([&old[..head], &size.to_le_bytes(), &entry, rest].concat())
}

/// An image of this kind with these entries.
pub(super) fn image(kind: u32, entries: impl Iterator<Item = Vec<u8>>) -> Result<Vec<u8>> {
    let mut image = [IMAGE.to_le_bytes(), kind.to_le_bytes()].concat();
    for entry in entries {
        let size =
            u32::try_from(entry.len()).map_err(|_| Error::corrupt("an image", "an entry is too large"))?;
        image.extend(size.to_le_bytes());
        image.extend(entry);
    }
    Ok(image)
}

/// The two magic numbers, in bytes. The images that we edit have both.
const HEAD: usize = 8;
/// The size of an entry, before it, in bytes.
const SIZE: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::images::PstreeEntry;

    fn image(entries: &[&[u8]]) -> Vec<u8> {
        let mut bytes = [IMAGE.to_le_bytes(), 0x5027_3030_u32.to_le_bytes()].concat();
        for entry in entries {
            bytes.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
            bytes.extend(*entry);
        }
        bytes
    }

    fn pids(bytes: &[u8]) -> Result<Vec<u32>> {
        let mut frames = Frames::new(bytes, "pstree.img")?;
        let mut pids = Vec::new();
        while let Some(entry) = frames.next_entry::<PstreeEntry>()? {
            pids.push(entry.pid);
        }
        Ok(pids)
    }

    #[test]
    fn entries_come_in_order() {
        let entries = [7, 8].map(|pid| PstreeEntry { pid, ..PstreeEntry::default() }.encode_to_vec());
        assert_eq!(pids(&image(&[&entries[0], &entries[1]])).unwrap(), [7, 8]);
        assert!(pids(&image(&[])).unwrap().is_empty());
    }

    #[test]
    fn a_file_cut_anywhere_but_between_entries_is_an_error() {
        let entry = PstreeEntry { pid: 7, ..PstreeEntry::default() }.encode_to_vec();
        let whole = image(&[&entry]);
        for length in 0..whole.len() {
            let cut = pids(&whole[..length]);
            // A file of the first magic number alone has no entries; criu would refuse it.
            assert_eq!(cut.is_ok(), length == 4 || length == 8, "{length}: {cut:?}");
        }
    }

    #[test]
    fn an_image_written_anew_keeps_what_it_should_to_the_byte() {
        // Field 900 is nothing we know; it must survive.
        let unknown = [8, 7, 16, 0, 24, 0, 32, 0, 0xa0, 0x38, 1];
        let [gone, longer, added] = [8, 10, 9].map(|pid| PstreeEntry { pid, ..PstreeEntry::default() });
        let old = image(&[&unknown, &gone.encode_to_vec(), &longer.encode_to_vec()]);
        let edit = |entry: &PstreeEntry| match entry.pid {
            8 => Edit::Drop,
            10 => Edit::Extend(vec![24, 5]),
            _ => Edit::Keep,
        };
        let new = rewritten(&old, "pstree.img", edit, std::slice::from_ref(&added)).unwrap();
        let longer = [longer.encode_to_vec(), vec![24, 5]].concat();
        assert_eq!(new, image(&[&unknown, &longer, &added.encode_to_vec()]));
    }

    #[test]
    fn a_huge_entry_is_refused_before_memory_is_taken() {
        let mut bytes = image(&[]);
        bytes.extend(u32::MAX.to_le_bytes());
        assert!(matches!(pids(&bytes), Err(Error::Corrupt { .. })));
    }
}
