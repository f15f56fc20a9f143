//! Unpacks an archive to images. Archives may be hostile, so everything is checked.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, Write as _},
    path::Path,
};

use super::{
    Trees, WHAT,
    header::{self, BLOCK, Header, Kind},
    names::{self, INVENTORY, is_byproduct, is_image},
};
use crate::{Error, Result, private_files};

/// Ceilings for the contents of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The number of entries, of any type.
    pub(crate) entries: u64,
    /// The size of their contents, in bytes.
    pub(crate) bytes: u64,
}

impl Limits {
    /// Returns the maximum size of an archive within these limits.
    pub(crate) fn archive(&self) -> u64 {
        // For each entry: its header, its attributes, and their padding.
        const AROUND: u64 = 4 * BLOCK as u64;
        const END: u64 = 32 << 20;
        self.bytes.saturating_add(self.entries.saturating_mul(AROUND)).saturating_add(END)
    }
}

impl Default for Limits {
    /// Allows a million files, for about one thread each, and 1 TiB.
    fn default() -> Limits {
        Limits { entries: 1_000_000, bytes: 1 << 40 }
    }
}

/// Unpacks an archive into `into`, an empty private folder, and returns the places of the trees.
///
/// Reads the input to its very end. An error of ours that the input wraps is returned as it is.
///
/// # Errors
///
/// [`Error::Corrupt`] names the invalid entry. Nothing is ever written outside `into`. After an
/// error the caller removes what was written inside.
pub(crate) fn unpack(input: impl BufRead, into: &Path, limits: &Limits) -> Result<Trees> {
    unpack_if(input, into, limits, |_| true)
}

/// Unpacks everything but the memory of the processes. Files of pages get their size, but take no
/// space.
pub(crate) fn unpack_without_memory(input: impl BufRead, into: &Path, limits: &Limits) -> Result<Trees> {
    unpack_if(input, into, limits, |name| !name.starts_with("pages-"))
}

/// Unpacks, and writes the contents of those files whose names `wanted` accepts.
fn unpack_if(
    input: impl BufRead,
    into: &Path,
    limits: &Limits,
    wanted: impl Fn(&str) -> bool,
) -> Result<Trees> {
    let mut input = Input(input);
    let mut left = limits.clone();
    let mut layout = Layout { into, trees: BTreeMap::new() };
    while let Some(header) = input.header()? {
        left.spend(&header)?;
        match Place::of(&header)? {
            Place::Image { tree, name } => {
                let mut file = layout.create(tree, name, &header)?;
                if wanted(name) {
                    input.content(&header, |part| file.write_all(part))?;
                } else {
                    let sized = file.set_len(header.size);
                    sized.map_err(Error::io(format!("unpack {}", readable(&header.name))))?;
                    input.content(&header, |_| Ok(()))?;
                }
            }
            Place::Attributes => {
                let mut attributes = Vec::new();
                input.content(&header, |part| attributes.write_all(part))?;
                harmless(&attributes)
                    .ok_or_else(|| refuse(&header.name, "it overrides what a header says"))?;
            }
            Place::Nowhere => input.content(&header, |_| Ok(()))?,
        }
    }
    input.finish()?;
    layout.finish()
}

impl Limits {
    fn spend(&mut self, header: &Header) -> Result<()> {
        let entries = self.entries.checked_sub(1);
        self.entries = entries.ok_or_else(|| refuse(&header.name, "it is one entry too many"))?;
        let bytes = self.bytes.checked_sub(header.size);
        let problem = || format!("it has {} bytes, {} more are allowed", header.size, self.bytes);
        self.bytes = bytes.ok_or_else(|| refuse(&header.name, problem()))?;
        Ok(())
    }
}

/// The destination of an entry.
enum Place<'a> {
    Image { tree: Option<i32>, name: &'a str },
    Attributes,
    Nowhere,
}

impl Place<'_> {
    fn of(header: &Header) -> Result<Place<'_>> {
        let refuse = |problem| Err(refuse(&header.name, problem));
        let Ok(path) = std::str::from_utf8(&header.name) else { return refuse("its name is not UTF-8") };
        let path = path.strip_prefix("./").unwrap_or(path);
        match header.kind {
            Kind::Attributes if header.size <= ATTRIBUTES => return Ok(Place::Attributes),
            Kind::Attributes => return refuse("its attributes are too large"),
            Kind::Folder if header.size != 0 => return refuse("it is a folder with content"),
            Kind::Folder if ["", "."].contains(&path) => return Ok(Place::Nowhere),
            Kind::Folder if names::tree_pid(path.strip_suffix('/').unwrap_or(path)).is_some() => {
                return Ok(Place::Nowhere);
            }
            Kind::Folder => return refuse("there is no folder of this name in a capture"),
            Kind::File => {}
        }
        let (tree, name) = match path.split_once('/') {
            None => (None, path),
            Some((folder, name)) => match names::tree_pid(folder) {
                Some(pid) => (Some(pid), name),
                None => return refuse("there is no folder of this name in a capture"),
            },
        };
        match name {
            _ if is_image(name) => Ok(Place::Image { tree, name }),
            _ if is_byproduct(name) => Ok(Place::Nowhere),
            _ => refuse("this is not the name of an image"),
        }
    }
}

