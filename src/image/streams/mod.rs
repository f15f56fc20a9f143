//! Files of a dumped tree whose other side was outside of it, and giving the tree others in their
//! place.
//!
//! criu can put a file of ours in the place of a resource (`inherit_fd`), but only by the
//! resource's name, and the names are too coarse: a program in a terminal has one file as all three
//! streams, and the caller may lend a pipe, a file and nothing. So the images are edited, in one of
//! two ways.
//!
//! - A terminal that is given another terminal stays one, so that criu restores its modes, its
//!   size, and the session that it controls. Each of its open files gets a name of its own.
//! - Everything else becomes a regular file of its own, whose name we choose, and that is what criu
//!   replaces. It takes whatever is lent for it, as it is.
//!
//! The root of the tree decides what is a stream: a child that has the root's standard error as its
//! standard output gets what the caller gives as standard error.

mod edit;
mod led_out;
mod tables;
mod unread;

use std::collections::{BTreeMap, HashMap};

pub(crate) use self::led_out::LedOut;
use self::{
    edit::{Edits, Substitute},
    tables::{Inherited, Kind, Outside, Resource, Tables},
};
use super::{ImageDir, fdinfo};
use crate::{Result, proto::images::FdinfoEntry};

/// The bits of a file's flags that say for what it was opened.
const ACCESS_MODE: u32 = 3;
const WRITE_ONLY: u32 = 1;

/// The caller's offer to the tree.
#[derive(Debug, Default)]
pub(crate) struct Offer<'a> {
    /// The standard streams that are to be replaced wherever they lead, unless to another task of
    /// the tree.
    pub(crate) chosen: [bool; 3],
    /// The terminal that each standard stream is, if it is one.
    pub(crate) terminals: [Option<OfferedTerminal>; 3],
    /// criu's names of the resources that the caller lends files for. They are left alone.
    pub(crate) inherited: &'a [&'a str],
}

/// A terminal that the tree can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OfferedTerminal {
    /// The number of the device.
    pub(crate) device: u64,
    /// The state to leave it in if a session has it already: its rows, columns, owner and group.
    pub(crate) taken: Option<[u32; 4]>,
}

/// A file that criu wants to be lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lending {
    /// Its name for `inherit_fd`.
    pub(crate) key: String,
    pub(crate) what: Lent,
}

/// The file to lend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Lent {
    /// The caller's file for this standard stream.
    Stream { stream: usize, was: Was },
    /// The terminal that is this standard stream, opened anew with these flags.
    Terminal { stream: usize, flags: u32 },
    /// A terminal whose other side is gone.
    HungUp,
    /// A pipe without a writer, with the rest that the tree has not read.
    Ended,
}

/// The files to lend to a tree, and the contents of those that they replace.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) lendings: Vec<Lending>,
    /// Unread bytes, by the number of a descriptor.
    pub(crate) unread: Vec<(u32, Vec<u8>)>,
    /// The rest of an input that has ended.
    pub(crate) rest: Vec<u8>,
    /// The root's standard input has ended, and so it stays.
    pub(crate) input_ended: bool,
}

/// The kind that a replaced file had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Was {
    Other,
    /// A pipe or a socket, for which a program may wait with others by `epoll`: that takes no
    /// files.
    Channel,
    /// A pipe or a socket that no call waits for.
    Nonblocking,
}

/// Makes the files that lead out of the tree replaceable, and the root's streams that the caller
/// chose. Gives the files to lend.
pub(crate) fn detach_streams(images: &ImageDir, offer: &Offer<'_>) -> Result<Detached> {
    let tables = Tables::read(images, &Inherited(offer.inherited))?;
    let plan = Plan::new(&tables, offer);
    let mut edits = Edits::new(&tables);
    for (table, descriptors) in &tables.descriptors {
        for descriptor in descriptors {
            match plan.fate(descriptor) {
                Fate::Stays => {}
                Fate::Replaced(lent) => edits.replace(*table, descriptor, Substitute(lent)),
                Fate::Terminal { stream, flags } => edits.keep_terminal(descriptor.id, stream, flags),
            }
        }
    }
    let mut unread = unread::of(images, &tables, &edits)?;
    let lendings = edits.apply(images, &tables, offer)?;
    let ended = lendings.iter().any(|lending| lending.what == Lent::Ended);
    let rest = unread.iter().position(|(descriptor, _)| ended && *descriptor == 0);
    let rest = rest.map_or_else(Vec::new, |place| unread.remove(place).1);
    let input_ended = plan.input_has_ended();
    Ok(Detached { lendings, unread, rest, input_ended })
}

