//! A look at a tree that stands still, its images written: what criu does not write down is noted
//! with them.
//!
//! The tree waits meanwhile, so a look takes milliseconds. Each subject has a file of its own here,
//! and a field in [`Notes`].

mod links;
mod locks;
mod lost;
pub(super) mod mapped;
mod packets;
mod pipes;
mod queues;
mod quiet;
pub(super) mod settings;
mod shared;
pub(super) mod sockets;
mod streams;
mod tcp;
pub(super) mod terminals;
mod unread;

use std::{fs, io, os::fd::OwnedFd, path::PathBuf};

pub(super) use self::quiet::Quiet;
use self::terminals::Terminals;
use super::files::owners;
use crate::{
    DumpOptions, Pid, Result, Warning,
    image::{ImageDir, Notes},
    procfs,
    proto::images::StreamNote,
    sys,
};

/// A tree that stands still. Of a process that captures itself it is the tree just before.
pub(super) struct Frozen {
    /// Parents before children; the root is the first.
    pids: Vec<i32>,
    files: Vec<OpenFile>,
}

/// A descriptor of a process in the tree.
struct OpenFile {
    pid: i32,
    fd: i32,
    /// The target of the link in `/proc`, such as `pipe:[4711]`.
    target: PathBuf,
}

/// A tree that stands still, and that criu has not looked into yet.
pub(super) struct Before {
    tree: Frozen,
    packets: Vec<packets::Found>,
    terminals: Terminals,
}

impl Before {
    /// Looks at what criu will miss.
    pub(super) fn look(root: Pid, options: &DumpOptions) -> Before {
        let tree = Frozen::of(root);
        let (packets, terminals) = (packets::look(&tree), Terminals::look(root, &tree, options));
        Before { tree, packets, terminals }
    }

    /// Looks at it, and takes out what criu would change. It is put back when this is dropped. Also
    /// has TCP data that the tree sent acknowledged.
    pub(super) fn take(root: Pid, options: &DumpOptions) -> Before {
        let tree = Frozen::of(root);
        tcp::acknowledge(&tree, options);
        let (packets, terminals) = (packets::look(&tree), Terminals::take(root, &tree, options));
        Before { tree, packets, terminals }
    }

    /// Lets criu read what it would refuse, until the result is dropped.
    pub(super) fn quiet(&self) -> Quiet {
        Quiet::of(&self.tree)
    }

    /// Makes the notes of a tree. They include the standard streams that the caller named, and
    /// those that lead to the caller.
    pub(super) fn notes(&self, streams: &[StreamNote]) -> Notes {
        Notes {
            pipes: Some(pipes::look(&self.tree)),
            threads: settings::look(&self.tree),
            sockets: sockets::look(&self.tree),
            sessions: settings::sessions(&self.tree),
            mapped: mapped::look(&self.tree),
            terminals: self.terminals.notes(),
            streams: [streams, streams::look(&self.tree, streams).as_slice()].concat(),
            ..Notes::default()
        }
    }

    /// Edits images that criu could not restore as they are. `roots` are those of all trees of the
    /// capture.
    pub(super) fn mend(
        &self,
        root: Pid,
        images: &ImageDir,
        options: &DumpOptions,
        roots: &[Pid],
    ) -> Result<Vec<Warning>> {
        let cured = links::cure(&self.tree, root, images, options.ghost_limit_or(0).into())?;
        let packets = packets::complete(&self.packets, images)?;
        sockets::follow(&self.tree, images)?;
        Ok([cured, self.tree.losses(roots)?, packets, self.terminals.warnings.clone()].concat())
    }
}

/// Inspects the frozen tree, adds notes to its images, and corrects them. Returns warnings for the
/// caller's user. `roots` has the roots of all trees of the capture. `before` has the findings of
/// the moment before criu's own inspection, which it announces since 3.19.
///
/// # Errors
///
/// The capture fails and the tree goes on: without its notes it would come back as something else.
pub(super) fn note(
    root: Pid,
    before: Option<Before>,
    images: &ImageDir,
    options: &DumpOptions,
    roots: &[Pid],
    streams: &[StreamNote],
) -> Result<Vec<Warning>> {
    let mut before = before.unwrap_or_else(|| Before::look(root, options));
    let left = before.terminals.put_back();
    let mut warnings = before.mend(root, images, options, roots)?;
    let tree = &before.tree;
    locks::complete(tree, images, options)?;
    tcp::complete(tree, images)?;
    let mut notes = before.notes(streams);
    let (moved, told) = streams::moved(tree, &notes.streams);
    notes.streams.extend(moved);
    warnings.extend(told);
    warnings.extend(left);
    write(&notes, images)?;
    Ok(warnings)
}

/// Adds what was noted of a tree to its images, with what they say of its files.
pub(super) fn write(notes: &Notes, images: &ImageDir) -> Result<()> {
    let page_size = u32::try_from(sys::page_size().bytes()).ok();
    images.write_notes(&Notes { files: Some(owners(images)?), page_size, ..notes.clone() })
}

impl Frozen {
    /// The tree with this root.
    pub(super) fn of(root: Pid) -> Frozen {
        let pids = procfs::tree(root.as_raw());
        let files = pids.iter().copied().flat_map(open_files).collect();
        Frozen { pids, files }
    }

    /// Finds state that a revived tree will lack. `roots` are those of all trees of the capture. If
    /// the tree runs, the result is that of a capture at this moment.
    ///
    /// # Errors
    ///
    /// [`Unrevivable`](crate::Error::Unrevivable).
    pub(super) fn losses(&self, roots: &[Pid]) -> Result<Vec<Warning>> {
        settings::check_policies(self)?;
        Ok([lost::look(self), queues::look(self), locks::look(self), shared::look(self, roots)].concat())
    }
}

fn open_files(pid: i32) -> impl Iterator<Item = OpenFile> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let fd = entry.file_name().to_str()?.parse().ok()?;
        Some(OpenFile { pid, fd, target: fs::read_link(entry.path()).ok()? })
    })
}

impl OpenFile {
    /// The link in `/proc`, which opens the file itself.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", self.pid, self.fd)
    }

    /// The file itself, for files that cannot be opened by their link in `/proc`.
    fn taken(&self) -> Option<OwnedFd> {
        self.take().ok()
    }

    fn take(&self) -> io::Result<OwnedFd> {
        sys::take_descriptor(sys::pidfd_open(self.pid)?, self.fd)
    }

    /// The inode in a target such as `pipe:[4711]`.
    fn inode_of(&self, kind: &str) -> Option<u64> {
        let target = self.target.to_str()?;
        target.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
    }
}
