//! [`receive_pages`]: the page server's end of a dump, in this process.
//!
//! criu sends the memory of a tree through a socket while the tree is frozen. The stream does not
//! name criu's release, and the header became longer with 4.2. The first message names an owner,
//! which shows the length.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::{fd::AsRawFd, unix::net::UnixStream},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};

use crate::{
    Error, Result,
    pages::{PageOwner, PageRun, PageSink, PageSize},
    sys,
};

/// The end of a stream of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum PageStream {
    /// criu sent all memory, and was told that it arrived. The dump itself can still fail.
    Whole,
    /// criu closed the stream before that.
    CutShort,
}

/// Receives the memory that a dump or pre-dump sends through
/// [`Lend::page_server`](super::Lend::page_server). `socket` is the other end of that unix stream
/// socket. `criu page-server`, but in this process.
///
/// The tree is frozen meanwhile. Run this in a thread of its own, and drop the lent end when the
/// dump has returned: otherwise this waits for ever if criu never began to send.
///
/// The folder of images lacks this memory: to restore it, write files of pages and maps there. criu
/// 3.15.
///
/// # Errors
///
/// Errors of the sink, and [`Error::Corrupt`] for an invalid stream. The dump then fails, and the
/// tree goes on.
///
/// # Examples
///
/// ```no_run
/// use std::{fs::File, io::{self, Read}, os::unix::net::UnixStream, thread};
///
/// use criu_rpc::{Criu, DumpOptions, Error, Result, rpc::{Lend, NoHooks, PageOwner, PageRun, PageSink, receive_pages}};
///
/// /// Counts what a tree has.
/// struct Count(u64);
///
/// impl PageSink for Count {
///     fn open(&mut self, owner: PageOwner) -> Result<()> {
///         println!("memory of {owner:?}");
///         Ok(())
///     }
///
///     fn run(&mut self, run: PageRun, memory: &mut dyn Read) -> Result<()> {
///         let bytes = io::copy(memory, &mut io::sink()).map_err(|error| Error::store("count", error))?;
///         self.0 += bytes;
///         Ok(())
///     }
///
///     fn close(&mut self) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// let (ours, theirs) = UnixStream::pair()?;
/// let receiver = thread::spawn(move || {
///     let mut count = Count(0);
///     receive_pages(&ours, &mut count).map(|_| count.0)
/// });
/// let images = File::open("images")?;
/// let dump = Criu::new().dump(4242, &DumpOptions::default().leave_running(true),
///     Lend::images(&images).page_server(&theirs), &mut NoHooks);
/// drop(theirs);
/// println!("{} bytes", receiver.join().unwrap()?);
/// dump?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn receive_pages(socket: &UnixStream, sink: &mut dyn PageSink) -> Result<PageStream> {
    receive(socket, sys::page_size(), sink)
}

fn receive(socket: &UnixStream, page_size: PageSize, sink: &mut dyn PageSink) -> Result<PageStream> {
    let received = Receiver { socket, page_size, long: None, owner: None }.run(sink);
    if received.is_err() {
        let _ = socket.shutdown(Shutdown::Both); // so that criu fails now
    }
    received
}

struct Receiver<'a> {
    socket: &'a UnixStream,
    /// The size of the kernel's pages, in which criu counts.
    page_size: PageSize,
    /// True if headers have the length of 4.2 and later; unknown before the first.
    long: Option<bool>,
    /// The owner that was opened last, as criu numbers it.
    owner: Option<u64>,
}

struct Header {
    command: u32,
    pages: u64,
    address: u64,
    owner: u64,
}

const LEGACY_ADD: u32 = 1;
const LEGACY_HOLE: u32 = 2;
const LEGACY_OPEN: u32 = 3;
const OPEN: u32 = 4;
const PARENT: u32 = 5;
const ADD: u32 = 6;
const CLOSE: u32 = 0x1023;
const FORCE_CLOSE: u32 = 0x1024;

