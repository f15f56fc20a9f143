//! [`Segment`]: a sorted file with the positions of blobs.
//!
//! A file is a header block, and groups of a head and forty blocks of records. A head has the first
//! and the last key of its group and a Bloom filter of all its keys, so it is a table of contents
//! and answers most misses. Names are as good as random, so a search guesses where a key is.
//! `docs/formats.md` has the format byte by byte.

use std::{
    fs::File,
    io::{self, ErrorKind},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
};

use crate::{
    digest::Hasher,
    lock::Mutex,
    private_files,
    store::{name::Name, pack::PackId, read_at::ReadAt as _},
};

/// The place of a frame that may have a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store::fs) struct Record {
    /// The first eight bytes of the name of the blob.
    pub(super) key: u64,
    pub(in crate::store::fs) pack: PackId,
    /// The position of the frame in the pack.
    pub(in crate::store::fs) at: u64,
    /// The length of its header.
    pub(in crate::store::fs) head: u16,
    /// The offset of the blob's name in it.
    pub(in crate::store::fs) name: u16,
    /// The number of bytes after the header.
    pub(in crate::store::fs) stored: u32,
}

impl Record {
    pub(super) fn encode(&self, into: &mut [u8]) {
        into[..8].copy_from_slice(&self.key.to_be_bytes());
        into[8..24].copy_from_slice(self.pack.as_bytes());
        into[24..32].copy_from_slice(&self.at.to_le_bytes());
        into[32..34].copy_from_slice(&self.head.to_le_bytes());
        into[34..36].copy_from_slice(&self.name.to_le_bytes());
        into[36..40].copy_from_slice(&self.stored.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Record {
        Record {
            key: u64::from_be_bytes(bytes_at(bytes, 0)),
            pack: PackId::from_bytes(bytes_at(bytes, 8)),
            at: u64::from_le_bytes(bytes_at(bytes, 24)),
            head: u16::from_le_bytes(bytes_at(bytes, 32)),
            name: u16::from_le_bytes(bytes_at(bytes, 34)),
            stored: u32::from_le_bytes(bytes_at(bytes, 36)),
        }
    }
}

/// Returns the key of a blob.
pub(super) fn key_of(name: &Name) -> u64 {
    u64::from_be_bytes(bytes_at(name.as_bytes(), 0))
}

/// A sorted file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: PackId,
    path: PathBuf,
    /// The number of records.
    pub(super) records: u64,
    groups: u64,
    /// The open file, if a search or a batch uses it.
    file: Mutex<Weak<File>>,
    /// The heads that were read, unless there are very many.
    heads: Vec<OnceLock<Box<Head>>>,
}

impl Segment {
    /// Opens a file, and checks its header and its length.
    pub(super) fn open(id: PackId, path: PathBuf) -> io::Result<Segment> {
        let file = private_files::open_file(&path)?;
        let mut header = [0; BLOCK];
        read_block(&file, &id, 0, &mut header)?;
        let (magic, version) = (&header[..8], u32::from_le_bytes(bytes_at(&header, 8)));
        if *magic != MAGIC {
            return Err(damaged("a segment of the index has another file's header"));
        }
        if version != VERSION {
            let problem =
                format!("a segment of the index has version {version}, this version reads {VERSION}");
            return Err(io::Error::new(ErrorKind::Unsupported, problem));
        }
        let records = u64::from_le_bytes(bytes_at(&header, 16));
        let groups = records.div_ceil(RECORDS as u64);
        if file.metadata()?.len() != end_of(records) {
            return Err(damaged("a segment of the index has another length than its header tells"));
        }
        let mut heads = Vec::new();
        if groups <= CACHED {
            heads.resize_with(usize::try_from(groups).unwrap_or(0), OnceLock::new);
        }
        Ok(Segment { id, path, records, groups, file: Mutex::new(Weak::new()), heads })
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file.
    pub(super) fn file(&self) -> io::Result<Arc<File>> {
        let mut kept = self.file.lock();
        if let Some(file) = kept.upgrade() {
            return Ok(file);
        }
        let file = Arc::new(private_files::open_file(&self.path)?);
        *kept = Arc::downgrade(&file);
        Ok(file)
    }

    /// Appends up to `most` records of this key.
    pub(super) fn find(&self, key: u64, most: usize, found: &mut Vec<Record>) -> io::Result<()> {
        let mut search = Search { segment: self, file: None };
        let mut group = search.first_group(key)?;
        while group < self.groups && found.len() < most {
            let (first, last, has) =
                search.with_head(group, |head| (head.first, head.last, head.may_have(key)))?;
            if key < first {
                break;
            }
            if has {
                search.within(group, first..=last, key, most, found)?;
            }
            if key < last {
                break;
            }
            group += 1;
        }
        Ok(())
    }

    /// Returns the number of records with smaller keys.
    pub(super) fn rank(&self, key: u64) -> io::Result<u64> {
        let mut search = Search { segment: self, file: None };
        let group = search.first_group(key)?;
        if group == self.groups {
            return Ok(self.records);
        }
        let records = search.group(group)?;
        let smaller = records.partition_point(|record| record.key < key);
        Ok(group * RECORDS as u64 + smaller as u64)
    }

    /// Returns the records from this one on, in order.
    pub(super) fn iter_from(&self, record: u64) -> Records<'_> {
        let skip = usize::try_from(record % RECORDS as u64).unwrap_or(0);
        Records {
            search: Search { segment: self, file: None },
            next: record / RECORDS as u64,
            group: Vec::new().into_iter(),
            skip,
        }
    }

