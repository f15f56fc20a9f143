//! Standard streams that lead to the caller.
//!
//! A caller that makes a pipe without `O_CLOEXEC` starts a program that has both ends of it, and
//! other programs that have one. By the images alone such a pipe is one within a tree or between
//! two, which a restore would not replace.

use std::collections::{HashMap, HashSet};

use super::{Frozen, OpenFile, open_files};
use crate::{Pid, Warning, preflight::Peers, procfs::access_mode, proto::images::StreamNote};

/// Finds the root's streams that are pipes and sockets, and whose other end this process has, even
/// if another process has it, too. Streams and files that the caller has `told` are left out.
pub(super) fn look(tree: &Frozen, told: &[StreamNote]) -> Vec<StreamNote> {
    let own = Pid::own().as_raw();
    if tree.pids.contains(&own) {
        return Vec::new();
    }
    let own: Vec<OpenFile> = open_files(own).collect();
    let sockets: HashSet<u64> = tree.root_streams().filter_map(|(_, file)| file.inode_of("socket")).collect();
    let peers = if sockets.is_empty() { None } else { Peers::ask(&sockets) };
    let led_here = tree.root_streams().filter(|(stream, file)| {
        let is_other_end = |other: &OpenFile| match (file.inode_of("pipe"), file.inode_of("socket")) {
            (Some(pipe), _) => other.inode_of("pipe") == Some(pipe) && is_open(other, *stream != 0),
            (_, Some(socket)) => {
                let end = peers.as_ref().and_then(|peers| peers.other_end(socket));
                end.is_some() && other.inode_of("socket") == end
            }
            _ => false,
        };
        is_open(file, *stream == 0) && own.iter().any(is_other_end)
    });
    let notes = led_here
        .filter_map(|(stream, file)| Some(StreamNote { stream, key: file.target.to_str()?.to_owned() }));
    let is_told =
        |note: &StreamNote| told.iter().any(|told| told.stream == note.stream || told.key == note.key);
    notes.filter(|note| !is_told(note)).collect()
}

/// Finds pipes and sockets that lead to this process, whose other end has leaked into the tree, and
/// that are not standard streams of the root now. The root has probably moved them, and opened
/// files in their place. So they are assigned to the streams that are files, in order. Leaves out
/// `known` ones.
pub(super) fn moved(tree: &Frozen, known: &[StreamNote]) -> (Vec<StreamNote>, Vec<Warning>) {
    let own = Pid::own().as_raw();
    let (mut notes, mut warnings) = (Vec::new(), Vec::new());
    if tree.pids.contains(&own) {
        return (notes, warnings);
    }
    let own: Vec<OpenFile> = open_files(own).collect();
    let leaks = Leaks::between(&tree.files, &own);
    let mut free: Vec<u32> = (0..=2).filter(|stream| tree.has_file_as(*stream, known)).collect();
    let mut seen = HashSet::new();
    let known: HashSet<&str> = known.iter().map(|note| note.key.as_str()).collect();
    for file in &tree.files {
        let Some(way) = leaks.leads_here(file) else { continue };
        let (Some(key), Ok(descriptor)) = (file.target.to_str(), u32::try_from(file.fd)) else { continue };
        if known.contains(key) || !seen.insert(key) {
            continue;
        }
        let (pid, key) = (Pid::from(file.pid), key.to_owned());
        let place = free.iter().position(|stream| way == Way::Both || (*stream == 0) == (way == Way::In));
        warnings.push(match place.map(|place| free.remove(place)) {
            Some(stream) => {
                notes.push(StreamNote { stream, key: key.clone() });
                Warning::StreamAssumed { pid, descriptor, key, stream }
            }
            None => Warning::LeadsOut { pid, descriptor, key },
        });
    }
    (notes, warnings)
}

/// The direction of data through a file of the tree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
    Both,
}

/// Pipes and sockets that have both ends in the tree, and one end in this process as well.
struct Leaks {
    pipes: Pipes,
    own_pipes: Pipes,
    sockets: HashSet<u64>,
    own_sockets: HashSet<u64>,
    peers: Option<Peers>,
}

impl Leaks {
    fn between(tree: &[OpenFile], own: &[OpenFile]) -> Leaks {
        let sockets = |files: &[OpenFile]| files.iter().filter_map(|file| file.inode_of("socket")).collect();
        let (inner, own_sockets): (HashSet<u64>, HashSet<u64>) = (sockets(tree), sockets(own));
        let peers = if inner.is_disjoint(&own_sockets) { None } else { Peers::ask(&inner) };
        Leaks { pipes: ends(tree.iter()), own_pipes: ends(own.iter()), sockets: inner, own_sockets, peers }
    }

    /// Returns the direction of a file that leads to this process; `None` for other files. The tree
    /// was given the end that this process does not have.
    fn leads_here(&self, file: &OpenFile) -> Option<Way> {
        if let Some(socket) = file.inode_of("socket") {
            let end = self.peers.as_ref()?.other_end(socket)?;
            let is_ours = self.own_sockets.contains(&end) && !self.own_sockets.contains(&socket);
            return (is_ours && self.sockets.contains(&end)).then_some(Way::Both);
        }
        let pipe = file.inode_of("pipe")?;
        let way = match self.own_pipes.get(&pipe)? {
            Ends { reads: false, writes: true } => Way::In,
            Ends { reads: true, writes: false } => Way::Out,
            _ => return None,
        };
        let has_leaked = self.pipes.get(&pipe).is_some_and(|ends| ends.reads && ends.writes);
        (has_leaked && is_open(file, way == Way::In)).then_some(way)
    }
}

type Pipes = HashMap<u64, Ends>;

/// The ends of a pipe that some files are.
#[derive(Default)]
struct Ends {
    reads: bool,
    writes: bool,
}

fn ends<'a>(files: impl Iterator<Item = &'a OpenFile>) -> Pipes {
    let mut pipes = Pipes::new();
    for (file, pipe) in files.filter_map(|file| Some((file, file.inode_of("pipe")?))) {
        let ends = pipes.entry(pipe).or_default();
        ends.reads |= is_open(file, true);
        ends.writes |= is_open(file, false);
    }
    pipes
}

/// Returns true if the file is open for reading, or for writing.
fn is_open(file: &OpenFile, to_read: bool) -> bool {
    let only = if to_read { libc::O_RDONLY } else { libc::O_WRONLY };
    access_mode(file.pid, file.fd).is_some_and(|mode| mode == only || mode == libc::O_RDWR)
}

impl Frozen {
    /// Returns true if a standard stream of the root is a file or closed, and is not among the
    /// `known`.
    fn has_file_as(&self, stream: u32, known: &[StreamNote]) -> bool {
        let is_file = |file: &OpenFile| file.target.is_absolute() && !file.target.starts_with("/dev/pts");
        let mut streams = self.root_streams();
        let is_other = streams.any(|(number, file)| number == stream && !is_file(file));
        !is_other && !known.iter().any(|note| note.stream == stream)
    }

    /// The files that are standard streams of the root, with the numbers of those.
    fn root_streams(&self) -> impl Iterator<Item = (u32, &OpenFile)> {
        let root = self.pids.first().copied();
        let files = self.files.iter().filter(move |file| Some(file.pid) == root);
        files.filter_map(|file| Some((u32::try_from(file.fd).ok().filter(|fd| *fd <= 2)?, file)))
    }
}