/// The length of a header before 4.2, and of one since.
const SHORT: usize = 24;
const LONG: usize = 32;

impl Receiver<'_> {
    fn run(mut self, sink: &mut dyn PageSink) -> Result<PageStream> {
        loop {
            let Some(header) = self.header()? else { return Ok(PageStream::CutShort) };
            let whole = match header.command {
                CLOSE | FORCE_CLOSE => {
                    // criu sends nothing more until it is answered.
                    check_nothing_left(self.socket)?;
                    sink.close()?;
                    return Ok(match self.answer(&0_i32.to_ne_bytes())? {
                        true => PageStream::Whole,
                        false => PageStream::CutShort,
                    });
                }
                command => match command & 0xffff {
                    // The answer is whether memory of the previous dump is here.
                    OPEN => {
                        let owner = owner(header.owner)?;
                        let parent = sink.has_parent(owner);
                        self.owner = Some(header.owner);
                        sink.open(owner)?;
                        self.answer(&[parent.into()])?
                    }
                    PARENT => {
                        let parent = sink.has_parent(owner(header.owner)?);
                        self.answer(&i32::from(parent).to_ne_bytes())?
                    }
                    LEGACY_OPEN => {
                        self.owner = Some(header.owner);
                        sink.open(owner(header.owner)?)?;
                        true
                    }
                    ADD => self.take(&header, command >> 16, sink)?,
                    LEGACY_ADD => self.take(&header, PageRun::PRESENT, sink)?,
                    LEGACY_HOLE => self.take(&header, PageRun::PARENT, sink)?,
                    _ => return Err(corrupt(format!("the command {command:#x}"))),
                },
            };
            if !whole {
                return Ok(PageStream::CutShort);
            }
        }
    }

    /// Hands a run over; returns `false` if criu closed the stream within it.
    fn take(&self, header: &Header, flags: u32, sink: &mut dyn PageSink) -> Result<bool> {
        // Without this check, unannounced pages would be parsed as a header.
        if self.owner != Some(header.owner) {
            return Err(corrupt(format!("pages of the owner {:#x}, which is not open", header.owner)));
        }
        let run = PageRun::new(self.page_size, header.address, header.pages, flags)?;
        let mut memory = self.socket.take(if run.is_present() { run.bytes() } else { 0 });
        let taken = sink.run(run, &mut memory);
        let left = memory.limit();
        match taken {
            Ok(()) if left > 0 => Err(corrupt(format!("{left} bytes of memory that the sink did not read"))),
            Ok(()) => Ok(true),
            // The sink met the end of the stream first.
            Err(Error::Io { source, .. }) if left > 0 && source.kind() == ErrorKind::UnexpectedEof => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn answer(&self, bytes: &[u8]) -> Result<bool> {
        let mut socket = self.socket;
        match socket.write_all(bytes) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                Ok(false)
            }
            Err(error) => Err(Error::io("answer criu's page server request")(error)),
        }
    }

    /// Reads the next header; `None` if criu has closed the stream.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut bytes = [0; LONG];
        let known = if self.long == Some(true) { LONG } else { SHORT };
        if !self.fill(&mut bytes[..known])? {
            return Ok(None);
        }
        let long = match self.long {
            Some(long) => long,
            // The first message opens an owner or asks about one. The short form ends with the
            // owner, which is not 0. In the long form these bytes are an address of 0.
            None => {
                let closes = bytes[1..4] == FORCE_CLOSE.to_ne_bytes()[1..4];
                let long = bytes[16..SHORT] == [0; 8];
                if long && closes {
                    // A dump that fails early closes at once, and these bytes are zeros in both
                    // forms. criu sends a header at once, so the rest of a long header is here by
                    // now.
                    let _ = recv(self.socket.as_raw_fd(), &mut bytes[SHORT..], MsgFlags::MSG_DONTWAIT);
                } else if long && !self.fill(&mut bytes[SHORT..])? {
                    return Ok(None);
                }
                *self.long.insert(long)
            }
        };
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let double = |at: usize| {
            let bytes = bytes.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
            u64::from_ne_bytes(bytes.unwrap_or_default())
        };
        Ok(Some(match long {
            true => Header { command: word(0), pages: double(8), address: double(16), owner: double(24) },
            false => {
                Header { command: word(0), pages: word(4).into(), address: double(8), owner: double(16) }
            }
        }))
    }

    /// Fills the buffer; returns `false` if criu has closed the stream.
    fn fill(&self, bytes: &mut [u8]) -> Result<bool> {
        let mut socket = self.socket;
        match socket.read_exact(bytes) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                Ok(false)
            }
            Err(error) => Err(Error::io("receive memory from criu")(error)),
        }
    }
}

