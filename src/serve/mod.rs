//! Serves a folder of images over FUSE while criu restores from it, so that memory needs no disk.
//!
//! Memory is fetched a moment before criu reads it. It takes no room, and no time except for the
//! fetching. The other images are in a real folder, and are passed through. [`fuse`] parses and
//! encodes the messages of the kernel, [`ahead`] reads pieces of memory, and this file combines
//! them.

mod ahead;
mod fuse;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
    unistd::write,
};

use self::{
    ahead::{Ahead, Failure, Found, Part},
    fuse::{Call, Node, Request},
};
use crate::{Error, Result, lock::Mutex, pages::PageFiles, sys, threads::joined};

/// Serves `folder` and the files of `pages` as one folder while `work` runs. Returns `None` without
/// running `work` if that is impossible: it needs `/dev/fuse` and the privilege to mount.
pub(crate) fn served<T>(
    folder: &Path,
    pages: &dyn PageFiles,
    work: impl FnOnce(&OwnedFd) -> Result<T>,
) -> Option<Result<T>> {
    // None of these takes the place of a standard stream that the program closed: another restore
    // would give it to its tree.
    let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
    let device = File::from(sys::duplicate_above(device.as_fd(), 3).ok()?);
    let root = sys::mount_fuse(device.as_fd()).ok()?;
    let root = sys::duplicate_above(root.as_fd(), 3).ok()?;
    let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).ok()?;
    let stop = sys::duplicate_above(stop.as_fd(), 3).ok()?;
    let server = Server {
        device: Mutex::new(Some(Arc::new(device))),
        folder,
        pages,
        ahead: Ahead::new(pages),
        names: Mutex::default(),
        waiting: Mutex::default(),
    };
    Some(thread::scope(|scope| {
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let ending = Ending { server: &server, stop: &stop };
        let spawned = named("criu-images").spawn_scoped(scope, || {
            // Readers get an error, should this end early.
            let _ending = Ending { server: &server, stop: &stop };
            server.serve(&stop)
        });
        let spawned = spawned.map_err(Error::io("start a thread"))?;
        let count = thread::available_parallelism().map_or(1, |count| count.get());
        let run = || server.ahead.run_worker(&|| server.answer_waiting());
        let workers = (0..count).filter_map(|_| named("criu-memory").spawn_scoped(scope, run).ok());
        let workers: Vec<_> = workers.collect();
        let outcome = match workers.is_empty() {
            true => Err(Error::io("start a thread")(io::ErrorKind::WouldBlock.into())),
            false => work(&root),
        };
        drop(root);
        drop(ending);
        let served = joined(spawned.join());
        // Report our own error first: criu's failure is only its consequence.
        match (outcome, server.ahead.failure()) {
            (Err(_), Some(Failure::Error(failure))) => Err(failure),
            (Err(_), Some(Failure::Panic(panic))) => resume_unwind(panic),
            (Err(Error::Criu(failure)), None) => match served {
                Err(error) => Err(Error::io("serve images")(error)),
                Ok(()) => Err(Error::Criu(failure)),
            },
            (outcome, _) => outcome,
        }
    }))
}

/// Ends the serving when it is dropped. Readers that still wait get an error at once, even while
/// workers wait for the store.
struct Ending<'a> {
    server: &'a Server<'a>,
    stop: &'a OwnedFd,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.server.ahead.close();
        // Once no process has the device open, the kernel ends the requests that wait for it.
        self.server.device.lock().take();
        let _ = write(self.stop, &1_u64.to_ne_bytes()); // nothing is wrong with it
    }
}

struct Server<'a> {
    device: Mutex<Option<Arc<File>>>,
    folder: &'a Path,
    pages: &'a dyn PageFiles,
    ahead: Ahead<'a>,
    names: Mutex<Names>,
    waiting: Mutex<Vec<Waiting>>,
}

/// The files of the real folder that readers have asked for. None is held open: a large tree has
/// more of them than a program may have files.
#[derive(Default)]
struct Names {
    numbers: HashMap<Vec<u8>, u64>,
    paths: HashMap<u64, PathBuf>,
}

/// A read that has no answer yet.
struct Waiting {
    unique: u64,
    file: usize,
    offset: u64,
    bytes: usize,
    /// The moment at which the reader was sent a signal. The reader may have to end, for which it
    /// must have an answer.
    interrupted: Option<Instant>,
}

/// The number of the first file of pages; above them come the files of the folder.
const FIRST: u64 = fuse::ROOT + 1;

/// The time for which a reader still gets its answer after a signal. Most signals harm nothing if
/// the answer comes.
const PATIENCE: Duration = Duration::from_secs(1);