/// The fate of a descriptor.
enum Fate {
    Stays,
    Replaced(Lent),
    /// It stays a terminal, and gets the one that is this stream.
    Terminal {
        stream: usize,
        flags: u32,
    },
}

/// The standard streams that each resource was.
struct Plan<'a> {
    tables: &'a Tables,
    offer: &'a Offer<'a>,
    /// By the root's word.
    of_root: HashMap<Resource, Vec<usize>>,
    /// By that of any process.
    of_any: HashMap<Resource, Vec<usize>>,
    /// The root's streams that are files which are to be replaced.
    files: BTreeMap<u32, Vec<usize>>,
    /// Pipes that are no process's stream, and the streams that they were.
    saved: HashMap<Resource, usize>,
}

impl<'a> Plan<'a> {
    fn new(tables: &'a Tables, offer: &'a Offer<'a>) -> Plan<'a> {
        let (mut files, mut leads_out) = (BTreeMap::<u32, Vec<usize>>::new(), [false; 3]);
        for (stream, descriptor) in tables.of_root().filter_map(stream_of) {
            match tables.files.get(&descriptor.id) {
                Some(Kind::Regular) if offer.chosen[stream] => {
                    files.entry(descriptor.id).or_default().push(stream);
                }
                // Its input has ended, and a new one would be news to the tree; what it says may be
                // heard again.
                Some(Kind::Ended(_)) if offer.chosen[stream] && stream > 0 => {
                    files.entry(descriptor.id).or_default().push(stream);
                }
                Some(Kind::Outside(_)) => leads_out[stream] = true,
                _ => {}
            }
        }
        let of_root = streams(tables, tables.of_root());
        let of_any = streams(tables, tables.all_descriptors());
        let mut plan = Plan { tables, offer, of_root, of_any, files, saved: HashMap::new() };
        let told: Vec<usize> = plan.told_and_open().collect();
        told.iter().for_each(|stream| leads_out[*stream] = true);
        plan.save(leads_out);
        // The tree put these files there itself, and has the stream elsewhere.
        plan.files.retain(|_, streams| !streams.iter().any(|stream| told.contains(stream)));
        plan
    }

    /// The streams that the caller told and that the tree has.
    fn told_and_open(&self) -> impl Iterator<Item = usize> {
        let tables = self.tables;
        let outside = tables.all_descriptors().filter_map(|descriptor| tables.outside(descriptor.id));
        outside.filter_map(|outside| tables.told.get(&outside.resource)).flatten().copied()
    }

    /// Assigns the root's streams that are files to pipes that are no process's stream. The root
    /// has saved those pipes to make room for files, as `exec 3>&1 >log` does. Pipes come in the
    /// order of their descriptors, because programs save one stream after the other.
    fn save(&mut self, leads_out: [bool; 3]) {
        let free = |streams: &[usize]| streams.iter().copied().filter(|stream| !leads_out[*stream]).collect();
        let (mut inputs, mut outputs): (Vec<usize>, Vec<usize>) = (free(&[0]), free(&[2, 1]));
        for (_, descriptors) in &self.tables.descriptors {
            let mut descriptors: Vec<_> = descriptors.iter().collect();
            descriptors.sort_unstable_by_key(|descriptor| descriptor.fd);
            for outside in descriptors.into_iter().filter_map(|descriptor| self.tables.outside(descriptor.id))
            {
                let pipe = outside.resource;
                let is_known = self.of_any.contains_key(&pipe) || self.tables.told.contains_key(&pipe);
                let is_free = matches!(pipe, Resource::Pipe(_)) && !is_known;
                if !is_free || self.saved.contains_key(&pipe) {
                    continue;
                }
                let streams = if outside.writes() { &mut outputs } else { &mut inputs };
                // The last one serves for all that come after it.
                let stream = if streams.len() > 1 { streams.pop() } else { streams.first().copied() };
                self.saved.extend(stream.map(|stream| (pipe, stream)));
            }
        }
        // The tree put the file there itself, and knows the stream by another number.
        let saved: Vec<usize> = self.saved.values().copied().collect();
        self.files.retain(|_, streams| !streams.iter().any(|stream| saved.contains(stream)));
    }

    /// Returns true if the root's standard input has ended and is not kept elsewhere, as a shell
    /// keeps its own while it reads a here-document.
    fn input_has_ended(&self) -> bool {
        let is_open = |descriptor: &FdinfoEntry| {
            let outside = self.tables.outside(descriptor.id);
            let outside = outside.filter(|outside| !outside.input_ended);
            outside.is_some_and(|outside| self.stream(outside, descriptor.fd) == Some(0))
        };
        if self.tables.all_descriptors().any(is_open) {
            return false;
        }
        let mut inputs = self.tables.of_root().filter(|descriptor| descriptor.fd == 0);
        inputs.any(|input| match self.tables.files.get(&input.id) {
            Some(Kind::Ended(_)) => true,
            Some(Kind::Outside(outside)) => outside.input_ended,
            _ => false,
        })
    }

    fn fate(&self, descriptor: &FdinfoEntry) -> Fate {
        let replaced = |stream| Fate::Replaced(Lent::Stream { stream, was: Was::Other });
        if let Some(streams) = self.files.get(&descriptor.id) {
            let own = stream_of(descriptor).map(|(stream, _)| stream);
            let ended = matches!(self.tables.files.get(&descriptor.id), Some(Kind::Ended(_)));
            return match own {
                Some(own) if streams.contains(&own) => replaced(own),
                Some(0) if ended => Fate::Stays,
                _ => replaced(streams[0]),
            };
        }
        let Some(outside) = self.tables.outside(descriptor.id) else { return Fate::Stays };
        let stream = self.stream(outside, descriptor.fd);
        if let Resource::Terminal(terminal) = outside.resource {
            return self.terminal(outside, terminal, stream, descriptor.fd);
        }
        if outside.input_ended && descriptor.fd == 0 {
            return Fate::Replaced(Lent::Ended);
        }
        let was = if outside.flags & NONBLOCKING != 0 { Was::Nonblocking } else { Was::Channel };
        stream.map_or(Fate::Stays, |stream| Fate::Replaced(Lent::Stream { stream, was }))
    }

    /// The standard stream that a descriptor leads to.
    fn stream(&self, outside: Outside, fd: u32) -> Option<usize> {
        let known = self.tables.told.get(&outside.resource);
        let known = known.or_else(|| self.of_root.get(&outside.resource));
        let known = known.or_else(|| self.of_any.get(&outside.resource));
        let writes = outside.writes();
        if let Some(known) = known {
            let same = known.iter().copied().find(|stream| u32::try_from(*stream) == Ok(fd));
            let by_direction = || known.iter().copied().find(|stream| (*stream > 0) == writes);
            return same.or_else(by_direction).or_else(|| known.first().copied());
        }
        self.saved.get(&outside.resource).copied()
    }

    fn terminal(&self, outside: Outside, terminal: u32, stream: Option<usize>, fd: u32) -> Fate {
        let replaced = |stream| Fate::Replaced(Lent::Stream { stream, was: Was::Other });
        if self.tables.terminals.is_hung(terminal) {
            return stream.map_or(Fate::Replaced(Lent::HungUp), replaced);
        }
        let offered = |stream: usize| self.offer.terminals[stream].map(|terminal| terminal.device);
        let known = self.of_root.get(&outside.resource).or_else(|| self.of_any.get(&outside.resource));
        let wanted = known.map_or([0, 1, 2].as_slice(), Vec::as_slice);
        let flags = outside.flags;
        match (wanted.iter().copied().find(|stream| offered(*stream).is_some()), stream) {
            (Some(first), Some(own)) if fd > 2 || offered(own) == offered(first) => {
                Fate::Terminal { stream: first, flags }
            }
            (Some(first), None) => Fate::Terminal { stream: first, flags },
            (_, Some(own)) => replaced(own),
            (None, None) => Fate::Replaced(Lent::HungUp),
        }
    }
}

/// As `open` has it. It is the same on all architectures that criu runs on, save for MIPS.
const NONBLOCKING: u32 = 0o4000;

fn stream_of(descriptor: &FdinfoEntry) -> Option<(usize, &FdinfoEntry)> {
    usize::try_from(descriptor.fd).ok().filter(|fd| *fd <= 2).map(|fd| (fd, descriptor))
}

/// The standard streams that each resource is, in order.
fn streams<'a>(
    tables: &Tables,
    descriptors: impl Iterator<Item = &'a FdinfoEntry>,
) -> HashMap<Resource, Vec<usize>> {
    let mut streams = HashMap::<Resource, Vec<usize>>::new();
    for (stream, descriptor) in descriptors.filter_map(stream_of) {
        if let Some(outside) = tables.outside(descriptor.id) {
            let known = streams.entry(outside.resource).or_default();
            if !known.contains(&stream) {
                known.push(stream);
                known.sort_unstable();
            }
        }
    }
    streams
}