/// Refuses data behind the end of a stream: pages that no header announced.
pub(crate) fn check_nothing_left(socket: &UnixStream) -> Result<()> {
    let mut byte = [0];
    match recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(1..) => Err(corrupt("more than its headers announce".to_owned())),
        Ok(0) | Err(Errno::EAGAIN | Errno::ECONNRESET | Errno::EPIPE) => Ok(()),
        Err(errno) => Err(Error::io("look for the end of criu's stream of memory")(errno.into())),
    }
}

/// Decodes an owner: the lowest byte is the kind, the others are the number.
fn owner(number: u64) -> Result<PageOwner> {
    let who = number >> 8;
    match number & 0xff {
        // criu's older releases sent the other values by accident, with the same meaning.
        1 | 10 | 11 | 16 | 17 => {
            let pid = u32::try_from(who).map_err(|_| corrupt(format!("memory of the process {who}")))?;
            Ok(PageOwner::Task(pid))
        }
        2 | 27 | 28 | 29 | 32 | 33 | 34 => Ok(PageOwner::Shared(who)),
        kind => Err(corrupt(format!("memory of the kind {kind}"))),
    }
}

fn corrupt(problem: String) -> Error {
    Error::corrupt("criu's stream of memory", problem)
}

/// Makes a pair of sockets for a stream of memory: ours, and the one to lend. The lent socket has a
/// large buffer, so that criu waits less often.
pub(crate) fn page_sockets() -> io::Result<(UnixStream, UnixStream)> {
    use nix::sys::socket::{setsockopt, sockopt};

    let (ours, theirs) = UnixStream::pair()?;
    if setsockopt(&theirs, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        let _ = setsockopt(&theirs, sockopt::SndBuf, &SEND_BUFFER); // up to the system's limit
    }
    Ok((ours, theirs))
}