impl Server<'_> {
    /// Serves until it is told to stop, or no process has the folder any more.
    fn serve(&self, stop: &OwnedFd) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let Some(device) = self.device() else { return Ok(()) };
        loop {
            let mut both = [
                PollFd::new(device.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            ];
            let timeout =
                if self.is_any_interrupted() { PollTimeout::from(100_u8) } else { PollTimeout::NONE };
            match poll(&mut both, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [asked, stopped] = both.map(|polled| polled.any().unwrap_or(false));
            if stopped {
                return Ok(());
            }
            self.give_up_interrupted();
            if !asked {
                continue;
            }
            match (&*device).read(&mut buffer) {
                Ok(count) => {
                    if let Some(request) = Request::parse(&buffer[..count]) {
                        self.answer(&request)?;
                    }
                }
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENODEV) => return Ok(()),
                    // The request is gone, or it was a signal of ours.
                    Some(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// The device, as long as the folder is served.
    fn device(&self) -> Option<Arc<File>> {
        self.device.lock().clone()
    }

    fn answer(&self, request: &Request<'_>) -> io::Result<()> {
        let bytes = match request.call {
            Call::Note => return Ok(()),
            Call::Interrupt { unique } => {
                self.note_interrupt(unique);
                return Ok(());
            }
            Call::Read { node, offset, bytes } => match self.file_of(node) {
                Some(file) => return self.read_pages(request.unique, file, offset, bytes),
                None => self.read_file(node, offset, bytes),
            },
            Call::Init { minor } => Ok(fuse::init(minor, sys::page_size())),
            Call::Lookup { name } => self.look_up(name).map(fuse::entry),
            Call::Attributes { node } => self.node(node).map(fuse::attributes),
            Call::OpenFolder => Ok(fuse::opened(false)),
            Call::Close { node } => {
                self.file_of(node).into_iter().for_each(|file| self.ahead.forget(file));
                Ok(Vec::new())
            }
            Call::ReadFolder | Call::Nothing => Ok(Vec::new()),
            Call::Open { writes: true, .. } => Err(Errno::EROFS),
            Call::Open { node, .. } => Ok(fuse::opened(self.file_of(node).is_some())),
            Call::Other => Err(Errno::ENOSYS),
        };
        match bytes {
            Ok(bytes) => self.send(request.unique, &[&bytes]),
            Err(error) => self.refuse(request.unique, error),
        }
    }

    fn send(&self, unique: u64, parts: &[&[u8]]) -> io::Result<()> {
        let head = fuse::head(unique, 0, parts.iter().map(|part| part.len()).sum());
        let mut slices = vec![IoSlice::new(&head)];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        self.write(&slices)
    }

    fn refuse(&self, unique: u64, error: Errno) -> io::Result<()> {
        self.write(&[IoSlice::new(&fuse::head(unique, error as i32, 0))])
    }

    /// An answer is written whole or not at all.
    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let Some(device) = self.device() else { return Ok(()) };
        match (&*device).write_vectored(slices) {
            Ok(_) => Ok(()),
            // The reader no longer waits for it.
            Err(error)
                if [Some(Errno::ENOENT as i32), Some(Errno::ENODEV as i32)]
                    .contains(&error.raw_os_error()) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The number of the file of pages that a node is.
    fn file_of(&self, node: u64) -> Option<usize> {
        let number = usize::try_from(node.checked_sub(FIRST)?).ok()?;
        (number < self.pages.files().len()).then_some(number)
    }

    fn look_up(&self, name: &[u8]) -> std::result::Result<Node, Errno> {
        let pages = self.pages.files();
        if let Some(number) = pages.iter().position(|file| file.name.as_bytes() == name) {
            return self.node(FIRST + number as u64);
        }
        let mut names = self.names.lock();
        let node = match names.numbers.get(name) {
            Some(node) => *node,
            None => {
                let path = self.folder.join(std::ffi::OsStr::from_bytes(name));
                let found = fs::symlink_metadata(&path).map_err(|error| number_of(&error))?;
                if !found.is_file() {
                    return Err(Errno::ENOENT);
                }
                let node = FIRST + (pages.len() + names.numbers.len()) as u64;
                names.numbers.insert(name.to_vec(), node);
                names.paths.insert(node, path);
                node
            }
        };
        drop(names);
        self.node(node)
    }

    fn node(&self, node: u64) -> std::result::Result<Node, Errno> {
        if node == fuse::ROOT {
            return Ok(Node::Folder);
        }
        if let Some(file) = self.file_of(node) {
            let bytes = self.pages.files()[file].bytes();
            return Ok(Node::File { node, bytes });
        }
        let bytes = fs::metadata(self.path_of(node)?).map_err(|error| number_of(&error))?.len();
        Ok(Node::File { node, bytes })
    }

    fn path_of(&self, node: u64) -> std::result::Result<PathBuf, Errno> {
        let names = self.names.lock();
        names.paths.get(&node).cloned().ok_or(Errno::ENOENT)
    }

    fn read_file(&self, node: u64, offset: u64, bytes: usize) -> std::result::Result<Vec<u8>, Errno> {
        let file = File::open(self.path_of(node)?).map_err(|error| number_of(&error))?;
        let mut buffer = vec![0; bytes.min(fuse::LONGEST_READ)];
        let count = file.read_at(&mut buffer, offset).map_err(|error| number_of(&error))?;
        buffer.truncate(count);
        Ok(buffer)
    }

    fn read_pages(&self, unique: u64, file: usize, offset: u64, bytes: usize) -> io::Result<()> {
        // A worker that has read the piece looks for waiting readers, with the lock.
        let mut waiting = self.waiting.lock();
        let read = Waiting { unique, file, offset, bytes, interrupted: None };
        match self.ahead.find(file, offset, bytes) {
            Found::Later => {
                waiting.push(read);
                Ok(())
            }
            found => {
                drop(waiting);
                self.give(read.unique, found)
            }
        }
    }

    fn give(&self, unique: u64, found: Found) -> io::Result<()> {
        let Found::Bytes(parts) = found else { return self.refuse(unique, Errno::EIO) };
        let bytes: Vec<&[u8]> = parts.iter().map(Part::bytes).collect();
        let sent = self.send(unique, &bytes);
        self.ahead.give_back(parts);
        sent
    }

    /// Answers all readers whose pieces have arrived.
    fn answer_waiting(&self) {
        let mut ready = Vec::new();
        let mut waiting = self.waiting.lock();
        waiting.retain(|read| match self.ahead.find(read.file, read.offset, read.bytes) {
            Found::Later => true,
            found => {
                ready.push((read.unique, found));
                false
            }
        });
        drop(waiting);
        for (unique, found) in ready {
            let _ = self.give(unique, found); // the reader gets an error when all is closed
        }
    }

    fn note_interrupt(&self, unique: u64) {
        let mut waiting = self.waiting.lock();
        if let Some(read) = waiting.iter_mut().find(|read| read.unique == unique) {
            read.interrupted.get_or_insert_with(Instant::now);
        }
    }

    fn is_any_interrupted(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.iter().any(|read| read.interrupted.is_some())
    }

    /// Gives an error to readers that have to end while the store keeps them waiting.
    fn give_up_interrupted(&self) {
        let mut waiting = self.waiting.lock();
        let mut late = Vec::new();
        waiting.retain(|read| {
            let on_time = read.interrupted.is_none_or(|since| since.elapsed() < PATIENCE);
            if !on_time {
                late.push(read.unique);
            }
            on_time
        });
        drop(waiting);
        for unique in late {
            let _ = self.refuse(unique, Errno::EINTR); // it may be gone by now
        }
    }
}

fn number_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Answers requests, for fuzzers: each has its length in two bytes before it. The answers go to
/// `/dev/null`.
#[cfg(fuzzing)]
pub(crate) fn fuzz_requests(mut bytes: &[u8]) {
    use crate::pages::{PageFile, PageSize};

    struct Zeros([PageFile; 2]);

    impl PageFiles for Zeros {
        fn files(&self) -> &[PageFile] {
            &self.0
        }

        fn page_size(&self) -> Option<PageSize> {
            PageSize::new(4096)
        }

        fn read(&self, _: usize, _: usize, into: &mut [u8]) -> Result<()> {
            into.fill(0);
            Ok(())
        }
    }

    let named = |name: &str, ends: &[u64]| PageFile { name: name.to_owned(), ends: ends.to_vec() };
    let pages = Zeros([named("pages-1.img", &[4096, 1 << 20, (1 << 20) + 4096]), named("pages-2.img", &[])]);
    let Ok(sink) = File::options().write(true).open("/dev/null") else { return };
    let server = Server {
        device: Mutex::new(Some(Arc::new(sink))),
        folder: Path::new("/proc/self/fdinfo"), // small files that change
        pages: &pages,
        ahead: Ahead::new(&pages),
        names: Mutex::default(),
        waiting: Mutex::default(),
    };
    while let Some(([low, high], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let request = Request::parse(&rest[..length]);
        // The kernel asks for names, never for paths.
        let is_path = |call| matches!(call, Call::Lookup { name } if name.contains(&b'/'));
        if let Some(request) = request.filter(|request| !is_path(request.call)) {
            server.answer(&request).expect("because /dev/null takes everything");
        }
        server.give_up_interrupted();
        bytes = &rest[length..];
    }
}