    /// Returns the number of records in a group.
    fn count(&self, group: u64) -> usize {
        let rest = self.records.saturating_sub(group * RECORDS as u64);
        usize::try_from(rest).unwrap_or(RECORDS).min(RECORDS)
    }
}

/// The records of a segment, in order.
pub(super) struct Records<'a> {
    search: Search<'a>,
    next: u64,
    group: std::vec::IntoIter<Record>,
    skip: usize,
}

impl Records<'_> {
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.group.next() {
                return Ok(Some(record));
            }
            if self.next >= self.search.segment.groups {
                return Ok(None);
            }
            let mut group = self.search.group(self.next)?;
            group.drain(..std::mem::take(&mut self.skip).min(group.len()));
            self.group = group.into_iter();
            self.next += 1;
        }
    }
}

/// A search in a segment, which opens the file at its first read.
struct Search<'a> {
    segment: &'a Segment,
    file: Option<Arc<File>>,
}

impl Search<'_> {
    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            self.file = Some(self.segment.file()?);
        }
        Ok(self.file.as_ref().expect("because it was opened above"))
    }

    /// Returns the first group whose last key is not smaller, or the number of groups.
    fn first_group(&mut self, key: u64) -> io::Result<u64> {
        let mut groups = 0..self.segment.groups;
        let mut keys = 0..=u64::MAX;
        for guesses in 0.. {
            let length = groups.end - groups.start;
            if length == 0 {
                break;
            }
            // Halve after some guesses: a hostile writer may have chosen the names.
            let offset = if guesses < GUESSES { share(&keys, key, length) } else { length / 2 };
            let guess = groups.start + offset.min(length - 1);
            let (first, last) = self.with_head(guess, |head| (head.first, head.last))?;
            if last < key {
                (groups.start, keys) = (guess + 1, last..=*keys.end());
            } else if first < key {
                return Ok(guess);
            } else {
                (groups.end, keys) = (guess, *keys.start()..=first);
                // The records of the key begin in this group, or in one before.
            }
        }
        Ok(groups.start)
    }

    /// Calls `look` with a head, from memory or from the file.
    fn with_head<T>(&mut self, group: u64, look: impl FnOnce(&Head) -> T) -> io::Result<T> {
        let segment = self.segment;
        let Some(kept) = usize::try_from(group).ok().and_then(|group| segment.heads.get(group)) else {
            return Ok(look(&self.read_head(group)?));
        };
        if let Some(head) = kept.get() {
            return Ok(look(head));
        }
        let head = Box::new(self.read_head(group)?);
        Ok(look(kept.get_or_init(|| head)))
    }

    fn read_head(&mut self, group: u64) -> io::Result<Head> {
        let mut block = [0; BLOCK];
        let id = self.segment.id;
        read_block(self.file()?, &id, head_of(group), &mut block)?;
        let head = Head::decode(&block);
        if head.first > head.last {
            return Err(damaged("a group of the index has its keys in disorder"));
        }
        Ok(head)
    }

    /// Appends the records of a group with this key.
    fn within(
        &mut self,
        group: u64,
        keys: std::ops::RangeInclusive<u64>,
        key: u64,
        most: usize,
        found: &mut Vec<Record>,
    ) -> io::Result<()> {
        let count = self.segment.count(group);
        let blocks = count.div_ceil(IN_BLOCK);
        let guess = usize::try_from(share(&keys, key, count as u64)).unwrap_or(0).min(count - 1) / IN_BLOCK;
        let window = guess.saturating_sub(AROUND)..(guess + AROUND + 1).min(blocks);
        let (from, to) = (window.start == 0, window.end == blocks);
        let bytes = self.read_blocks(group, &window)?;
        if let Some(records) = self.one_block(group, &window, &bytes, key)? {
            found.extend(records.iter().filter(|record| record.key == key).take(most - found.len()));
            return Ok(());
        }
        let mut records = self.decode(group, &window, &bytes)?;
        // The window may lie beside the records, or have only some of them.
        let begins = from || records.first().is_some_and(|first| first.key < key);
        let ends = to || records.last().is_some_and(|last| key < last.key);
        if !(begins && ends) {
            records = self.records(group, 0..blocks)?;
        }
        let start = records.partition_point(|record| record.key < key);
        let those = records[start..].iter().take_while(|record| record.key == key);
        found.extend(those.take(most - found.len()));
        Ok(())
    }

    /// Reads all records of a group.
    fn group(&mut self, group: u64) -> io::Result<Vec<Record>> {
        self.records(group, 0..self.segment.count(group).div_ceil(IN_BLOCK))
    }

    /// Reads the records in some blocks of a group.
    fn records(&mut self, group: u64, blocks: Range<usize>) -> io::Result<Vec<Record>> {
        let bytes = self.read_blocks(group, &blocks)?;
        self.decode(group, &blocks, &bytes)
    }

    /// Reads some blocks of a group, unverified.
    fn read_blocks(&mut self, group: u64, blocks: &Range<usize>) -> io::Result<Vec<u8>> {
        let first = block_of(group, blocks.start);
        let mut bytes = vec![0; blocks.len() * BLOCK];
        let read = self.file()?.read_full(&mut bytes, first * BLOCK as u64)?;
        if read < bytes.len() {
            return Err(damaged("a segment of the index ends too early"));
        }
        Ok(bytes)
    }

    /// Verifies blocks of a group, and returns their records.
    fn decode(&self, group: u64, blocks: &Range<usize>, bytes: &[u8]) -> io::Result<Vec<Record>> {
        let mut records = Vec::with_capacity(blocks.len() * IN_BLOCK);
        for (number, block) in (block_of(group, blocks.start)..).zip(bytes.as_chunks::<BLOCK>().0) {
            check(&self.segment.id, number, block)?;
            records.extend(block[..IN_BLOCK * RECORD].chunks_exact(RECORD).map(Record::decode));
        }
        records.truncate(self.segment.count(group) - blocks.start * IN_BLOCK);
        Ok(records)
    }

    /// Returns the records of the one block that has the key, if it has smaller and larger keys as
    /// well. Only that block is verified.
    fn one_block(
        &self,
        group: u64,
        blocks: &Range<usize>,
        bytes: &[u8],
        key: u64,
    ) -> io::Result<Option<Vec<Record>>> {
        let begins = |block: &[u8; BLOCK]| u64::from_be_bytes(bytes_at(block, 0)) < key;
        let Some(at) = bytes.as_chunks::<BLOCK>().0.iter().rposition(begins) else { return Ok(None) };
        let number = blocks.start + at;
        let records = self.decode(group, &(number..number + 1), &bytes[at * BLOCK..][..BLOCK])?;
        let has_both = records
            .first()
            .zip(records.last())
            .is_some_and(|(first, last)| first.key < key && key < last.key);
        Ok(has_both.then_some(records))
    }
}