/// Checks that attributes do not override the name, size or type of the next entry.
fn harmless(mut attributes: &[u8]) -> Option<()> {
    while !attributes.is_empty() {
        // "<length of the record> <key>=<value>\n"
        let space = attributes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&attributes[..space]).ok()?.parse().ok()?;
        let (record, rest) = attributes.split_at_checked(length)?;
        let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let key = record.split(|byte| *byte == b'=').next()?;
        if !HARMLESS.contains(&key) {
            return None;
        }
        attributes = rest;
    }
    Some(())
}

/// The target folder, and the trees seen so far.
struct Layout<'a> {
    into: &'a Path,
    /// Each tree, with true if it has an inventory.
    trees: BTreeMap<Option<i32>, bool>,
}

impl Layout<'_> {
    /// Creates the file of an image. If the file exists, the archive has it twice.
    fn create(&mut self, tree: Option<i32>, name: &str, header: &Header) -> Result<File> {
        let before = self.trees.keys().next();
        if before.is_some_and(|other| other.is_some() != tree.is_some()) {
            return Err(refuse(&header.name, "one tree is at the top, another in a folder"));
        }
        let mut path = self.into.to_owned();
        if let Some(pid) = tree {
            path.push(names::tree_folder(pid));
            if !self.trees.contains_key(&tree) {
                private_files::create_folder(&path)
                    .map_err(Error::io(format!("create {}", path.display())))?;
            }
        }
        *self.trees.entry(tree).or_default() |= name == INVENTORY;

        path.push(name);
        private_files::create_file(&path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => refuse(&header.name, "it is there twice"),
            _ => Error::io(format!("create {}", path.display()))(error),
        })
    }

    fn finish(self) -> Result<Trees> {
        let incomplete = self.trees.iter().find(|(_, has_inventory)| !**has_inventory);
        if incomplete.is_some() || self.trees.is_empty() {
            let tree = incomplete.and_then(|(tree, _)| *tree).map(names::tree_folder);
            let within = tree.map(|folder| format!(" in {folder}")).unwrap_or_default();
            let problem = format!("there is no {INVENTORY}{within}, so it is not a criu capture");
            return Err(Error::corrupt(WHAT, problem));
        }
        let folder = |pid| (pid, self.into.join(names::tree_folder(pid)));
        match self.trees.into_keys().collect::<Option<Vec<i32>>>() {
            Some(pids) => Ok(Trees::Several(pids.into_iter().map(folder).collect())),
            None => Ok(Trees::One(self.into.to_owned())),
        }
    }
}

/// An archive that is read block by block.
struct Input<R>(R);

impl<R: BufRead> Input<R> {
    /// Reads the next header; `None` at the first block of zeros.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let part = self.part()?;
            let count = part.len().min(BLOCK - filled);
            block[filled..filled + count].copy_from_slice(&part[..count]);
            self.0.consume(count);
            filled += count;
            if block[0] == b'{' {
                return Err(Error::corrupt(WHAT, "it is JSON, not an archive: perhaps a manifest"));
            }
            if count == 0 {
                return Err(Error::corrupt(WHAT, "it is cut short"));
            }
        }
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = Header::decode(&block);
        header.map(Some).map_err(|problem| refuse(header::name_of(&block), problem))
    }

    /// Hands on an entry's content, in parts, and skips its padding.
    fn content(&mut self, header: &Header, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        let mut left = header.size;
        while left > 0 {
            let part = self.part()?;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(part.len());
            if count == 0 {
                return Err(refuse(&header.name, "it is cut short"));
            }
            take(&part[..count])
                .map_err(|error| Error::io(format!("unpack {}", readable(&header.name)))(error))?;
            self.0.consume(count);
            left -= count as u64;
        }
        let mut padding = (BLOCK as u64 - header.size % BLOCK as u64) % BLOCK as u64;
        while padding > 0 {
            let count = usize::try_from(padding).unwrap_or(BLOCK).min(self.part()?.len());
            if count == 0 {
                return Err(refuse(&header.name, "it is cut short"));
            }
            self.0.consume(count);
            padding -= count as u64;
        }
        Ok(())
    }

    /// Checks the end after the first block of zeros: a second one, then only zeros, with which
    /// some writers pad.
    fn finish(mut self) -> Result<()> {
        let mut zeros = 0;
        loop {
            let part = self.part()?;
            if part.is_empty() {
                break;
            }
            if part.iter().any(|byte| *byte != 0) {
                return Err(Error::corrupt(WHAT, "something follows its end"));
            }
            let count = part.len();
            self.0.consume(count);
            zeros += count;
            if zeros > PADDING {
                return Err(Error::corrupt(WHAT, "too many zeros follow its end"));
            }
        }
        if zeros < BLOCK { Err(Error::corrupt(WHAT, "it is cut short")) } else { Ok(()) }
    }

    /// Returns the buffered bytes; an empty slice at the end.
    fn part(&mut self) -> Result<&[u8]> {
        while let Err(error) = self.0.fill_buf() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error.downcast().unwrap_or_else(Error::io("read the archive")));
            }
        }
        self.0.fill_buf().map_err(Error::io("read the archive"))
    }
}

fn refuse(name: &[u8], problem: impl std::fmt::Display) -> Error {
    Error::corrupt(WHAT, format!("entry {}: {problem}", readable(name)))
}

/// Returns a readable name, whatever its bytes.
fn readable(name: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(name))
}

/// Attribute keys that do not matter here: owners, times and comments.
const HARMLESS: [&[u8]; 8] = [b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment"];

/// The maximum size of the attributes of one entry.
const ATTRIBUTES: u64 = 1 << 16;

/// The maximum number of zeros after the end. Writers fill up their last record, of 10 KiB by
/// default.
const PADDING: usize = 16 << 20;