/// The size of the buffer. It halves the frozen time, compared with the default of some 200 KiB. A
/// larger buffer gains nothing.
const SEND_BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A sink that has memory of some owners from the previous dump.
    #[derive(Default)]
    struct Sink {
        known: Vec<PageOwner>,
        opened: Vec<PageOwner>,
        runs: Vec<PageRun>,
        bytes: usize,
    }

    impl PageSink for Sink {
        fn has_parent(&mut self, owner: PageOwner) -> bool {
            self.known.contains(&owner)
        }

        fn open(&mut self, owner: PageOwner) -> Result<()> {
            self.opened.push(owner);
            Ok(())
        }

        fn run(&mut self, run: PageRun, memory: &mut dyn Read) -> Result<()> {
            self.runs.push(run);
            self.bytes += memory.read_to_end(&mut Vec::new()).map_err(Error::io("read"))?;
            Ok(())
        }

        fn close(&mut self) -> Result<()> {
            Ok(())
        }
    }

    /// Makes a header of either length.
    fn header(long: bool, command: u32, pages: u64, address: u64, owner: u64) -> Vec<u8> {
        let mut bytes = command.to_ne_bytes().to_vec();
        match long {
            true => bytes.extend([[0x5a; 4].as_slice(), &pages.to_ne_bytes()].concat()),
            false => bytes.extend(u32::try_from(pages).unwrap().to_ne_bytes()),
        }
        bytes.extend([address.to_ne_bytes(), owner.to_ne_bytes()].concat());
        bytes
    }

    /// Receives a stream; returns its result and all answers to it.
    fn receive(sink: &mut Sink, stream: &[u8]) -> (Result<PageStream>, Vec<u8>) {
        receive_of(PageSize::SMALLEST, sink, stream)
    }

    fn receive_of(page_size: PageSize, sink: &mut Sink, stream: &[u8]) -> (Result<PageStream>, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let mut reader = theirs.try_clone().unwrap();
            let answers = scope.spawn(move || {
                let mut answers = Vec::new();
                // The receiver may close with unread bytes, which resets the connection.
                let _ = reader.read_to_end(&mut answers);
                answers
            });
            let _ = theirs.write_all(stream); // the receiver may have closed the stream
            theirs.shutdown(Shutdown::Write).unwrap();
            let received = super::receive(&ours, page_size, sink);
            drop(ours);
            (received, answers.join().unwrap())
        })
    }

    const TASK: u64 = 7 << 8 | 1;
    const OTHER: u64 = 8 << 8 | 1;
    const SHARED: u64 = 7 << 8 | 2;

    #[test]
    fn a_round_after_another_brings_holes() {
        for long in [true, false] {
            let mut sink = Sink { known: vec![PageOwner::Task(7)], ..Sink::default() };
            let stream = [
                header(long, PARENT, 0, 0, TASK),
                header(long, PARENT, 0, 0, OTHER),
                header(long, OPEN, 0, 0, SHARED),
                header(long, OPEN, 0, 0, TASK),
                header(long, ADD | PageRun::PARENT << 16, 3, 0x1000, TASK),
                header(long, ADD | PageRun::PRESENT << 16, 1, 0x4000, TASK),
                vec![9; 4096],
                header(long, OPEN, 0, 0, OTHER),
                header(long, FORCE_CLOSE, 0, 0, 0),
            ];
            let (received, answers) = receive(&mut sink, &stream.concat());
            assert_eq!(received.unwrap(), PageStream::Whole);
            let yes = 1_i32.to_ne_bytes();
            assert_eq!(answers, [&yes[..], &[0; 4], &[0], &[1], &[0], &[0; 4]].concat());
            assert_eq!(sink.opened, [PageOwner::Shared(7), PageOwner::Task(7), PageOwner::Task(8)]);
            let shown: Vec<_> = sink.runs.iter().map(|run| (run.is_in_parent(), run.pages)).collect();
            assert_eq!((shown, sink.bytes), (vec![(true, 3), (false, 1)], 4096));
        }
    }

    #[test]
    fn pages_have_the_size_of_the_kernels() {
        for page_size in PageSize::TESTED {
            let address = 4 * page_size.bytes();
            let stream = |memory: usize| {
                [
                    header(true, OPEN, 0, 0, TASK),
                    header(true, ADD | PageRun::PRESENT << 16, 3, address, TASK),
                    vec![9; memory],
                    header(true, CLOSE, 0, 0, 0),
                ]
                .concat()
            };
            let mut sink = Sink::default();
            let (received, _) = receive_of(page_size, &mut sink, &stream(3 * page_size.length()));
            assert_eq!(received.unwrap(), PageStream::Whole);
            let run = PageRun { page_size, address, pages: 3, flags: PageRun::PRESENT };
            assert_eq!((sink.runs, sink.bytes), (vec![run], 3 * page_size.length()));
            // The stream of a kernel with pages of another size.
            for other in PageSize::TESTED.into_iter().filter(|other| *other != page_size) {
                let (received, _) = receive_of(page_size, &mut Sink::default(), &stream(3 * other.length()));
                assert!(!matches!(received, Ok(PageStream::Whole)), "{page_size:?} {other:?}");
            }
        }
    }

    #[test]
    fn pages_that_no_header_announced_are_an_error() {
        let pages = |long: bool, left: &[u8]| {
            let announced =
                [header(long, ADD | PageRun::PRESENT << 16, 1, 0x4000, TASK), vec![9; 4096]].concat();
            let first = [header(long, OPEN, 0, 0, TASK), announced].concat();
            [first.as_slice(), left, &header(long, FORCE_CLOSE, 0, 0, 0)].concat()
        };
        for long in [true, false] {
            assert_eq!(receive(&mut Sink::default(), &pages(long, &[])).0.unwrap(), PageStream::Whole);
            let forged = [
                // The remaining bytes look like garbage, like pages of another owner, or like the
                // end.
                vec![7; 4096],
                vec![0; 4096],
                [header(long, ADD | PageRun::PRESENT << 16, 1, 0x4000, OTHER), vec![9; 4096]].concat(),
                [header(long, LEGACY_ADD, 1, 0x4000, SHARED), vec![9; 4096]].concat(),
                header(long, FORCE_CLOSE, 0, 0, 0),
            ];
            for (number, left) in forged.iter().enumerate() {
                let (received, _) = receive(&mut Sink::default(), &pages(long, left));
                assert!(matches!(received, Err(Error::Corrupt { .. })), "{number}: {received:?}");
            }
        }
    }

    #[test]
    fn a_stream_may_close_before_any_memory() {
        for (long, close) in [(true, CLOSE), (true, FORCE_CLOSE), (false, CLOSE), (false, FORCE_CLOSE)] {
            let (received, answers) = receive(&mut Sink::default(), &header(long, close, 0, 0, 0));
            assert!(matches!(received, Ok(PageStream::Whole)), "{long} {close:#x}: {received:?}");
            assert_eq!(answers, [0; 4]);
        }
    }

    #[test]
    fn what_comes_after_the_end_is_found() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        check_nothing_left(&ours).unwrap();
        theirs.write_all(b"x").unwrap();
        assert!(matches!(check_nothing_left(&ours), Err(Error::Corrupt { .. })));
        drop(theirs);
        assert!(check_nothing_left(&ours).is_err(), "it is still there");
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        check_nothing_left(&ours).unwrap();
    }

    #[test]
    fn a_question_about_nobody_ends_the_stream() {
        for (command, owner) in [(PARENT, 7 << 8 | 3), (OPEN, 0x0100), (PARENT, u64::MAX << 8 | 1)] {
            let stream = [header(true, OPEN, 0, 0, TASK), header(true, command, 0, 0, owner)].concat();
            let (received, answers) = receive(&mut Sink::default(), &stream);
            assert!(matches!(received, Err(Error::Corrupt { .. })), "{received:?}");
            assert_eq!(answers.len(), 1);
        }
    }

    #[test]
    fn a_stream_that_ends_anywhere_is_cut_short() {
        let stream = [
            header(true, PARENT, 0, 0, TASK),
            header(true, OPEN, 0, 0, TASK),
            header(true, ADD | PageRun::PARENT << 16, 3, 0x1000, TASK),
        ]
        .concat();
        for length in 0..=stream.len() {
            let (received, _) = receive(&mut Sink::default(), &stream[..length]);
            assert_eq!(received.unwrap(), PageStream::CutShort, "{length}");
        }
    }

    #[test]
    fn holes_with_no_end_are_refused() {
        for (pages, address) in [(u64::MAX, 0x1000), (0, 0x1000), (1, 0x1001), (1 << 52, 0)] {
            let hole = header(true, ADD | PageRun::PARENT << 16, pages, address, TASK);
            let stream = [header(true, OPEN, 0, 0, TASK), hole].concat();
            let (received, _) = receive(&mut Sink::default(), &stream);
            assert!(matches!(received, Err(Error::Corrupt { .. })), "{pages} {address}: {received:?}");
        }
    }
}