/// The first block of a group.
#[derive(Debug)]
struct Head {
    first: u64,
    last: u64,
    filter: [u8; FILTER],
}

impl Head {
    fn decode(block: &[u8; BLOCK]) -> Head {
        Head {
            first: u64::from_be_bytes(bytes_at(block, 0)),
            last: u64::from_be_bytes(bytes_at(block, 8)),
            filter: bytes_at(block, 16),
        }
    }

    fn may_have(&self, key: u64) -> bool {
        bits_of(key).all(|bit| self.filter[bit / 8] & 1 << (bit % 8) != 0)
    }
}

/// Returns the bits of a key in a filter.
fn bits_of(key: u64) -> impl Iterator<Item = usize> {
    // The keys of a group begin alike, so the last bits distinguish them.
    let [low, high] = [key & 0xffff_ffff, key >> 16 & 0xffff_ffff];
    let step = high | 1;
    let bit = move |n: u64| low.wrapping_add(n.wrapping_mul(step)) % (8 * FILTER as u64);
    (0..BITS).map(move |n| usize::try_from(bit(n)).unwrap_or(0))
}

/// Encodes a group: its head and its blocks. `records` are sorted, at least one and at most
/// [`RECORDS`].
pub(super) fn encode_group(id: &PackId, group: u64, records: &[Record]) -> Vec<u8> {
    let mut bytes = vec![0; (1 + records.len().div_ceil(IN_BLOCK)) * BLOCK];
    let (head, blocks) = bytes.split_at_mut(BLOCK);
    head[..8].copy_from_slice(&records[0].key.to_be_bytes());
    head[8..16].copy_from_slice(&records[records.len() - 1].key.to_be_bytes());
    for bit in records.iter().flat_map(|record| bits_of(record.key)) {
        head[16 + bit / 8] |= 1 << (bit % 8);
    }
    for (block, records) in blocks.chunks_exact_mut(BLOCK).zip(records.chunks(IN_BLOCK)) {
        for (into, record) in block.chunks_exact_mut(RECORD).zip(records) {
            record.encode(into);
        }
    }
    for (number, block) in (head_of(group)..).zip(bytes.as_chunks_mut::<BLOCK>().0) {
        seal(id, number, block);
    }
    bytes
}

