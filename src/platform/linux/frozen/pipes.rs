//! Pipes whose other side has ended, such as that of `seq 60 | while read x` once `seq` is done.
//!
//! The images have one end of such a pipe, as they have of a pipe that leads out of the tree. The
//! kernel knows the difference: a reader without writers hangs up, a writer without readers has an
//! error.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Frozen, OpenFile};
use crate::{procfs::access_mode, proto::images::PipeNotes};

/// Asks the kernel about each pipe of which the tree has one end only.
pub(super) fn look(tree: &Frozen) -> PipeNotes {
    let mut pipes = BTreeMap::<u64, Ends<'_>>::new();
    for file in &tree.files {
        let Some(inode) = file.inode_of("pipe") else { continue };
        let ends = pipes.entry(inode).or_default();
        match access_mode(file.pid, file.fd) {
            Some(libc::O_RDONLY) => ends.reader = Some(file),
            Some(libc::O_WRONLY) => ends.writer = Some(file),
            _ => ends.both = true,
        }
    }
    let ended = pipes.into_iter().filter(|(_, ends)| ends.other_side_ended());
    // criu has 32 bits for an inode, as the kernel has for those of pipes.
    PipeNotes { ended: ended.filter_map(|(inode, _)| u32::try_from(inode).ok()).collect() }
}

/// The ends of a pipe that the tree has.
#[derive(Default)]
struct Ends<'a> {
    reader: Option<&'a OpenFile>,
    writer: Option<&'a OpenFile>,
    /// One file is both ends, or it cannot be told.
    both: bool,
}

impl Ends<'_> {
    fn other_side_ended(&self) -> bool {
        match (self.reader, self.writer, self.both) {
            (Some(end), None, false) => reports(end, File::options().read(true), PollFlags::POLLHUP),
            (None, Some(end), false) => reports(end, File::options().write(true), PollFlags::POLLERR),
            _ => false,
        }
    }
}

/// Returns true if `poll` reports this sign for an end of a pipe. The end is opened once more, as
/// the same side, which never creates the missing side. If that fails, the other side counts as
/// there.
fn reports(end: &OpenFile, mode: &mut OpenOptions, sign: PollFlags) -> bool {
    let mut ask = || -> io::Result<bool> {
        let file = mode.custom_flags(libc::O_NONBLOCK).open(end.path())?;
        let mut asked = [PollFd::new(file.as_fd(), PollFlags::empty())];
        poll(&mut asked, PollTimeout::ZERO)?;
        Ok(asked[0].revents().is_some_and(|seen| seen.contains(sign)))
    };
    ask().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use super::*;
    use crate::Pid;

    fn inode(end: &impl AsFd) -> u32 {
        u32::try_from(nix::sys::stat::fstat(end.as_fd()).unwrap().st_ino).unwrap()
    }

    #[test]
    fn only_pipes_whose_other_side_has_ended_are_noted() {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (reader, _) = pipe();
        let (_, writer) = pipe();
        let (both_read, both_write) = pipe();
        let (again, gone) = pipe();
        let reopened: OwnedFd = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{}", again.as_raw_fd()))
            .unwrap()
            .into();
        drop(gone);
        let own = Pid::from(i32::try_from(std::process::id()).unwrap());
        let noted = look(&Frozen::of(own)).ended;
        assert!(noted.contains(&inode(&reader)), "a reader without writers");
        assert!(noted.contains(&inode(&writer)), "a writer without readers");
        assert!(!noted.contains(&inode(&both_read)) && !noted.contains(&inode(&both_write)));
        assert!(!noted.contains(&inode(&reopened)), "one file that is both ends");
    }
}