/// Reads the last key of a group of an unfinished file.
pub(super) fn last_key_of(path: &Path, id: &PackId, group: u64) -> io::Result<u64> {
    let mut block = [0; BLOCK];
    read_block(&private_files::open_file(path)?, id, head_of(group), &mut block)?;
    Ok(Head::decode(&block).last)
}

/// Encodes the first block of a file.
pub(super) fn encode_header(id: &PackId, records: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&records.to_le_bytes());
    seal(id, 0, &mut header);
    header
}

/// Returns the length of a file with this many records.
fn end_of(records: u64) -> u64 {
    let (full, rest) = (records / RECORDS as u64, records % RECORDS as u64);
    let last = if rest == 0 { 0 } else { 1 + rest.div_ceil(IN_BLOCK as u64) };
    (head_of(full) + last) * BLOCK as u64
}

/// Returns true if a group of an unfinished file has all its records. The last group of a merge
/// that was cut short at its end may lack some in its last block.
pub(super) fn is_whole(path: &Path, id: &PackId, group: u64) -> io::Result<bool> {
    let mut block = [0; BLOCK];
    let last = head_of(group + 1) - 1;
    match read_block(&private_files::open_file(path)?, id, last, &mut block) {
        // No record is empty: each has the id of a pack.
        Ok(()) => Ok(block[(IN_BLOCK - 1) * RECORD..][..RECORD].iter().any(|byte| *byte != 0)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the number of groups in an unfinished file of this length that have all their blocks.
pub(super) fn whole_groups(length: u64) -> u64 {
    (length / BLOCK as u64).saturating_sub(1) / IN_GROUP
}

/// Returns the position of a group.
pub(super) fn place_of(group: u64) -> u64 {
    head_of(group) * BLOCK as u64
}

/// Returns the number of the block with the head of a group.
fn head_of(group: u64) -> u64 {
    1 + group * IN_GROUP
}

/// Returns the number of a block of records.
fn block_of(group: u64, block: usize) -> u64 {
    head_of(group) + 1 + block as u64
}

fn read_block(file: &File, id: &PackId, number: u64, block: &mut [u8; BLOCK]) -> io::Result<()> {
    if file.read_full(block, number * BLOCK as u64)? < BLOCK {
        return Err(damaged("a segment of the index ends too early"));
    }
    check(id, number, block)
}

/// Verifies the checksum of a block.
fn check(id: &PackId, number: u64, block: &[u8; BLOCK]) -> io::Result<()> {
    if block[CHECK..] != checksum(id, number, block) {
        return Err(damaged("a block of the index has another checksum than its contents"));
    }
    Ok(())
}

fn seal(id: &PackId, number: u64, block: &mut [u8; BLOCK]) {
    let checksum = checksum(id, number, block);
    block[CHECK..].copy_from_slice(&checksum);
}

/// Returns the checksum of a block. It depends on the file and the place of the block, too.
fn checksum(id: &PackId, number: u64, block: &[u8; BLOCK]) -> [u8; 8] {
    let mut hasher = Hasher::new();
    hasher.update(id.as_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(&block[..CHECK]);
    bytes_at(hasher.finish().as_bytes(), 0)
}

/// Estimates the place of a key among `length` keys that are evenly spread.
fn share(keys: &std::ops::RangeInclusive<u64>, key: u64, length: u64) -> u64 {
    let span = u128::from(keys.end().saturating_sub(*keys.start())) + 1;
    let share = u128::from(key.saturating_sub(*keys.start())) * u128::from(length) / span;
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Returns the error of an index that must be built again.
pub(super) fn damaged(problem: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, problem.to_owned())
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&bytes[at..at + N]);
    found
}

/// No text begins like this, and programs that convert line ends damage it visibly.
const MAGIC: [u8; 8] = *b"\x89CRI\r\n\x1a\n";
const VERSION: u32 = 1;

/// The length of a block; its checksum is at its end.
pub(super) const BLOCK: usize = 1024;
const CHECK: usize = BLOCK - 8;

/// The length of a record, and the number of records in a block and in a group.
const RECORD: usize = 40;
const IN_BLOCK: usize = CHECK / RECORD;
pub(super) const RECORDS: usize = 1000;

/// The number of blocks in a group, its head included.
const IN_GROUP: u64 = 1 + (RECORDS / IN_BLOCK) as u64;

/// The length of a filter, eight bits for a key, and the number of bits that a key sets.
const FILTER: usize = 1000;
const BITS: u64 = 5;

/// The number of groups whose heads are kept in memory, a kilobyte each.
const CACHED: u64 = 4096;

/// The number of guesses before a search halves.
const GUESSES: u32 = 6;

/// The number of blocks that are read on both sides of a guess.
const AROUND: usize = 2;
